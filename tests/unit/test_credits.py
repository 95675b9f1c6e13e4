"""Credits: what a site says it could take, and what an ingress makes of it; docs/herding.md."""

from dataclasses import replace
from math import inf, nan

import pytest

from isochrone.core.estimate.engine_rates import seeded
from isochrone.core.estimate.service import Rates, Servers, Work, busy_s
from isochrone.core.rng import stream
from isochrone.core.routing.credits import (
    credit,
    kept,
    said_requests,
    spare_requests,
    stays,
    wanting,
)
from isochrone.core.routing.loads import Loads
from isochrone.core.routing.site_load import Reading, load_of
from isochrone.core.routing.table import RoutingTable
from isochrone.core.world.engine_load import UNKNOWN_LOAD
from tests.builders import (
    MODEL,
    SECOND_NS,
    a_choice,
    a_digest,
    a_load,
    a_site,
    a_table,
    a_view,
)

# 4 replicas of 8 slots: a usual request of 200 and 120 tokens is 200 / 32,000 + 120 / 3,200 s of
# work for all of them, so they serve 22.86 requests a second.
SERVERS = Servers(ready=4, slots=32, rates=Rates(prefill_tok_s=8000.0, decode_tok_s=100.0))


def spare(*, requests: float, arrived: float) -> float:
    """With so many usual requests at the site."""
    pending = Work(prompt_tokens=0, output_tokens=round(120 * requests))
    return spare_requests(
        SERVERS, pending, prompt_tokens=200, output_tokens=120, arrived=arrived
    )


def test_worked_example_of_what_a_site_says() -> None:
    assert busy_s(SERVERS, 200, 120) == pytest.approx(0.04375)
    assert spare(requests=0, arrived=0.0) == pytest.approx(16.63, abs=0.01)
    assert spare(requests=24, arrived=16.0) == pytest.approx(5.58, abs=0.01)
    assert spare(requests=64, arrived=30.0) == pytest.approx(-7.76, abs=0.01)


def test_worked_example_of_all_ingresses() -> None:
    assert credit(2.0, 16.0, 5.6) == pytest.approx(13.2)
    assert credit(2.0, 30.0, -7.5) == pytest.approx(1.5)
    assert wanting(2.0, 16.0, 5.6) == 2.0
    assert wanting(2.0, 30.0, -7.5) == 30.0
    assert kept(1.0, 30.0, -7.5) == pytest.approx(0.75)
    assert kept(0.75, 20.0, 2.0) == pytest.approx(0.825)


def test_full_slots_and_what_they_serve_are_as_it_should_be() -> None:
    served = 1 / busy_s(SERVERS, 200, 120)
    assert spare(requests=32 + 0.25 * 3200 / 120, arrived=served) == pytest.approx(0, abs=0.1)


def test_free_slots_invite_nobody_while_long_prompts_wait_to_be_read() -> None:
    """Slow writing makes full slots worth many seconds, which no reading may hide in."""
    slow = Servers(ready=2, slots=512, rates=Rates(prefill_tok_s=15_000.0, decode_tok_s=10.0))

    def said(unread_tokens: int) -> float:
        pending = Work(prompt_tokens=unread_tokens, output_tokens=10_000)
        return spare_requests(
            slow, pending, prompt_tokens=5000, output_tokens=200, arrived=1.0
        )

    assert said(0) > said(60_000) > said(120_000)
    assert said(60_000) > 0, "two seconds of reading"
    assert said(200_000) < 0


@pytest.mark.parametrize(("running", "waiting", "slots"), [(40, 0, 256), (40, 9, 40), (0, 3, 256)])
def test_who_lets_requests_wait_has_no_free_slot(running: int, waiting: int, slots: int) -> None:
    load = replace(UNKNOWN_LOAD, running=running, waiting=waiting)
    known = seeded(Rates(prefill_tok_s=1000.0, decode_tok_s=10.0))
    ready = [Reading(slots=256, load=load, arrived=1.0)]
    assert load_of(MODEL, ready, known).slots == slots


@pytest.mark.parametrize("requests", [0, 10, 32, 100])
def test_more_work_and_more_arrivals_leave_less_spare(requests: int) -> None:
    assert spare(requests=requests + 1, arrived=5.0) < spare(requests=requests, arrived=5.0)
    assert spare(requests=requests, arrived=6.0) < spare(requests=requests, arrived=5.0)


@pytest.mark.parametrize("arrived", [0.0, 3.0, 50.0])
@pytest.mark.parametrize("spare", [-80.0, -1.0, 0.0, 4.0, 90.0])
def test_credit_is_bounded_and_falls_with_what_is_spare(arrived: float, spare: float) -> None:
    for pushed in (0.0, arrived / 3, arrived):
        given = credit(pushed, arrived, spare)
        assert 0 <= given <= pushed + 2 * max(spare, 0)
        assert given <= credit(pushed, arrived, spare + 1.0)
        assert wanting(pushed, arrived, spare) >= pushed
    if spare < 0 and arrived:
        assert credit(arrived, arrived, spare) == pytest.approx(max(arrived + spare, 0))


def test_who_sends_all_leaves_at_once_and_many_leave_by_parts() -> None:
    assert stays(1.0, 1.0, 50.0, 90.0) == 0.0
    assert stays(1.0, 0.0, 50.0, 90.0) == pytest.approx(0.975)
    assert stays(1.0, 0.0, 5000.0, 90.0) == 0.0
    assert stays(0.4, 0.0, 0.0, 90.0) == 0.4
    assert stays(0.4, 1.0, 0.0, 90.0) == 0.4


def test_where_few_come_one_leaves_in_an_interval_however_short_the_queue() -> None:
    assert stays(1.0, 0.0, 50.0, 4.0) == pytest.approx(0.75)
    assert stays(1.0, 0.0, 1000.0, 4.0) == pytest.approx(0.5)
    assert stays(1.0, 0.5, 50.0, 4.0) == pytest.approx(0.375)
    assert stays(1.0, 0.0, 50.0, 0.2) == 0.0, "it is the only one"


def test_a_site_gets_its_requests_back_and_never_loses_all() -> None:
    keep = 1.0
    for _ in range(100):
        keep = kept(keep, 10.0, -9.0)
    assert keep == 0.05
    assert kept(keep, 10.0, 500.0) == 2 * keep  # a jump says little
    for _ in range(20):
        keep = kept(keep, 10.0, 3.0)
    assert keep == 1.0
    assert kept(0.1, 0.0, 9.0) == 0.1  # nobody came: that says nothing


@pytest.mark.parametrize(("given", "taken"), [
    (None, None), (nan, None), (inf, None), (-inf, None), (3.5, 3.5), (1e30, 1e9), (-1e30, -1e9),
])
def test_what_a_digest_says_is_believed_within_reason(
    given: float | None, taken: float | None
) -> None:
    assert said_requests(given) == taken


# -- in a choice -----------------------------------------------------------------------------------


def crowded() -> RoutingTable:
    """One of 1,100 ingresses; 5 ms to one site, 35 ms to two others."""
    names = ["ingress", "near", "far", "other"]
    view = a_view(
        [a_site(name) for name in names], rtt_ms={"near": 5.0, "far": 35.0, "other": 35.0},
        serving=names[1:],
    )
    return replace(a_table(view), joined=(1 << 1100) - 1)


def told(arrived: float | None, spare: float | None, *, near: float | None = None) -> Loads:
    """A second of queue at the near site, where 90 came; the others are idle and have `spare`."""
    loads = Loads()
    busy = a_load(running=4, waiting=4, output_tokens=640)
    came = None if arrived is None else 90.0
    loads.heard(a_digest("near", replace(busy, arrived=came, spare=near)), SECOND_NS)
    for name in ("far", "other"):
        load = replace(a_load(), arrived=arrived, spare=spare)
        loads.heard(a_digest(name, load), SECOND_NS)
    return loads


def parts(loads: Loads, count: int = 2000) -> dict[str, float]:
    """Of many choices without dispatching: the part of each site."""
    table, rng, found = crowded(), stream(4, "credits"), dict.fromkeys(("near", "far", "other"), 0)
    for _ in range(count):
        choice = a_choice(table, loads, now_ns=SECOND_NS, rng=rng, target_ms=0)
        assert choice.pushed == (choice.site != "near")
        assert choice.because == ("cheapest" if choice.pushed else "nearest")
        found[str(choice.site)] += 1
    return {name: times / count for name, times in found.items()}


def test_without_credits_everybody_runs_to_the_shortest_queue() -> None:
    found = parts(told(None, None))
    assert found["near"] == 0
    assert found["far"] == pytest.approx(0.5, abs=0.05)


def test_with_credits_so_many_leave_as_the_queue_is_longer_and_as_may() -> None:
    plenty = parts(told(10.0, 1100.0, near=0.0))
    assert plenty["near"] == pytest.approx(1 - 0.94 / 2, abs=0.05)
    few = parts(told(10.0, 9.0, near=0.0))  # 2 * 18 may leave of 90 that want to
    assert few["near"] == pytest.approx(1 - 0.47 * 0.4, abs=0.05)
    assert few["far"] == pytest.approx(few["other"], abs=0.05)
    assert parts(told(10.0, 0.0, near=0.0))["near"] == 1.0


def test_a_site_that_says_too_many_come_keeps_a_part() -> None:
    found = parts(told(10.0, 1100.0, near=-45.0))
    assert found["near"] == pytest.approx(0.5 * (1 - 0.94 / 2), abs=0.05)


def test_the_first_of_those_that_leave_have_the_cheapest_site() -> None:
    """Nine of ten that want to leave may go to the one that is 30 ms nearer than the other."""
    view = a_view(
        [a_site(name) for name in ("ingress", "near", "far", "other")],
        rtt_ms={"near": 5.0, "far": 35.0, "other": 65.0}, serving=["near", "far", "other"],
    )
    table, loads, rng = a_table(view), told(0.0, 40.5, near=-90.0), stream(5, "order")
    went = [
        str(a_choice(table, loads, now_ns=SECOND_NS, rng=rng, target_ms=0).site)
        for _ in range(2000)
    ]
    left = len(went) - went.count("near")
    assert went.count("far") / left == pytest.approx(0.9, abs=0.03)
    assert went.count("other") / left == pytest.approx(0.1, abs=0.03)


def test_credits_end_while_the_bus_is_away() -> None:
    loads = told(10.0, 0.0, near=0.0)
    assert parts(loads, 100)["near"] == 1.0
    loads.deaf(SECOND_NS)
    assert parts(loads, 100)["near"] == 0.0


def test_digests_that_come_close_together_end_no_interval() -> None:
    loads = told(10.0, 1100.0, near=0.0)
    far = loads.of(a_site("far").name)
    assert far is not None
    load = far.models[MODEL]
    for _ in range(4):
        loads.dispatched(far.site, MODEL, 1, 1, SECOND_NS)
    again = replace(a_load(), arrived=10.0, spare=0.0, pushed=3.0)
    loads.heard(a_digest("far", again, sequence=2), SECOND_NS + 100_000_000)
    assert (load.dispatched, load.sent, load.pushed) == (4, 0.0, 3.0)
    loads.heard(a_digest("far", again, sequence=3), 2 * SECOND_NS)
    assert (load.dispatched, load.sent) == (0, 2.0)


def test_a_site_that_was_away_is_sent_a_part_first() -> None:
    loads = Loads()
    sayings = [(1, 10.0, 5.0), (2, None, None), (6, 0.0, 50.0), (7, 4.0, 50.0), (8, 8.0, 50.0)]
    keeps = []
    for second, arrived, spare in sayings:
        load = replace(a_load(ready=0 if spare is None else 1), arrived=arrived, spare=spare)
        loads.heard(a_digest("far", load, sequence=second), second * SECOND_NS)
        far = loads.of(a_site("far").name)
        assert far is not None
        keeps.append(far.models[MODEL].keep)
    assert keeps == [1.0, 1.0, 0.25, 0.5, 1.0]

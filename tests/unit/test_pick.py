"""Which replica: the shortest wait, then the least share of slots, and who is left out."""

from collections import Counter
from dataclasses import replace

import pytest

from isochrone.core.estimate.service import Rates, Work
from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.lifecycle.health import Health, HealthRules
from isochrone.core.rng import stream
from isochrone.core.routing.pick import Standing, pick, soonest_ms
from isochrone.core.world.model import Replica, ReplicaState

RNG = stream(3, "pick")
RULES = HealthRules()


def a_standing(
    name: str,
    *,
    running: int = 0,
    slots: int = 4,
    state: ReplicaState = "ready",
    revision: str | None = None,
    health: Health | None = None,
) -> Standing:
    standing = Standing(
        Replica(
            id=ReplicaId(name), site=SiteName("sydney"), model=ModelName("tiny"),
            revision=revision, generation=1, state=state, engine="openai",
            base_url="http://127.0.0.1:1/v1", engine_key=None, credential=None,
            upstream_model="tiny", slots=slots, pid=None, started_at=0,
        )
    )
    standing.count(running)
    standing.health = health or Health()
    return standing


def picked(
    *standings: Standing, tried: tuple[str, ...] = (), revision: str | None = None,
    cached: dict[str, float] | None = None, now_ns: int = 100,
) -> str:
    known = None if cached is None else {ReplicaId(name): each for name, each in cached.items()}
    found = pick(
        standings, tuple(map(ReplicaId, tried)), now_ns=now_ns, rng=RNG, rules=RULES,
        revision=revision, cached=known,
    )
    return "nobody" if found is None else found.replica.id


def test_nobody_waits_for_an_engine_of_which_nobody_knows_how_fast_it_is() -> None:
    busy, busier = a_standing("busy"), a_standing("busier")
    for number, each in enumerate((busy, busier), 1):
        each.count(1, 4_000 * number)
    starting = a_standing("starting", state="starting")
    assert busy.wait_ms > 0
    assert soonest_ms((busy, busier, starting)) == 0.0
    busy.rate(Rates(prefill_tok_s=2_000.0, decode_tok_s=50.0))
    assert soonest_ms((busy, busier)) == 0.0
    busier.rate(Rates(prefill_tok_s=2_000.0, decode_tok_s=50.0))
    assert soonest_ms((busy, busier, starting)) == busy.wait_ms
    assert soonest_ms((starting,)) == soonest_ms(()) == 0.0


def test_an_ejected_engine_is_not_the_one_that_is_soonest_done() -> None:
    busy, out = a_standing("busy"), a_standing("out")
    busy.count(1, 4_000)
    for each in (busy, out):
        each.rate(Rates(prefill_tok_s=2_000.0, decode_tok_s=50.0))
    assert soonest_ms((busy, out)) == 0.0
    out.health.lost("no connection", 0, rng=RNG, rules=RULES)
    assert soonest_ms((busy, out)) == busy.wait_ms
    assert soonest_ms((out,)) == 0.0


def test_the_least_share_wins_not_the_fewest_requests() -> None:
    assert picked(a_standing("small", running=1, slots=2), a_standing("big", running=3, slots=8)) \
        == "big"
    assert picked(a_standing("a", running=9, slots=4), a_standing("b", running=8, slots=4)) == "b"


def test_equals_are_drawn_evenly() -> None:
    standings = [a_standing(name, running=1) for name in "abc"]
    drawn = Counter(picked(*standings) for _ in range(3000))
    assert set(drawn) == {"a", "b", "c"}
    assert min(drawn.values()) > 850


def test_a_replica_without_slots_counts_as_one_slot() -> None:
    assert picked(a_standing("none", slots=0, running=1), a_standing("one", slots=2, running=1)) \
        == "one"
    assert picked(a_standing("none", slots=0, running=1), a_standing("full", running=5)) == "none"


def test_equal_shares_of_different_sizes_are_equals() -> None:
    standings = a_standing("small", running=1, slots=3), a_standing("big", running=3, slots=9)
    assert {picked(*standings) for _ in range(100)} == {"small", "big"}


def test_who_may_not_be_asked_is_left_out() -> None:
    assert picked() == "nobody"
    assert picked(a_standing("a", state="starting"), a_standing("b", state="draining")) == "nobody"
    assert picked(a_standing("a"), a_standing("b", running=3), tried=("a",)) == "b"
    lost = Health()
    lost.lost("refused", 0, rng=RNG, rules=RULES)
    ejected = a_standing("a", health=lost)
    assert picked(ejected, a_standing("b", running=9), now_ns=lost.until_ns - 1) == "b"
    assert picked(ejected, a_standing("b", running=9), now_ns=lost.until_ns) == "a"


def test_one_that_recovers_gets_its_share_only() -> None:
    health = Health()
    health.returned("it was away", 0)
    standings = a_standing("back", health=health), a_standing("busy", running=3)
    for second, share in ((0, 0.1), (3, 0.3), (7, 0.7), (10, 1.0)):
        now_ns = second * 1_000_000_000
        drawn = Counter(picked(*standings, now_ns=now_ns) for _ in range(2000))
        assert abs(drawn["back"] / 2000 - share) < 0.04
    assert picked(a_standing("alone", health=health), now_ns=1) == "alone"


def test_a_revision_is_taken_exactly() -> None:
    standings = a_standing("a"), a_standing("b", revision="r1"), a_standing("c", revision="r2")
    assert picked(*standings, revision="r2") == "c"
    assert picked(*standings, revision="r3") == "nobody"


def test_worked_example_of_tokens_ahead() -> None:
    """One prompt of 8,000 tokens is more work than three of 20; nobody waits for a slot."""
    long, short = a_standing("long"), a_standing("short")
    for standing in (long, short):
        standing.rate(Rates(prefill_tok_s=1000.0, decode_tok_s=50.0))
    long.count(1, 8000, 100)
    for _ in range(3):
        short.count(1, 20, 100)
    assert (long.wait_ms, short.wait_ms) == (8000.25, 60.75)
    assert picked(long, short) == "short"
    long.count(0, -8000)  # it has read the prompt
    assert long.wait_ms == 0.25
    assert picked(long, short) == "long"


def test_a_full_replica_waits_for_the_slot_that_is_free_soonest() -> None:
    soon, late = a_standing("soon", slots=1), a_standing("late", slots=1)
    soon.count(1, 0, 10)
    late.count(1, 0, 500)
    assert picked(soon, late) == "soon"
    late.rate(Rates(prefill_tok_s=1000.0, decode_tok_s=5000.0))
    assert picked(soon, late) == "late"


def test_what_ended_leaves_nothing_ahead() -> None:
    standing = a_standing("a")
    standing.count(1, 300, 100)
    standing.count(0, -300)
    standing.count(-1, 0, -100)
    assert (standing.wait_ms, standing.ahead) == (0.0, Work())


def test_with_a_slot_free_whoever_has_most_of_the_prompt_goes_first() -> None:
    standings = [a_standing("idle"), a_standing("some", running=1), a_standing("most", running=3)]
    assert picked(*standings, cached={"some": 256.0, "most": 700.0}) == "most"
    standings[2].count(1)  # its slots are full
    assert picked(*standings, cached={"some": 256.0, "most": 700.0}) == "some"
    assert picked(*standings, cached={}) == "idle"
    assert picked(*standings, cached={"most": 700.0, "gone": 900.0}) == "idle"
    assert picked(*standings, cached={"some": 256.0}, tried=("some",)) == "idle"


def test_a_replica_whose_memory_is_full_has_no_slot_free_whatever_it_says() -> None:
    """Two of eight slots are taken, and its engine lets a third request wait: for memory."""
    full, busier = a_standing("full", slots=8), a_standing("busier", slots=8)
    for each in (full, busier):
        each.rate(Rates(prefill_tok_s=2_000.0, decode_tok_s=50.0))
    full.count(3, 0, 3_000)
    busier.count(5, 100, 5_000)
    assert picked(full, busier) == "full"
    full.crowd(2, 1, 8)
    assert full.wait_ms == pytest.approx(20_000.0 + 3 / 8)  # two of three end: 3,000 / (2 * 50) s
    assert picked(full, busier) == "busier"
    full.rate(Rates(prefill_tok_s=2_000.0, decode_tok_s=100.0))
    assert full.wait_ms == pytest.approx(10_000.0 + 3 / 8)
    full.crowd(3, 0, 8)
    assert full.wait_ms == pytest.approx(3 / 8)
    full.crowd(0, 1, 8)  # a prompt that does not fit at all
    assert full.room == 1
    full.take(replace(full.replica, generation=2))
    assert full.room == 8
    full.crowd(3, 0, 3)  # three long ones fill it, although it lets nobody wait yet
    assert (full.holds, full.room) == (3, 3)
    assert full.wait_ms == pytest.approx(10_000.0 / 3 + 3 / 8)  # one of three: 3,000 / 300 s
    full.crowd(3, 2, 12)
    assert (full.holds, full.room) == (8, 3)
    full.take(replace(full.replica, generation=3))
    assert (full.holds, full.room) == (8, 8)

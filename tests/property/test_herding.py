"""Herding: 1,100 ingresses that see each queue a second late do not all run to the shortest one."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isochrone.core.rng import stream
from isochrone.core.routing.choice import Refused
from isochrone.core.routing.loads import Loads
from tests.builders import MODEL, SECOND_NS, a_choice, a_digest, a_load, a_site, a_table, a_view
from tests.fixtures.herd import Cloud, Plan

# A tenth of the sites is nearest to more than a quarter of the demand: 2.4 times what they serve.
UNEVEN = Plan(load=0.85, hot=0.2)


def test_no_queue_is_twice_the_mean_and_without_credits_one_is_many_times() -> None:
    seen = Cloud(replace(UNEVEN, seconds=8)).run()
    assert seen.choices > 5000
    assert seen.worst_ratio() < 2
    assert 0.14 < seen.pushed / seen.choices < 0.3  # 0.17 are too many where they are nearest
    herd = Cloud(replace(UNEVEN, seconds=6, credits=False)).run()
    assert herd.worst_ratio() > 4


def test_sites_that_are_equally_near_share_evenly() -> None:
    even = Plan(ingresses=300, sites=30, regions=1, hot=0.0, load=0.9, seconds=8)
    assert Cloud(even).run().worst_ratio() < 2
    assert Cloud(replace(even, credits=False)).run().worst_ratio() > 2


@pytest.mark.parametrize("seed", [1, 2])
def test_a_site_that_comes_back_is_not_run_down(seed: int) -> None:
    """It is idle when it comes back after four seconds, and nearest to a hot region."""
    plan = Plan(
        ingresses=300, sites=30, regions=10, load=0.75, seconds=14, warm_s=10, away=(10, 5, 9),
        seed=seed,
    )
    seen = Cloud(plan).run()
    assert seen.worst_ratio() < 2
    assert seen.backlogs[-1][10] > 0.5  # and it takes part again


@pytest.mark.parametrize("ingresses", [30, 2000])
def test_it_does_not_matter_how_many_ingresses_share_the_demand(ingresses: int) -> None:
    """Of 2,000, most have not asked twice when all is over."""
    plan = Plan(ingresses=ingresses, sites=20, load=0.85, hot=0.2, seconds=8)
    seen = Cloud(plan).run()
    assert seen.worst_ratio() < 2
    assert 0.14 < seen.pushed / seen.choices < 0.35


@pytest.mark.parametrize("every_s", [1, 10])
def test_gateways_with_few_requests_push_as_much_as_others(every_s: int) -> None:
    """Ten a second want to leave the nearest site, which is full for all of 99 ingresses, and two
    a second may go to the other one, twice what it has spare: each pushes a fifth of what it has,
    however little that is."""
    view = a_view([a_site(name) for name in ("own", "far")], rtt_ms={"far": 250.0})
    table = replace(a_table(view), joined=(1 << 99) - 1)
    loads, rng = Loads(), stream(1, "few")
    full = replace(a_load(running=4, waiting=900, output_tokens=90_000), arrived=10.0, spare=-9.0)
    free = replace(a_load(), arrived=0.0, spare=1.0)
    pushed, asked = 0, 600
    for second in range(1, asked * every_s + 1):
        now_ns = second * SECOND_NS
        loads.heard(a_digest("own", full, sequence=second), now_ns)
        loads.heard(a_digest("far", free, sequence=second), now_ns)
        if second % every_s == 0:
            choice = a_choice(table, loads, now_ns=now_ns, rng=rng)
            assert choice.site is not None
            pushed += choice.site == "far"
            loads.dispatched(choice.site, MODEL, 100, 100, now_ns)
    assert pushed / asked == pytest.approx(0.2, abs=0.05)


FIGURES = st.none() | st.floats(-50, 50) | st.floats()
SITES = ("own", "a", "b", "c", "d")


@settings(max_examples=100)
@given(
    st.lists(st.tuples(FIGURES, FIGURES, st.integers(0, 9000)), min_size=5, max_size=5),
    st.lists(st.sampled_from(SITES), max_size=8),
    st.integers(0, 1000), st.booleans(), st.sets(st.sampled_from(SITES), max_size=3),
)
def test_whatever_digests_say_of_credits_a_choice_is_of_an_open_site(
    said: list[tuple[float | None, float | None, int]], pushed: list[str], seed: int, bound: bool,
    left: set[str],
) -> None:
    loads = Loads()
    view = a_view([a_site(name) for name in SITES], rtt_ms={"a": 3.0, "b": 40.0, "c": 90.0})
    for name, (arrived, spare, output_tokens) in zip(SITES, said, strict=True):
        load = a_load(running=4, waiting=2, output_tokens=output_tokens)
        loads.heard(a_digest(name, replace(load, arrived=arrived, spare=spare)), SECOND_NS)
    table = replace(a_table(view), joined=(1 << 40) - 1)
    for name in pushed:
        loads.dispatched(a_site(name).name, MODEL, 10, 10, SECOND_NS)
    loads.lost(a_site("b").name, SECOND_NS)
    tried = tuple(Refused(site=a_site(name).name, rule="tried_before", detail="x") for name in left)
    rng = stream(seed, "credits")
    for _ in range(5):
        choice = a_choice(
            table, loads, now_ns=2 * SECOND_NS, rng=rng, target_ms=0.0 if bound else 200.0,
            tried=tried,
        )
        assert choice.site in SITES
        assert choice.site not in ("b", *left)
        assert choice.cost_ms < 1e6
        assert choice.because is not None

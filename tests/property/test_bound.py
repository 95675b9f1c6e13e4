"""On small instances: the bound lies below the best of all schedules, and that below every policy.
"""

from dataclasses import replace
from itertools import permutations, product
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isochrone.core.estimate.batching import Physics
from isochrone.core.rng import Random
from isochrone.twin.baselines.catalogue import routers
from isochrone.twin.bound.all_seeing import AllSeeing
from isochrone.twin.bound.fresh import fresh_tokens
from isochrone.twin.bound.lower_bound import lower_bounds
from isochrone.twin.bound.pool import Pool, least_flow_s, least_late
from isochrone.twin.fast.arrivals import NO_SESSION, Arrival, chunk_of
from isochrone.twin.fast.fleet import Fleet
from isochrone.twin.fast.plan import Plan
from isochrone.twin.fast.policy import Router
from isochrone.twin.fast.replica import Job, SimulatedReplica
from isochrone.twin.fast.residency import Tables
from isochrone.twin.fast.simulation import Simulation
from tests.fixtures.small_fleet import a_fleet, some_arrivals

PHYSICS = Physics(
    step_s=0.01, prefill_tok_s=1_000.0, chunk_tokens=256, slots=16, kv_tokens=1_000_000
)
SMALL = a_fleet(sites=2, ingresses=3, replicas=1, physics=PHYSICS, apart_ms=80.0)
HAIR = 1e-6


@st.composite
def requests(draw: st.DrawFn) -> list[Arrival]:
    """Up to four, some with a common beginning; at once or in a row."""
    at_s, rows = 0.0, []
    for _ in range(draw(st.integers(1, 4))):
        at_s += draw(st.sampled_from([0.0, 0.01, 0.3]))
        count = draw(st.integers(0, 4))
        family = draw(st.integers(1, 2))
        rows.append(Arrival(
            at_s=at_s, ingress=draw(st.integers(0, 2)), tenant=0, class_=1, model=0,
            prompt_tokens=count * 256 + draw(st.integers(1, 255)), output_tokens=1,
            expected_tokens=1, session=NO_SESSION, slo_ms=1_000.0, body_bytes=0,
            blocks=tuple(family * 100 + number for number in range(count)),
        ))
    return rows


def best_of_all(fleet: Fleet, rows: list[Arrival]) -> tuple[float, float]:
    """The least mean and the least largest TTFT in ms over all schedules that assign each request
    to a site and hand them over in any order, each as soon as it is there and its turn."""
    mean = most = inf
    for sites in product(range(len(fleet.sites)), repeat=len(rows)):
        for order in permutations(range(len(rows))):
            found = [0.0] * len(rows)
            for site in set(sites):
                mine = [number for number in order if sites[number] == site]
                found = _handed(fleet, rows, site, mine, found)
            mean, most = min(mean, sum(found) / len(rows)), min(most, max(found))
    return mean, most


def _handed(
    fleet: Fleet, rows: list[Arrival], site: int, order: list[int], found: list[float]
) -> list[float]:
    replica = SimulatedReplica(PHYSICS)
    half_s = [float(fleet.rtt_ms[row.ingress, site]) / 2000.0 for row in rows]
    firsts: dict[int, float] = {}

    def advance(limit_s: float) -> None:
        while replica.next_s <= limit_s and replica.next_s < inf:
            firsts.update({job.ident: job.first_s for job in replica.advance(replica.next_s)})

    now_s = 0.0
    for number in order:
        row = rows[number]
        now_s = max(now_s, row.at_s + half_s[number])
        advance(now_s)
        replica.offer(Job(number, row.prompt_tokens, row.output_tokens, row.blocks), now_s)
    advance(1e9)
    for number in order:
        found[number] = 1000.0 * (firsts[number] + half_s[number] - rows[number].at_s)
    return found


@given(requests())
@settings(max_examples=60)
def test_bound_brute_force_and_policies_are_in_order(rows: list[Arrival]) -> None:
    bounds = lower_bounds(SMALL, Tables(SMALL), [chunk_of(rows)])
    mean_ms, most_ms = best_of_all(SMALL, rows)
    assert bounds.light.mean_ms <= bounds.clairvoyant.mean_ms + HAIR
    assert bounds.clairvoyant.mean_ms <= mean_ms + HAIR
    assert bounds.clairvoyant.p99_ms <= most_ms + HAIR  # of four, the 99th percentile is the most
    played: dict[str, Router] = {**routers(), "all_seeing": AllSeeing()}
    for name, router in played.items():
        if name == "campus":
            continue  # on another fleet
        run = Simulation(SMALL, router, Plan()).run([chunk_of(rows)])
        assert run.answered == len(rows)
        assert run.ttft_ms_mean is not None
        assert mean_ms <= run.ttft_ms_mean + HAIR, name


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5)), min_size=1, max_size=6))
@settings(max_examples=60)
def test_the_pool_serves_the_shortest_and_no_order_is_better(jobs: list[tuple[int, int]]) -> None:
    pool = Pool(
        rate=1.0, at_s=np.array([float(at) for at, _ in jobs]),
        release_s=np.array([float(at) for at, _ in jobs]),
        tokens=np.array([float(size) for _, size in jobs]), back_s=np.zeros(len(jobs)),
    )
    least = least_flow_s(pool)
    for order in permutations(range(len(jobs))):
        now = total = 0.0
        for number in order:
            at, size = jobs[number]
            now = max(now, float(at)) + size
            total += now - at
        assert least <= total + HAIR
    assert least >= sum(size for _, size in jobs) - HAIR


@given(st.integers(0, 10_000), st.sampled_from([0.3, 1.0, 2.5]))
@settings(max_examples=40)
def test_no_schedule_has_fewer_late_than_the_bound(seed: int, within_s: float) -> None:
    """By the exact rule for one machine and common release: whole sets are tried."""
    rng = Random(seed)
    count = 7
    at_s = np.sort(np.array([rng.random() * 2.0 for _ in range(count)]))
    tokens = np.array([rng.random() * 800 + 1 for _ in range(count)])
    pool = Pool(
        rate=1_000.0, at_s=at_s, release_s=at_s, tokens=tokens, back_s=np.zeros(count)
    )
    bound = least_late(pool, within_s)
    fewest = count
    for kept in product((False, True), repeat=count):
        mine = [number for number in range(count) if kept[number]]
        now, met = 0.0, True
        for number in mine:  # deadlines come in the order of release, so first come is best
            now = max(now, float(at_s[number])) + float(tokens[number]) / 1_000.0
            met &= now <= float(at_s[number]) + within_s + 1e-9
        if met:
            fewest = min(fewest, count - len(mine))
    assert bound <= fewest


def test_what_a_later_request_from_nearby_brings_is_not_counted_for_one_from_afar() -> None:
    one = a_fleet(sites=1, ingresses=2, replicas=1, physics=PHYSICS)
    fleet = replace(one, rtt_ms=np.array([[0.0], [84.0]]))
    rows = [
        Arrival(
            at_s=at_s, ingress=ingress, tenant=0, class_=1, model=0, prompt_tokens=1_025,
            output_tokens=1, expected_tokens=1, session=NO_SESSION, slo_ms=1_000.0, body_bytes=0,
            blocks=(1, 2, 3, 4),
        )
        for at_s, ingress in ((0.0, 1), (0.01, 0))
    ]
    assert [fresh for _, fresh in fresh_tokens([chunk_of(rows)], 0.042)] == [1, 1]
    assert [fresh for _, fresh in fresh_tokens([chunk_of(rows)], 0.001)] == [1_025, 1]
    bounds = lower_bounds(fleet, Tables(fleet), [chunk_of(rows)])
    _, most_ms = best_of_all(fleet, rows)
    assert most_ms < 84.0 + 1_025.0  # less than the way and the whole reading of the first
    assert bounds.clairvoyant.p99_ms <= most_ms + HAIR


def test_every_way_is_counted_once_where_the_pool_decides() -> None:
    """From afar, all at once, to one engine: the bound is what that engine does at best."""
    near = a_fleet(sites=1, ingresses=1, replicas=1, physics=PHYSICS, homes=False)
    fleet = replace(near, rtt_ms=np.array([[84.0]]))
    rows = [
        Arrival(
            at_s=0.0, ingress=0, tenant=0, class_=1, model=0, prompt_tokens=tokens,
            output_tokens=1, expected_tokens=1, session=NO_SESSION, slo_ms=1_000.0, body_bytes=0,
            blocks=(),
        )
        for tokens in (300, 100, 200)
    ]
    least = lower_bounds(fleet, Tables(fleet), [chunk_of(rows)]).clairvoyant
    mean_ms, most_ms = best_of_all(fleet, rows)
    assert mean_ms == pytest.approx(84.0 + (100 + 300 + 600) / 3)
    assert least.mean_ms == pytest.approx(mean_ms)
    assert 500.0 < least.p99_ms <= most_ms + HAIR


def test_requests_of_a_warm_up_are_not_bounded_but_leave_their_blocks() -> None:
    rows = [
        Arrival(
            at_s=at_s, ingress=0, tenant=0, class_=1, model=0, prompt_tokens=1_025,
            output_tokens=1, expected_tokens=1, session=NO_SESSION, slo_ms=slo_ms, body_bytes=0,
            blocks=(1, 2, 3, 4),
        )
        for at_s, slo_ms in ((0.0, 1e6), (9.0, 1e6), (10.0, 0.0))
    ]
    whole = lower_bounds(SMALL, Tables(SMALL), [chunk_of(rows)])
    rest = lower_bounds(SMALL, Tables(SMALL), [chunk_of(rows)], from_s=9.0)
    assert (whole.requests, whole.in_time, whole.fresh_tokens) == (3, 2, 1_027)
    assert (rest.requests, rest.in_time, rest.fresh_tokens) == (2, 1, 2)
    assert (whole.prompt_tokens, rest.prompt_tokens) == (3_075, 2_050)
    assert rest.clairvoyant.mean_ms < whole.clairvoyant.mean_ms


@given(st.integers(0, 10_000))
@settings(max_examples=10)
def test_every_quantile_of_a_busy_run_lies_above_the_bound(seed: int) -> None:
    fleet = a_fleet(sites=3, ingresses=6, replicas=1, physics=PHYSICS)
    chunks = list(some_arrivals(fleet, rate_s=12.0, seconds=8.0, seed=seed, sessions=9))
    bounds = lower_bounds(fleet, Tables(fleet), chunks).clairvoyant
    means: dict[str, float] = {}
    for name in ("llm_d", "skywalker", "gorgo", "all_seeing"):
        router: Router = AllSeeing() if name == "all_seeing" else routers()[name]
        run = Simulation(fleet, router, Plan()).run(chunks)
        assert run.answered == run.requests
        found = (run.ttft_ms_mean, run.ttft_ms_p50, run.ttft_ms_p90, run.ttft_ms_p99)
        least = (bounds.mean_ms, bounds.p50_ms, bounds.p90_ms, bounds.p99_ms)
        for value, bound in zip(found, least, strict=True):
            assert value is not None
            assert bound <= value * 1.006, name  # quantiles are kept to half a percent
        means[name] = run.ttft_ms_mean or 0.0
    assert means["all_seeing"] <= 1.05 * min(means.values())  # it chooses for each alone


def test_a_burst_moves_mean_and_tail_of_the_bound() -> None:
    rows = [
        Arrival(
            at_s=0.0, ingress=0, tenant=0, class_=1, model=0, prompt_tokens=1_000,
            output_tokens=1, expected_tokens=1, session=NO_SESSION, slo_ms=1_000.0, body_bytes=0,
            blocks=(),
        )
        for _ in range(100)
    ]
    bounds = lower_bounds(SMALL, Tables(SMALL), [chunk_of(rows)])
    # Two engines read 100,000 tokens in 50 s, whatever is done; the mean of an even drain is half.
    assert 24_000 < bounds.clairvoyant.mean_ms < 26_000
    assert 45_000 < bounds.clairvoyant.p99_ms <= 50_000
    assert bounds.clairvoyant.p50_ms > 20_000
    assert bounds.light.mean_ms == 0.0

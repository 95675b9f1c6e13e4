"""The fast twin: exact results through the whole simulator, conservation, staleness, failures."""

import gc
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import factorial, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Final

import pytest

from isochrone.core.estimate.batching import Physics
from isochrone.core.residency.rule import Admitted, admits
from isochrone.core.rng import stream
from isochrone.core.routing.prefix import BLOCK_BYTES, BLOCK_ENDS
from isochrone.core.world.digest import SiteDigest
from isochrone.core.world.site_policy import ClassRule, SitePolicy
from isochrone.twin.fast.arrivals import NO_SESSION, Arrival, chunk_of
from isochrone.twin.fast.fleet import Fleet
from isochrone.twin.fast.gateways import gateway_blocks
from isochrone.twin.fast.ours import Ours
from isochrone.twin.fast.plan import Chance, Observed, Order, Outage, Plan
from isochrone.twin.fast.policy import Flight, Setting
from isochrone.twin.fast.rows import row_of
from isochrone.twin.fast.simulation import BrokenRule, Simulation, run
from isochrone.twin.fast.summary import Quantiles, Summary
from tests.fixtures.small_fleet import PHYSICS, a_fleet, a_tenant, some_arrivals

TICKS: Final = 10_000
ROOT: Final = Path(__file__).resolve().parents[2]


class Nearest:
    """A policy that is as simple as can be: the nearest allowed site, replicas by turns, and no
    second try. It keeps what it was told."""

    name = "nearest"
    digest_s = 1.0

    def __init__(self, wrong_site: int = -1) -> None:
        self.wrong_site = wrong_site
        self.seen: Counter[str] = Counter()
        self.served_at: list[tuple[int, int, int]] = []
        self.ages_s: list[tuple[float, float]] = []

    def start(self, setting: Setting) -> None:
        self.setting = setting
        self.ready: dict[int, list[int]] = {}
        self.turn = 0

    def began(self, flight: Flight, now_s: float) -> None:
        self.seen["began"] += 1
        arrival, fleet = flight.arrival, self.setting.fleet
        for site in range(len(fleet.sites)):
            age_s = self.setting.news.age_s(site, arrival.ingress, now_s)
            self.ages_s.append((age_s, fleet.rtt_ms[arrival.ingress, site].item() / 2000))
        allowed = self.setting.rules.allowed(arrival.ingress, arrival.tenant, arrival.model)
        if self.wrong_site >= 0:
            self.setting.actions.go(flight, self.wrong_site, now_s)
        elif not allowed:
            self.setting.actions.give_up(flight, now_s)
        else:
            row = fleet.rtt_ms[arrival.ingress]
            self.setting.actions.go(flight, min(allowed, key=lambda site: row[site]), now_s)

    def refused(self, flight: Flight, now_s: float, lost: bool) -> None:
        self.seen["lost" if lost else "refused"] += 1
        self.setting.actions.give_up(flight, now_s)

    def ended(self, flight: Flight, now_s: float) -> None:
        self.seen["ended"] += 1

    def broke(self, flight: Flight, now_s: float) -> None:
        self.seen["broke"] += 1

    def arrived(self, flight: Flight, site: int, now_s: float) -> None:
        ready = self.ready[site]
        if not ready:
            self.setting.actions.refuse(flight, now_s)
            return
        self.turn += 1
        arrival = flight.arrival
        self.served_at.append((arrival.ingress, arrival.tenant, site))
        self.setting.actions.serve(flight, ready[self.turn % len(ready)], now_s)

    def first_token(self, flight: Flight, site: int, now_s: float) -> None:
        self.seen["first"] += 1

    def served(self, flight: Flight, site: int, now_s: float) -> None:
        self.seen["served"] += 1

    def replicas_changed(self, site: int, ready: Sequence[int], now_s: float) -> None:
        self.ready[site] = list(ready)

    def told(self, site: int, digest: SiteDigest, now_s: float) -> None:
        self.seen["told"] += 1

    def woken(self, place: int, now_s: float) -> None:
        self.seen["woken"] += 1


class Watched(Ours):
    """Ours, with a note of where each request was served."""

    def __init__(self) -> None:
        super().__init__()
        self.served_at: list[tuple[int, int, int]] = []

    def first_token(self, flight: Flight, site: int, now_s: float) -> None:
        self.served_at.append((flight.arrival.ingress, flight.arrival.tenant, site))
        super().first_token(flight, site, now_s)


def simulate(fleet: Fleet, *, rate_s: float = 60.0, seconds: float = 20.0, sessions: int = 0,
             seed: int = 1, plan: Plan | None = None) -> Summary:
    arrivals = some_arrivals(fleet, rate_s=rate_s, seconds=seconds, sessions=sessions, seed=seed)
    return run(fleet, arrivals, Ours(), plan or Plan(seed=seed))


# -- what is known exactly ---------------------------------------------------------------------


def erlang_c(count: int, load: float) -> float:
    top = load**count / factorial(count) * count / (count - load)
    return top / (sum(load**k / factorial(k) for k in range(count)) + top)


@pytest.mark.parametrize("router", [Nearest, Ours])
@pytest.mark.parametrize(("count", "used"), [(4, 0.8), (16, 0.7)])
def test_a_site_alone_waits_as_erlang_says(
    router: type[Nearest] | type[Ours], count: int, used: float
) -> None:
    """One replica whose slots do not disturb each other is M/M/c, whoever queues."""
    physics = Physics(step_s=1 / TICKS, prefill_tok_s=1e15, slots=count, kv_tokens=10**9)
    patient = SitePolicy(on_demand=ClassRule(wait_ms=1e8, queue_most=100_000))
    fleet = replace(
        a_fleet(sites=1, ingresses=1, replicas=1, physics=physics), admission=patient
    )
    waits_s = []
    for seed in range(6):
        rng, at_s, rows = stream(seed, "erlang"), 0.0, []
        for _ in range(4000):
            at_s += rng.expovariate(used * count)
            tokens = max(round(rng.expovariate(1.0) * TICKS), 1)
            rows.append(Arrival(at_s, 0, 0, 1, 0, 1, tokens, 100, NO_SESSION, 1e9, 0, ()))
        found = run(fleet, [chunk_of(rows)], router(), Plan(seed=seed, warm_s=50.0))
        assert found.answered == found.requests
        assert found.ttft_ms_mean is not None
        waits_s.append(found.ttft_ms_mean / 1000.0)
    expected_s = erlang_c(count, used * count) / (count - used * count)
    assert abs(mean(waits_s) - expected_s) <= 4 * stdev(waits_s) / sqrt(len(waits_s))


def test_one_request_takes_its_way_and_its_physics() -> None:
    fleet = a_fleet(sites=2, ingresses=3, replicas=1)
    row = Arrival(5.0, 2, 0, 1, 0, 2000, 50, 50, NO_SESSION, 200.0, 100, ())
    found = run(fleet, [chunk_of([row])], Nearest())
    assert found.ttft_ms_mean == pytest.approx(4.0 + 100.0, abs=1.5)  # jitter is some percent
    assert found.total_ms_mean is not None
    assert found.total_ms_mean == pytest.approx(4.0 + PHYSICS.alone_ms(2000, 50), rel=0.02)
    assert found.slo_attainment == 1.0


# -- counting ----------------------------------------------------------------------------------


def test_every_request_ends_once_and_every_token_is_written() -> None:
    fleet, router = a_fleet(), Nearest()
    rows = [row for chunk in some_arrivals(fleet, rate_s=50, seconds=20) for row in chunk.rows()]
    simulation = Simulation(fleet, router, Plan())
    found = simulation.run([chunk_of(rows)])
    assert router.seen["began"] == router.seen["ended"] == router.seen["served"] == len(rows)
    assert router.seen["first"] == len(rows) == found.answered
    written = sum(each.sim.written_tokens for each in simulation.replicas)
    assert written == pytest.approx(sum(row.output_tokens for row in rows))
    assert found.output_tokens == sum(row.output_tokens for row in rows)
    read = sum(each.sim.read_tokens for each in simulation.replicas)
    assert read == pytest.approx(sum(row.prompt_tokens for row in rows))


def test_what_is_cached_and_what_is_read_are_all_of_the_prompts() -> None:
    fleet = a_fleet()
    rows = [
        row for chunk in some_arrivals(fleet, rate_s=50, seconds=20, sessions=20)
        for row in chunk.rows()
    ]
    simulation = Simulation(fleet, Ours(), Plan())
    found = simulation.run([chunk_of(rows)])
    read = sum(each.sim.read_tokens for each in simulation.replicas)
    cached = sum(each.sim.cached_tokens for each in simulation.replicas)
    asked = sum(row.prompt_tokens for row in rows)
    assert read + cached == pytest.approx(asked)
    assert found.hit_rate == pytest.approx(cached / asked)
    assert found.hit_rate > 0.8  # conversations go where they were


def test_a_policy_that_loses_a_request_is_found_out() -> None:
    class Forgetful(Nearest):
        def arrived(self, flight: Flight, site: int, now_s: float) -> None:
            if flight.ident != 7:
                super().arrived(flight, site, now_s)

    found = run(
        a_fleet(), some_arrivals(a_fleet(), rate_s=50, seconds=5), Forgetful(), Plan(drain_s=30.0)
    )
    assert found.open == 1


def test_the_same_seed_is_the_same_run_whatever_the_hash_seed() -> None:
    script = (
        "from tests.sim.test_fast_twin import simulate, BUSY\n"
        "from tests.fixtures.small_fleet import a_fleet\n"
        "print(simulate(a_fleet(), sessions=30, plan=BUSY).trace)"
    )
    traces = []
    for hash_seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT / "src")},
        )
        traces.append(done.stdout.strip())
    assert traces[0] == traces[1] == simulate(a_fleet(), sessions=30, plan=BUSY).trace
    assert len(traces[0]) == 32
    other = replace(BUSY, seed=2)
    assert simulate(a_fleet(), sessions=30, plan=other).trace != traces[0]


BUSY: Final = Plan(
    seed=1, chances=(Chance(what="replica", between_s=20.0, repair_s=2.0),),
    outages=(Outage(what="link", number=1, from_s=4.0, until_s=9.0),),
)


@pytest.mark.parametrize("sessions", [0, 40])
def test_memory_does_not_grow_with_the_run(sessions: int) -> None:
    """Five times as long: no more objects are kept, apart from what caches may hold."""
    def kept(seconds: float) -> int:
        fleet = a_fleet(sites=2, ingresses=4)
        gc.collect()
        gc.disable()  # as `run` does
        try:
            simulation = Simulation(fleet, Ours(), Plan())
            simulation.run(some_arrivals(fleet, rate_s=40, seconds=seconds, sessions=sessions))
            return len(gc.get_objects())
        finally:
            gc.enable()

    kept(5.0)
    short = kept(15.0)
    assert kept(75.0) < short * 1.02 + 500


def test_quantiles_are_within_half_a_percent() -> None:
    rng, seen, exact = stream(3, "quantiles"), Quantiles(), []
    for _ in range(20_000):
        value = rng.lognormvariate(4.0, 1.2)
        exact.append(value)
        seen.add(value)
    exact.sort()
    for share in (0.01, 0.5, 0.9, 0.99, 0.999):
        assert seen.at(share) == pytest.approx(exact[int(share * len(exact)) - 1], rel=0.006)
    assert seen.mean_ms() == pytest.approx(mean(exact))
    for _ in range(1000):
        seen.never()
    assert seen.at(0.99) is None
    assert seen.at(0.5) is not None


# -- what is known where -----------------------------------------------------------------------


def test_digests_are_as_old_as_they_are() -> None:
    """Nobody knows of a digest before it can have arrived, and it is never older than an interval
    and its way."""
    fleet, router = a_fleet(apart_ms=200.0), Nearest()
    run(fleet, some_arrivals(fleet, rate_s=50, seconds=10, first_s=2.0), router)
    assert router.ages_s
    assert all(way_s <= age_s <= way_s + 1.0 + 1e-9 for age_s, way_s in router.ages_s)
    assert max(age_s for age_s, _ in router.ages_s) > 1.0


def test_a_gateway_of_ours_hears_as_late_as_news_travels() -> None:
    """After each choice it knows of no digest that has yet to arrive, and of every one that has."""
    class Listening(Ours):
        def began(self, flight: Flight, now_s: float) -> None:
            super().began(flight, now_s)
            gateway = self.gateways[flight.arrival.ingress]
            assert gateway is not None
            for site, way_s in enumerate(gateway.delays_s):
                known = gateway.loads.of(fleet.sites[site].name)
                heard_s = 0.0 if known is None else known.heard_ns / 1e9
                assert now_s - 1.0 - 1e-6 <= heard_s <= now_s
                kept = map(self.news.numbered, range(self.news.first_since(0), self.news.made))
                made = [told.made_s + way_s for told in kept if told.site == site]
                assert any(abs(arrives_s - heard_s) < 1e-6 for arrives_s in made)

    fleet = a_fleet(sites=2, ingresses=3, apart_ms=400.0)
    run(fleet, some_arrivals(fleet, rate_s=30, seconds=10, first_s=2.0), Listening())


# -- residency and failures --------------------------------------------------------------------

HARSH: Final = Plan(
    outages=(
        Outage(what="site", number=0, from_s=3.0, until_s=8.0),
        Outage(what="site", number=1, from_s=5.0, until_s=12.0),
        Outage(what="link", number=2, ingress=3, from_s=4.0, until_s=10.0),
        Outage(what="replica", number=6, from_s=2.0, until_s=15.0),
    ),
    chances=(Chance(what="replica", between_s=15.0, repair_s=3.0),),
)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("sessions", [0, 30])
def test_whatever_fails_nothing_runs_where_it_may_not(seed: int, sessions: int) -> None:
    tenants = (
        a_tenant("free"), a_tenant("german", ("DE",)), a_tenant("european", ("EU",)),
        a_tenant("not-american", ("any", "!US")),
    )
    fleet, router = a_fleet(tenants=tenants), Watched()
    arrivals = some_arrivals(fleet, rate_s=60, seconds=20, sessions=sessions, seed=seed)
    found = run(fleet, arrivals, router, replace(HARSH, seed=seed))
    assert found.requests == found.answered + found.refused + found.broken
    assert found.open == 0
    assert found.retried > 0
    sites_of = {tenant: {site for _, each, site in router.served_at if each == tenant}
                for tenant in range(4)}
    for tenant, sites in sites_of.items():
        axis = tenants[tenant].policy.residency
        for site in sites:
            verdict = admits(axis, fleet.sites[site], fleet.blocs)
            assert isinstance(verdict, Admitted), f"{axis} at {fleet.sites[site].country}"
    assert sites_of[0] == {0, 1, 2, 3}
    assert sites_of[1] == {0}


def test_a_policy_that_breaks_residency_is_stopped() -> None:
    fleet = a_fleet(tenants=(a_tenant("german", ("DE",)),))
    with pytest.raises(BrokenRule, match="may not be processed"):
        run(fleet, some_arrivals(fleet, rate_s=10, seconds=1), Nearest(wrong_site=1))


def test_the_loss_of_a_site_costs_what_ran_there_and_no_more() -> None:
    fleet = a_fleet()
    plan = Plan(outages=(Outage(what="site", number=1, from_s=10.0, until_s=20.0),))
    arrivals = list(some_arrivals(fleet, rate_s=60, seconds=40))
    found = run(fleet, arrivals, Ours(), plan)
    steady = run(fleet, arrivals, Ours())
    assert steady.broken == steady.refused == 0
    assert 0 < found.broken < 0.04 * found.requests  # those that were being answered there
    assert found.refused == 0  # the others went elsewhere
    assert found.by_site[1] < 0.9 * steady.by_site[1]
    after = run(fleet, arrivals, Ours(), replace(plan, warm_s=30.0))
    assert after.broken == 0
    assert after.by_site[1] > 0.1 * after.requests  # it is used again
    assert after.ttft_ms_p99 is not None
    assert after.ttft_ms_p99 < 500


def test_nobody_is_served_at_a_site_that_is_down() -> None:
    class Noting(Watched):
        def first_token(self, flight: Flight, site: int, now_s: float) -> None:
            assert not (site == 1 and 10.0 < now_s < 24.0), "down, and 4 s of starting anew"
            super().first_token(flight, site, now_s)

    fleet = a_fleet()
    plan = Plan(outages=(Outage(what="site", number=1, from_s=10.0, until_s=20.0),))
    run(fleet, some_arrivals(fleet, rate_s=60, seconds=40), Noting(), plan)


def test_a_replica_that_starts_cold_fetches_its_weights_first() -> None:
    warm = a_fleet(sites=1, ingresses=1, replicas=1)
    fleet = replace(warm, replicas=(replace(warm.replicas[0], starts_cold=True),))
    router = Watched()
    rows = [
        Arrival(at, 0, 0, 1, 0, 100, 10, 10, NO_SESSION, 1e3, 100, ()) for at in (3.9, 4.1, 6.0)
    ]
    found = run(fleet, [chunk_of(rows)], router)
    assert fleet.replicas[0].cold_start_s == 4.0
    assert found.refused >= 1
    assert found.answered >= 1


def test_an_operator_starts_and_stops_replicas() -> None:
    class Doubler:
        every_s = 5.0

        def __init__(self) -> None:
            self.seen: list[int] = []

        def operate(self, fleet: Sequence[Observed], now_s: float) -> Sequence[Order]:
            self.seen.append(sum(each.ready for each in fleet))
            if now_s == 5.0:
                return [Order(replica=number, start=True) for number in (1, 3, 5, 7)]
            return [Order(replica=0, start=False)] if now_s == 15.0 else []

    fleet, operator = a_fleet(), Doubler()
    plan = Plan(operator=operator, off=frozenset((1, 3, 5, 7)))
    found = simulate(fleet, seconds=25.0, plan=plan)
    assert operator.seen[:4] == [4, 8, 8, 7]
    assert found.answered == found.requests


def test_a_gateway_of_the_twin_looks_at_the_blocks_that_a_gateway_hashes() -> None:
    """The hash of a larger block is that of the last of the small ones in it."""
    small = list(range(1, 301))
    seen = gateway_blocks(small)
    assert list(seen[:9]) == [1, 2, 3, 4, 5, 6, 7, 8, 10]
    assert [number * BLOCK_BYTES for number in seen] == list(BLOCK_ENDS)
    assert list(gateway_blocks(small[:9])) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_row_of_a_comparison_says_what_the_run_found() -> None:
    found = simulate(a_fleet(), seconds=3.0)
    row = row_of(found, workload="poisson", load=0.4)
    assert (row.workload, row.load, row.policy) == ("poisson", 0.4, "ours")
    assert row.cross_border_bytes == found.cross_border_bytes > 0
    assert (row.ttft_ms_p50, row.ttft_ms_p99) == (found.ttft_ms_p50, found.ttft_ms_p99)
    assert row.gpus_for_slo is None


def test_columns_give_back_the_requests_that_they_were_made_of() -> None:
    rows = [
        Arrival(1.0, 2, 0, 1, 0, 600, 9, 10, 7, 500.0, 2400, (11, 12)),
        Arrival(1.5, 0, 1, 2, 0, 30, 1, 10, NO_SESSION, 900.0, 120, ()),
        Arrival(1.5, 1, 0, 0, 0, 300, 4, 10, 8, 500.0, 1200, (13,)),
    ]
    def shown(row: Arrival) -> tuple[object, ...]:
        return (
            row.at_s, row.ingress, row.tenant, row.class_, row.model, row.prompt_tokens,
            row.output_tokens, row.expected_tokens, row.session, row.slo_ms, row.body_bytes,
            tuple(row.blocks),
        )

    assert list(map(shown, chunk_of(rows).rows())) == list(map(shown, rows))
    assert [row.blocks for row in chunk_of([rows[1]]).rows()] == [()]

"""What a run of the fast twin counts: requests that are open at its end, bytes over borders,
and what cannot be sent."""

from dataclasses import replace

from isochrone.core.estimate.batching import Physics
from isochrone.twin.baselines.catalogue import routers
from isochrone.twin.baselines.replica_picks import LeastOutstandingReplica
from isochrone.twin.baselines.site_picks import NearestSite
from isochrone.twin.baselines.two_level import TwoLevelRouter
from isochrone.twin.bound.all_seeing import AllSeeing
from isochrone.twin.fast.plan import Outage, Plan
from isochrone.twin.fast.policy import Flight
from isochrone.twin.fast.simulation import Simulation
from isochrone.twin.fast.summary import ANSWER_BYTES_TOKEN
from tests.fixtures.small_fleet import a_fleet, a_tenant, some_arrivals

SLOW = Physics(step_s=0.02, prefill_tok_s=2_000.0, slots=8, kv_tokens=60_000)


def test_who_is_not_answered_when_the_run_ends_was_never_answered() -> None:
    """A policy whose queue is longer than the run must not look fast by those at its head."""
    fleet = a_fleet(sites=1, ingresses=1, physics=SLOW, tenants=(a_tenant(), a_tenant("other")))
    run = Simulation(fleet, routers()["nearest"], Plan(drain_s=5.0)).run(
        some_arrivals(fleet, rate_s=60.0, seconds=20.0)
    )
    assert 0.1 * run.requests < run.open < 0.95 * run.requests
    assert run.ttft_ms_p99 is None
    assert run.ttft_ms_mean is not None
    for each in (*run.by_tenant, *run.by_class.values()):
        assert each.ttft_ms_p99 is None


class Detour(TwoLevelRouter):
    """First to site 1, which refuses all, then to site 0."""

    def began(self, flight: Flight, now_s: float) -> None:
        self._setting.actions.go(flight, 1, now_s)

    def refused(self, flight: Flight, now_s: float, lost: bool) -> None:
        self._setting.actions.go(flight, 0, now_s)


def test_what_is_sent_abroad_and_back_crossed_a_border() -> None:
    fleet = a_fleet(sites=2, ingresses=1)
    assert (fleet.sites[0].country, fleet.sites[1].country) == ("DE", "FR")
    off = frozenset(
        number for number, replica in enumerate(fleet.replicas) if replica.site == 1
    )
    asked = [
        row for chunk in some_arrivals(fleet, rate_s=20.0, seconds=10.0) for row in chunk.rows()
    ]

    def crossed(router: TwoLevelRouter, off: frozenset[int]) -> int:
        run = Simulation(fleet, router, Plan(warm_s=2.0, off=off)).run(
            some_arrivals(fleet, rate_s=20.0, seconds=10.0)
        )
        assert run.answered == run.requests > 100
        return run.cross_border_bytes

    bodies = sum(row.body_bytes for row in asked if row.at_s >= 2.0)
    answers = sum(row.output_tokens for row in asked if row.at_s >= 2.0) * ANSWER_BYTES_TOKEN
    picks = NearestSite(), LeastOutstandingReplica()
    assert crossed(Detour("detour", *picks), off) == bodies
    assert crossed(Detour("abroad", *picks), frozenset()) == bodies + answers
    assert crossed(TwoLevelRouter("home", *picks), off) == 0


def test_who_sees_everything_sees_what_is_cut_and_what_never_fits() -> None:
    """It sent such requests again and again, until the run was stopped."""
    fleet = a_fleet(sites=2, homes=False, physics=replace(SLOW, kv_tokens=1_000))
    cut = Outage(what="link", number=1, from_s=5.0, until_s=90.0)
    run = Simulation(fleet, AllSeeing(), Plan(outages=(cut,))).run(
        some_arrivals(fleet, rate_s=2.0, seconds=60.0)
    )
    never = sum(
        row.prompt_tokens + row.output_tokens > 1_000
        for chunk in some_arrivals(fleet, rate_s=2.0, seconds=60.0) for row in chunk.rows()
    )
    assert run.refused == never > 5
    assert run.answered + run.broken == run.requests - never

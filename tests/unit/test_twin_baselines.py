"""Other people's policies on small fleets: each does what its source says, all keep the rules."""

from collections import Counter
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from isochrone.core.estimate.batching import Physics
from isochrone.core.rng import Random
from isochrone.core.world.digest import SiteDigest
from isochrone.twin.baselines.campus import best_campus, campus_of
from isochrone.twin.baselines.catalogue import (
    CONSISTENT_HASH,
    GORGO,
    LLM_D,
    NEAREST_THEN_SPILL,
    ROUND_ROBIN,
    SKYWALKER,
    ConsistentHash,
    Gorgo,
    LlmD,
    NearestThenSpill,
    RoundRobin,
    SkyWalker,
    routers,
)
from isochrone.twin.baselines.prefix_tree import PrefixTree
from isochrone.twin.baselines.replica_picks import StickyReplica, WeightedReplica
from isochrone.twin.baselines.skywalker import SkyWalkerRouter
from isochrone.twin.baselines.tune import tune
from isochrone.twin.baselines.two_level import TwoLevelRouter
from isochrone.twin.baselines.vantage import Vantage
from isochrone.twin.fast.fleet import Fleet
from isochrone.twin.fast.plan import Outage, Plan
from isochrone.twin.fast.policy import Flight, Router
from isochrone.twin.fast.simulation import Simulation
from isochrone.twin.fast.summary import Summary
from tests.builders import a_digest
from tests.fixtures.small_fleet import a_fleet, a_tenant, some_arrivals

NAMES = sorted(routers())
SLOW = Physics(step_s=0.02, prefill_tok_s=2_000.0, slots=8, kv_tokens=60_000)


def played(router: Router, fleet: Fleet, **arrivals: float) -> Summary:
    asked = {"rate_s": 20.0, "seconds": 20.0, **arrivals}
    rows = some_arrivals(
        fleet, rate_s=asked["rate_s"], seconds=asked["seconds"],
        sessions=int(asked.get("sessions", 0)),
    )
    return Simulation(fleet, router, Plan()).run(rows)


@pytest.mark.parametrize("name", NAMES)
def test_all_are_answered_where_they_may_be_and_the_same_each_time(name: str) -> None:
    # The simulation raises BrokenRule where a request runs outside of its tenant's countries.
    tenants = (a_tenant("any"), a_tenant("de", ("DE",)), a_tenant("not-us", ("any", "-US")))
    fleet = a_fleet(tenants=tenants)
    runs = [played(routers()[name], fleet, sessions=20) for _ in range(2)]
    assert runs[0].answered == runs[0].requests > 300
    assert runs[0].trace == runs[1].trace


@pytest.mark.parametrize("name", NAMES)
def test_a_lost_site_and_a_lost_replica_cost_few_requests(name: str) -> None:
    fleet = a_fleet()
    outages = (
        Outage(what="site", number=1, from_s=5.0, until_s=15.0),
        Outage(what="replica", number=0, from_s=8.0, until_s=12.0),
    )
    run = Simulation(fleet, routers()[name], Plan(outages=outages)).run(
        some_arrivals(fleet, rate_s=20.0, seconds=20.0)
    )
    assert run.open == 0
    assert run.answered >= 0.9 * run.requests


def test_the_nearest_site_is_taken_whatever_its_queue() -> None:
    fleet = a_fleet(sites=4, ingresses=4)
    run = played(routers()["nearest"], fleet)
    near = Counter(
        row.ingress for chunk in some_arrivals(fleet, rate_s=20.0, seconds=20.0)
        for row in chunk.rows()
    )
    assert list(run.by_site) == [near[site] for site in range(4)]


def test_turns_are_even_over_the_sites_they_are_taken_at() -> None:
    run = played(ROUND_ROBIN.make(RoundRobin(nearest=4)), a_fleet(sites=4))
    assert max(run.by_site) - min(run.by_site) <= 0.15 * run.requests / 4
    alone = played(ROUND_ROBIN.make(RoundRobin(nearest=1)), a_fleet(sites=4, ingresses=1))
    assert alone.by_site[1:] == (0, 0, 0)


def test_spilling_begins_when_the_nearest_is_full() -> None:
    fleet = a_fleet(sites=4, ingresses=1, physics=SLOW)
    router = NEAREST_THEN_SPILL.make(
        NearestThenSpill(waiting=0.0, prompt_tokens=2_000.0, extra_ms=1_000.0)
    )
    quiet = played(router, fleet, rate_s=0.5)
    assert quiet.by_site[0] == quiet.requests
    busy = played(router, fleet, rate_s=30.0)
    assert busy.by_site[0] < busy.requests
    assert (busy.ttft_ms_mean or 0) < (
        played(routers()["nearest"], fleet, rate_s=30.0).ttft_ms_mean or 0
    )
    kept = NEAREST_THEN_SPILL.make(
        NearestThenSpill(waiting=0.0, prompt_tokens=2_000.0, extra_ms=0.0)
    )
    near = played(kept, fleet, rate_s=30.0)
    assert near.by_site[0] == near.requests


def test_a_session_stays_where_its_hash_points_until_loads_are_bounded() -> None:
    fleet = a_fleet(sites=4, ingresses=1)
    lax = CONSISTENT_HASH.make(ConsistentHash(nearest=4, bound=1_000.0, key_blocks=4))
    strict = CONSISTENT_HASH.make(ConsistentHash(nearest=4, bound=1.01, key_blocks=4))
    one = played(lax, fleet, sessions=1)
    assert max(one.by_site) == one.requests
    spread = played(strict, fleet, sessions=1)
    assert max(spread.by_site) < spread.requests


def test_skywalker_pushes_elsewhere_only_what_would_wait() -> None:
    fleet = a_fleet(sites=4, ingresses=1, physics=SLOW)
    quiet = played(SKYWALKER.make(SkyWalker()), fleet, rate_s=0.3)
    assert quiet.by_site[0] == quiet.requests
    busy = played(SKYWALKER.make(SkyWalker()), fleet, rate_s=25.0)
    assert 0 < busy.by_site[0] < busy.requests
    assert (busy.ttft_ms_p99 or 0) < (
        played(routers()["nearest"], fleet, rate_s=25.0).ttft_ms_p99 or 0
    )


def test_llm_d_stays_at_the_warm_replica_until_it_would_take_too_long() -> None:
    fleet = a_fleet(sites=1, ingresses=1, replicas=4, physics=SLOW)
    sticky = played(LLM_D.make(LlmD(tolerated_s=1_000.0)), fleet, sessions=8, rate_s=4.0)
    never = played(LLM_D.make(LlmD(tolerated_s=-1.0)), fleet, sessions=8, rate_s=4.0)
    assert sticky.hit_rate > never.hit_rate + 0.1


def test_gorgo_goes_to_the_prefix_when_that_is_worth_the_way() -> None:
    fleet = a_fleet(sites=4, ingresses=4, physics=SLOW, apart_ms=60.0)
    dear = GORGO.make(Gorgo(ms_per_token=0.5, rtt_weight=1.0))
    cheap = GORGO.make(Gorgo(ms_per_token=0.001, rtt_weight=1.0))
    assert played(dear, fleet, sessions=6, rate_s=4.0).hit_rate > played(
        cheap, fleet, sessions=6, rate_s=4.0
    ).hit_rate


def test_a_central_balancer_costs_everybody_the_way_over_it() -> None:
    at_0_only = a_fleet(
        sites=4, ingresses=1, apart_ms=60.0, tenants=(a_tenant("de", ("DE",)),)
    )
    central = played(
        GORGO.make(Gorgo(balancers="central", central_site=2)), at_0_only, rate_s=1.0
    )
    near = played(GORGO.make(Gorgo(balancers="regional")), at_0_only, rate_s=1.0)
    assert central.by_site == near.by_site
    # Two sites on, 120 ms there and 120 ms from there to the one site allowed.
    assert (central.ttft_ms_mean or 0) - (near.ttft_ms_mean or 0) == pytest.approx(240.0, rel=0.1)


def test_a_campus_has_the_same_engines_and_the_least_way() -> None:
    fleet = a_fleet(sites=4, ingresses=8)
    at_site = best_campus(fleet, np.array([0.9] + [0.1 / 7] * 7))
    campus = campus_of(fleet, at_site)
    assert at_site == 0
    assert campus.gpus == fleet.gpus
    assert campus.problems() == []
    assert campus.rtt_ms[:, 0].tolist() == fleet.rtt_ms[:, 0].tolist()


def test_a_tree_knows_the_longest_beginning_and_forgets_the_oldest() -> None:
    tree = PrefixTree(6)
    tree.sent((1, 2, 3), 7)
    tree.sent((1, 2, 9), 8)
    assert tree.matches((1, 2, 3, 4)) == {7: 3, 8: 2}
    assert tree.matches((5,)) == {}
    tree.forget(7)
    assert tree.matches((1, 2, 3)) == {8: 2}
    tree.sent((20, 21, 22, 23, 24, 25), 9)
    assert len(tree) == 6
    assert tree.matches((1, 2)) == {}


@pytest.mark.parametrize("name", ["llm_d", "gorgo", "skywalker"])
def test_a_replica_that_is_lost_is_believed_to_have_nothing(name: str) -> None:
    fleet = a_fleet(sites=1, ingresses=1)
    blocks = (1, 2, 3)  # with which all prompts of a lone session begin

    def believed(*outages: Outage) -> set[int]:
        router = routers()[name]
        run = Simulation(fleet, router, Plan(outages=outages))
        run.run(some_arrivals(fleet, rate_s=2.0, seconds=20.0, sessions=1))
        return set(_trees(router)[0].matches(blocks))

    lost = min(believed())
    from_s = 20.0  # after the last arrival, so it is sent nothing anew
    assert lost not in believed(Outage(what="replica", number=lost, from_s=from_s, until_s=30.0))


def _trees(router: Router) -> dict[int, PrefixTree]:
    """Of replicas, by site."""
    if isinstance(router, SkyWalkerRouter):
        return router._replica_trees
    assert isinstance(router, TwoLevelRouter)
    assert isinstance(router._replica_pick, StickyReplica | WeightedReplica)
    return router._replica_pick._trees


def test_tuning_finds_the_best_and_keeps_what_it_tried() -> None:
    found = tune(ROUND_ROBIN, lambda each: abs(each.nearest - 8), Random(1))
    assert found.best == RoundRobin(nearest=8)
    assert len(found.tried) == len(set(ROUND_ROBIN.space) | {ROUND_ROBIN.default})
    assert [cost for _, cost in found.tried].count(found.cost) == 1

    def distance(each: Gorgo) -> float:
        return abs(each.ms_per_token - 0.055) + abs(each.running_weight - 0.33)

    refined = tune(GORGO, distance, Random(1), generations=6)
    assert refined.cost < min(distance(each) for each in GORGO.space)


class _Listening(SkyWalkerRouter):
    """Notes the most that waited anywhere, as sites hear it of each other."""

    most_waiting = 0

    def arrived(self, flight: Flight, site: int, now_s: float) -> None:
        for other in range(len(self._setting.fleet.sites)):
            digest = self._setting.news.heard_at(other, site, now_s)
            for load in () if digest is None else digest.loads:
                self.most_waiting = max(self.most_waiting, load.waiting)
        super().arrived(flight, site, now_s)


def test_skywalkers_balancers_tell_each_other_what_waits_there() -> None:
    given = SkyWalker()
    router = _Listening(
        probe_s=given.probe_s, pending=1, match_share=given.match_share,
        unread_tokens=given.unread_tokens,
    )
    # A replica is given what it can begin to read, so what waits does so at the balancers.
    played(router, a_fleet(sites=2, replicas=1, physics=SLOW), rate_s=30.0)
    assert router.most_waiting > 10


class _Told:
    """News of sites whose one replica is idle, made at `made_s`."""

    made_s = 0.0

    def heard(self, site: int, ingress: int, now_s: float) -> SiteDigest | None:
        return replace(a_digest(f"s{site:02}"), at=int(self.made_s * 1e9))

    def age_s(self, site: int, ingress: int, now_s: float) -> float:
        return now_s - self.made_s

    heard_at, age_at_s = heard, age_s


def test_what_was_sent_counts_until_news_are_made_after_it_was_there() -> None:
    fleet, told = a_fleet(sites=2, homes=False), _Told()
    setting = Simulation(fleet, routers()["nearest"], Plan()).setting
    setting.news = told
    vantage, name = Vantage(setting, 0, at_site=False), fleet.models[0].name
    way_s = vantage.rtt_ms[1] / 2000.0
    vantage.sent(1, 0, 300, now_s=10.0)
    vantage.sent(1, 0, 500, now_s=11.0)
    for made_s, requests in ((9.0, 2), (10.0 + way_s / 2, 2), (10.01 + way_s, 1), (11.1, 0)):
        told.made_s = made_s
        assert vantage.load(1, 0, name, 12.0).requests == requests, made_s


@pytest.mark.parametrize("what", ["site", "link"])
@pytest.mark.parametrize("name", [*NAMES, "gorgo, central"])
def test_what_is_not_heard_of_any_more_is_left_out(
    name: str, what: Literal["site", "link"]
) -> None:
    """By whoever chooses, an ingress or a balancer at a site, until it is heard of again."""
    fleet = a_fleet(sites=3, homes=False)
    router = GORGO.make(Gorgo(balancers="central")) if "central" in name else routers()[name]
    if "central" in name and what == "link":
        pytest.skip("a way over the one balancer is not the ingress's own")
    outage = Outage(what=what, number=1, from_s=5.0, until_s=40.0)
    run = Simulation(fleet, router, Plan(warm_s=12.0, outages=(outage,))).run(
        some_arrivals(fleet, rate_s=20.0, seconds=36.0)
    )
    assert run.answered + run.broken == run.requests > 300
    assert run.retried == 0

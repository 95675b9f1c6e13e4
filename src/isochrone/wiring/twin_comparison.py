"""Plays policies on one scenario: the same fleet and the same arrivals for each, side by side."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from isochrone.adapters.large_pages import LargePages
from isochrone.adapters.packaged import load_baseline_parameters
from isochrone.core.errors import InvalidInput
from isochrone.twin.baselines.campus import best_campus, campus_of
from isochrone.twin.baselines.catalogue import CAMPUS, NAMES, routers
from isochrone.twin.bound.all_seeing import AllSeeing
from isochrone.twin.bound.lower_bound import Least, lower_bounds
from isochrone.twin.fast.arrivals import Arrivals, chunk_of
from isochrone.twin.fast.fleet import Fleet
from isochrone.twin.fast.ours import Ours
from isochrone.twin.fast.plan import Plan
from isochrone.twin.fast.policy import Router
from isochrone.twin.fast.residency import Tables
from isochrone.twin.fast.rows import Row, row_of
from isochrone.twin.fast.simulation import run
from isochrone.twin.fast.summary import Summary
from isochrone.twin.scenario import Scenario
from isochrone.wiring.twin_outages import never_lost, outages_of
from isochrone.wiring.twin_scenario import LONGEST_S
from isochrone.wiring.twin_sizing import least_replicas
from isochrone.wiring.twin_world import TwinWorld, twin_world

OURS = "ours"
BOUND = "bound"
ALL_SEEING = AllSeeing.name  # a yardstick, played where it is asked for by name
BASELINES = NAMES
POLICIES = (OURS, *BASELINES, BOUND)
MOST_KEPT = 20_000  # requests that are not made anew for each policy
SAME_FLEET = tuple(name for name in BASELINES if name != CAMPUS.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Game:
    """One policy on a scenario. `requests`: play so many whatever `length_s` says; the same part of
    them is the warm-up as `warm_s` is of `length_s`. `gpus_for`: also look for the smallest fleet
    on which this part of them is in time."""

    scenario: Scenario
    policy: str
    requests: int | None = None
    gpus_for: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """`summary` is None for the bound, which is no run; `light` is told with that: what the way
    alone takes at the speed of light in fibre."""

    row: Row
    summary: Summary | None
    light: Least | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What all policies of a game stand on; what comes before `warm_s` is not counted."""

    world: TwinWorld
    arrivals: Callable[[], Iterator[Arrivals]]
    warm_s: float

    def last_s(self) -> float:
        """When the last request comes; 0 where none does."""
        last_s = 0.0
        for chunk in self.arrivals():
            last_s = float(chunk.at_s[-1])
        return last_s


def games(
    scenario: Scenario, policies: Sequence[str], loads: Sequence[float] = (),
    requests: int | None = None, gpus_for: float | None = None,
) -> list[Game]:
    """Each policy at each load, or at the scenario's own rate. Raises InvalidInput with the names
    that no policy has, or the problems of the scenario's files: nothing begins before they are
    good."""
    problems = [
        f"there is no policy {name}; known: {', '.join((*POLICIES, ALL_SEEING))}"
        for name in policies if name not in POLICIES and name != ALL_SEEING
    ]
    problems += [
        f"policy {name} is named twice" for name in sorted(set(policies))
        if policies.count(name) > 1
    ]
    workload = scenario.workload
    played = [
        replace(scenario, workload=replace(workload, load=load, rate_rps=None)) for load in loads
    ] or [scenario]
    busiest = max(played, key=lambda each: each.workload.load or 0.0)
    try:
        problems += never_lost(
            scenario.outages, ground_of(busiest, requests).world.fleet
        )
    except InvalidInput as error:
        problems += error.problems
    if problems:
        raise InvalidInput(problems)
    return [
        Game(scenario=each, policy=name, requests=requests, gpus_for=gpus_for)
        for each in played for name in policies
    ]


def play(game: Game, on_chunk: Callable[[int], None] = lambda _: None) -> Played:
    """`on_chunk` is told how many more requests have come, in the first run."""
    ground = ground_of(game.scenario, game.requests)
    workload = game.scenario.workload
    load = workload.load or ground.world.rate_rps / ground.world.capacity_rps
    played = _played(game, ground, load, on_chunk)
    if game.gpus_for is None:
        return played
    replicas = _least(game, ground, load, played)
    gpus = None if replicas is None else replicas * game.scenario.fleet.gpus
    return replace(played, row=replace(played.row, gpus_for_slo=gpus))


def _played(
    game: Game, ground: Ground, load: float, on_chunk: Callable[[int], None]
) -> Played:
    workload = game.scenario.workload
    if game.policy == BOUND:
        return _bound(ground, workload.name, load)

    def told() -> Iterator[Arrivals]:
        for chunk in ground.arrivals():
            on_chunk(len(chunk))
            yield chunk

    fleet = fleet_for(game.policy, ground)
    if game.policy == OURS:
        router: Router = Ours()
    elif game.policy == ALL_SEEING:
        router = AllSeeing()
    else:
        router = routers(load_baseline_parameters().get(ground.world.nature, {}))[game.policy]
    plan = Plan(
        seed=game.scenario.seed, warm_s=ground.warm_s,
        outages=outages_of(
            game.scenario.outages, fleet, ground.warm_s, ground.last_s()
        ) if game.scenario.outages else (),
    )
    summary = run(fleet, LargePages().between(told()), router, plan)
    row = replace(row_of(summary, workload=workload.name, load=load), policy=game.policy)
    return Played(row=row, summary=summary)


def fleet_for(policy: str, ground: Ground) -> Fleet:
    """The fleet, or the campus of it."""
    fleet = ground.world.fleet
    if policy == CAMPUS.name:
        return campus_of(fleet, best_campus(fleet, np.array(ground.world.share)))
    return fleet


def _least(game: Game, ground: Ground, load: float, first: Played) -> int | None:
    """Replicas of the smallest fleet on which so many are in time, with the requests and rate that
    they have now."""
    scenario = game.scenario
    wanted = game.gpus_for or 0.0

    def keeps(replicas: int) -> bool:
        if replicas == scenario.fleet.replicas:
            return first.row.slo_attainment >= wanted
        fleet = replace(
            scenario.fleet, replicas=replicas,
            engine_sites=min(scenario.fleet.engine_sites, replicas),
        )
        workload = replace(scenario.workload, load=None, rate_rps=ground.world.rate_rps)
        other = replace(scenario, fleet=fleet, workload=workload)
        sized = replace(ground, world=twin_world(other))
        if never_lost(scenario.outages, sized.world.fleet):
            return False  # it would be judged without the loss that the others have
        return _played(game, sized, load, lambda _: None).row.slo_attainment >= wanted

    return least_replicas(keeps, scenario.fleet.replicas)


@lru_cache(maxsize=1)
def ground_of(scenario: Scenario, requests: int | None) -> Ground:
    """Kept for the next policy on the same."""
    if requests is None:
        world = twin_world(scenario)
        return Ground(world=world, arrivals=world.arrivals, warm_s=scenario.warm_s)
    world = twin_world(replace(scenario, length_s=LONGEST_S))

    def anew() -> Iterator[Arrivals]:
        return _first(world.arrivals(), requests)

    kept = tuple(anew()) if requests <= MOST_KEPT else ()

    def arrivals() -> Iterator[Arrivals]:
        return iter(kept) if kept else anew()

    warm = round(requests * scenario.warm_s / scenario.length_s)
    return Ground(world=world, arrivals=arrivals, warm_s=_at_s(arrivals(), warm))


def _first(chunks: Iterator[Arrivals], count: int) -> Iterator[Arrivals]:
    for chunk in chunks:
        if len(chunk) >= count:
            yield chunk if len(chunk) == count else chunk_of(chunk.rows()[:count])
            return
        count -= len(chunk)
        yield chunk


def _at_s(chunks: Iterator[Arrivals], number: int) -> float:
    """When the request of this number comes, from 0; 0 for the first, and where there are none."""
    if not number:
        return 0.0
    at_s = 0.0
    for chunk in chunks:
        if number < len(chunk):
            return float(chunk.at_s[number])
        number -= len(chunk)
        at_s = float(chunk.at_s[-1])
    return at_s


def _bound(ground: Ground, workload: str, load: float) -> Played:
    fleet = ground.world.fleet
    found = lower_bounds(fleet, Tables(fleet), ground.arrivals(), from_s=ground.warm_s)
    requests, counted_s = found.requests + found.unservable, ground.last_s() - ground.warm_s
    least = found.clairvoyant
    any_ = found.requests > 0
    row = Row(
        workload=workload, load=load, policy=BOUND,
        ttft_ms_mean=least.mean_ms if any_ else None, ttft_ms_p50=least.p50_ms if any_ else None,
        ttft_ms_p90=least.p90_ms if any_ else None, ttft_ms_p99=least.p99_ms if any_ else None,
        slo_attainment=found.in_time / requests if requests else 0.0,
        goodput_rps=found.in_time / counted_s if counted_s > 0.0 else 0.0,
        hit_rate=1.0 - found.fresh_tokens / found.prompt_tokens if found.prompt_tokens else 0.0,
        cross_border_bytes=None, gpus_for_slo=None,
    )
    return Played(row=row, summary=None, light=found.light if any_ else None)

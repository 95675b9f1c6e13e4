"""Plays policies on one scenario: the same fleet and the same arrivals for each, side by side."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from isochrone.core.errors import InvalidInput, Unavailable
from isochrone.twin.baselines.campus import best_campus, campus_of
from isochrone.twin.baselines.catalogue import CAMPUS, routers
from isochrone.twin.bound.lower_bound import lower_bounds
from isochrone.twin.fast.arrivals import Arrivals, chunk_of
from isochrone.twin.fast.ours import Ours
from isochrone.twin.fast.plan import Plan
from isochrone.twin.fast.residency import Tables
from isochrone.twin.fast.rows import Row, row_of
from isochrone.twin.fast.simulation import run
from isochrone.twin.fast.summary import Summary
from isochrone.twin.scenario import Scenario
from isochrone.wiring.twin_scenario import LONGEST_S
from isochrone.wiring.twin_world import TwinWorld, twin_world

OURS = "ours"
BOUND = "bound"
BASELINES = tuple(routers())
POLICIES = (OURS, *BASELINES, BOUND)
MOST_KEPT = 20_000  # requests that are not made anew for each policy
SAME_FLEET = tuple(name for name in BASELINES if name != CAMPUS.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Game:
    """One policy on a scenario. `requests`: play so many whatever `length_s` says; the same part of
    them is the warm-up as `warm_s` is of `length_s`."""

    scenario: Scenario
    policy: str
    requests: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """`summary` is None for the bound, which is no run."""

    row: Row
    summary: Summary | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ground:
    world: TwinWorld
    arrivals: Callable[[], Iterator[Arrivals]]
    warm_s: float


def games(
    scenario: Scenario, policies: Sequence[str], loads: Sequence[float] = (),
    requests: int | None = None,
) -> list[Game]:
    """Each policy at each load, or at the scenario's own rate. Raises InvalidInput with the names
    that no policy has, or the problems of the scenario's files: nothing begins before they are
    good."""
    problems = [
        f"there is no policy {name}; known: {', '.join(POLICIES)}"
        for name in policies if name not in POLICIES
    ]
    problems += [
        f"policy {name} is named twice" for name in sorted(set(policies))
        if policies.count(name) > 1
    ]
    workload = scenario.workload
    played = [
        replace(scenario, workload=replace(workload, load=load, rate_rps=None)) for load in loads
    ] or [scenario]
    try:
        _ground(played[0], requests)
    except InvalidInput as error:
        problems += error.problems
    if problems:
        raise InvalidInput(problems)
    return [
        Game(scenario=each, policy=name, requests=requests) for each in played for name in policies
    ]


def play(game: Game, on_chunk: Callable[[int], None] = lambda _: None) -> Played:
    """`on_chunk` is told how many more requests have come."""
    ground = _ground(game.scenario, game.requests)
    workload = game.scenario.workload
    load = workload.load or ground.world.rate_rps / ground.world.capacity_rps
    if game.policy == BOUND:
        return Played(row=_bound(ground, workload.name, load), summary=None)

    def told() -> Iterator[Arrivals]:
        for chunk in ground.arrivals():
            on_chunk(len(chunk))
            yield chunk

    fleet = ground.world.fleet
    if game.policy == CAMPUS.name:
        fleet = campus_of(fleet, best_campus(fleet, np.array(ground.world.share)))
    router = Ours() if game.policy == OURS else routers()[game.policy]
    summary = run(
        fleet, told(), router, Plan(seed=game.scenario.seed, warm_s=ground.warm_s)
    )
    row = replace(row_of(summary, workload=workload.name, load=load), policy=game.policy)
    return Played(row=row, summary=summary)


def play_all(work: Sequence[Game], jobs: int, on_played: Callable[[Row], None]) -> list[Row]:
    """The rows in the order of `work`, each in a process of its own where `jobs` is more than 1.
    Raises Unavailable when a process was killed, as happens where memory runs out."""
    if min(jobs, len(work)) < 2:
        rows = []
        for game in work:
            rows.append(play(game).row)
            on_played(rows[-1])
        return rows
    # Not forked: a progress bar runs in a thread, which a fork would cut in the middle of anything.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(work)), context, _deaf)
    found: dict[int, Row] = {}
    try:
        place_of = {pool.submit(play, game): place for place, game in enumerate(work)}
        for done in as_completed(place_of):
            row = found[place_of[done]] = done.result().row
            on_played(row)
    except BrokenExecutor as error:
        raise Unavailable(
            "a process that plays was killed, perhaps because memory ran out; try fewer --jobs"
        ) from error
    finally:
        pool.shutdown(wait=len(found) == len(work), cancel_futures=True)
        if len(found) < len(work):  # of what nobody waits for nothing is worth finishing
            for process in multiprocessing.active_children():
                process.terminate()
    return [found[place] for place in range(len(work))]


def _deaf() -> None:
    """Ctrl-C is for the process that started this one, which ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@lru_cache(maxsize=1)
def _ground(scenario: Scenario, requests: int | None) -> _Ground:
    """Kept for the next policy on the same."""
    if requests is None:
        world = twin_world(scenario)
        return _Ground(world=world, arrivals=world.arrivals, warm_s=scenario.warm_s)
    world = twin_world(replace(scenario, length_s=LONGEST_S))

    def anew() -> Iterator[Arrivals]:
        return _first(world.arrivals(), requests)

    kept = tuple(anew()) if requests <= MOST_KEPT else ()

    def arrivals() -> Iterator[Arrivals]:
        return iter(kept) if kept else anew()

    warm = round(requests * scenario.warm_s / scenario.length_s)
    return _Ground(world=world, arrivals=arrivals, warm_s=_at_s(arrivals(), warm))


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


def _bound(ground: _Ground, workload: str, load: float) -> Row:
    last_s = 0.0

    def seen() -> Iterator[Arrivals]:
        nonlocal last_s
        for chunk in ground.arrivals():
            last_s = float(chunk.at_s[-1])
            yield chunk

    fleet = ground.world.fleet
    found = lower_bounds(fleet, Tables(fleet), seen(), from_s=ground.warm_s)
    requests, counted_s = found.requests + found.unservable, last_s - ground.warm_s
    least = found.clairvoyant
    any_ = found.requests > 0
    return Row(
        workload=workload, load=load, policy=BOUND,
        ttft_ms_mean=least.mean_ms if any_ else None, ttft_ms_p50=least.p50_ms if any_ else None,
        ttft_ms_p90=least.p90_ms if any_ else None, ttft_ms_p99=least.p99_ms if any_ else None,
        slo_attainment=found.in_time / requests if requests else 0.0,
        goodput_rps=found.in_time / counted_s if counted_s > 0.0 else 0.0,
        hit_rate=1.0 - found.fresh_tokens / found.prompt_tokens if found.prompt_tokens else 0.0,
        cross_border_bytes=None, gpus_for_slo=None,
    )

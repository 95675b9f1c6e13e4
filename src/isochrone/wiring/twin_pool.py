"""Plays many games at once: in processes of this machine, or on a Ray cluster that is named."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed

from isochrone.adapters.large_pages import from_the_start
from isochrone.core.errors import Unavailable
from isochrone.wiring.compiled import begin_compiled
from isochrone.wiring.twin_cluster import play_on_cluster
from isochrone.wiring.twin_comparison import Game, Played, play


def play_all(
    work: Sequence[Game], jobs: int, on_played: Callable[[Played], None],
    cluster: str | None = None,
) -> list[Played]:
    """What came of each, in the order of `work`, each in a process of its own where `jobs` is more
    than 1. `cluster`: on a Ray cluster instead; see `play_on_cluster`. Raises Unavailable when a
    process was killed, as happens where memory runs out."""
    if cluster is not None:
        return play_on_cluster(work, cluster, on_played)
    if min(jobs, len(work)) < 2:
        found = []
        for game in work:
            found.append(play(game))
            on_played(found[-1])
        return found
    return _in_processes(work, jobs, on_played)


def _in_processes(
    work: Sequence[Game], jobs: int, on_played: Callable[[Played], None]
) -> list[Played]:
    # Not forked: a progress bar runs in a thread, which a fork would cut in the middle of anything.
    context = multiprocessing.get_context("spawn")
    os.environ.update(from_the_start(os.environ))  # theirs; this process has begun
    pool = ProcessPoolExecutor(min(jobs, len(work)), context, begin_compiled, (os.getpid(),))
    found: dict[int, Played] = {}
    try:
        place_of = {pool.submit(play, game): place for place, game in enumerate(work)}
        for done in as_completed(place_of):
            played = found[place_of[done]] = done.result()
            on_played(played)
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

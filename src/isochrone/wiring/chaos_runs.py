"""Plays many seeds of the whole system, side by side, each on a fresh database."""

import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import replace

import structlog

from isochrone.adapters.child.launch import die_with
from isochrone.adapters.postgres.server import PostgresPlan
from isochrone.core.errors import Unavailable
from isochrone.twin.checks.record import Record
from isochrone.wiring.chaos import Played, play_seed
from isochrone.wiring.scratch_postgres import scratch_pool, scratch_server


def play_seeds(seeds: Sequence[int], jobs: int) -> Iterator[Played]:
    """Each as soon as it is done, so not in the order of `seeds`. Raises Unavailable when a process
    was killed, as happens where memory runs out."""
    with scratch_server() as server:
        if min(jobs, len(seeds)) < 2:
            for seed in seeds:
                yield play_on(server.conninfo, server.superuser_conninfo, seed)
            return
        # Not forked: a progress bar runs in a thread, which a fork would cut in the middle.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            min(jobs, len(seeds)), context, _begin, (os.getpid(),)
        ) as pool:
            waiting = [pool.submit(_play_short, server, seed) for seed in seeds]
            left = len(waiting)
            try:
                for done in as_completed(waiting):
                    left -= 1
                    yield done.result()
            except BrokenExecutor as error:
                raise Unavailable(
                    "a process that plays was killed, perhaps because memory ran out; try fewer"
                    " --jobs"
                ) from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                if left:  # without the server, a run that goes on tries to reach it for ever
                    for process in multiprocessing.active_children():
                        process.terminate()


def play_on(conninfo: str, superuser_conninfo: str, seed: int) -> Played:
    """Play one seed on a fresh database beside the migrated one that `conninfo` names. What the
    processes log under faults is expected, and not shown."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        logger_factory=structlog.ReturnLoggerFactory(),
    )
    try:
        with scratch_pool(conninfo, superuser_conninfo, f"chaos_{os.getpid()}_{seed}") as pool:
            return play_seed(pool, seed)
    finally:
        structlog.configure(**before)


def _play_short(server: PostgresPlan, seed: int) -> Played:
    """For another process, to which traces and records are not sent."""
    played = play_on(server.conninfo, server.superuser_conninfo, seed)
    return replace(played, trace=(), record=Record(asked=()))


def _begin(player: int) -> None:
    """Ctrl-C is for the process that started this one, `player`, which ends it. It dies with that,
    however that ends: by itself it would wait for more to do."""
    die_with(player)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

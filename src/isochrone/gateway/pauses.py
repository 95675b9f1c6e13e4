"""Measures what keeps a whole gateway waiting: a late event loop, and pauses of the collector.

Only while metrics are scraped from this gateway; otherwise nothing of it runs.
"""

import asyncio
import gc
from bisect import bisect_left

from isochrone.gateway import metrics
from isochrone.ports.clock import Clock
from isochrone.ports.telemetry import Distribution, Family

LOOK_EVERY_S = 0.1
GENERATIONS = 3


class Pauses:
    """Call `start` once, within the event loop that is watched, and `stop`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._late = [0] * (len(metrics.QUICK_S) + 1)
        self._late_s = 0.0
        self._collections = [[0] * (len(metrics.QUICK_S) + 1) for _ in range(GENERATIONS)]
        self._collecting_s = [0.0] * GENERATIONS
        self._began_ns = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        gc.callbacks.append(self._on_collection)
        self._look_again()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            gc.callbacks.remove(self._on_collection)
            self._timer = None

    def families(self) -> list[Family]:
        return [
            Family(metrics.LOOP_LAG, [Distribution((), tuple(self._late), self._late_s)]),
            Family(metrics.COLLECTION, [
                Distribution((str(generation),), tuple(counts), self._collecting_s[generation])
                for generation, counts in enumerate(self._collections)
            ]),
        ]

    def _look_again(self) -> None:
        due_ns = self._clock.monotonic_ns() + int(LOOK_EVERY_S * 1e9)
        self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look, due_ns)

    def _look(self, due_ns: int) -> None:
        # Loops round timers to milliseconds, so one may also come a little early.
        late_s = max(self._clock.monotonic_ns() - due_ns, 0) / 1e9
        self._late[bisect_left(metrics.QUICK_S, late_s)] += 1
        self._late_s += late_s
        self._look_again()

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        """Called by the collector itself, whatever runs just then: it must not fail."""
        now_ns = self._clock.monotonic_ns()
        if phase == "start":
            self._began_ns = now_ns
            return
        took_s, generation = (now_ns - self._began_ns) / 1e9, info["generation"]
        self._collections[generation][bisect_left(metrics.QUICK_S, took_s)] += 1
        self._collecting_s[generation] += took_s

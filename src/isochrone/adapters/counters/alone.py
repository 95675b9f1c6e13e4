"""Counters port of a gateway with one worker: one row in memory of its own, no file."""

import mmap
from collections.abc import Callable, Sequence

CELL_BYTES = 8


class LoneCounters:
    """One row of `cells`; pages that were never used take no room."""

    def __init__(self, cells: int) -> None:
        self.own = 0
        self._memory = mmap.mmap(-1, cells * CELL_BYTES)
        self.rows: Sequence[memoryview] = (memoryview(self._memory).cast("q"),)

    def sweep_dead(self, clear: Callable[[memoryview], None]) -> int:
        return 0  # there is nobody else

    def close(self) -> None:
        for row in self.rows:
            row.release()
        self.rows = ()
        self._memory.close()

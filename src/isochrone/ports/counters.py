"""Counters: rows of integer cells that the workers of one gateway share without a lock.

Each worker owns one row. Only the owner writes to a row, everybody reads all of them, and what a
key has used is the sum over the rows. A cell is 64 bits, aligned, and written at once.
"""

from collections.abc import Callable, Sequence
from typing import Protocol


class Counters(Protocol):
    @property
    def own(self) -> int:
        """Index of the row that this process may write to."""
        ...

    @property
    def rows(self) -> Sequence[memoryview]:
        """All rows, as memoryviews of format `q` and equal length; those of others are read-only.
        Zero before their first owner; what an owner wrote outlives it."""
        ...

    def sweep_dead(self, clear: Callable[[memoryview], None]) -> int:
        """Call `clear` on the row of each owner that died and has no successor yet, once for each
        death and while nobody can own the row; returns how many there were."""
        ...

    def close(self) -> None:
        """Give the own row up."""
        ...

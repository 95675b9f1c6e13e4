"""Counters port in memory: rows that several gateways of one test share, with deaths of owners."""

import errno
from array import array
from collections.abc import Callable, Sequence


class SharedRows:
    """The memory that outlives its owners."""

    def __init__(self, *, workers: int, cells: int) -> None:
        self.rows = [memoryview(array("q", bytes(8 * cells))) for _ in range(workers)]
        self.owners: dict[int, MemoryCounters] = {}
        self.dead: set[int] = set()

    def open(self, own: int) -> "MemoryCounters":
        """Own a row. Raises OSError when somebody does."""
        if own in self.owners:
            raise OSError(errno.EBUSY, "the row is in use by another process")
        self.dead.discard(own)
        self.owners[own] = MemoryCounters(self, own)
        return self.owners[own]

    def died(self, own: int) -> None:
        """The owner was killed: what it wrote stays."""
        del self.owners[own]
        self.dead.add(own)


class MemoryCounters:
    """One worker's access to the rows."""

    def __init__(self, shared: SharedRows, own: int) -> None:
        self._shared = shared
        self.own = own
        self.rows: Sequence[memoryview] = [
            row if index == own else row.toreadonly() for index, row in enumerate(shared.rows)
        ]

    def sweep_dead(self, clear: Callable[[memoryview], None]) -> int:
        dead = sorted(self._shared.dead)
        for index in dead:
            clear(self._shared.rows[index])
        self._shared.dead.clear()
        return len(dead)

    def close(self) -> None:
        self._shared.died(self.own)
        self.rows = ()

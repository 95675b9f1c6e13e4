"""Counters port on mapped files: one file a worker, writable by its owner only.

A worker maps its own file for writing and those of the others for reading, so that the memory
management of the processor itself keeps writers apart. The lock of a file lives as long as its
owner: whoever can take it knows that the owner died.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

CELL_BYTES = 8
PAGE_BYTES = mmap.PAGESIZE  # before the cells: whether the row has an owner
MOST_WAIT_S = 1.0  # another worker may be clearing the row after the death of its last owner


class MappedCounters:
    """Row `own` of `workers` in `folder`, and all the others to read. Raises OSError when another
    process owns the row. Rows of another length are other files, so layouts never mix."""

    def __init__(self, folder: Path, *, own: int, workers: int, cells: int) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._paths = [folder / f"{index}-{cells}.cells" for index in range(workers)]
        self.own = own
        self._maps: list[mmap.mmap] = []
        self.rows: Sequence[memoryview] = ()
        self._fd = _create(self._paths[own], cells)
        try:
            _wait_for_lock(self._fd, self._paths[own])
            for index, path in enumerate(self._paths):
                if index != own:
                    os.close(_create(path, cells))
                self._maps.append(_map(path, writable=index == own))
        except OSError:
            self.close()
            raise
        self._maps[own][0] = 1
        self.rows = [_cells_of(each) for each in self._maps]

    def sweep_dead(self, clear: Callable[[memoryview], None]) -> int:
        dead = 0
        for index, path in enumerate(self._paths):
            if index == self.own or self._maps[index][0] == 0:
                continue
            with _locked(path) as locked:
                if locked:
                    _clear(path, clear)
                    dead += 1
        return dead

    def close(self) -> None:
        """After this the rows must not be used. What the own row says of running work stays until
        a successor or another worker has cleared it."""
        for row in self.rows:
            row.release()
        self.rows = ()
        for each in self._maps:
            each.close()
        self._maps = []
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _create(path: Path, cells: int) -> int:
    """A descriptor of the file, made with its full length if it was not there."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.ftruncate(fd, PAGE_BYTES + cells * CELL_BYTES)  # sparse: untouched cells take no room
    return fd


def _map(path: Path, *, writable: bool) -> mmap.mmap:
    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    with path.open("r+b" if writable else "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=access)


def _cells_of(mapped: mmap.mmap) -> memoryview:
    with memoryview(mapped) as whole, whole[PAGE_BYTES:] as cells:
        return cells.cast("q")


def _clear(path: Path, clear: Callable[[memoryview], None]) -> None:
    """The caller holds the lock, so it is the row's only writer."""
    with _map(path, writable=True) as mapped:
        if mapped[0] != 0:
            with _cells_of(mapped) as row:
                clear(row)
            mapped[0] = 0


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock of a row if nobody has it."""
    with path.open("r+b") as file:
        yield _try_lock(file.fileno())


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for_lock(fd: int, path: Path) -> None:
    deadline = time.monotonic() + MOST_WAIT_S
    while not _try_lock(fd):
        if time.monotonic() > deadline:
            raise OSError(errno.EBUSY, "the row is in use by another process", str(path))
        time.sleep(0.01)

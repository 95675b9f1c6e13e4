"""Has what a process keeps in memory put on large pages, where Linux can.

A simulation reads a little of hundreds of megabytes for each request. With pages of 4 KiB most of
these reads first have to look up where the page is, which in a virtual machine takes longer than
the read; with pages of 2 MiB they do not. Nothing else changes: without Linux, its pages or the
permission, memory stays as it is.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeVar

PAGE_BYTES: Final = 2 << 20
AT_HAND = 2000  # freed pieces of a size that glibc keeps for whoever asks next, instead of 7
GROWTH: Final = 1.2  # of the memory in use, after which it is looked at again
HUGEPAGE, COLLAPSE = 14, 25  # advice to madvise: for later, and at once (Linux 6.1)

Item = TypeVar("Item")
Advise = Callable[[int, int, int], int]


def from_the_start(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment of a Python process that is to be started, so that all of its
    memory comes on large pages: Python takes it from glibc, and glibc asks for them. That is better
    than to move it later. Python's own allocator keeps small pieces at hand; glibc does so for more
    than a few when it is told. Nothing without glibc, or where the environment names an allocator.
    """
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):
        return {}
    if not libc or "PYTHONMALLOC" in environment:
        return {}
    others = [environment["GLIBC_TUNABLES"]] if environment.get("GLIBC_TUNABLES") else []
    ours = ["glibc.malloc.hugetlb=1", f"glibc.malloc.tcache_count={AT_HAND}"]
    tunables = ":".join([*ours, *others])  # of one that is named twice the last counts
    return {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": tunables}


class LargePages:
    """Looks after the memory of this process. `looks`: how often it has asked for large pages."""

    def __init__(self) -> None:
        self.looks = 0
        self._looked_at_bytes = 0
        self._advise = _madvise()

    def between(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; memory is looked at before each, which takes microseconds, and a second
        for a gigabyte that is moved."""
        for item in items:
            self.look()
            yield item

    def look(self) -> None:
        """Ask for large pages if memory has grown since that was done last."""
        if self._advise is None:
            return
        used_bytes = _used_bytes()
        if used_bytes < max(self._looked_at_bytes * GROWTH, 4.0 * PAGE_BYTES):
            return
        self._looked_at_bytes = used_bytes
        self.looks += 1
        for first, end in own_ranges(Path("/proc/self/maps").read_text()):
            self._advise(first, end - first, HUGEPAGE)
            self._advise(first, end - first, COLLAPSE)


def own_ranges(maps: str) -> Iterator[tuple[int, int]]:
    """Ranges of whole large pages that only this process has, and may write, as /proc/PID/maps
    lists them."""
    for line in maps.splitlines():
        fields = line.split()
        is_plain = len(fields) == 5 or fields[5] == "[heap]"
        if not is_plain or fields[1] != "rw-p":
            continue
        first, end = (int(each, 16) for each in fields[0].split("-"))
        first = -(-first // PAGE_BYTES) * PAGE_BYTES
        end = end // PAGE_BYTES * PAGE_BYTES
        if end > first:
            yield first, end


def _used_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _madvise() -> Advise | None:
    """The system's call; None where there is none."""
    if not sys.platform.startswith("linux") or not Path("/proc/self/maps").exists():
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    advise.restype = ctypes.c_int

    def call(first: int, size: int, advice: int) -> int:
        return int(advise(first, size, advice))

    return call

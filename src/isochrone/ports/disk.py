"""Disk: append-only segments for the gateway's journal; live on files, in memory for the twin.

`append` returns when the bytes have been handed to the operating system (they survive the death of
this process); `sync` returns when they survive a power cut. OSError (ENOSPC among others) passes
through: the journal turns it into a refusal of new work.
"""

from collections.abc import Sequence
from typing import Protocol


class Segment(Protocol):
    @property
    def size_bytes(self) -> int: ...

    def append(self, data: bytes) -> None: ...

    async def sync(self) -> None: ...

    def close(self) -> None: ...


class Disk(Protocol):
    def names(self) -> Sequence[str]:
        """Names of all segments and notes, sorted."""
        ...

    def create(self, name: str, *, reserve_bytes: int) -> Segment:
        """A new segment with this much space reserved, so that appends cannot fail for room."""
        ...

    def read(self, name: str) -> bytes:
        """All bytes, durable from now on; zero bytes of the reserve may follow the last append."""
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Write a small note atomically and durably."""
        ...

    async def save(self, name: str, data: bytes) -> None:
        """As `replace`, for a note that is not small: the event loop goes on meanwhile."""
        ...

    def delete(self, name: str) -> None: ...

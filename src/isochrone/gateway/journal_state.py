"""What the journal remembers of its segments, batches and open requests while it runs."""

from dataclasses import dataclass, field

import msgspec

from isochrone.core.ids import RequestId
from isochrone.core.routing.choice import Ground
from isochrone.gateway.journal_notes import Progress
from isochrone.gateway.journal_recovery import Content, FoundBatch
from isochrone.gateway.records import HEAD_BYTES
from isochrone.ports.disk import Segment

GROUNDS_MOST = 64


@dataclass(slots=True)
class Batch(FoundBatch):
    """A batch that is not shipped; `content` is None when it is to be read from the disk."""

    content: Content | None = None


@dataclass(slots=True)
class JournalSegment:
    """`handle` is None for a segment of an earlier run and once a sealed one is synced.

    `uncut` is closed and in no batch yet, `named` are the ids of its grounds, `closed_end` is the
    offset behind its last record. `unsynced` are frames as they were written.
    `keep`: it holds something that this run cannot read, so it is never deleted. `unread`: why it
    could not be read the last time. `broken`: a write
    failed and may have left a part of a record, so nothing is written behind it.
    """

    name: str
    handle: Segment | None = None
    size_bytes: int = 0
    synced_bytes: int = 0
    sealed: bool = False
    keep: bool = False
    unread: str = ""
    broken: bool = False
    batch_start: int = 0
    closed_end: int = 0
    uncut: Content = field(default_factory=Content)
    named: set[str] = field(default_factory=set)
    batches: dict[int, Batch] = field(default_factory=dict)  # by their end, oldest first
    open: set[RequestId] = field(default_factory=set)
    unsynced: list[bytes] = field(default_factory=list)
    unwritten: list[bytes] = field(default_factory=list)  # not handed over yet

    @property
    def is_done(self) -> bool:
        """Nothing in it is needed any more, once what was written elsewhere is synced."""
        return self.sealed and not (self.batches or self.uncut or self.open or self.keep)

    def shippable(self) -> list[Batch]:
        """Batches whose records are all synced."""
        if self.handle is None:
            return list(self.batches.values())
        return [b for b in self.batches.values() if b.offset < self.synced_bytes]

    def add_batch(self, offset: int, *, cache: bool) -> None:
        """What is not in a batch yet becomes one that ends at `offset`."""
        self.batches[offset] = Batch(self.batch_start, offset, self.uncut if cache else None)
        self._begin_batch()
        self.batch_start = self.size_bytes

    def give_up_unsynced(self) -> None:
        """Forget what is not synced, and seal."""
        self.unsynced, self.unwritten = [], []
        tail = self.batch_start
        for offset in [o for o in self.batches if o + HEAD_BYTES > self.synced_bytes]:
            tail = min(tail, self.batches.pop(offset).start)
        self._begin_batch()
        self.size_bytes = self.synced_bytes
        if tail < self.synced_bytes:
            self.batches[self.synced_bytes] = Batch(tail, self.synced_bytes)
        self.sealed = self.broken = True
        if self.handle is not None:
            self.handle.close()
            self.handle = None

    def _begin_batch(self) -> None:
        self.uncut, self.named = Content(), set()


class OpenRequest(msgspec.Struct, gc=False):
    """A request that was opened and not closed; `room_bytes` is kept free for its closing.

    `home` is the segment that holds it, None when it was found in segments of an earlier run.
    Made for every request, hence this kind of class.
    """

    home: JournalSegment | None
    body: bytes
    room_bytes: int
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Pending:
    """A batch to send. The ids of its messages derive from `segment` and `offset`."""

    segment: str
    offset: int
    content: Content


@dataclass(frozen=True, slots=True)
class JournalFigures:
    """What monitoring shows. `free_bytes` is room for anything but closings; `sync_began_ns`: since
    when a sync runs (monotonic), None when none does."""

    reserved_bytes: int
    free_bytes: int
    waiting_batches: int
    held_records: int
    sync_began_ns: int | None


class Grounds:
    """Grounds as records hold them, encoded once; the latest are kept at hand."""

    __slots__ = ("_bodies",)

    def __init__(self) -> None:
        self._bodies: dict[str, bytes] = {}

    def encoded(self, ground_id: str, ground: Ground | None) -> bytes:
        """The ground with this id; nothing when it is not known any more."""
        body = self._bodies.get(ground_id)
        if body is None:
            if ground is None:
                return b""
            while len(self._bodies) >= GROUNDS_MOST:
                del self._bodies[next(iter(self._bodies))]
            body = self._bodies[ground_id] = msgspec.msgpack.encode(ground)
        return body

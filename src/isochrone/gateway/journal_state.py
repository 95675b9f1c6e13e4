"""What the journal remembers of its segments, batches and open requests while it runs."""

from dataclasses import dataclass, field

from isochrone.core.ids import RequestId
from isochrone.core.metering.event import UsageEvent
from isochrone.gateway.journal_recovery import FoundBatch
from isochrone.gateway.records import HEAD_BYTES, Kind, Progress
from isochrone.ports.disk import Segment


@dataclass(slots=True)
class Batch(FoundBatch):
    """A batch that is not shipped; `bodies` is None when they are to be read from the disk."""

    bodies: list[bytes] | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """A record that is not synced yet; `end` is the offset behind it."""

    end: int
    kind: Kind
    body: bytes


@dataclass(slots=True)
class JournalSegment:
    """`handle` is None for a segment of an earlier run and once a sealed one is synced.

    `keep`: it holds something that this run cannot read, so it is never deleted. `broken`: a write
    failed and may have left a part of a record, so nothing is written behind it.
    """

    name: str
    handle: Segment | None = None
    size_bytes: int = 0
    synced_bytes: int = 0
    sealed: bool = False
    keep: bool = False
    broken: bool = False
    batch_start: int = 0
    uncut: list[Written] = field(default_factory=list)
    uncut_bytes: int = 0
    batches: dict[int, Batch] = field(default_factory=dict)  # by their end, oldest first
    open: set[RequestId] = field(default_factory=set)
    unsynced: list[Written] = field(default_factory=list)

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
        bodies = [written.body for written in self.uncut] if cache else None
        self.batches[offset] = Batch(self.batch_start, offset, bodies)
        self.uncut, self.uncut_bytes = [], 0
        self.batch_start = self.size_bytes

    def synced(self, size_bytes: int) -> None:
        """Everything up to `size_bytes` survives a power cut."""
        self.synced_bytes = size_bytes
        self.unsynced = [written for written in self.unsynced if written.end > size_bytes]

    def give_up_unsynced(self) -> list[Written]:
        """Forget what is not synced and seal; returns the forgotten records."""
        lost, self.unsynced = self.unsynced, []
        tail = self.batch_start
        for offset in [o for o in self.batches if o + HEAD_BYTES > self.synced_bytes]:
            tail = min(tail, self.batches.pop(offset).start)
        self.uncut, self.uncut_bytes = [], 0
        self.size_bytes = self.synced_bytes
        if tail < self.synced_bytes:
            self.batches[self.synced_bytes] = Batch(tail, self.synced_bytes)
        self.sealed = self.broken = True
        if self.handle is not None:
            self.handle.close()
            self.handle = None
        return lost


@dataclass(slots=True)
class OpenRequest:
    """A request that was opened and not closed; `room_bytes` is kept free for its closing."""

    body: bytes
    room_bytes: int
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Pending:
    """A batch to send. The ids of its messages derive from `segment` and `offset`."""

    segment: str
    offset: int
    usage: tuple[UsageEvent, ...]
    evidence: tuple[UsageEvent, ...]

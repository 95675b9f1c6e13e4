"""Reads back what an earlier run left in the journal: batches to ship, requests left open, damage.

Segments of an earlier run are never written again, so reading them twice gives the same batches
under the same ids, however often the process dies in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from isochrone.core.errors import Untrusted
from isochrone.core.ids import RequestId
from isochrone.core.metering.event import Tokens
from isochrone.core.routing.choice import Ground
from isochrone.gateway import records
from isochrone.gateway.journal_notes import Progress, Shipped
from isochrone.gateway.records import Damage
from isochrone.wire import fleet
from isochrone.wire.usage import Opening, UsageRecord

BATCH_EVENTS: Final = 100


@dataclass(slots=True)
class Content:
    """Encoded records that travel together: what the ingress says, what it says as the serving
    site of others, and the grounds that its decisions name."""

    usage: list[bytes] = field(default_factory=list)
    evidence: list[bytes] = field(default_factory=list)
    grounds: list[bytes] = field(default_factory=list)
    size_bytes: int = 0

    def __len__(self) -> int:
        return len(self.usage) + len(self.evidence)

    def add(self, kind: records.Kind, body: bytes) -> None:
        """Take in a record; kinds that are no part of a batch are passed over."""
        match kind:
            case records.CLOSED:
                self.usage.append(body)
            case records.EVIDENCE:
                self.evidence.append(body)
            case records.GROUND:
                self.grounds.append(body)
            case _:
                return
        self.size_bytes += len(body)


@dataclass(slots=True)
class FoundBatch:
    """Closed records of one segment that travel together: those from `start` up to `offset`."""

    start: int
    offset: int


@dataclass(slots=True)
class FoundSegment:
    """What one segment holds. `damage` counts bytes that are no record with records behind them,
    `torn_bytes` those at the end. Batches with an undecodable record are not among `batches`."""

    name: str
    size_bytes: int
    batches: list[FoundBatch] = field(default_factory=list)
    opened: set[RequestId] = field(default_factory=set)
    damage_bytes: int = 0
    torn_bytes: int = 0
    undecodable: int = 0


@dataclass(slots=True)
class Found:
    """The whole journal. `orphans` were opened and never closed: they carry their last progress."""

    segments: list[FoundSegment] = field(default_factory=list)
    orphans: list[UsageRecord] = field(default_factory=list)


class Reader:
    """Feed the segments oldest first, then take `found`."""

    def __init__(self, own_site: str) -> None:
        self._own_site = own_site
        self._segments: list[FoundSegment] = []
        self._opened: dict[RequestId, Opening] = {}
        self._progress: dict[RequestId, Progress] = {}
        self._closed: set[RequestId] = set()
        self._shipped: set[tuple[str, int]] = set()

    def feed(self, name: str, data: bytes) -> FoundSegment:
        """Take in one segment."""
        segment = FoundSegment(name=name, size_bytes=len(data))
        start, last, since, legible = 0, 0, 0, True
        for item in records.scan(data):
            if isinstance(item, Damage):
                if item.torn:
                    segment.torn_bytes += item.size_bytes
                else:
                    segment.damage_bytes += item.size_bytes
                continue
            end = item.offset + records.HEAD_BYTES + len(item.body)
            # A batch whose end was damaged is cut where it must have been cut at the latest.
            if item.kind == records.BATCH or since == BATCH_EVENTS:
                offset = item.offset if item.kind == records.BATCH else last
                if since and legible:
                    segment.batches.append(FoundBatch(start, offset))
                start, since, legible = item.offset, 0, True
            if item.kind in records.ENDS:
                since, last = since + 1, end
            try:
                self._take(segment, item.kind, item.body)
            except Untrusted:
                segment.undecodable += 1
                # It stays in its file, which is kept, for a run that can read it.
                legible = legible and item.kind not in records.IN_BATCHES
        if since and legible:
            segment.batches.append(FoundBatch(start, last))
        self._segments.append(segment)
        return segment

    def _take(self, segment: FoundSegment, kind: records.Kind, body: bytes) -> None:
        match kind:
            case records.OPENED:
                opening = fleet.decode(body, Opening)
                self._opened[opening.request_id] = opening
                segment.opened.add(opening.request_id)
            case records.PROGRESS:
                progress = fleet.decode(body, Progress)
                self._progress[progress.request_id] = progress
            case records.CLOSED | records.EVIDENCE:
                self._closed.add(fleet.decode(body, UsageRecord).request_id)
            case records.GROUND:
                fleet.decode(body, Ground)
            case records.SHIPPED:
                shipped = fleet.decode(body, Shipped)
                self._shipped.add((shipped.segment, shipped.offset))
            case _:
                pass

    def found(self) -> Found:
        """Everything that is still to be done, given all segments."""
        for segment in self._segments:
            segment.opened -= self._closed
            segment.batches = [
                batch for batch in segment.batches
                if (segment.name, batch.offset) not in self._shipped
            ]
        orphans = [
            self._lost(opening, self._progress.get(name))
            for name, opening in self._opened.items()
            if name not in self._closed
        ]
        return Found(segments=self._segments, orphans=orphans)

    def _lost(self, opening: Opening, progress: Progress | None) -> UsageRecord:
        """What to say of a request that was open when the process died."""
        at, tokens = opening.received_at, Tokens()
        if progress is not None:
            at, tokens = max(progress.at, at), progress.tokens
        own = opening.ingress_site == self._own_site
        return opening.closing(
            finished_at=at, tokens=tokens, reporter="recovered" if own else "evidence"
        )


def contents(data: bytes, batches: Sequence[FoundBatch]) -> tuple[list[Content], int]:
    """What each of these batches of one segment, oldest first, consists of, and how many bytes
    before the end of the last are no record."""
    found = [Content() for _ in batches]
    place = damage_bytes = 0
    for item in records.scan(data):
        while place < len(batches) and batches[place].offset <= item.offset:
            place += 1
        if place == len(batches):
            break
        if isinstance(item, Damage):
            damage_bytes += item.size_bytes
        elif batches[place].start <= item.offset:
            found[place].add(item.kind, item.body)
    return found, damage_bytes

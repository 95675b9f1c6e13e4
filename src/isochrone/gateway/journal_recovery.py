"""Reads back what an earlier run left in the journal: batches to ship, requests left open, damage.

Segments of an earlier run are never written again, so reading them twice gives the same batches
under the same ids, however often the process dies in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from isochrone.core.errors import Untrusted
from isochrone.core.ids import RequestId
from isochrone.core.metering.event import UsageEvent
from isochrone.gateway import records
from isochrone.gateway.records import Damage, Progress, Shipped
from isochrone.wire import fleet

BATCH_EVENTS = 100


@dataclass(slots=True)
class FoundBatch:
    """Closed records of one segment that travel together: those from `start` up to `offset`."""

    start: int
    offset: int


@dataclass(slots=True)
class FoundSegment:
    """What one segment holds. `damage` counts bytes that are no record with records behind them,
    `torn_bytes` those at the end."""

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
    orphans: list[UsageEvent] = field(default_factory=list)


class Reader:
    """Feed the segments oldest first, then take `found`."""

    def __init__(self, own_site: str) -> None:
        self._own_site = own_site
        self._segments: list[FoundSegment] = []
        self._opened: dict[RequestId, UsageEvent] = {}
        self._progress: dict[RequestId, Progress] = {}
        self._closed: set[RequestId] = set()
        self._shipped: set[tuple[str, int]] = set()

    def feed(self, name: str, data: bytes) -> FoundSegment:
        """Take in one segment."""
        segment = FoundSegment(name=name, size_bytes=len(data))
        start, last, since = 0, 0, 0
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
                if since:
                    segment.batches.append(FoundBatch(start, offset))
                start, since = item.offset, 0
            if item.kind == records.CLOSED:
                since, last = since + 1, end
            try:
                self._take(segment, item.kind, item.body)
            except Untrusted:
                segment.undecodable += 1
        if since:
            segment.batches.append(FoundBatch(start, last))
        self._segments.append(segment)
        return segment

    def _take(self, segment: FoundSegment, kind: records.Kind, body: bytes) -> None:
        match kind:
            case records.OPENED:
                event = fleet.decode(body, UsageEvent)
                self._opened[event.request_id] = event
                segment.opened.add(event.request_id)
            case records.PROGRESS:
                progress = fleet.decode(body, Progress)
                self._progress[progress.request_id] = progress
            case records.CLOSED:
                self._closed.add(fleet.decode(body, UsageEvent).request_id)
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
            _lost(event, self._progress.get(name), self._own_site)
            for name, event in self._opened.items()
            if name not in self._closed
        ]
        return Found(segments=self._segments, orphans=orphans)


def _lost(event: UsageEvent, progress: Progress | None, own_site: str) -> UsageEvent:
    """What to say of a request that was open when the process died."""
    at = event.finished_at if progress is None else max(progress.at, event.received_at)
    return replace(
        event,
        reporter="recovered" if event.ingress_site == own_site else "evidence",
        outcome="ingress_lost",
        tokens=event.tokens if progress is None else progress.tokens,
        finished_at=at,
        total_ms=(at - event.received_at) / 1e6,
    )


def closed_bodies(data: bytes, batches: Sequence[FoundBatch]) -> list[list[bytes]]:
    """The closed records of each of these batches of one segment."""
    bodies: list[list[bytes]] = [[] for _ in batches]
    for item in records.scan(data):
        if isinstance(item, Damage) or item.kind != records.CLOSED:
            continue
        for place, batch in enumerate(batches):
            if batch.start <= item.offset < batch.offset:
                bodies[place].append(item.body)
                break
    return bodies

"""Journal of usage: what was opened, how far it came, how it closed; kept until it is shipped.

A record is handed to the operating system before the request goes on, together with the others of
its round of the event loop, so the death of this process loses nothing. Records are synced every
COMMIT_S; a power cut loses what was written since (COMMIT_S and the time of one sync). Room for the
closing record of every open request is reserved: when there is none for a further request,
`refusal` says so before the request is served.

Closed records travel in batches that are marked in the journal itself, so that a batch has the same
id and the same content whenever it is sent. A segment is deleted when all its batches are shipped;
what is still open in it is carried forward first.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from isochrone.core.ids import RequestId
from isochrone.core.metering.event import Tokens
from isochrone.core.routing.choice import Ground
from isochrone.gateway import records
from isochrone.gateway.journal_notes import Progress, Shipped
from isochrone.gateway.journal_reading import ASIDE, load_contents, read_segment
from isochrone.gateway.journal_recovery import BATCH_EVENTS, Reader
from isochrone.gateway.journal_state import (
    Batch,
    Grounds,
    JournalFigures,
    JournalSegment,
    OpenRequest,
    Pending,
)
from isochrone.gateway.records import HEAD_BYTES, Damage, Kind
from isochrone.ports.clock import Clock
from isochrone.ports.disk import Disk, Segment
from isochrone.wire import fleet
from isochrone.wire.usage import Opening, UsageRecord

COMMIT_S: Final = 0.1
PROGRESS_S: Final = 1.0
RETRY_S = 1.0
SYNC_LIMIT_S = 5.0
SEGMENT_BYTES = 4 * 1024 * 1024
BATCH_BYTES: Final = 256 * 1024
RECORD_BYTES: Final = 192 * 1024  # larger with its ground, a record is kept without its decision
CLOSING_EXTRA_BYTES: Final = 512  # a closing may be this much longer than the opening
FEW_BATCHES: Final = 4  # with more than this waiting, batches are filled before they are cut
CACHED_BATCHES = 256  # 15 MB; at 25,000 requests/s less waits for the next send
HELD_MOST: Final = 10_000
FLUSHES: Final = 3  # tries to hand over what one round recorded
_PREFIX = "segment-"
_ALL_USED = "all reserved space is used"
log = structlog.get_logger()

_encode: Final = msgspec.msgpack.Encoder().encode


class Journal:
    """Call `recover` once, then `run` for as long as the process serves. One event loop only."""

    def __init__(
        self, disk: Disk, clock: Clock, gateway_id: str, *, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._slack_bytes = segment_bytes // 16
        self._clock = clock
        self._site = gateway_id
        self._segments: list[JournalSegment] = []  # oldest first; the current one is the last
        self._current: JournalSegment | None = None
        self._spares: list[JournalSegment] = []
        self._last_number = 0
        self._open: dict[RequestId, OpenRequest] = {}
        self._reserved_bytes = 0
        self._left_bytes = -1  # what may be written before only closings may; see `_recount`
        self._grounds = Grounds()
        self._held: list[UsageRecord] = []     # closed, but there was no room to write it
        self._full = "not opened yet"  # the last reason why room was missing
        self._may_grow = True          # False after a failed try, until the next commit
        self._sync_began_ns: int | None = None
        self._late: JournalSegment | None = None  # has records that are not handed over yet
        self._due: Callable[[], None] | None = None
        self._dirty = asyncio.Event()
        self._committing = asyncio.Lock()
        self.ready = asyncio.Event()  # set when a batch may wait for the shipper

    # -- what a gateway calls --------------------------------------------------------------------

    def recover(self) -> None:
        """Take over what an earlier run left. Raises OSError when the disk cannot be listed.

        Requests found open become closed ones; a full disk does not raise, it refuses work.
        """
        reader = Reader(self._site)
        names = self._disk.names()
        by_name: dict[str, JournalSegment] = {}
        for name in names:
            if name.startswith(_PREFIX) and name[len(_PREFIX) :].isdigit():
                self._last_number = max(self._last_number, int(name[len(_PREFIX) :]))
                aside = ASIDE + name in names
                by_name[name] = read_segment(self._disk, reader, name, aside=aside)
        found = reader.found()
        for old in found.segments:
            segment = by_name[old.name]
            segment.batches = {b.offset: Batch(b.start, b.offset) for b in old.batches}
            segment.open = old.opened
        self._segments += by_name.values()
        self._make_room()
        for record in found.orphans:
            self._open[record.request_id] = OpenRequest(None, b"", 0)
            self.closed(record)
        self._make_room()
        log.info(
            "journal_recovered", segments=len(found.segments), left_open=len(found.orphans),
            batches=sum(len(segment.batches) for segment in self._segments),
        )

    def refusal(self) -> str | None:
        """Why no new request may be served now, or None."""
        if self._left_bytes >= 0 and self._sync_began_ns is None and not self._held:
            return None
        if self._left_bytes < 0 and self._may_grow:
            self._make_room()
        if self._left_bytes < 0:
            return f"no room on the journal's disk ({self._full})"
        if self._held:
            return f"{len(self._held)} closing records wait for the journal's disk"
        began_ns = self._sync_began_ns
        if began_ns is not None:
            took_s = (self._clock.monotonic_ns() - began_ns) / 1e9
            if took_s > SYNC_LIMIT_S:
                return f"the journal's disk has not finished a sync for {took_s:.0f} s"
        return None

    def defer(self, due: Callable[[], None]) -> None:
        """From now on records of one round of the loop are handed over together, by `flush`: `due`
        says that there are some, and whoever sends what they are about flushes first."""
        self._due = due

    def flush(self) -> None:
        """Hand to the operating system what is recorded and was not handed over yet."""
        for _ in range(FLUSHES):
            segment, self._late = self._late, None
            if segment is None or segment.handle is None:
                return
            frames, segment.unwritten = b"".join(segment.unwritten), []
            segment.unsynced.append(frames)
            try:
                segment.handle.append(frames)
                return
            except OSError as error:
                self._give_up(segment, error)  # which records everything again elsewhere

    def opened(self, opening: Opening) -> str | None:
        """Record that a request is about to be served; `opening` says what to book should nothing
        more be heard of it. Returns None, or why it is not recorded: then it must be refused."""
        if self._left_bytes < 0 or self._sync_began_ns is not None or self._held:
            refused = self.refusal()
            if refused is not None:
                return refused
        body = _encode(opening)
        home = self._append(records.OPENED, body)
        if home is None:
            return f"the journal's disk does not take records ({self._full})"
        request_id = opening.request_id
        if request_id in self._open:
            self._forget(request_id)
        # Enough for a closing without its decision.
        room_bytes = len(body) + HEAD_BYTES + CLOSING_EXTRA_BYTES
        self._open[request_id] = OpenRequest(home, body, room_bytes)
        self._reserved_bytes += room_bytes
        self._left_bytes -= room_bytes
        home.open.add(request_id)
        return None

    def progress(self, request_id: RequestId, tokens: Tokens) -> None:
        """Note how far an open request has come: once a PROGRESS_S, not when room is scarce."""
        opened, at = self._open.get(request_id), self._clock.wall_ns()
        if opened is None or self._left_bytes < 0:
            return
        if opened.progress is not None and 0 <= at - opened.progress.at < PROGRESS_S * 1e9:
            return
        opened.progress = Progress(request_id, at, tokens)
        self._append(records.PROGRESS, _encode(opened.progress))

    def closed(self, record: UsageRecord, ground: Ground | None = None) -> None:
        """Record how a request ended; `ground` is what its decision names. Evidence carries none.
        Never fails: without room, the record is held and work is refused."""
        body, decision = _encode(record), record.decision
        ground_id, ground_body = "", b""
        if decision is not None:
            ground_id = decision.ground
            ground_body = self._grounds.encoded(ground_id, ground)
            size_bytes = len(body) + len(ground_body)
            if size_bytes > self._left_bytes and self._may_grow:
                self._make_room()
            if size_bytes > self._left_bytes or size_bytes > RECORD_BYTES:
                body, ground_body = _encode(msgspec.structs.replace(record, decision=None)), b""
        kind = records.EVIDENCE if record.reporter == "evidence" else records.CLOSED
        segment = self._append(kind, body, ground_id, ground_body)
        if segment is None:
            log.error("usage_held", request=record.request_id, why=self._full)
            if len(self._held) < HELD_MOST:
                self._held.append(record)
            return
        segment.closed_end = segment.size_bytes
        uncut = segment.uncut
        (uncut.usage if kind is records.CLOSED else uncut.evidence).append(body)
        uncut.size_bytes += len(body)
        if len(uncut) >= BATCH_EVENTS or uncut.size_bytes >= BATCH_BYTES:
            self._cut(segment)
        self._forget(record.request_id)

    async def run(self) -> None:
        """Sync records in groups, for ever."""
        try:
            while True:
                try:
                    async with asyncio.timeout(RETRY_S):
                        await self._dirty.wait()
                    await asyncio.sleep(COMMIT_S)
                except TimeoutError:
                    if self.refusal() is None and not self._behind():
                        continue
                self._dirty.clear()
                await self.commit()
        finally:
            self.flush()
            for segment in (*self._segments, *self._spares):
                if segment.handle is not None:
                    segment.handle.close()

    async def commit(self) -> None:
        """Cut a batch, sync everything written so far, delete what is done with."""
        async with self._committing:
            self._may_grow = True
            self._make_room()
            held, self._held = self._held, []
            for record in held:
                self.closed(record)
            self._carry_forward()
            self._cut_when_due()
            # Judged before the sync: what made a segment done is then in what is synced.
            done = [segment for segment in self._segments if segment.is_done]
            if await self._sync():
                self._delete(done)
            if any(segment.shippable() for segment in self._segments):
                self.ready.set()

    def figures(self) -> JournalFigures:
        """How full it is, and what waits."""
        waiting = sum(len(segment.batches) for segment in self._segments)
        return JournalFigures(
            self._reserved_bytes, self._left_bytes, waiting, len(self._held), self._sync_began_ns
        )

    def unreadable(self) -> list[str]:
        """Names of segments that are kept for a run that can read them."""
        return [segment.name for segment in self._segments if segment.keep or segment.unread]

    def pending(self, most: int) -> list[Pending]:
        """The oldest batches that are synced and not shipped."""
        found: list[Pending] = []
        for segment in self._segments:
            for batch in segment.shippable()[: most - len(found)]:
                if batch.content is None:
                    load_contents(self._disk, segment)
                if batch.content is not None:  # else its file cannot be read now
                    found.append(Pending(segment.name, batch.offset, batch.content))
            if len(found) >= most:
                break
        return found

    def shipped(self, pending: Pending) -> None:
        """The batch is in the durable stream: it need not be sent again."""
        for segment in self._segments:
            if segment.name == pending.segment:
                segment.batches.pop(pending.offset, None)
        if self._left_bytes >= 0:
            self._append(records.SHIPPED, _encode(Shipped(pending.segment, pending.offset)))
        self._dirty.set()

    # -- writing ---------------------------------------------------------------------------------

    def _append(
        self, kind: Kind, body: bytes, ground_id: str = "", ground_body: bytes = b""
    ) -> JournalSegment | None:
        """Write one record; returns the segment that took it, None when no segment does.

        Its ground, if there is one, is in the same batch: written with it unless it is there.
        """
        frame = records.frame(kind, body)
        current = self._current
        if current is not None and current is self._late and (
            not ground_body or ground_id in current.named
        ):
            # Not the first record of a round: nothing but to put it with the others.
            size_bytes = len(frame)
            if current.size_bytes + size_bytes + HEAD_BYTES <= self._segment_bytes:
                current.unwritten.append(frame)
                current.size_bytes += size_bytes
                self._left_bytes -= size_bytes
                return current
        for _ in range(2):
            if (current := self._current) is None:
                return None
            missing = ground_body != b"" and ground_id not in current.named
            frames = records.frame(records.GROUND, ground_body) + frame if missing else frame
            fits = current.size_bytes + len(frames) + HEAD_BYTES <= self._segment_bytes
            if fits and self._write(current, frames):
                if missing:
                    current.named.add(ground_id)
                    current.uncut.add(records.GROUND, ground_body)
                return current
            self._rotate()
        return None

    def _write(self, segment: JournalSegment, frames: bytes) -> bool:
        if segment.handle is None or segment.broken:
            return False
        if self._due is not None and segment is self._current:
            if self._late is None:
                self._late = segment
                self._due()
                self._dirty.set()
            segment.unwritten.append(frames)
            segment.size_bytes += len(frames)
            self._left_bytes -= len(frames)
        else:
            try:
                segment.handle.append(frames)
            except OSError as error:
                segment.broken = True
                self._full = str(error)
                log.error("journal_write_failed", segment=segment.name, why=str(error))
                return False
            self._dirty.set()
            segment.size_bytes += len(frames)
            self._left_bytes -= len(frames)
            segment.unsynced.append(frames)
        return True

    def _cut(self, segment: JournalSegment) -> None:
        """End the batch of a segment. Room for the mark is always left in it."""
        if not segment.uncut:
            return
        offset = segment.size_bytes
        if not self._write(segment, records.frame(records.BATCH, b"")):
            offset = segment.closed_end  # where the next start will see its end, too
        waiting = sum(len(each.batches) for each in self._segments)
        segment.add_batch(offset, cache=waiting < CACHED_BATCHES)
        self._dirty.set()

    def _cut_when_due(self) -> None:
        current = self._current
        if current is None or not current.uncut:
            return
        if sum(len(segment.batches) for segment in self._segments) < FEW_BATCHES:
            self._cut(current)

    def _rotate(self) -> None:
        """Go on in the next segment; `_current` is None when there is none."""
        if self._current is not None:
            self._cut(self._current)
            self.flush()
        if self._current is not None:
            self._current.sealed = True
        self._current = None
        if not self._spares:
            self._make_spare()
        if self._spares:
            self._current = self._spares.pop(0)
            self._segments.append(self._current)
        self._recount()

    def _make_spare(self) -> bool:
        number = max(self._clock.wall_ns(), self._last_number + 1)
        name = f"{_PREFIX}{number:020d}"
        try:
            handle = self._disk.create(name, reserve_bytes=self._segment_bytes)
        except OSError as error:
            if self._full != str(error):
                log.error("journal_no_room", why=str(error))
            self._full, self._may_grow = str(error), False
            return False
        self._last_number, self._full = number, _ALL_USED
        self._spares.append(JournalSegment(name, handle))
        return True

    def _make_room(self) -> None:
        """Keep one segment more than the open requests need."""
        wanted = self._reserved_bytes + self._segment_bytes
        while self._recount() < wanted and self._make_spare():
            pass
        if self._current is None:
            self._rotate()
        self._recount()

    def _recount(self) -> int:
        """The room there is. Sets what is left for anything but closings, from what every write
        and request then subtracts; when it is negative, all room is reserved for them."""
        current = self._current
        rest = 0 if current is None else self._segment_bytes - current.size_bytes - HEAD_BYTES
        room_bytes = max(rest, 0) + self._segment_bytes * len(self._spares)
        self._left_bytes = room_bytes - self._reserved_bytes - self._slack_bytes
        return room_bytes

    def _forget(self, request_id: RequestId) -> None:
        opened = self._open.pop(request_id, None)
        if opened is None:
            return
        self._reserved_bytes -= opened.room_bytes
        self._left_bytes += opened.room_bytes
        for segment in self._segments if opened.home is None else (opened.home,):
            segment.open.discard(request_id)

    # -- syncing, carrying, deleting -------------------------------------------------------------

    def _behind(self) -> bool:
        """True when there is something to do although nothing was written."""
        return len(self._segments) > 1 or any(segment.uncut for segment in self._segments)

    async def _sync(self) -> bool:
        """Sync what is written now; False when some of it is not safe."""
        self.flush()
        safe = True
        for segment in list(self._segments):
            if segment.handle is not None:
                safe = await self._sync_segment(segment, segment.handle) and safe
        return safe

    async def _sync_segment(self, segment: JournalSegment, handle: Segment) -> bool:
        size_bytes, frames = segment.size_bytes, len(segment.unsynced)
        if size_bytes > segment.synced_bytes:
            self._sync_began_ns = self._clock.monotonic_ns()
            try:
                await handle.sync()
            except OSError as error:
                self._give_up(segment, error)
                return False
            finally:
                self._sync_began_ns = None
            segment.synced_bytes = size_bytes
            del segment.unsynced[:frames]
        if segment.sealed and segment.synced_bytes == segment.size_bytes:
            handle.close()
            segment.handle = None
        return True

    def _give_up(self, segment: JournalSegment, error: OSError) -> None:
        """The system did not take, or may have dropped, what is not synced: write it elsewhere."""
        log.error("journal_write_failed", segment=segment.name, why=str(error))
        self._full = str(error)
        lost = b"".join((*segment.unsynced, *segment.unwritten))
        segment.give_up_unsynced()
        if segment is self._current:
            self._rotate()
        self._carry(segment)
        for item in records.scan(lost):
            if not isinstance(item, Damage) and item.kind in records.ENDS:
                self.closed(fleet.decode(item.body, UsageRecord))

    def _carry_forward(self) -> None:
        """Write what is open in a segment again if that is all that it is kept for."""
        for segment in list(self._segments):
            if segment.sealed and not (segment.batches or segment.uncut or segment.keep):
                self._carry(segment)

    def _carry(self, segment: JournalSegment) -> None:
        for request_id in sorted(segment.open):
            opened = self._open.get(request_id)
            if opened is None or opened.home is None:
                continue
            if self._left_bytes < 0:
                return
            home = self._append(records.OPENED, opened.body)
            if home is None:
                return
            if opened.progress is not None:
                self._append(records.PROGRESS, _encode(opened.progress))
            home.open.add(request_id)
            segment.open.discard(request_id)
            opened.home = home

    def _delete(self, done: list[JournalSegment]) -> None:
        """Delete from the oldest on: a later segment may say what of an earlier one is shipped."""
        for segment in list(self._segments):
            if segment.keep:
                continue
            if segment not in done or segment.handle is not None:
                return
            try:
                self._disk.delete(segment.name)
            except OSError as error:
                log.error("journal_delete_failed", segment=segment.name, why=str(error))
                return
            self._segments.remove(segment)

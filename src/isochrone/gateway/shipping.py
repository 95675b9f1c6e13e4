"""Ships closed usage from the journal to the durable stream, at least once, with stable ids.

A batch that was sent and not acknowledged is sent again with the same id and the same content, by
this run or by the next, so the stream keeps it once within its window and the book keeps each
request once for ever.
"""

import asyncio
import contextlib
from collections.abc import Sequence

import structlog

from isochrone.core.errors import BusUnavailable
from isochrone.core.limits.terms import LONGEST_NS
from isochrone.gateway.journal import Journal
from isochrone.gateway.journal_state import Pending
from isochrone.ports.bus import Bus
from isochrone.ports.clock import Clock
from isochrone.wire import subjects
from isochrone.wire.usage import encode_batch

AT_ONCE = 16
GATHER_S = 0.2  # a sync of the stream costs the same however much it takes in
TIMEOUT_S = 2.0
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0
_SYNC_NS = 10_000_000_000    # from the end of a request until it waits to be sent, at most
_STALLED_NS = 60_000_000_000
_BOOKED_NS = 120_000_000_000  # and from when it was sent until it is booked, if much is

log = structlog.get_logger()


class Shipper:
    """Run beside the journal."""

    def __init__(self, journal: Journal, bus: Bus, site: str, clock: Clock) -> None:
        self._journal = journal
        self._bus = bus
        self._site = site
        self._clock = clock
        self._away_since_ns: int | None = None
        self._is_all_told = False
        self._told = clock.wall_ns()  # what ended before is in the stream
        self._told_ns = clock.monotonic_ns()  # the same instant, whatever becomes of the clock
        self._late = self._late_until = 0

    async def run(self) -> None:
        """Ship for ever; while the bus is away, try again with growing pauses."""
        wait_s = FIRST_WAIT_S
        while True:
            self._journal.ready.clear()
            began, began_ns = self._clock.wall_ns(), self._clock.monotonic_ns()
            batches = self._journal.pending(AT_ONCE)
            if not batches:
                self._is_all_told = True
                await self._journal.ready.wait()
                self._is_all_told = False
                self._told, self._told_ns = self._clock.wall_ns(), self._clock.monotonic_ns()
                continue
            if await self._send_all(batches):
                wait_s = FIRST_WAIT_S
                if len(batches) < AT_ONCE:
                    self._told, self._told_ns = began, began_ns
                    await asyncio.sleep(GATHER_S)
                continue
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, LONGEST_WAIT_S)

    async def flush(self, *, timeout_s: float) -> bool:
        """Ship what the journal holds now, for a stop in good order; False when some is left."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._journal.commit()
                while batches := self._journal.pending(AT_ONCE):
                    if not await self._send_all(batches):
                        return False
                    await self._journal.commit()
                return True
        return False

    def away_s(self, now_ns: int) -> float:
        """How long shipping has failed without a success; 0 when the last batch was taken."""
        since_ns = self._away_since_ns
        return 0.0 if since_ns is None else (now_ns - since_ns) / 1e9

    def told_before(self, now: int) -> int:
        """The wall instant before which all requests came whose usage is booked, as far as they are
        over. After a stall it is held back, for requests that came before and for the booking."""
        told = now
        if not self._is_all_told:  # by the clock that shows less
            told = min(self._told, now - (self._clock.monotonic_ns() - self._told_ns))
        if now - told >= _STALLED_NS:
            self._late, self._late_until = told - LONGEST_NS, now + _BOOKED_NS
        return self._late if now < self._late_until else told - _SYNC_NS

    async def _send_all(self, batches: list[Pending]) -> bool:
        sent = await asyncio.gather(*(self._send(batch) for batch in batches))
        self._note(all(sent), waiting=len(batches))
        return all(sent)

    async def _send(self, batch: Pending) -> bool:
        name, content = f"{self._site}-{batch.segment}-{batch.offset}", batch.content
        try:
            if content.usage:
                subject = subjects.usage_subject(self._site)
                await self._publish(subject, f"{name}-u", content.grounds, content.usage)
            if content.evidence:
                subject = subjects.evidence_subject(self._site)
                await self._publish(subject, f"{name}-e", (), content.evidence)
        except BusUnavailable:
            return False
        self._journal.shipped(batch)
        return True

    async def _publish(
        self, subject: str, batch_id: str, grounds: Sequence[bytes], events: Sequence[bytes]
    ) -> None:
        payload = encode_batch(batch_id, grounds, events)
        await self._bus.publish_durable(
            subject, payload, message_id=batch_id, timeout_s=TIMEOUT_S
        )

    def _note(self, sent: bool, *, waiting: int) -> None:
        """Log the first failure and the first success after it."""
        now_ns = self._clock.monotonic_ns()
        if not sent and self._away_since_ns is None:
            self._away_since_ns = now_ns
            log.warning("usage_not_shipped", batches=waiting)
        elif sent and self._away_since_ns is not None:
            log.info("usage_shipped_again", away_s=(now_ns - self._away_since_ns) / 1e9)
            self._away_since_ns = None

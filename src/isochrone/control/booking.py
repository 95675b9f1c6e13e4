"""Books usage: takes reports from the durable stream into the book and acknowledges them after.

A message may come any number of times and in any order; the book keeps each request once. What
cannot be booked - bytes that are no batch, a site that reports for another, a value that no column
holds - is parked in the book and then acknowledged, so that it neither blocks what comes after nor
gets lost. A second loop settles evidence of requests whose ingress stays silent.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import TypeVar, cast

import structlog

from isochrone.control.offload import Offload
from isochrone.core.errors import BusUnavailable, InvalidInput, StoreUnavailable, Untrusted
from isochrone.core.ids import SiteName
from isochrone.core.metering.bookable import problems_of
from isochrone.core.metering.event import Reporter, UsageEvent
from isochrone.core.routing.choice import Ground
from isochrone.ports.book import Book, Parked
from isochrone.ports.bus import Bus, Durable
from isochrone.ports.clock import Clock
from isochrone.wire import fleet
from isochrone.wire.subjects import BOOK_CONSUMER, USAGE_STREAM, USAGE_SUBJECTS
from isochrone.wire.usage import decode_batch

MESSAGES_MOST = 20  # up to 2,000 events, a transaction of some 15 ms
LANES = 2  # while one is decoded, another is in the database
PULL_WAIT_S = 5.0
RETRY_S = 0.5
SWEEP_MOST = 500
SWEEP_INTERVAL_S = 2.0
_NS_PER_S = 1_000_000_000

log = structlog.get_logger()

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Sorted:
    """What some messages hold: grounds, reports of ingresses and evidence, each with the subject
    that it came by, and what cannot be booked."""

    grounds: list[tuple[str, Ground]] = field(default_factory=list)
    usage: list[tuple[str, UsageEvent]] = field(default_factory=list)
    evidence: list[tuple[str, UsageEvent]] = field(default_factory=list)
    parked: list[Parked] = field(default_factory=list)


def sort(messages: Sequence[Durable]) -> Sorted:
    """Split messages by what is to be done with them; every event ends in exactly one list."""
    found = Sorted()
    for message in messages:
        try:
            grounds, events = decode_batch(message.payload)
        except Untrusted as error:
            found.parked.append(_parked(message.subject, message.payload, error.message))
            continue
        kind, _, site = message.subject.partition(".")
        if kind == "usage":
            found.grounds += [(message.subject, ground) for ground in grounds]
        for event in events:
            reason_ = _refusal(kind, site, event)
            if reason_ is not None:
                found.parked.append(_parked(message.subject, fleet.encode(event), reason_))
            elif kind == "usage":
                found.usage.append((message.subject, event))
            else:
                found.evidence.append((message.subject, event))
    return found


def _refusal(kind: str, site: str, event: UsageEvent) -> str | None:
    """Why this event may not come by this subject, or at all: a site speaks for itself only, and
    of what a request can be."""
    speaker: str | None
    reporters: tuple[Reporter, ...]
    if kind == "usage":
        speaker, reporters = event.ingress_site, ("ingress", "recovered")
    elif kind == "evidence":
        speaker, reporters = event.serving_site, ("evidence",)
    else:
        return f"{kind!r} is not a kind of report"
    if speaker != site:
        return f"site {site!r} may not report for {speaker!r}"
    if event.reporter not in reporters:
        return f"reports on {kind!r} come from {' or '.join(reporters)}, not {event.reporter!r}"
    return "; ".join(problems_of(event)) or None


def _parked(subject: str, payload: bytes, reason: str) -> Parked:
    name = sha256(subject.encode() + b"\n" + payload).hexdigest()[:32]
    reason = reason.replace("\0", "?")  # it may quote the site, and no text of the book holds one
    return Parked(id=name, subject=subject, payload=payload, reason=reason)


def _store(
    call: Callable[[Sequence[tuple[str, T]]], int], told: Sequence[tuple[str, T]]
) -> list[Parked]:
    """Store all that can be stored; halves what is refused until the culprits stand alone."""
    if not told:
        return []
    try:
        call(told)
    except InvalidInput as error:
        if len(told) == 1:
            subject, noun = told[0]
            if _stored_plain(call, subject, noun):
                return []
            return [_parked(subject, fleet.encode(noun), error.message)]
        middle = len(told) // 2
        return _store(call, told[:middle]) + _store(call, told[middle:])
    return []


def _stored_plain(
    call: Callable[[Sequence[tuple[str, T]]], int], subject: str, noun: T
) -> bool:
    """Whether it can be stored without its decision: the charge goes before the explanation."""
    if not isinstance(noun, UsageEvent) or noun.decision is None:
        return False
    try:
        call([(subject, cast(T, replace(noun, decision=None)))])
    except InvalidInput:
        return False
    log.warning("decision_not_kept", request=noun.request_id, subject=subject)
    return True


def _nouns(told: Sequence[tuple[str, T]]) -> list[T]:
    return [noun for _, noun in told]


def _by_site(told: Sequence[tuple[str, T]]) -> list[tuple[SiteName, T]]:
    return [(SiteName(subject.partition(".")[2]), noun) for subject, noun in told]


def bring_in(book: Book, messages: Sequence[Durable], *, now: int) -> list[Parked]:
    """Bring the messages into the book, each call a transaction; return what was parked."""
    return _bring_in(book, sort(messages), now)


def _bring_in(book: Book, found: Sorted, now: int) -> list[Parked]:
    parked = [
        *found.parked,
        # Before the requests whose decisions name them.
        *_store(lambda told: book.keep_grounds(_by_site(told), now=now), found.grounds),
        *_store(lambda told: book.book_usage(_nouns(told), now=now), found.usage),
        *_store(lambda told: book.note_evidence(_nouns(told), now=now), found.evidence),
    ]
    if parked:
        book.park(parked, now=now)
    return parked


class Booking:
    """The booking loops of one copy of control; several copies may run at once."""

    def __init__(
        self,
        bus: Bus,
        book: Book,
        *,
        clock: Clock,
        offload: Offload,
        evidence_wait_s: float = 30.0,
    ) -> None:
        self._bus = bus
        self._book = book
        self._clock = clock
        self._offload = offload
        self._evidence_wait_ns = int(evidence_wait_s * _NS_PER_S)
        self._held: list[Sequence[Durable]] = [()] * LANES
        self.booked_events = 0
        self.parked_messages = 0

    async def run(self) -> None:
        """Book until cancelled; outages of the bus and the book are waited out."""
        async with asyncio.TaskGroup() as group:
            for lane in range(LANES):
                group.create_task(self._book_for_ever(lane))
            group.create_task(self._sweep_for_ever())

    async def _book_for_ever(self, lane: int) -> None:
        made = False
        while True:
            try:
                if not made:
                    await self._bus.ensure_stream(USAGE_STREAM, USAGE_SUBJECTS, BOOK_CONSUMER)
                    made = True
                await self.book_next(PULL_WAIT_S, lane)
            except (BusUnavailable, StoreUnavailable) as error:
                log.warning("booking_waits", reason=error.message)
                made = made and not isinstance(error, BusUnavailable)  # perhaps it lost its disk
                await asyncio.sleep(RETRY_S)

    async def book_next(self, wait_s: float, lane: int = 0) -> int:
        """Book the next messages, if any come within `wait_s`; return how many. Lanes may do so at
        once; each has its own messages.

        Raises BusUnavailable, or StoreUnavailable: then the messages are held for the next call,
        because the stream offers them again only after its own, longer wait.
        """
        if not self._held[lane]:
            self._held[lane] = await self._bus.pull(
                USAGE_STREAM, BOOK_CONSUMER, most=MESSAGES_MOST, wait_s=wait_s
            )
        if not self._held[lane]:
            return 0
        messages, now = self._held[lane], self._clock.wall_ns()
        parked = await self._offload(lambda: self._take(messages, now))
        self._held[lane] = ()
        for each in parked:
            log.error("usage_parked", id=each.id, subject=each.subject, reason=each.reason)
        await self._bus.ack(messages)
        return len(messages)

    def _take(self, messages: Sequence[Durable], now: int) -> list[Parked]:
        found = sort(messages)
        parked = _bring_in(self._book, found, now)
        self.booked_events += len(found.usage)
        self.parked_messages += len(parked)
        return parked

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            try:
                await self.sweep()
            except StoreUnavailable as error:
                log.warning("evidence_waits", reason=error.message)

    async def sweep(self) -> int:
        """Settle all evidence that waited long enough; return how many pieces."""
        settled, book = 0, self._book
        while True:
            now = self._clock.wall_ns()
            overdue = partial(
                book.book_overdue_evidence, now - self._evidence_wait_ns, now=now, most=SWEEP_MOST
            )
            done = await self._offload(overdue)
            settled += done
            if done < SWEEP_MOST:
                return settled

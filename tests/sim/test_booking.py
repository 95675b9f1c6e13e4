"""Booking on virtual time with the real database: each request once, under faults of both sides."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.ledger import PostgresLedger
from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.usage_days import PostgresUsageDays
from isochrone.control.booking import Booking
from isochrone.core.errors import StoreUnavailable
from isochrone.core.ids import RequestId, SiteName, uuid7
from isochrone.core.metering.detached import DAY_NS
from isochrone.core.metering.event import Reporter, Tokens, UsageEvent
from isochrone.core.rng import stream
from isochrone.core.routing.choice import Ground, GroundSite
from isochrone.core.world.tenant import Scope
from isochrone.ports.book import UsageFilter
from isochrone.twin.clock import VirtualClock
from isochrone.twin.fakes.bus import FakeBus, FakeHub
from isochrone.twin.loop import VirtualLoop, run
from isochrone.wire import fleet
from isochrone.wire.subjects import (
    BOOK_CONSUMER,
    USAGE_STREAM,
    USAGE_SUBJECTS,
    evidence_subject,
    usage_subject,
)
from isochrone.wire.usage import UsageBatch, encode_batch
from tests.unit.build_usage import a_decision, a_ground, a_record, a_usage_event

T = TypeVar("T")
ALL = Scope(org_id=None)
SITES = ("ashburn", "frankfurt", "sydney")
WAIT_S = 30.0


@dataclass
class Desk:
    """A bus, a booking loop on the real book, and the faults of the store between them."""

    book: PostgresBook
    faults: Callable[[], str] = field(default=lambda: "none")

    def __post_init__(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.clock = VirtualClock(loop)
        self.hub = FakeHub(self.clock, redeliver_after_s=5.0)
        self.gateway, self.control = self.hub.bus(), self.hub.bus()
        self.booking = Booking(
            self.control, self.book, clock=self.clock, offload=self.offload,
            evidence_wait_s=WAIT_S,
        )

    def offload(self, call: Callable[[], T], /) -> Awaitable[T]:
        async def answer() -> T:
            fault = self.faults()
            if fault == "away":
                raise StoreUnavailable("away")
            said = call()
            if fault == "reply lost":
                raise StoreUnavailable("the reply was lost after the commit")
            return said

        return answer()

    async def tell(
        self, subject: str, events: Sequence[UsageEvent], *, bus: FakeBus | None = None,
        grounds: Sequence[Ground] = (),
    ) -> None:
        batch_id = f"{subject}/{events[0].request_id}/{len(events)}"
        payload = encode_batch(
            batch_id, map(fleet.encode, grounds), (fleet.encode(a_record(e)) for e in events)
        )
        await (bus or self.gateway).publish_durable(subject, payload, message_id=batch_id)

    async def until_empty(self) -> None:
        async with asyncio.timeout(600):
            while USAGE_STREAM not in self.hub.streams or self.hub.streams[USAGE_STREAM].messages:
                await asyncio.sleep(0.1)

    def booked(self) -> list[UsageEvent]:
        return [row.event for row in self.book.requests(ALL, UsageFilter(), most=5000)]


def a_report(
    number: int, site: str = "sydney", *, reporter: Reporter = "ingress", serving: str = "ashburn"
) -> UsageEvent:
    event = a_usage_event(uuid7(number * 1_000_000, number), reporter=reporter)
    return replace(
        event, received_at=number, ingress_site=SiteName(site), serving_site=SiteName(serving)
    )


@pytest.fixture
def book(pool: Pool) -> PostgresBook:
    return PostgresBook(pool)


@pytest.mark.parametrize("seed", [1, 2])
def test_every_request_is_booked_once_whatever_fails(book: PostgresBook, seed: int) -> None:
    chance = stream(seed, "faults")
    kinds = ("none", "none", "away", "reply lost")

    async def main() -> list[UsageEvent]:
        desk = Desk(book, lambda: chance.choice(kinds))
        running = asyncio.create_task(desk.booking.run())
        told = []
        await desk.gateway.ensure_stream(USAGE_STREAM, USAGE_SUBJECTS, BOOK_CONSUMER)
        for number in range(60):
            site = chance.choice(SITES)
            events = [a_report(number * 10 + each, site) for each in range(10)]
            told += events
            await desk.tell(usage_subject(site), events)
            match chance.randrange(8):
                case 0:
                    desk.control.double_next_pull()
                case 1:
                    desk.control.lose_next_reply()
                case 2:
                    desk.control.down()
                    await asyncio.sleep(chance.uniform(0.0, 8.0))
                    desk.control.up()
                case _:
                    await asyncio.sleep(chance.uniform(0.0, 0.5))
        await desk.until_empty()
        running.cancel()
        assert desk.booked() == told
        assert book.parked(most=10) == []
        return told

    assert len(run(main())) == 600


def test_what_cannot_be_booked_is_parked_and_blocks_nothing(book: PostgresBook) -> None:
    async def main() -> None:
        desk = Desk(book)
        await desk.gateway.ensure_stream(USAGE_STREAM, USAGE_SUBJECTS, BOOK_CONSUMER)
        good = [a_report(number) for number in range(1, 6)]
        await desk.gateway.publish_durable("usage.sydney", b"\xc1 no batch", message_id="poison")
        newer = UsageBatch(99, "newer", (), (a_record(a_report(8)),))
        await desk.gateway.publish_durable("usage.sydney", fleet.encode(newer), message_id="newer")
        impostor = a_report(9, "frankfurt")
        not_served_here = a_report(10, reporter="evidence")
        negative = replace(a_report(11), tokens=Tokens(output=-5))
        no_id = replace(a_report(12), request_id=RequestId("mine"))
        unasked = a_report(13, reporter="evidence")
        await desk.tell(
            "usage.sydney", [*good[:2], impostor, negative, good[2], no_id, unasked, *good[3:]]
        )
        await desk.tell("evidence.sydney", [not_served_here])
        endless = GroundSite(site=SiteName("x"), rtt_ms=float("inf"), rtt_source="emulated")
        bad = replace(a_ground("bad"), open_sites=(endless,))
        decided = replace(a_report(6), decision=a_decision(a_ground()))
        await desk.tell("usage.sydney", [decided], grounds=[bad, a_ground()])
        running = asyncio.create_task(desk.booking.run())
        await desk.until_empty()
        running.cancel()

        assert desk.booked() == [*good, replace(decided, decision=None)]
        booked = book.request(ALL, decided.request_id)
        assert booked is not None
        assert (booked.event, booked.ground) == (decided, a_ground())
        reasons = [each.reason for each in book.parked(most=20)]
        assert len(reasons) == 8
        for part in (
            "'sydney' may not report for 'frankfurt'",
            "'sydney' may not report for 'ashburn'",
            "not 'evidence'",
            "not a UUID of version 7",
            "not a valid UsageBatch",
            "violates check constraint",
            "version 99 is newer",
            "the ground bad cannot be kept",
        ):
            assert any(part in reason for reason in reasons), (part, reasons)

    run(main())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"request_id": RequestId("\0"), "total_ms": float("inf")}, "not a UUID of version 7"),
        ({"total_ms": float("inf")}, "not a finite number"),
        ({"request_id": RequestId("ffffffff-ffff-7fff-bfff-ffffffffffff")}, "of no day"),
        ({"tokens": Tokens(output=2**62)}, "output: 4611686018427387904 is a count that no"),
        ({"received_at": -(2**63)}, "is not an instant"),
    ],
    ids=[
        "an id with a zero byte", "an endless time", "an id of another age", "endless tokens",
        "an early instant",
    ],
)
@pytest.mark.parametrize("kind", ["usage", "evidence"])
def test_one_bad_report_costs_neither_the_others_nor_what_follows(
    book: PostgresBook, pool: Pool, tmp_path: Path, kind: str, change: dict[str, object], why: str
) -> None:
    async def main() -> None:
        desk = Desk(book)
        await desk.gateway.ensure_stream(USAGE_STREAM, USAGE_SUBJECTS, BOOK_CONSUMER)
        reporter: Reporter = "ingress" if kind == "usage" else "evidence"
        report = a_report(1, reporter=reporter, serving="sydney")
        bad = replace(report, **change)  # type: ignore[arg-type]
        good = a_report(2)
        await desk.tell(f"{kind}.sydney", [bad])
        await desk.tell("usage.sydney", [good])
        running = asyncio.create_task(desk.booking.run())
        await asyncio.sleep(WAIT_S * 2)
        assert not running.done()
        running.cancel()
        assert desk.booked() == [good]
        (parked,) = book.parked(most=5)
        assert why in parked.reason
        PostgresUsageDays(pool, tmp_path).keep(since=0, until=DAY_NS)
        ledger = PostgresLedger(pool)
        for each in ledger.due(before=DAY_NS, now=DAY_NS):
            ledger.charge(each, before=DAY_NS, now=DAY_NS)

    run(main())


@pytest.mark.parametrize("reporter", ["ingress", "evidence"])
def test_a_charge_goes_before_an_explanation_that_cannot_be_kept(
    book: PostgresBook, reporter: Reporter
) -> None:
    async def main() -> None:
        desk = Desk(book)
        await desk.gateway.ensure_stream(USAGE_STREAM, USAGE_SUBJECTS, BOOK_CONSUMER)
        endless = replace(a_decision(a_ground()), prefill_ms=float("inf"))
        report = a_report(1, reporter=reporter, serving="sydney")
        kind = "usage" if reporter == "ingress" else "evidence"
        await desk.tell(f"{kind}.sydney", [replace(report, decision=endless)])
        running = asyncio.create_task(desk.booking.run())
        await asyncio.sleep(WAIT_S * 2)
        running.cancel()
        (event,) = desk.booked()
        assert (event.request_id, event.tokens) == (report.request_id, report.tokens)
        assert book.parked(most=5) == []

    run(main())


def test_a_batch_of_the_first_version_is_booked_without_its_decisions(book: PostgresBook) -> None:
    async def main() -> None:
        desk = Desk(book)
        await desk.gateway.ensure_stream(USAGE_STREAM, USAGE_SUBJECTS, BOOK_CONSUMER)
        told = [a_report(1), a_report(2)]
        events = [{**fleet.to_builtins(event), "decision": {"choice": {}}} for event in told]
        first = {"version": 1, "batch_id": "first", "events": events}
        wrong = {"version": 1, "batch_id": "wrong", "events": [{**events[0], "status": "x"}]}
        for batch in (first, wrong):
            payload = msgspec.msgpack.encode(batch)
            await desk.gateway.publish_durable(
                "usage.sydney", payload, message_id=str(batch["batch_id"])
            )
        running = asyncio.create_task(desk.booking.run())
        await desk.until_empty()
        running.cancel()
        assert desk.booked() == told
        (parked,) = book.parked(most=10)
        assert "not a valid UsageBatch" in parked.reason

    run(main())


def test_a_silent_ingress_is_replaced_by_evidence_and_replaces_it_when_it_speaks(
    book: PostgresBook,
) -> None:
    async def main() -> None:
        desk = Desk(book)
        running = asyncio.create_task(desk.booking.run())
        await desk.gateway.ensure_stream(USAGE_STREAM, USAGE_SUBJECTS, BOOK_CONSUMER)
        silent, late, prompt = (a_report(number) for number in range(3))
        await desk.tell(
            evidence_subject("ashburn"),
            [replace(event, reporter="evidence") for event in (silent, late, prompt)],
        )
        await desk.tell(usage_subject("sydney"), [prompt])
        await asyncio.sleep(WAIT_S - 1)
        assert desk.booked() == [prompt]

        await asyncio.sleep(5)
        assert [event.outcome for event in desk.booked()] == [
            "ingress_lost", "ingress_lost", "finished"
        ]
        await desk.tell(usage_subject("sydney"), [late])
        await asyncio.sleep(5)
        running.cancel()
        assert desk.booked()[1:] == [late, prompt]
        assert (desk.booked()[0].reporter, desk.booked()[0].outcome) == ("evidence", "ingress_lost")

    run(main())

"""Days of usage on a real PostgreSQL and real files: detached and attached, each request once."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from random import Random
from typing import TypeVar

import psycopg
import pytest

from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.ledger import PostgresLedger
from isochrone.adapters.postgres.meters import PostgresMeters
from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.prices import PostgresPrices
from isochrone.adapters.postgres.usage_days import PostgresUsageDays
from isochrone.control.usage_days import UsageDaysLoop
from isochrone.core.errors import (
    Conflict,
    InvalidInput,
    IsochroneError,
    NotFound,
    StoreUnavailable,
)
from isochrone.core.ids import RequestId, uuid7
from isochrone.core.metering.event import Reporter, Tokens, UsageEvent
from isochrone.core.world.tenant import EVERY_TENANT, Scope
from isochrone.ports.book import UsageFilter
from tests.contract.test_control_api import an_api
from tests.contract.test_ledger import DAY, ORG, PROJECT, START, S, a_sheet, sell_at
from tests.contract.test_meters import an_event
from tests.contract.test_settling import check
from tests.fixtures.interrupted_pool import InterruptedPool
from tests.fixtures.settling_worker import BATCH, charge_all, reports
from tests.unit.build_usage import a_decision, a_ground, a_usage_event

T = TypeVar("T")

NOW = START + 100 * DAY
MOST_ROUNDS = 20
ALL = Scope(org_id=None)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
def days(pool: Pool, archive: Path) -> PostgresUsageDays:
    return PostgresUsageDays(pool, archive)


@pytest.fixture
def book(pool: Pool) -> PostgresBook:
    return PostgresBook(pool)


def a_report(
    number: int, *, day: int = 0, reporter: Reporter = "ingress", output: int = 3
) -> UsageEvent:
    at = START + day * DAY + number * S
    event = a_usage_event(uuid7(at, number), reporter=reporter, output=output)
    return replace(event, received_at=at, finished_at=at + S)


def partitions(database: str) -> dict[str, int]:
    """Rows of each partition; the application may not look there."""
    with psycopg.connect(database) as owner:
        names = owner.execute(
            "SELECT relname::text FROM pg_class"
            " WHERE relnamespace = 'usage_days'::regnamespace AND relkind = 'r' ORDER BY 1"
        ).fetchall()
        counts = {}
        for (name,) in names:
            row = owner.execute(f"SELECT count(*) FROM usage_days.{name}".encode()).fetchone()
            assert row is not None
            counts[name] = row[0]
        return counts


def stored(book: PostgresBook) -> list[UsageEvent]:
    rows = book.requests(ALL, UsageFilter(), most=10_000)
    found = [book.request(ALL, row.event.request_id) for row in rows]
    return [each.event for each in found if each is not None]


def wrong(book: PostgresBook) -> int:
    return book.wrong_hours(since=0, until=2**62)


def test_requests_lie_in_the_partition_of_their_day(
    book: PostgresBook, days: PostgresUsageDays, database: str
) -> None:
    told = [a_report(number, day=day) for day in (0, 1, 9) for number in range(3)]
    old = replace(told[0], request_id=RequestId(uuid7(5, 5)))
    book.book_usage([*told[:6], old], now=1)
    assert partitions(database) == {"other": 7}
    assert days.keep(since=START, until=START + 3 * DAY) == 4
    assert days.keep(since=START, until=START + 3 * DAY) == 0
    assert partitions(database) == {
        "day_1970_01_01": 1, "day_2026_11_20": 3, "day_2026_11_21": 3, "day_2026_11_22": 0,
        "other": 0,
    }
    assert book.book_usage(told, now=2) == 3
    assert partitions(database)["other"] == 3, "a day that is far has no partition"
    assert days.keep(since=START, until=START + 3 * DAY) == 0
    assert len(stored(book)) == 10
    assert wrong(book) == 0


def test_the_application_reaches_rows_through_the_guarded_table_only(
    book: PostgresBook, days: PostgresUsageDays, pool: Pool
) -> None:
    book.book_usage([a_report(1)], now=1)
    days.keep(since=START, until=START + DAY)
    for table in ("day_2026_11_20", "other"):
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege),
            pool.transaction(EVERY_TENANT) as connection,
        ):
            connection.execute(f"SELECT * FROM usage_days.{table}".encode())
    with pool.transaction(Scope(org_id=ORG)) as connection:
        row = connection.execute("SELECT count(*) FROM usage").fetchone()
    assert row == (1,)
    with pool.transaction() as connection:
        row = connection.execute("SELECT count(*) FROM usage").fetchone()
    assert row == (0,)


ODD = (
    'tab\tline\nback\\slash "quote" \u00e9', "", ",", "\r\n", "NULL", "\\N", "\u2028", " x ", '"',
)


def test_rows_come_back_from_their_file_as_they_were(
    book: PostgresBook, days: PostgresUsageDays, archive: Path
) -> None:
    told = [
        replace(a_report(number), client_request_id=text, reason=text)
        for number, text in enumerate(ODD)
    ]
    told += [
        replace(
            a_report(20), serving_site=None, serving_country=None, chosen_ms=None, sent_ms=None,
            first_byte_ms=None, outcome="refused", status=403, tokens=Tokens(),
        ),
        replace(a_report(21), decision=a_decision(a_ground()), total_ms=1e-7, chosen_ms=0.1 + 0.2),
        replace(a_report(22), tokens=Tokens(output=2**40, source="running"), total_ms=123456789.0),
    ]
    book.book_usage(told, now=7)
    before = book.requests(ALL, UsageFilter(), most=100)
    file = days.detach(EVERY_TENANT, START, now=NOW)
    assert file is not None
    assert (file.rows, file.part) == (len(told), 0)
    assert [path.name for path in archive.iterdir()] == [file.file]
    assert (archive / file.file).stat().st_size == file.size_bytes
    assert stored(book) == []
    assert days.check(START) == []
    assert days.attach(EVERY_TENANT, START, now=NOW, keep_until=NOW) == len(told)
    assert book.requests(ALL, UsageFilter(), most=100) == before
    assert sorted(stored(book), key=lambda each: each.request_id) == told
    assert days.detached(since=None, until=None) == []


def test_a_detached_day_keeps_each_request_once_and_loses_none(
    book: PostgresBook, days: PostgresUsageDays, pool: Pool, database: str
) -> None:
    sell_at(PostgresPrices(pool), a_sheet())
    first = [a_report(number, output=100) for number in range(2000)]
    stood_in = a_report(5000, reporter="evidence", output=40)
    book.book_usage([*first, stood_in], now=1)
    charge_all(PostgresLedger(pool))
    assert days.detach(EVERY_TENANT, START, now=NOW) is not None
    assert "day_2026_11_20" not in partitions(database)
    assert wrong(book) == 0, "the sums are still those of the requests, detached ones included"
    # Told again: known, in whatever company.
    fresh = a_report(6000)
    assert book.book_usage([*first[:50], fresh, first[1999]], now=2) == 1
    assert book.book_usage([replace(first[7], reporter="recovered")], now=2) == 0
    assert stored(book) == [fresh], "who was late and unknown is booked, once"
    assert book.book_usage([fresh], now=3) == 0
    # Better than what was detached: kept until the day is there.
    better = a_report(5000, output=44)
    assert book.book_usage([better, better], now=3) == 0
    assert book.book_usage([better], now=4) == 0
    (day,) = days.days()
    assert (day.day_at, day.rows, day.late_reports) == (START, 1, 1)
    assert days.book_late(now=4) == 0, "the day is still away"
    assert wrong(book) == 0
    # Late rows of a detached day make a second part.
    second = days.detach(EVERY_TENANT, START, now=NOW + 1)
    assert second is not None
    assert (second.part, second.rows) == (1, 1)
    assert book.book_usage([fresh, *first[:5]], now=5) == 0
    assert wrong(book) == 0
    assert days.attach(EVERY_TENANT, START, now=6, keep_until=NOW) == 2002
    assert sorted(stored(book), key=lambda each: each.request_id) == [*first, better, fresh]
    assert [each.late_reports for each in days.days()] == [0]
    check(pool, [*first, stood_in, better, fresh])


def test_detaching_and_attaching_in_between_equals_the_oracle(
    book: PostgresBook, days: PostgresUsageDays, pool: Pool
) -> None:
    sell_at(PostgresPrices(pool), a_sheet())
    chance, told = Random(11), reports(1200, Random(12))
    for first in range(0, len(told), BATCH):
        book.book_usage(told[first : first + BATCH], now=1)
        book.book_usage(told[chance.randrange(len(told)) :][:30], now=1)
        step = chance.randrange(4)
        if step == 0:
            days.detach(EVERY_TENANT, START, now=NOW + first)
        elif step == 1 and days.detached(since=None, until=None):
            days.attach(EVERY_TENANT, START, now=NOW, keep_until=NOW)
        elif step == 2:
            charge_all(PostgresLedger(pool))
        assert wrong(book) == 0
    days.detach(EVERY_TENANT, START, now=NOW + len(told))
    assert days.detached(since=None, until=None)
    book.book_usage(told, now=2)
    days.attach(EVERY_TENANT, START, now=NOW, keep_until=NOW)
    check(pool, told)


def test_bookers_that_are_at_work_meanwhile_lose_and_double_nothing(
    book: PostgresBook, days: PostgresUsageDays, pool: Pool
) -> None:
    sell_at(PostgresPrices(pool), a_sheet())
    told = reports(3000, Random(21))
    batches = [told[first : first + BATCH] for first in range(0, len(told), BATCH)]
    stop = threading.Event()

    moved: list[int] = []

    def run(order: Sequence[list[UsageEvent]]) -> None:
        # Until the day was moved meanwhile: the reports are told once and once more, as they may.
        for batch in chain.from_iterable(repeat(order, MOST_ROUNDS)):
            while True:
                try:
                    book.book_usage(batch, now=1)
                    break
                except StoreUnavailable:  # it waited for the day; the stream sends it again
                    pass
            if len(moved) > 1 and batch is order[-1]:
                return

    def move() -> None:
        tries = 0
        while not stop.is_set():
            tries += 1
            try:
                days.detach(EVERY_TENANT, START, now=NOW + tries)
                if days.detached(since=None, until=None):
                    days.attach(EVERY_TENANT, START, now=NOW, keep_until=NOW)
                moved.append(tries)
            except (Conflict, StoreUnavailable):  # rows changed, or somebody was quicker
                pass

    with ThreadPoolExecutor(3) as workers:
        mover = workers.submit(move)
        bookers = [workers.submit(run, batches), workers.submit(run, batches[::-1])]
        try:
            for each in bookers:
                each.result()
        finally:
            stop.set()
        mover.result()
    assert moved
    if days.detached(since=None, until=None):
        days.attach(EVERY_TENANT, START, now=NOW, keep_until=NOW)
    days.book_late(now=NOW)
    check(pool, told)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_late_report_outlives_a_day_that_leaves_while_it_is_booked(
    book: PostgresBook, days: PostgresUsageDays, pool: Pool, archive: Path, number: int
) -> None:
    poor, full = a_report(1, reporter="evidence", output=2), a_report(1, output=7)
    book.book_usage([poor, a_report(2)], now=1)
    days.detach(EVERY_TENANT, START, now=NOW)
    book.book_usage([full], now=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PostgresUsageDays, "book_late", lambda self, *, now: 0)
        days.attach(EVERY_TENANT, START, now=NOW, keep_until=NOW)

    def detach() -> None:
        days.detach(EVERY_TENANT, START, now=NOW + 1)

    PostgresUsageDays(InterruptedPool(pool, number, detach), archive).book_late(now=NOW + 2)
    if days.detached(since=None, until=None):
        days.attach(EVERY_TENANT, START, now=NOW + 3, keep_until=NOW)
    assert {each.request_id: each for each in stored(book)}[full.request_id] == full
    assert wrong(book) == 0


def test_a_file_that_is_not_as_it_was_written_is_refused(
    book: PostgresBook, days: PostgresUsageDays, archive: Path, pool: Pool
) -> None:
    book.book_usage([a_report(number) for number in range(50)], now=1)
    file = days.detach(EVERY_TENANT, START, now=NOW)
    assert file is not None
    path = archive / file.file
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"?")
    with pytest.raises(InvalidInput, match="is damaged"):
        days.attach(EVERY_TENANT, START, now=NOW, keep_until=NOW)
    path.unlink()
    with pytest.raises(InvalidInput, match="No such file"):
        days.attach(EVERY_TENANT, START, now=NOW, keep_until=NOW)
    assert len(days.check(START)) == 1
    assert stored(book) == []
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="no archive"):
        PostgresUsageDays(pool, None).attach(EVERY_TENANT, START, now=NOW, keep_until=NOW)
    assert days.attach(EVERY_TENANT, START, now=NOW, keep_until=NOW) == 50
    with pytest.raises(NotFound, match="2026-11-20 is not detached"):
        days.attach(EVERY_TENANT, START, now=NOW, keep_until=NOW)


def test_what_may_not_be_detached_is_not(
    book: PostgresBook, days: PostgresUsageDays, archive: Path, pool: Pool, database: str
) -> None:
    book.book_usage([a_report(1)], now=1)
    with pytest.raises(InvalidInput, match="no archive"):
        PostgresUsageDays(pool, None).detach(EVERY_TENANT, START, now=NOW)
    with pytest.raises(InvalidInput, match="too young"):
        days.detach(EVERY_TENANT, START, now=START + 33 * DAY - 1)
    archive.write_text("a file")
    with pytest.raises(InvalidInput, match="cannot be used"):
        days.detach(EVERY_TENANT, START, now=NOW)
    archive.unlink()
    assert len(stored(book)) == 1
    with pool.transaction(EVERY_TENANT) as connection, pytest.raises(
        psycopg.errors.CheckViolation
    ):
        connection.execute("SELECT drop_usage_day(%s)", (START,))
    # A day without requests has no file, and its partition goes.
    days.keep(since=START + DAY, until=START + 2 * DAY)
    assert days.detach(EVERY_TENANT, START + DAY, now=NOW) is None
    assert "day_2026_11_21" not in partitions(database)
    assert not list(archive.iterdir())


def test_which_days_are_overdue(book: PostgresBook, days: PostgresUsageDays) -> None:
    told = [a_report(number, day=day) for day in (0, 1, 2) for number in range(2)]
    book.book_usage(told, now=1)
    days.keep(since=START, until=START + 3 * DAY)
    before = START + 2 * DAY
    assert days.overdue(before=before, now=NOW) == [START, START + DAY]
    days.detach(EVERY_TENANT, START, now=NOW)
    assert days.overdue(before=before, now=NOW) == [START + DAY]
    book.book_usage([a_report(9)], now=NOW)
    assert days.overdue(before=before, now=NOW + DAY) == [START + DAY], "a late row, too fresh"
    assert days.overdue(before=before, now=NOW + DAY + 1) == [START, START + DAY]
    days.attach(EVERY_TENANT, START, now=NOW, keep_until=NOW + 9 * DAY)
    assert days.overdue(before=before, now=NOW + 9 * DAY - 1) == [START + DAY]
    assert days.overdue(before=before, now=NOW + 9 * DAY) == [START, START + DAY]


def test_an_amendment_of_a_detached_request_says_what_to_do(
    book: PostgresBook, days: PostgresUsageDays, pool: Pool
) -> None:
    event = a_report(1, output=100)
    book.book_usage([event], now=1)
    days.detach(EVERY_TENANT, START, now=NOW)
    amended = an_event(
        "a1", "output_tokens", request_id=event.request_id, amount=40, from_at=START,
        project_id=PROJECT,
    )
    meters = PostgresMeters(pool)
    (outcome,) = meters.add_events(Scope(org_id=ORG), [amended], now=1)
    assert outcome.verdict == "conflicting"
    assert "2026-11-20, was detached" in outcome.reason
    days.attach(EVERY_TENANT, START, now=NOW, keep_until=NOW)
    (outcome,) = meters.add_events(Scope(org_id=ORG), [amended], now=1)
    assert outcome.verdict == "accepted"


def test_a_day_cannot_be_forgotten_while_its_rows_are_away(
    book: PostgresBook, days: PostgresUsageDays, pool: Pool
) -> None:
    book.book_usage([a_report(1)], now=1)
    days.detach(EVERY_TENANT, START, now=NOW)
    with pytest.raises(IsochroneError, match="1 requests are not there"), pool.transaction(
        EVERY_TENANT
    ) as connection:
        connection.execute("SELECT forget_detached_day(%s)", (START,))
    for statement in ("DELETE FROM detached_days", "DELETE FROM detached_ids"):
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege),
            pool.transaction(EVERY_TENANT) as connection,
        ):
            connection.execute(statement.encode())


def test_the_api_lists_moves_and_says_what_is_away(
    pool: Pool, book: PostgresBook, archive: Path
) -> None:
    event = a_report(1, day=-200)
    book.book_usage([event, a_report(2, day=-200)], now=1)
    name = "2026-05-04"
    with an_api(pool, archive=archive) as api:
        operator = api.call
        status, listed = operator("GET", "days")
        assert (status, listed["items"][0]["day"], listed["items"][0]["rows"]) == (200, name, 2)
        status, made = operator("POST", f"days/{name}/detach", {})
        assert (status, made["file"]["rows"]) == (200, 2)
        assert operator("POST", f"days/{name}/detach", {})[1]["file"] is None
        assert operator("GET", f"days/{name}/check")[1]["problems"] == []
        status, told = operator("GET", f"requests/{event.request_id}")
        assert status == 404
        assert f"requests of {name} were detached" in told["detail"]
        _, page = operator("GET", "usage?since=2026-05-04T12:00:00Z")
        assert (page["items"], page["detached"]) == ([], [{"day": name, "requests": 2}])
        _, page = operator("GET", "usage?since=2026-05-04T12:00:00Z", key=api.tenant("acme"))
        assert page["detached"] == [{"day": name, "requests": None}], "they are everybody's"
        status, told = operator("GET", f"reconciliation?day={name}")
        assert (status, "were detached" in told["detail"]) == (404, True)
        assert operator("GET", "usage?until=2026-05-04T00:00:00Z")[1]["detached"] == []
        assert operator("GET", "usage?since=2026-05-05T00:00:00Z&by=model")[1]["detached"] == []
        for day in ("yesterday", "2026-02-30", "1795132800000000000", "1960-01-01"):
            assert operator("POST", f"days/{day}/detach", {})[0] == 422
        assert operator("POST", f"days/{name}/attach", {"keep_days": -1})[0] == 422
        assert operator("POST", f"days/{name}/attach", {})[1] == {"day": name, "rows": 2}
        assert operator("GET", f"requests/{event.request_id}")[0] == 200
        entries = operator("GET", "audit?kind=detached_day")[1]["items"]
        assert [(each["actor"], each["change"]) for each in entries] == [
            ("principal:operator", "made"), ("principal:operator", "removed"),
        ]


@dataclass
class Wall:
    """A clock that stands where a test puts it."""

    now: int

    def wall_ns(self) -> int:
        return self.now

    def monotonic_ns(self) -> int:
        return self.now


async def at_once(call: Callable[[], T], /) -> T:
    return call()


def test_the_loop_detaches_what_is_older_than_is_retained(
    pool: Pool, book: PostgresBook, days: PostgresUsageDays, archive: Path, database: str
) -> None:
    told = [a_report(number, day=day) for day in range(5) for number in range(3)]
    book.book_usage(told, now=1)
    wall = Wall(START + 43 * DAY + 5)
    loop = UsageDaysLoop(days, clock=wall, offload=at_once, retain_days=40)
    asyncio.run(loop.keep())
    assert set(partitions(database)) == {
        *(f"day_2026_11_2{number}" for number in range(5)),
        *(f"day_2027_01_0{number}" for number in range(1, 5)), "other",
    }
    assert asyncio.run(loop.detach_overdue()) == 3
    assert asyncio.run(loop.detach_overdue()) == 0
    assert [each.day_at for each in days.detached(since=None, until=None)] == [
        START, START + DAY, START + 2 * DAY
    ]
    assert len(list(archive.glob("usage-2026-11-2?.*.parquet"))) == 3
    wall.now += DAY
    assert asyncio.run(loop.detach_overdue()) == 1
    assert stored(book) == told[-3:]
    retaining = UsageDaysLoop(days, clock=wall, offload=at_once, retain_days=None)
    wall.now += 99 * DAY
    assert asyncio.run(retaining.detach_overdue()) == 0
    assert wrong(book) == 0

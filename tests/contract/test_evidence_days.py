"""Evidence of days leaves the book with its day, and each piece of it is kept once all the same."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from isochrone.adapters.parquet import usage_file
from isochrone.adapters.parquet.tables import read_parquet
from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.usage_days import PostgresUsageDays
from isochrone.core.errors import Conflict, InvalidInput
from isochrone.core.ids import SiteName
from isochrone.core.metering.event import UsageEvent
from isochrone.core.world.tenant import EVERY_TENANT
from tests.contract.test_ledger import DAY, START
from tests.contract.test_usage_days import NOW, a_report

SITES = (SiteName("frankfurt"), SiteName("sydney"))


@pytest.fixture
def book(pool: Pool) -> PostgresBook:
    return PostgresBook(pool)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
def days(pool: Pool, archive: Path) -> PostgresUsageDays:
    return PostgresUsageDays(pool, archive)


def seen(number: int, *, day: int = 0, site: int = 0, output: int = 3) -> UsageEvent:
    event = a_report(number, day=day, reporter="evidence", output=output)
    return replace(event, serving_site=SITES[site])


def settle(book: PostgresBook) -> None:
    while book.book_overdue_evidence(NOW, now=9):
        pass


def kept(pool: Pool) -> list[tuple[str, str, int, int | None]]:
    """Request, site, output and when it was settled, of what lies in the table."""
    with pool.transaction(EVERY_TENANT) as connection:
        rows = connection.execute(
            "SELECT request_id::text, serving_site, output, settled_at FROM evidence ORDER BY 1, 2"
        ).fetchall()
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def told(pieces: Sequence[UsageEvent]) -> list[tuple[str, str, int, int | None]]:
    return sorted(
        (each.request_id, each.serving_site or "", each.tokens.output, 9) for each in pieces
    )


def test_evidence_leaves_with_its_day_and_comes_back_as_it_was(
    book: PostgresBook, days: PostgresUsageDays, pool: Pool, archive: Path
) -> None:
    pieces = [seen(number, site=site) for number in range(700) for site in (0, 1)]
    tomorrow = [seen(1, day=1)]
    book.note_evidence([*pieces, *tomorrow], now=1)
    settle(book)
    before = kept(pool)
    file = days.detach(EVERY_TENANT, START, now=NOW)
    assert file is not None
    assert kept(pool) == told(tomorrow), "evidence of other days stays"
    (second, first) = days.days()
    assert (second.evidence_files, len(first.evidence_files)) == ((), 1)
    (away,) = first.evidence_files
    assert (away.rows, away.part) == (1400, 0)
    settled = [each["settled_at"] for each in read_parquet(archive / away.file)]
    assert settled == 1400 * [9]
    # Told again, each on its own and in company: nothing is new.
    assert book.note_evidence(pieces, now=2) == 0
    assert book.note_evidence([pieces[3], seen(2, day=1)], now=2) == 1
    assert days.check(START) == []
    assert days.attach(EVERY_TENANT, START, now=3, keep_until=NOW) == 700
    settle(book)
    assert kept(pool) == sorted([*before, *told([seen(2, day=1)])])
    assert book.note_evidence(pieces, now=4) == 0
    assert all(not each.evidence_files for each in days.days())


def test_what_is_new_or_better_after_its_day_left_is_kept_and_makes_another_part(
    book: PostgresBook, days: PostgresUsageDays, pool: Pool
) -> None:
    book.note_evidence([seen(number) for number in range(10)], now=1)
    settle(book)
    assert days.detach(EVERY_TENANT, START, now=NOW) is not None
    other_site, better, unknown = seen(3, site=1), seen(4, output=30), seen(50)
    worse = seen(5, output=1)
    assert book.note_evidence([other_site, better, unknown, worse, seen(6)], now=2) == 3
    with pytest.raises(Conflict, match="wait still"):
        days.detach(EVERY_TENANT, START, now=NOW + 1)
    settle(book)
    days.detach(EVERY_TENANT, START, now=NOW + 2)
    assert kept(pool) == []
    (day,) = days.days()
    assert [(each.part, each.rows) for each in day.evidence_files] == [(0, 10), (1, 3)]
    assert book.note_evidence([other_site, better, unknown, worse], now=3) == 0
    days.attach(EVERY_TENANT, START, now=4, keep_until=NOW)
    settle(book)
    whole = [seen(number) for number in range(10) if number != 4]
    assert kept(pool) == told([*whole, better, other_site, unknown]), "of two parts the better one"


def test_a_day_whose_evidence_waits_is_refused_as_a_whole(
    book: PostgresBook, days: PostgresUsageDays
) -> None:
    """Its requests left, and the answer was a refusal."""
    book.book_usage([a_report(1)], now=1)
    book.note_evidence([seen(1)], now=1)
    with pytest.raises(Conflict, match="1 pieces of evidence of 2026-11-20 wait still"):
        days.detach(EVERY_TENANT, START, now=NOW)
    (day,) = days.days()
    assert (day.rows, day.files) == (1, ())
    settle(book)
    assert days.detach(EVERY_TENANT, START, now=NOW) is not None
    (day,) = days.days()
    assert (day.rows, len(day.files), len(day.evidence_files)) == (0, 1, 1)


def test_which_evidence_is_overdue(book: PostgresBook, days: PostgresUsageDays) -> None:
    book.note_evidence([seen(1), seen(2, day=1)], now=1)
    assert days.overdue(before=START + 2 * DAY, now=NOW) == [], "it waits for its ingresses"
    settle(book)
    assert days.overdue(before=START + 2 * DAY, now=NOW) == [START, START + DAY]
    assert days.detach(EVERY_TENANT, START, now=NOW) is not None
    book.note_evidence([seen(9)], now=NOW)  # the request is new: it is booked from its evidence
    book.book_overdue_evidence(NOW + 1, now=NOW)
    assert days.overdue(before=START + DAY, now=NOW + 1) == [], "not at once after the last piece"
    assert days.overdue(before=START + DAY, now=NOW + 2 * DAY) == [START]
    days.attach(EVERY_TENANT, START, now=NOW, keep_until=NOW + 9 * DAY)
    assert days.overdue(before=START + DAY, now=NOW + 3 * DAY) == []


def test_a_file_of_evidence_that_is_not_as_it_was_written_is_refused(
    book: PostgresBook, days: PostgresUsageDays, pool: Pool, archive: Path
) -> None:
    book.note_evidence([seen(1)], now=1)
    settle(book)
    days.detach(EVERY_TENANT, START, now=NOW)
    (path,) = archive.glob("evidence-*.parquet")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert any("damaged" in each for each in days.check(START))
    with pytest.raises(InvalidInput, match="damaged"):
        days.attach(EVERY_TENANT, START, now=2, keep_until=NOW)
    assert kept(pool) == []
    assert book.note_evidence([seen(1)], now=3) == 0


def test_a_file_of_evidence_can_be_read_without_the_book(
    book: PostgresBook, days: PostgresUsageDays, archive: Path
) -> None:
    piece = seen(1, site=1)
    book.note_evidence([piece, seen(2)], now=1)
    settle(book)
    days.detach(EVERY_TENANT, START, now=NOW)
    (path,) = archive.glob("evidence-*.parquet")
    (found,) = usage_file.find(path, request_id=piece.request_id, most=10)
    assert (found["serving_site"], found["settled_at"], found["output"]) == ("sydney", 9, 3)

"""Two copies of control move a day at once: one of them does, the other finds that it was."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from os import utime
from pathlib import Path

import pytest

from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.usage_days import PostgresUsageDays
from isochrone.core.errors import Conflict, NotFound, StoreUnavailable
from isochrone.core.world.tenant import EVERY_TENANT
from tests.contract.test_ledger import START
from tests.contract.test_usage_days import NOW, a_report, stored, wrong
from tests.fixtures.interrupted_pool import InterruptedPool
from tests.fixtures.locks import until_waiting

TOLD = [a_report(number) for number in range(300)]


@pytest.mark.parametrize("number", range(1, 8))
def test_a_day_that_another_copy_detaches_meanwhile(
    pool: Pool, tmp_path: Path, number: int
) -> None:
    book, archive = PostgresBook(pool), tmp_path / "archive"
    book.book_usage(TOLD, now=1)
    book.note_evidence([a_report(7, reporter="evidence")], now=1)
    book.book_overdue_evidence(9, now=9)
    days = PostgresUsageDays(pool, archive)

    def detach() -> None:
        days.detach(EVERY_TENANT, START, now=NOW)

    with suppress(Conflict, StoreUnavailable):  # what its loop waits out
        PostgresUsageDays(InterruptedPool(pool, number, detach, after=True), archive).detach(
            EVERY_TENANT, START, now=NOW + 1
        )
    assert [path for path in archive.iterdir() if path.name.startswith(".")] == []
    assert sum(each.rows for each in days.detached(since=None, until=None)) == len(TOLD)
    assert days.attach(EVERY_TENANT, START, now=NOW, keep_until=NOW) == len(TOLD)
    assert len(stored(book)) == len(TOLD)
    assert wrong(book) == 0


def test_two_who_take_a_day_away_do_not_wait_for_each_other(pool: Pool, tmp_path: Path) -> None:
    book, days = PostgresBook(pool), PostgresUsageDays(pool, tmp_path / "archive")
    book.book_usage(TOLD, now=1)

    def detach(now: int) -> str:
        try:
            days.detach(EVERY_TENANT, START, now=now)
        except StoreUnavailable as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as both:
        with pool.transaction(EVERY_TENANT) as reader:  # keeps the day there until both want it
            reader.execute("SELECT count(*) FROM usage")
            done = [both.submit(detach, now) for now in (NOW, NOW + 1)]
            until_waiting(pool, 2)
        first, second = sorted(each.result(timeout=30) for each in done)
    assert first == ""
    assert "has no partition any more" in second  # and no deadlock
    assert days.attach(EVERY_TENANT, START, now=NOW, keep_until=NOW) == len(TOLD)
    assert len(stored(book)) == len(TOLD)


@pytest.mark.parametrize("number", range(1, 8))
def test_a_day_that_another_copy_attaches_meanwhile(
    pool: Pool, tmp_path: Path, number: int
) -> None:
    book, archive = PostgresBook(pool), tmp_path / "archive"
    book.book_usage(TOLD, now=1)
    days = PostgresUsageDays(pool, archive)
    days.detach(EVERY_TENANT, START, now=NOW)

    def attach() -> None:
        days.attach(EVERY_TENANT, START, now=NOW, keep_until=NOW)

    with suppress(Conflict, NotFound, StoreUnavailable):
        PostgresUsageDays(InterruptedPool(pool, number, attach, after=True), archive).attach(
            EVERY_TENANT, START, now=NOW, keep_until=NOW
        )
    assert len(stored(book)) == len(TOLD)
    assert wrong(book) == 0
    assert days.detached(since=None, until=None) == []


def test_what_a_killed_process_left_of_a_day_is_removed_later(pool: Pool, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    PostgresBook(pool).book_usage([a_report(1)], now=1)
    days = PostgresUsageDays(pool, archive)
    old, fresh = (archive / f".usage-2026-11-20.rows.{name}" for name in ("old", "fresh"))
    for each in (old, fresh):
        each.mkdir(parents=True)
        (each / "rows").write_text("half of a day")
    utime(old, (1, 1))
    assert days.detach(EVERY_TENANT, START, now=NOW) is not None
    assert (old.exists(), fresh.exists()) == (False, True)

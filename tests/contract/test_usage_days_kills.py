"""Control is killed with -9 while a day leaves the book or comes back: nothing is lost or doubled,
and the day can be moved again."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from random import Random

from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.ledger import PostgresLedger
from isochrone.adapters.postgres.pool import Pool, open_pool
from isochrone.adapters.postgres.prices import PostgresPrices
from isochrone.adapters.postgres.usage_days import PostgresUsageDays
from isochrone.core.ids import SiteName
from isochrone.core.metering.event import UsageEvent
from isochrone.core.world.tenant import EVERY_TENANT
from isochrone.ports.ledger import Spent
from tests.contract.test_ledger import DAY, NOVEMBER, START, a_sheet, sell_at
from tests.contract.test_settling import check
from tests.fixtures.settling_worker import charge_all, reports

NOW = START + 200 * DAY  # after all that the process does
KILLS, MOST_KILLS = 4, 30
LISTED = {"usage": "detached_days", "evidence": "detached_evidence"}


def evidence_of(told: list[UsageEvent]) -> list[UsageEvent]:
    """What the serving site saw of some of these requests."""
    return [replace(each, reporter="evidence", serving_site=SiteName("frankfurt"))
            for each in told[::3]]


def spent(pool: Pool) -> list[tuple[str, int, int]]:
    found = PostgresLedger(pool).spent(
        EVERY_TENANT, NOVEMBER, now=NOW, org_id=None, project_id=None
    )
    return [
        (each.payer.project_id, each.rated.total_pico, each.charged_pico)
        for each in found if isinstance(each, Spent)
    ]


def held(pool: Pool, table: str) -> int:
    """How many requests are in the book or stand for those that left it."""
    with pool.transaction(EVERY_TENANT) as connection:
        row = connection.execute(
            f"SELECT (SELECT count(*) FROM {table})"
            f" + (SELECT coalesce(sum(rows), 0) FROM {LISTED[table]})"
            .encode()
        ).fetchone()
    assert row is not None
    return int(row[0])


def test_kill_9_while_a_day_moves_loses_and_doubles_nothing(
    database: str, tmp_path: Path
) -> None:
    pool, archive, chance = open_pool(database), tmp_path / "archive", Random(5)
    book, days = PostgresBook(pool), PostgresUsageDays(pool, archive)
    sell_at(PostgresPrices(pool), a_sheet())
    told = reports(600, Random(9))
    seen = evidence_of(told)
    book.book_usage(told, now=1)
    book.note_evidence(seen, now=1)
    while book.book_overdue_evidence(NOW, now=1):
        pass
    told += seen
    charge_all(PostgresLedger(pool))
    before = spent(pool), held(pool, "usage"), held(pool, "evidence")
    stood: set[bool] = set()  # whether the day was away
    number = 0
    while number < KILLS or len(stood) < 2:
        number += 1
        assert number < MOST_KILLS, "it is always killed on the same side"
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.fixtures.moving_worker", database, str(archive),
             str(START), str(START + (100 + number) * DAY)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        try:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"moving\n"
            time.sleep(chance.uniform(0.0, 0.3))  # anywhere within a move
            worker.send_signal(signal.SIGKILL)
        finally:
            worker.kill()
            _, complaint = worker.communicate()
        assert complaint == b"", complaint.decode()
        stood.add(bool(days.detached(since=None, until=None)))
        assert book.wrong_hours(since=0, until=2**62) == 0
        assert (spent(pool), held(pool, "usage"), held(pool, "evidence")) == before
        # Told once more, wherever they are.
        assert book.book_usage(told[chance.randrange(len(told)):][:50], now=2) == 0
        assert book.note_evidence(seen[:50], now=2) == 0
        assert (spent(pool), held(pool, "usage"), held(pool, "evidence")) == before
    days.detach(EVERY_TENANT, START, now=NOW)
    assert days.check(START) == []
    days.attach(EVERY_TENANT, START, now=NOW, keep_until=NOW)
    check(pool, told)
    assert (spent(pool), held(pool, "usage"), held(pool, "evidence")) == before
    pool.close()

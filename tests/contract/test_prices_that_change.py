"""Price sheets that are added while usage is charged by those before them."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psycopg
import pytest

from isochrone.adapters.postgres import prices as prices_module
from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.estate import PostgresEstate
from isochrone.adapters.postgres.ledger import PostgresLedger
from isochrone.adapters.postgres.limits import PostgresLimits
from isochrone.adapters.postgres.pool import LOCK_TIMEOUT_MS, Pool, open_pool
from isochrone.adapters.postgres.prices import PostgresPrices, keep_sheets
from isochrone.core.billing.charge import PerUnit
from isochrone.core.billing.ledger import unwinding
from isochrone.core.billing.sheet import HOUR_NS, PriceSheet, Recurring
from isochrone.core.errors import Conflict
from isochrone.core.ids import LimitId, OrgId
from isochrone.core.money import PICO
from isochrone.core.world.limit import Limit
from isochrone.core.world.tenant import EVERY_TENANT
from isochrone.ports.prices import StoredSheet
from isochrone.wire.prices import SheetText, sheet_of
from tests.contract.test_ledger import (
    DAY,
    NOVEMBER,
    REVENUE,
    START,
    a_credit,
    a_report,
    a_sheet,
    at,
    charge_all,
    sell_at,
    spent_by,
    spent_pico,
    zero_sum,
)

END = START + HOUR_NS


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 1.5  # below the lock timeout of the transactions that wait
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_sheet_that_is_added_while_an_hour_is_charged_prices_that_hour(database: str) -> None:
    """The one who charges has read the sheets before it, and takes the mark that the hour is due;
    whoever adds the sheet finds it marked already."""
    pools = [open_pool(database) for _ in range(2)]
    ledger, prices = PostgresLedger(pools[0]), PostgresPrices(pools[1])
    sell_at(prices, a_sheet())
    PostgresBook(pools[0]).book_usage([a_report(1, output=1_000_000)], now=1)
    dearer = replace(a_sheet().prices[0], charge=PerUnit(price_pico=9 * PICO, per=10**6))
    with psycopg.connect(database) as owner, ThreadPoolExecutor(2) as workers:
        owner.execute("SELECT set_config('isochrone.tenant', '*', true)")
        owner.execute("SELECT FROM request_hours FOR UPDATE")

        def waiting() -> int:
            with psycopg.connect(database, autocommit=True) as watcher:
                row = watcher.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                    " AND datname = current_database()"
                ).fetchone()
            assert row is not None
            return int(row[0])

        charging = workers.submit(charge_all, ledger, END)
        until(lambda: waiting() == 1)
        adding = workers.submit(sell_at, prices, a_sheet(prices=(dearer,), valid_from=START))
        until(lambda: adding.done() or waiting() == 2)
        owner.rollback()
        charging.result(timeout=30)
        adding.result(timeout=30)
    charge_all(ledger, END)
    assert at(ledger, REVENUE) == spent_pico(ledger) > 0
    assert zero_sum(pools[0])
    for pool in pools:
        pool.close()


def test_a_sheet_waits_for_a_charge_that_takes_long(database: str) -> None:
    """A month with many models: longer than other writers wait for a lock."""
    pool = open_pool(database)
    with pool.transaction(EVERY_TENANT) as charging, ThreadPoolExecutor(1) as workers:
        keep_sheets(charging)
        adding = workers.submit(sell_at, PostgresPrices(pool), a_sheet())
        time.sleep(1.2 * LOCK_TIMEOUT_MS / 1000)
        assert not adding.done()
        charging.rollback()
        adding.result(timeout=30)
    pool.close()


def test_a_first_sheet_charges_what_is_once_a_period_of_months_that_were_over(pool: Pool) -> None:
    """It begins after the last hour in which anything was used, so no hour is charged anew."""
    ledger, prices = PostgresLedger(pool), PostgresPrices(pool)
    PostgresBook(pool).book_usage([a_report(1)], now=1)
    over = NOVEMBER.end + HOUR_NS
    charge_all(ledger, over)
    assert ledger.due(before=over, now=over) == []
    support = Recurring(name="support", amount_pico=30 * PICO)
    sheet = a_sheet(valid_from=NOVEMBER.end - 3 * DAY, recurring=(support,))
    stored = StoredSheet(sheet=sheet, only_for=None, created_at=over)
    prices.add_sheet(EVERY_TENANT, stored, once=None)
    charge_all(ledger, over)
    (spent,) = spent_by(ledger, now=over)
    assert spent.rated.total_pico == 3 * PICO
    assert spent.charged_pico == spent.rated.total_pico
    assert ledger.due(before=over, now=over) == []


def test_a_first_sheet_is_in_the_currency_of_the_credits(pool: Pool) -> None:
    """They would never meet what is owed."""
    ledger, prices = PostgresLedger(pool), PostgresPrices(pool)
    ledger.record(EVERY_TENANT, a_credit("paid"), now=1)
    dollars = a_sheet(currency="USD")
    with pytest.raises(Conflict, match="EUR"):
        sell_at(prices, dollars)
    ledger.record(
        EVERY_TENANT, unwinding(a_credit("paid"), key="back", at=2, about="a slip"), now=2
    )
    sell_at(prices, dollars)


def test_sheets_are_read_once_however_many_they_are_for(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot for gateways read each sheet anew for each organisation with a budget. With the
    prices of 200 models, two years of them and 20 organisations that took longer than the database
    lets a transaction say nothing, so nothing was published any more."""
    read: list[int] = []

    def counted(text: SheetText, *, version: int, valid_from: int) -> PriceSheet:
        read.append(version)
        return sheet_of(text, version=version, valid_from=valid_from)

    monkeypatch.setattr(prices_module, "sheet_of", counted)
    prices, limits = PostgresPrices(pool), PostgresLimits(pool)
    names = ("one", "two", "three", "four")
    for number in range(3):
        sell_at(prices, a_sheet(id="often", valid_from=START + number * HOUR_NS))
    with pool.transaction(EVERY_TENANT) as connection:
        for name in names:
            connection.execute("INSERT INTO organisations VALUES (%(it)s, %(it)s, 1)", {"it": name})
    PostgresBook(pool).book_usage(
        [replace(a_report(at), org_id=OrgId(name)) for at, name in enumerate(names)], now=1
    )
    for name in names:
        limits.set_limit(EVERY_TENANT, Limit(
            id=LimitId(name), org_id=OrgId(name), kind="budget", amount=PICO, period="day",
            currency="EUR", created_at=1,
        ))
    read.clear()
    estate, ledger = PostgresEstate(pool), PostgresLedger(pool)
    assert [len(each.cards) for each in estate.snapshot(now=START).limits] == [3] * 4
    assert len(spent_by(ledger)) == 4
    assert len(read) <= 3

"""A month is charged in pieces, none of which the database gives up on."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest

from isochrone.adapters.postgres import ledger as ledger_module
from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.consistency import problems_of_book
from isochrone.adapters.postgres.ledger import PostgresLedger
from isochrone.adapters.postgres.limits import PostgresLimits
from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.prices import PostgresPrices
from isochrone.control.charging import Charging
from isochrone.control.limiting import Limiting
from isochrone.core.billing.sheet import HOUR_NS, Recurring
from isochrone.core.errors import StoreUnavailable
from isochrone.core.ids import LimitId, ProjectId
from isochrone.core.money import PICO
from isochrone.core.world.limit import Limit
from isochrone.core.world.tenant import EVERY_TENANT
from isochrone.ports.ledger import Due
from tests.contract.test_ledger import (
    DAY,
    NOVEMBER,
    ORG,
    START,
    a_report,
    a_sheet,
    charge_all,
    sell_at,
    spent_by,
    zero_sum,
)

T = TypeVar("T")
HOURS = (NOVEMBER.end - NOVEMBER.begin) // HOUR_NS
SUPPORT = Recurring(name="support", amount_pico=30 * PICO)


def use_much(pool: Pool, models: int) -> None:
    """Each hour of the month, of so many models."""
    with pool.transaction(EVERY_TENANT) as connection:
        connection.execute(
            "INSERT INTO request_hours SELECT 'org', 'project', %s + h * 3600000000000, 'm' || m,"
            " 'on_demand', 'sydney', false, 1, 20 + h, 3, 40 + m, 0::bit(128)"
            " FROM generate_series(0, %s) AS h, generate_series(1, %s) AS m",
            (NOVEMBER.begin, HOURS - 1, models),
        )


def charged_is_right(pool: Pool, now: int) -> None:
    (spent,) = spent_by(PostgresLedger(pool), now=now)
    assert spent.charged_pico == spent.rated.total_pico
    assert zero_sum(pool)


def test_no_transaction_charges_more_than_it_has_time_for(pool: Pool) -> None:
    """The database ends a transaction that says nothing while much is rated."""
    use_much(pool, 5)
    sell_at(PostgresPrices(pool), a_sheet(recurring=(SUPPORT,)))
    ledger = PostgresLedger(pool)
    assert charge_all(ledger, NOVEMBER.end) == 3 * HOURS + 1
    with pool.transaction(EVERY_TENANT) as connection:
        spans = connection.execute(
            "SELECT max(hour_at) - min(hour_at) FROM charges GROUP BY xmin::text"
        ).fetchall()
    assert len(spans) == HOURS * HOUR_NS // ledger_module.AT_ONCE_NS
    assert max(span for (span,) in spans) < DAY
    charged_is_right(pool, NOVEMBER.end)
    assert ledger.due(before=NOVEMBER.end + DAY, now=NOVEMBER.end + DAY) == []


def test_what_is_left_of_a_month_is_due_until_it_is_charged(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_much(pool, 2)
    sell_at(PostgresPrices(pool), a_sheet(recurring=(SUPPORT,)))
    ledger = PostgresLedger(pool)
    charge_all(ledger, NOVEMBER.end)
    # Late usage moves all later hours to other tiers.
    PostgresBook(pool).book_usage(
        [a_report(1, hour=-(START - NOVEMBER.begin) // HOUR_NS, output=9_000)], now=1
    )
    monkeypatch.setattr(ledger_module, "PIECES_MOST", 1)
    before, rounds = NOVEMBER.end + HOUR_NS, 0
    while ledger.due(before=before, now=before):
        charge_all(ledger, before)
        rounds += 1
        with pool.transaction(EVERY_TENANT) as connection:
            wrong = [each for each in problems_of_book(connection) if "revenue" in each]
            assert wrong == []
    assert rounds == HOURS * HOUR_NS // ledger_module.AT_ONCE_NS
    charged_is_right(pool, before)


def test_an_hour_that_was_charged_before_its_end_follows_the_pieces(pool: Pool) -> None:
    sell_at(PostgresPrices(pool), a_sheet(recurring=(SUPPORT,)))
    ledger, book = PostgresLedger(pool), PostgresBook(pool)
    book.book_usage([a_report(1, hour=200, output=9_000)], now=1)
    early = START + 201 * HOUR_NS
    assert ledger.charge(
        ledger.due(before=early, now=early - 1)[0], before=early, now=early - 1
    ) == 2
    book.book_usage([a_report(number, output=9_000) for number in (2, 3)], now=1)
    for before in (early - HOUR_NS, early, NOVEMBER.end):
        charge_all(ledger, before)
    charged_is_right(pool, NOVEMBER.end)


class _Now:
    def wall_ns(self) -> int:
        return START + DAY

    def monotonic_ns(self) -> int:
        return START + DAY


async def _directly(call: Callable[[], T], /) -> T:
    return call()


def test_a_budget_whose_sum_fails_each_time_keeps_no_other_from_being_summed(pool: Pool) -> None:
    class Failing(PostgresLimits):
        def spent(self, limit: Limit, *, since: int, before: int) -> int:
            if limit.id == "b":
                raise StoreUnavailable("canceling statement due to statement timeout")
            return super().spent(limit, since=since, before=before)

    with pool.transaction(EVERY_TENANT) as connection:
        connection.execute("INSERT INTO organisations VALUES ('org', 'org', 1)")
        for name in "abcd":
            connection.execute(
                "INSERT INTO projects (id, org_id, name, created_at) VALUES (%s, 'org', %s, 1)",
                (name, name),
            )
    limits = Failing(pool)
    for name in "abcd":
        limits.set_limit(EVERY_TENANT, Limit(
            id=LimitId(name), org_id=ORG, project_id=ProjectId(name), kind="budget", amount=PICO,
            period="day", currency="EUR", created_at=1,
        ))
    limiting = Limiting(
        limits, PostgresLedger(pool), clock=_Now(), offload=_directly, changed=lambda: None
    )
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            asyncio.run(limiting.follow())
    assert [each.limit.id for each in limits.unsummed(before=START)] == ["b"]


def test_a_project_that_fails_each_time_keeps_no_other_from_being_charged(pool: Pool) -> None:
    class Failing(PostgresLedger):
        def charge(self, due: Due, *, before: int, now: int) -> int:
            if due.payer.project_id == "b":
                raise StoreUnavailable("canceling statement due to statement timeout")
            return super().charge(due, before=before, now=now)

    sell_at(PostgresPrices(pool), a_sheet())
    PostgresBook(pool).book_usage(
        [replace(a_report(at), project_id=ProjectId(name)) for at, name in enumerate("abcd")],
        now=1,
    )
    charging = Charging(Failing(pool), clock=_Now(), offload=_directly)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            asyncio.run(charging.charge_due())
    (left,) = PostgresLedger(pool).due(before=START + DAY, now=START + DAY)
    assert left.payer.project_id == "b"

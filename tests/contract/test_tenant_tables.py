"""Every table of tenants, read whole on a real PostgreSQL: one organisation's rows and no others.

A new table of tenants has to get rows here.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.pool import APPLICATION_ROLE, Pool
from isochrone.adapters.postgres.registry import open_registry
from isochrone.adapters.postgres.usage_days import PostgresUsageDays
from isochrone.core.billing.hold import Hold
from isochrone.core.billing.meter_event import MeterEvent
from isochrone.core.billing.period import DAY_NS, day_of
from isochrone.core.billing.sheet import HOUR_NS, Facts
from isochrone.core.ids import LimitId, OrgId, ProjectId, uuid7
from isochrone.core.metering.event import Reporter, UsageEvent
from isochrone.core.world.limit import Limit
from isochrone.core.world.tenant import EVERY_TENANT, Project, Scope
from isochrone.ports.accounts import Account, Session
from isochrone.ports.registry import Registry
from isochrone.ports.tenants import Once
from tests.contract.test_ledger import START, a_sheet, charge_all, sell_at
from tests.contract.test_row_security import (
    NOT_TENANTS,
    NOW,
    ONE,
    PAGE,
    TWO,
    Careless,
    registry,  # noqa: F401 - a fixture
)
from tests.unit.build_usage import a_usage_event

OLD = NOW - DAY_NS
OF_EVERYBODY = {"price_sheets"}  # sheets for everybody, beside an organisation's own
TENANT_COLUMNS = {"organisations": "id", "price_sheets": "only_for"}
# Without a tenant of their own: for operators, and for whoever sees the policy.
BY_OTHER_RULES = {"parked", "grounds"}


@pytest.fixture
def filled(registry: Registry, pool: Pool, tmp_path: Path) -> Pool:  # noqa: F811
    """Rows of both organisations in every table of tenants."""
    book = PostgresBook(pool)
    sell_at(registry.prices, a_sheet())
    for number, scope in enumerate((ONE, TWO)):
        assert scope.org_id is not None
        org, project = scope.org_id, ProjectId(f"p-{scope.org_id}")
        member, secret = f"m-{org}", f"{number + 7}" * 64
        registry.accounts.put(scope, Account(
            principal_id=member, org_id=org, login=f"somebody@{org}.example", password="x",
            is_given=True,
        ), now=NOW)
        registry.accounts.begin(Session(
            secret_sha256=secret, principal_id=member, org_id=org, begun_at=NOW, expires_at=NOW + 1,
        ), password="x")
        registry.tenants.add_project(
            scope, Project(id=ProjectId(f"q-{org}"), org_id=org, name="second", created_at=NOW),
            once=Once(caller=member, key="k", body_sha256="x"),
        )
        sell_at(registry.prices, a_sheet(id=org, valid_from=START), org)
        limit = Limit(
            id=LimitId(f"l-{org}"), org_id=org, project_id=project, kind="budget", amount=9,
            created_at=NOW, period="month", currency="EUR",
        )
        registry.limits.set_limit(scope, limit)
        registry.limits.note_spent(limit, before=NOW, spent_pico=1, now=NOW)
        registry.ledger.open_hold(Hold(
            id="h", org_id=org, project_id=project, currency="EUR", amount_pico=1, opened_at=NOW,
            expires_at=NOW + 1,
        ), now=NOW)
        (said,) = registry.meters.add_events(scope, [MeterEvent(
            id="e", org_id=org, project_id=project, amount=1, from_at=NOW,
            facts=Facts(meter="bytes"),
        )], now=NOW)
        assert said.verdict == "accepted"
        book.book_usage([a_report(org, 10 + number, reporter="evidence")], now=NOW)
    charge_all(registry.ledger, NOW + HOUR_NS)
    days = PostgresUsageDays(pool, tmp_path)
    assert days.detach(EVERY_TENANT, day_of(OLD), now=NOW + 100 * DAY_NS) is not None
    better = [a_report(OrgId(org), 10 + number) for number, org in enumerate(("one", "two"))]
    assert book.book_usage(better, now=NOW) == 0, "they wait until their day is attached"
    return pool


def a_report(org: OrgId, number: int, *, reporter: Reporter = "ingress") -> UsageEvent:
    event = a_usage_event(uuid7(OLD, number), reporter=reporter)
    return replace(
        event, org_id=org, project_id=ProjectId(f"p-{org}"), received_at=OLD, finished_at=OLD + 1
    )


def tenants_seen(connection: psycopg.Connection[TupleRow], table: str) -> set[str | None]:
    """Whose rows a query without any condition finds."""
    column = TENANT_COLUMNS.get(table, "org_id")
    query = sql.SQL("SELECT DISTINCT {} FROM {}").format(*map(sql.Identifier, (column, table)))
    return {row[0] for row in connection.execute(query)}


STORE_CALLS: dict[str, Callable[[Registry, Scope], Sequence[object]]] = {
    "limits": lambda bare, scope: [each.org_id for each in bare.limits.limits(scope, PAGE)],
    "postings": lambda bare, scope: [
        each.posting.org_id
        for each in bare.ledger.postings(scope, org_id=None, project_id=None, most=99)
    ],
    "balances": lambda bare, scope: [
        account.org_id
        for account, _ in bare.ledger.balances(scope, org_id=None, project_id=None)
    ],
    "prices": lambda bare, scope: [
        each.only_for for each in bare.prices.sheets(scope) if each.only_for is not None
    ],
}


@pytest.mark.parametrize("name", STORE_CALLS)
def test_money_without_its_where_clause_is_of_one_tenant(
    filled: Pool, database: str, name: str
) -> None:
    call, careless = STORE_CALLS[name], Careless(make_conninfo(database, user=APPLICATION_ROLE))
    try:
        assert set(call(open_registry(careless), TWO)) == {"two"}
        assert careless.stripped == 1
        assert set(call(open_registry(careless), EVERY_TENANT)) == {"one", "two"}
    finally:
        careless.close()


def test_a_table_read_whole_shows_one_tenants_rows(filled: Pool) -> None:
    with filled.transaction() as connection:
        names = {row[0] for row in connection.execute(
            "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            " AND relkind IN ('r', 'p', 'v', 'm')"
        )}
    tables = sorted(names - set(NOT_TENANTS) - BY_OTHER_RULES)
    assert len(tables) > 20
    everybody: dict[Scope | None, set[str | None]] = {
        ONE: {"one"}, TWO: {"two"}, None: set(),
    }
    for table in tables:
        with filled.transaction(EVERY_TENANT) as connection:
            assert tenants_seen(connection, table) >= {"one", "two"}, f"{table} has no rows of both"
        for scope, own in everybody.items():
            with filled.transaction(scope) as connection:
                seen = tenants_seen(connection, table)
            assert seen - ({None} if table in OF_EVERYBODY else set()) == own, table

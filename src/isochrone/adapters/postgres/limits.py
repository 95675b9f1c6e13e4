"""Limits over sites in PostgreSQL, and sums of what budgets have spent."""

from collections import defaultdict
from collections.abc import Sequence

import psycopg
from psycopg.rows import TupleRow

from isochrone.adapters.postgres.charges import load_hours, spent_projects
from isochrone.adapters.postgres.owners import check_owner
from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.prices import load_sheets, sheets_for
from isochrone.core.billing.charging import Payer
from isochrone.core.billing.period import DAY_NS, month_of
from isochrone.core.billing.rate import Period, Quantity, rate
from isochrone.core.billing.sheet import Facts, Meter, PriceSheet, of_usage_alone
from isochrone.core.errors import NotFound, TooMuchMoney
from isochrone.core.ids import LimitId, OrgId
from isochrone.core.limits.rate_card import cards_of
from isochrone.core.limits.terms import MOST_AMOUNT
from isochrone.core.money import bookable
from isochrone.core.world.limit import Limit, OrgLimits
from isochrone.core.world.tenant import EVERY_TENANT, Scope
from isochrone.ports.limits import DueBudget
from isochrone.ports.tenants import Page

_COLUMNS = (
    "SELECT l.id, l.org_id, l.project_id, l.key_id, l.kind, l.amount, l.period, l.currency,"
    " l.created_at, coalesce(s.before_at, 0), coalesce(s.spent_pico, 0)"
)
_TABLES = " FROM limits l LEFT JOIN limit_sums s ON s.limit_id = l.id"
_LIMIT = _COLUMNS + _TABLES
# Without those of keys that are gone since an hour: each rotation leaves one behind.
_OF_LIVE_KEYS = (
    " LEFT JOIN api_keys k ON k.id = l.key_id"
    " WHERE coalesce(least(k.revoked_at, k.expires_at) > %(now)s - 3600000000000, true)"
)
_IN_SCOPE = "(%(org)s::text IS NULL OR l.org_id = %(org)s)"
_AT_SETTING = 0  # summed when the budget was set: what else follows from a sum is still to be done
_METERS: tuple[Meter, ...] = (
    "requests", "input_uncached_tokens", "input_cached_tokens", "output_tokens",
)

_Connection = psycopg.Connection[TupleRow]


class PostgresLimits:
    """`ports.limits.Limits` on one database; one call is one transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def limits(self, scope: Scope, page: Page) -> Sequence[Limit]:
        with self._pool.transaction(scope) as connection:
            rows = connection.execute(
                f"{_LIMIT} WHERE {_IN_SCOPE} AND (%(after)s::text IS NULL OR l.id > %(after)s)"
                " ORDER BY l.id LIMIT %(most)s",
                {"org": scope.org_id, "after": page.after, "most": page.most},
            ).fetchall()
        return [_limit(row) for row in rows]

    def limit(self, scope: Scope, limit_id: LimitId) -> Limit:
        with self._pool.transaction(scope) as connection:
            return _in_scope(connection, scope, limit_id)

    def set_limit(self, scope: Scope, limit: Limit) -> Limit:
        with self._pool.transaction(scope) as connection:
            check_owner(connection, scope, limit.org_id, limit.project_id, limit.key_id)
            # Another period has another sum. That of the same one stays: without it gateways would
            # take the whole budget for unspent until it is summed again.
            connection.execute(
                "DELETE FROM limit_sums s USING limits l WHERE s.limit_id = l.id"
                " AND l.org_id = %s AND l.project_id IS NOT DISTINCT FROM %s"
                " AND l.key_id IS NOT DISTINCT FROM %s AND l.kind = %s"
                " AND (l.period, l.currency) IS DISTINCT FROM (%s, %s)",
                (limit.org_id, limit.project_id, limit.key_id, limit.kind, limit.period,
                 limit.currency),
            )
            row = connection.execute(
                "INSERT INTO limits (id, org_id, project_id, key_id, kind, amount, period,"
                " currency, created_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"
                " ON CONFLICT (org_id, project_id, key_id, kind) DO UPDATE SET"
                " amount = excluded.amount, period = excluded.period,"
                " currency = excluded.currency RETURNING id",
                (limit.id, limit.org_id, limit.project_id, limit.key_id, limit.kind, limit.amount,
                 limit.period, limit.currency, limit.created_at),
            ).fetchone()
            assert row is not None, "it was inserted or changed"
            if limit.spent_before:
                connection.execute(
                    "INSERT INTO limit_sums (limit_id, org_id, before_at, spent_pico, summed_at)"
                    f" VALUES (%s, %s, %s, %s, {_AT_SETTING}) ON CONFLICT (limit_id) DO UPDATE SET"
                    " before_at = excluded.before_at, spent_pico = excluded.spent_pico,"
                    " summed_at = excluded.summed_at"
                    " WHERE limit_sums.before_at <= excluded.before_at",
                    (row[0], limit.org_id, limit.spent_before, limit.spent_pico),
                )
            return _in_scope(connection, scope, row[0])

    def remove(self, scope: Scope, limit_id: LimitId) -> Limit:
        with self._pool.transaction(scope) as connection:
            removed = _in_scope(connection, scope, limit_id)
            connection.execute("DELETE FROM limits WHERE id = %s", (limit_id,))
        return removed

    def unsummed(self, *, before: int) -> Sequence[DueBudget]:
        with self._pool.transaction(EVERY_TENANT) as connection:
            rows = connection.execute(
                f"{_COLUMNS}, o.closed_at IS NULL AND p.closed_at IS NULL{_TABLES}"
                " JOIN organisations o ON o.id = l.org_id"
                f" LEFT JOIN projects p ON p.id = l.project_id{_OF_LIVE_KEYS}"
                " AND l.kind = 'budget' AND (coalesce(s.before_at, 0) < %(now)s"
                f" OR s.summed_at = {_AT_SETTING}) ORDER BY l.id",
                {"now": before},
            ).fetchall()
        return [DueBudget(limit=_limit(row), is_open=row[-1]) for row in rows]

    def spent(self, limit: Limit, *, since: int, before: int) -> int:
        with self._pool.transaction(EVERY_TENANT, one_instant=True) as connection:
            sheets = sheets_for(load_sheets(connection), limit.org_id)
            month = month_of(since)
            if limit.key_id is not None:
                until = _used_with_key(connection, limit, month.begin, before)
                earlier = _used_with_key(connection, limit, month.begin, since)
                return _came_to(until, sheets, month) - _came_to(earlier, sheets, month)
            total = 0
            mine = {"org": limit.org_id, "project": limit.project_id}
            for payer in spent_projects(connection, month, mine, until=before):
                total += _spent_by(connection, payer, month, sheets, before)
                total -= _spent_by(connection, payer, month, sheets, since)
        try:
            return bookable(total)
        except OverflowError as error:
            raise TooMuchMoney(f"organisation {limit.org_id!r}: {error}") from error

    def note_spent(self, limit: Limit, *, before: int, spent_pico: int, now: int) -> None:
        with self._pool.transaction(EVERY_TENANT) as connection:
            connection.execute(
                "INSERT INTO limit_sums (limit_id, org_id, before_at, spent_pico, summed_at)"
                " SELECT id, org_id, %(before)s, %(spent)s, %(now)s FROM limits WHERE id = %(id)s"
                " ON CONFLICT (limit_id) DO UPDATE SET before_at = excluded.before_at,"
                " spent_pico = excluded.spent_pico, summed_at = excluded.summed_at",
                {"id": limit.id, "before": before, "spent": spent_pico, "now": now},
            )


def org_limits(connection: _Connection, *, now: int) -> tuple[OrgLimits, ...]:
    """By organisation, with rate cards where there are budgets; for the snapshot of the estate, in
    its transaction. Requests that run came within the last day."""
    by_org: defaultdict[OrgId, list[Limit]] = defaultdict(list)
    for row in connection.execute(
        f"{_LIMIT}{_OF_LIVE_KEYS} ORDER BY l.org_id, l.id", {"now": now}
    ):
        limit = _limit(row)
        by_org[limit.org_id].append(limit)
    priced = any(each.kind == "budget" for limits in by_org.values() for each in limits)
    known = load_sheets(connection) if priced else []
    return tuple(
        OrgLimits(
            org_id=org, limits=tuple(limits),
            cards=cards_of(sheets_for(known, org), since=now - DAY_NS)
            if any(each.kind == "budget" for each in limits) else (),
        )
        for org, limits in by_org.items()
    )


def _spent_by(
    connection: _Connection, payer: Payer, month: Period, sheets: Sequence[PriceSheet], before: int
) -> int:
    usage, _ = load_hours(connection, payer, month, sheets, since=before, until=before)
    return _came_to(usage, sheets, month)


def _came_to(usage: Sequence[Quantity], sheets: Sequence[PriceSheet], month: Period) -> int:
    """What usage alone costs, and the fees on it: not what is once a period."""
    return rate(usage, [of_usage_alone(sheet) for sheet in sheets], month).total_pico


def _used_with_key(
    connection: _Connection, limit: Limit, since: int, before: int
) -> list[Quantity]:
    """Of the key, and of those that it was made for in rotations: a budget goes on."""
    line = connection.execute(
        "WITH RECURSIVE line AS (SELECT id, replaces FROM api_keys WHERE id = %s UNION"
        " SELECT k.id, k.replaces FROM api_keys k JOIN line ON k.id = line.replaces)"
        " SELECT id FROM line",
        (limit.key_id,),
    ).fetchall()
    rows = connection.execute(
        "SELECT received_at - mod(received_at, 3600000000000), model, class,"
        " coalesce(serving_site, ''), bound, count(*), sum(input_uncached), sum(input_cached),"
        " sum(output) FROM usage WHERE org_id = %(org)s AND key_id = ANY(%(keys)s)"
        " AND received_at >= %(since)s AND received_at < %(before)s"
        " AND (token_source <> 'none' OR outcome = 'finished') GROUP BY 1, 2, 3, 4, 5",
        {"org": limit.org_id, "keys": [id_ for (id_,) in line], "since": since, "before": before},
    ).fetchall()
    return [
        Quantity(
            facts=Facts(
                meter=meter, model=row[1], class_=row[2], site=row[3] or None, bound=row[4]
            ),
            hour_at=row[0], amount=int(amount),
        )
        for row in rows
        for meter, amount in zip(_METERS, row[5:], strict=True) if amount
    ]


def _in_scope(connection: _Connection, scope: Scope, limit_id: str) -> Limit:
    row = connection.execute(
        f"{_LIMIT} WHERE l.id = %(id)s AND {_IN_SCOPE}", {"id": limit_id, "org": scope.org_id}
    ).fetchone()
    if row is None:
        raise NotFound(f"there is no limit {limit_id!r}")
    return _limit(row)


def _limit(row: TupleRow) -> Limit:
    return Limit(
        id=row[0], org_id=row[1], project_id=row[2], key_id=row[3], kind=row[4], amount=row[5],
        period=row[6], currency=row[7], created_at=row[8], spent_before=row[9],
        spent_pico=min(max(int(row[10]), 0), MOST_AMOUNT),
    )

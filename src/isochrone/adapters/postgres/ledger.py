"""The ledger in PostgreSQL: postings, balances, holds, and what was spent.

Postings and entries are inserted and never touched again, so there is no row that two writers could
want at once; what has to be done one after the other takes an advisory lock on its project.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from isochrone.adapters.postgres.charges import (
    add_charges,
    charged_days,
    due_projects,
    load_hours,
    load_standing,
    note_period,
    spent_projects,
)
from isochrone.adapters.postgres.due_hours import first_due, first_used, take_due
from isochrone.adapters.postgres.once import made_before
from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.prices import keep_sheets, load_sheets, sheets_for
from isochrone.adapters.postgres.settled import SETTLED, UNDER_WAY
from isochrone.core.billing.charging import Payer, changes, charges_of
from isochrone.core.billing.hold import Event, Hold, opening, step
from isochrone.core.billing.ledger import (
    Account,
    Entry,
    Posting,
    Verdict,
    problems_of,
    verdict,
)
from isochrone.core.billing.period import hour_of, part_over
from isochrone.core.billing.rate import Period, rate
from isochrone.core.billing.sheet import HOUR_NS, PriceSheet
from isochrone.core.errors import Conflict, InvalidInput, NotFound, TooMuchMoney
from isochrone.core.ids import OrgId, ProjectId
from isochrone.core.world.tenant import EVERY_TENANT, Scope
from isochrone.ports.ledger import Due, Recorded, Spent, SpentDay, Unrated
from isochrone.ports.tenants import Once

# Hours that one transaction charges: the database ends one that says nothing for long, and bookings
# of these hours wait for it.
AT_ONCE_NS = 12 * HOUR_NS
PIECES_MOST = 70  # more than a month has

_POSTING = (
    "SELECT p.org_id, p.key, p.kind, p.at, p.currency, p.about, p.unwinds, p.number, p.recorded_at,"
    " array_agg(e.account ORDER BY e.line), array_agg(e.project_id ORDER BY e.line),"
    " array_agg(e.amount_pico ORDER BY e.line)"
    " FROM postings p JOIN entries e USING (org_id, key)"
)
_HOLD = (
    "SELECT org_id, id, project_id, currency, amount_pico, opened_at, expires_at, state, used_pico"
    " FROM holds"
)
_MINE = (
    "(%(org)s::text IS NULL OR org_id = %(org)s)"
    " AND (%(project)s::text IS NULL OR project_id = %(project)s)"
)

_Connection = psycopg.Connection[TupleRow]


class PostgresLedger:
    """`ports.ledger.Ledger` on one database; one call is one transaction, but for `charge`, which
    makes several for what is long."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def record(
        self, scope: Scope, posting: Posting, *, now: int, once: Once | None = None
    ) -> Verdict:
        with self._pool.transaction(scope) as connection:
            made_before(connection, once, resource=posting.key, now=now)  # or another was
            try:
                return _record(connection, posting, now)
            except psycopg.errors.UniqueViolation as error:
                # Its own key is no violation, so it is what it unwinds.
                raise Conflict(f"{posting.unwinds!r} was unwound before") from error

    def posting(self, scope: Scope, org_id: OrgId, key: str) -> Recorded:
        with self._pool.transaction(scope) as connection:
            row = connection.execute(
                f"{_POSTING} WHERE p.org_id = %(org)s AND p.key = %(key)s"
                " AND (%(mine)s::text IS NULL OR p.org_id = %(mine)s) GROUP BY p.org_id, p.key",
                {"org": org_id, "key": key, "mine": scope.org_id},
            ).fetchone()
        if row is None:
            raise NotFound(f"there is no posting {key!r}")
        return Recorded(posting=_posting(row), number=row[7], recorded_at=row[8])

    def postings(
        self, scope: Scope, *, org_id: OrgId | None, project_id: ProjectId | None, most: int,
        after: int | None = None, newest: bool = False,
    ) -> Sequence[Recorded]:
        beyond, order = ("<", "DESC") if newest else (">", "ASC")
        settled = f" AND {SETTLED.format('p')}" if after is not None and not newest else ""
        with self._pool.transaction(scope) as connection:
            rows = connection.execute(
                f"{_POSTING} WHERE (%(org)s::text IS NULL OR p.org_id = %(org)s)"
                f" AND (%(after)s::bigint IS NULL OR p.number {beyond} %(after)s){settled}"
                " AND (%(project)s::text IS NULL OR EXISTS ("
                "   SELECT FROM entries m WHERE m.org_id = p.org_id AND m.key = p.key"
                "   AND m.project_id = %(project)s))"
                f" GROUP BY p.org_id, p.key ORDER BY p.number {order} LIMIT %(most)s",
                {**_mine(scope, org_id, project_id), "most": most, "after": after},
            ).fetchall()
        return [
            Recorded(posting=_posting(row), number=row[7], recorded_at=row[8]) for row in rows
        ]

    def balances(
        self, scope: Scope, *, org_id: OrgId | None, project_id: ProjectId | None
    ) -> Mapping[tuple[Account, str], int]:
        with self._pool.transaction(scope) as connection:
            rows = connection.execute(
                "SELECT org_id, project_id, account, currency, sum(amount_pico)"
                f" FROM entries JOIN postings USING (org_id, key) WHERE {_MINE}"
                " GROUP BY 1, 2, 3, 4 HAVING sum(amount_pico) <> 0 ORDER BY 1, 2, 3, 4",
                _mine(scope, org_id, project_id),
            ).fetchall()
        return {
            (Account(kind=kind, org_id=org, project_id=project or None), currency): int(amount)
            for org, project, kind, currency, amount in rows
        }

    def due(self, *, before: int, now: int) -> Sequence[Due]:
        with self._pool.transaction(EVERY_TENANT) as connection:
            return due_projects(connection, before=before)

    def charge(self, due: Due, *, before: int, now: int) -> int:
        made = 0
        for _ in range(PIECES_MOST):
            charges, is_all = self._charge_some(due, before=before, now=now)
            made += charges
            if is_all:
                break
        return made

    def _charge_some(self, due: Due, *, before: int, now: int) -> tuple[int, bool]:
        """Charge some hours in one transaction; how many charges, and whether that was all. What is
        left is due, so whoever comes next goes on there."""
        payer, period = due.payer, due.period
        with self._pool.transaction(EVERY_TENANT) as connection:
            _one_at_a_time(connection, payer)
            first = first_due(connection, payer, period, before=before)
            # The present hour may be charged, too; the period that it ends is not over for that.
            is_over = min(before, now) >= period.end
            if first is None and not is_over:
                return 0, True
            keep_sheets(connection)
            sheets = sheets_for(load_sheets(connection), payer.org_id)
            begin = period.end - HOUR_NS if first is None else first
            standing = load_standing(connection, payer, period, since=begin)
            # Of an hour that is not over, but was charged before its end, the charge may shift too.
            last = max((charge.hour_at for charge in standing.values()), default=0)
            until = min(max(before, last + HOUR_NS), period.end)
            left = first_used(connection, payer, since=begin + AT_ONCE_NS, until=until)
            if left is not None:
                until = left
                standing = {at: each for at, each in standing.items() if each.hour_at < left}
            take_due(connection, payer, since=begin, until=until, left=left)
            earlier, hours = load_hours(
                connection, payer, period, sheets, since=begin, until=until
            )
            is_closed = is_over and left is None
            with _told_of(payer):
                right = charges_of(payer, earlier, hours, sheets, period, is_over=is_closed)
            found = changes(standing, right)
            for change in found:
                for posting in change.postings():
                    said = _record(connection, posting, now)
                    assert said == "recorded", f"{posting.key} is {said}"
            add_charges(connection, [change.charge for change in found], now)
            note_period(connection, payer, period, closed_at=now if is_closed else None)
        return len(found), left is None

    def spent(
        self, scope: Scope, period: Period, *, now: int, org_id: OrgId | None,
        project_id: ProjectId | None,
    ) -> Sequence[Spent | Unrated]:
        found: list[Spent | Unrated] = []
        with self._pool.transaction(scope, one_instant=True) as connection:
            mine = _mine(scope, org_id, project_id)
            known = load_sheets(connection)
            # Events may be of times to come: they are not spent yet.
            until = min(hour_of(now) + HOUR_NS, period.end)
            for payer in spent_projects(connection, period, mine, until=until):
                sheets = sheets_for(known, payer.org_id)
                usage, _ = load_hours(connection, payer, period, sheets, since=until, until=until)
                so_far = replace(period, covered=part_over(period, now))
                standing = load_standing(connection, payer, period, since=period.begin)
                charged = sum(each.amount_pico for each in standing.values())
                try:
                    with _told_of(payer):
                        rated = rate(usage, sheets, so_far)
                except TooMuchMoney as error:
                    if project_id is not None:
                        raise
                    found.append(_unrated(payer, so_far, sheets, charged, error))
                else:
                    found.append(
                        Spent(payer=payer, period=so_far, rated=rated, charged_pico=charged)
                    )
        return found

    def spent_days(
        self, scope: Scope, period: Period, *, org_id: OrgId | None, project_id: ProjectId | None
    ) -> Sequence[SpentDay]:
        with self._pool.transaction(scope) as connection:
            return charged_days(connection, period, _mine(scope, org_id, project_id))

    def open_hold(self, hold: Hold, *, now: int) -> Verdict:
        with self._pool.transaction(Scope(org_id=hold.org_id)) as connection:
            said = _record(connection, opening(hold), now)
            if said == "recorded":
                connection.execute(
                    "INSERT INTO holds (org_id, id, project_id, currency, amount_pico, opened_at,"
                    " expires_at, state, used_pico) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
                    (hold.org_id, hold.id, hold.project_id, hold.currency, hold.amount_pico,
                     hold.opened_at, hold.expires_at, hold.state, hold.used_pico),
                )
        return said

    def step_hold(self, org_id: OrgId, hold_id: str, event: Event, *, now: int) -> Hold:
        with self._pool.transaction(Scope(org_id=org_id)) as connection:
            row = connection.execute(
                f"{_HOLD} WHERE org_id = %s AND id = %s FOR UPDATE", (org_id, hold_id)
            ).fetchone()
            if row is None:
                raise NotFound(f"there is no hold {hold_id!r}")
            return _step(connection, _hold(row), event, now)

    def expire_holds(self, *, now: int, most: int = 500) -> int:
        with self._pool.transaction(EVERY_TENANT) as connection:
            rows = connection.execute(
                f"{_HOLD} WHERE state = 'open' AND expires_at <= %s"
                " ORDER BY expires_at, org_id, id LIMIT %s FOR UPDATE SKIP LOCKED",
                (now, most),
            ).fetchall()
            for row in rows:
                _step(connection, _hold(row), "expire", now)
        return len(rows)


@contextmanager
def _told_of(payer: Payer) -> Iterator[None]:
    """Says whose usage it is that comes to too much, and what mends it."""
    try:
        yield
    except TooMuchMoney as error:
        raise TooMuchMoney(
            f"project {payer.project_id!r} of {payer.org_id!r}: {error.message}; replace the event"
            " or the price sheet that is too large"
        ) from error


def _unrated(
    payer: Payer, period: Period, sheets: Sequence[PriceSheet], charged_pico: int,
    error: TooMuchMoney,
) -> Unrated:
    return Unrated(
        payer=payer, period=period, charged_pico=charged_pico, reason=error.message,
        currency=next((sheet.currency for sheet in sheets), None),
    )


def _one_at_a_time(connection: _Connection, payer: Payer) -> None:
    """Until the end of the transaction nobody else charges this project."""
    connection.execute(
        "SELECT pg_advisory_xact_lock(746130, hashtext(%s))",
        (f"{payer.org_id}/{payer.project_id}",),
    )


def _record(connection: _Connection, posting: Posting, now: int) -> Verdict:
    problems = problems_of(posting)
    if problems:
        raise InvalidInput(problems)
    added = connection.execute(
        "INSERT INTO postings (org_id, key, kind, at, currency, about, unwinds, recorded_at)"
        f" SELECT %s, %s, %s, %s, %s, %s, %s, %s WHERE {UNDER_WAY}"
        " ON CONFLICT (org_id, key) DO NOTHING",
        (posting.org_id, posting.key, posting.kind, posting.at, posting.currency, posting.about,
         posting.unwinds, now),
    ).rowcount
    if not added:
        row = connection.execute(
            f"{_POSTING} WHERE p.org_id = %s AND p.key = %s GROUP BY p.org_id, p.key",
            (posting.org_id, posting.key),
        ).fetchone()
        assert row is not None, "the conflicting row is committed, so it is visible here"
        return verdict(_posting(row), posting)
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO entries (org_id, key, line, account, project_id, amount_pico)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            [
                (posting.org_id, posting.key, line, entry.account.kind,
                 entry.account.project_id or "", entry.amount_pico)
                for line, entry in enumerate(posting.entries)
            ],
        )
    return "recorded"


def _step(connection: _Connection, hold: Hold, event: Event, now: int) -> Hold:
    after, posting = step(hold, event, now)
    if posting is not None:
        _record(connection, posting, now)
    if after != hold:
        connection.execute(
            "UPDATE holds SET state = %s, used_pico = %s WHERE org_id = %s AND id = %s",
            (after.state, after.used_pico, after.org_id, after.id),
        )
    return after


def _mine(
    scope: Scope, org_id: OrgId | None, project_id: ProjectId | None
) -> dict[str, Any]:
    """The organisation of the scope, or the one asked for where the scope is everybody's."""
    if scope.org_id is not None and org_id not in (None, scope.org_id):
        raise NotFound(f"there is no organisation {org_id!r}")
    return {"org": scope.org_id or org_id, "project": project_id}


def _posting(row: TupleRow) -> Posting:
    org, key, kind, at, currency, about, unwinds, _, _, kinds, projects, amounts = row
    return Posting(
        org_id=org, key=key, kind=kind, at=at, currency=currency, about=about, unwinds=unwinds,
        entries=tuple(
            Entry(
                account=Account(kind=account, org_id=org, project_id=project or None),
                amount_pico=int(amount),
            )
            for account, project, amount in zip(kinds, projects, amounts, strict=True)
        ),
    )


def _hold(row: TupleRow) -> Hold:
    org, id_, project, currency, amount, opened, expires, state, used = row
    return Hold(
        org_id=org, id=id_, project_id=project, currency=currency, amount_pico=int(amount),
        opened_at=opened, expires_at=expires, state=state, used_pico=int(used),
    )



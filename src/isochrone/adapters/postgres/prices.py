"""Price sheets in PostgreSQL: versions that are added and never changed."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import msgspec
import psycopg
from psycopg.rows import TupleRow

from isochrone.adapters.postgres.charges import open_periods
from isochrone.adapters.postgres.due_hours import mark_due
from isochrone.adapters.postgres.once import made_before
from isochrone.adapters.postgres.pool import Pool
from isochrone.core.billing.period import month_of
from isochrone.core.billing.sheet import PriceSheet, applying
from isochrone.core.errors import Conflict, InvalidInput, NotFound
from isochrone.core.ids import OrgId
from isochrone.core.world.tenant import EVERY_TENANT, Scope
from isochrone.ports.prices import StoredSheet
from isochrone.ports.tenants import Once
from isochrone.wire.prices import sheet_of, sheet_text_of, text_of

_SHEET = "SELECT sheet::text, version, only_for, valid_from, created_at FROM price_sheets"
# An advisory lock: versions follow one another, and none comes while what it prices is charged.
_ONE_WRITER = 7461300019
_WAIT_MS = 9_000  # for charges that are being made; a statement may take ten seconds


class PostgresPrices:
    """`ports.prices.Prices` on one database; one call is one transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def sheets(self, scope: Scope) -> Sequence[StoredSheet]:
        with self._pool.transaction(scope) as connection:
            rows = connection.execute(
                f"{_SHEET} WHERE only_for IS NULL OR %(org)s::text IS NULL OR only_for = %(org)s"
                " ORDER BY id, version",
                {"org": scope.org_id},
            ).fetchall()
        return [_stored(row) for row in rows]

    def add_sheet(self, scope: Scope, sheet: StoredSheet, *, once: Once | None) -> StoredSheet:
        new, now = sheet.sheet, sheet.created_at
        with self._pool.transaction(scope) as connection:
            connection.execute(f"SET LOCAL lock_timeout = {_WAIT_MS}")
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_ONE_WRITER,))
            rows = connection.execute(f"{_SHEET} ORDER BY id, version").fetchall()
            known = [_stored(row) for row in rows]
            versions = [each for each in known if each.sheet.id == new.id]
            version = len(versions) + 1
            earlier = made_before(connection, once, resource=f"{new.id}/{version}", now=now)
            if earlier is not None:
                return next(
                    each for each in versions if f"{new.id}/{each.sheet.version}" == earlier
                )
            _check(connection, sheet, known)
            made = replace(sheet, sheet=replace(new, version=version))
            connection.execute(
                "INSERT INTO price_sheets"
                " (id, version, only_for, currency, valid_from, sheet, created_at)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s)",
                (new.id, version, sheet.only_for, new.currency, new.valid_from,
                 json.dumps(msgspec.to_builtins(text_of(new))), now),
            )
            # What these hours came to may be another amount now.
            mark_due(connection, since=new.valid_from, org_id=sheet.only_for)
            open_periods(
                connection, since=month_of(new.valid_from).begin, org_id=sheet.only_for
            )
        return made

    def try_sheet(self, scope: Scope, sheet: StoredSheet) -> StoredSheet:
        with self._pool.transaction(scope) as connection:
            known = [_stored(row) for row in connection.execute(_SHEET).fetchall()]
            _check(connection, sheet, known)
        version = sum(each.sheet.id == sheet.sheet.id for each in known) + 1
        return replace(sheet, sheet=replace(sheet.sheet, version=version))

    def applying(self, org_id: OrgId) -> Sequence[PriceSheet]:
        with self._pool.transaction(EVERY_TENANT) as connection:
            return sheets_for(load_sheets(connection), org_id)


def keep_sheets(connection: psycopg.Connection[TupleRow]) -> None:
    """Until the end of the transaction nobody adds a sheet: its hours would be marked as due while
    they still are, and then be charged by the sheets before it."""
    connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", (_ONE_WRITER,))


def load_sheets(connection: psycopg.Connection[TupleRow]) -> list[StoredSheet]:
    """All that the transaction sees, as they were added. Once for all organisations: of sheets
    with the prices of many models that takes longer than a transaction may say nothing."""
    rows = connection.execute(f"{_SHEET} ORDER BY created_at, id, version").fetchall()
    return [_stored(row) for row in rows]


def sheets_for(known: Sequence[StoredSheet], org_id: OrgId) -> list[PriceSheet]:
    """Of all sheets, those that price the usage of an organisation."""
    return applying(
        [each.sheet for each in known if each.only_for is None],
        [each.sheet for each in known if each.only_for == org_id],
    )


def _check(
    connection: psycopg.Connection[TupleRow], new: StoredSheet, known: Sequence[StoredSheet]
) -> None:
    for each in known:
        if each.sheet.id == new.sheet.id and each.only_for != new.only_for:
            raise Conflict(f"the sheet {new.sheet.id!r} is not for the same organisation")
        if each.sheet.currency != new.sheet.currency:
            raise Conflict(
                f"the other sheets are in {each.sheet.currency}; amounts of two currencies are"
                " never added, so this one has to be too"
            )
    begin = month_of(new.created_at).begin
    if known and new.sheet.valid_from < begin:
        raise InvalidInput(
            ["valid_from: lies before this month; hours of earlier months keep their prices"]
        )
    if not known:
        _check_credits(connection, new.sheet.currency)
    if new.only_for is not None and connection.execute(
        "SELECT 1 FROM organisations WHERE id = %s", (new.only_for,)
    ).fetchone() is None:
        raise NotFound(f"there is no organisation {new.only_for!r}")


def _check_credits(connection: psycopg.Connection[TupleRow], currency: str) -> None:
    """Raises Conflict where somebody has something in another currency."""
    other = connection.execute(
        "SELECT currency, org_id FROM entries JOIN postings USING (org_id, key)"
        " WHERE currency <> %s GROUP BY org_id, project_id, account, currency"
        " HAVING sum(amount_pico) <> 0 ORDER BY 1, 2 LIMIT 1",
        (currency,),
    ).fetchone()
    if other is not None:
        raise Conflict(
            f"organisation {other[1]!r} has credit in {other[0]}, which would never meet what it"
            f" owes in {currency}: correct it first, or name the prices in {other[0]}"
        )


def _stored(row: TupleRow) -> StoredSheet:
    return StoredSheet(
        sheet=_read(row[0], row[1], row[3]), only_for=row[2], created_at=row[4],
    )


@lru_cache(maxsize=128)
def _read(text: str, version: int, valid_from: int) -> PriceSheet:
    """What was read before is not read again: a snapshot for gateways is taken every two seconds.
    """
    return sheet_of(sheet_text_of(json.loads(text)), version=version, valid_from=valid_from)

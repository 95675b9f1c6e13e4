"""Marks hours as to be charged, and takes the marks away; rows in the order in which bookings lock
them, so that nobody waits in a circle."""

from typing import Any, LiteralString

import psycopg
from psycopg.rows import TupleRow

from isochrone.core.billing.charging import Payer
from isochrone.core.billing.rate import Period
from isochrone.core.ids import OrgId

_Connection = psycopg.Connection[TupleRow]

_KEYS: dict[LiteralString, LiteralString] = {
    "request_hours": "org_id, project_id, hour_at, model, class, site, bound",
    "meter_hours": "org_id, project_id, hour_at, meter, model, class, site, bound, kind",
}


def mark_due(connection: _Connection, *, since: int, org_id: OrgId | None) -> None:
    """All hours from `since` on, of one organisation or of all."""
    chosen: LiteralString = (
        "NOT due AND hour_at >= %(since)s AND (%(org)s::text IS NULL OR org_id = %(org)s)"
    )
    _set(connection, "true", chosen, {"since": since, "org": org_id})


def take_due(
    connection: _Connection, payer: Payer, period: Period, *, before: int
) -> int | None:
    """Take the marks from what is due of the period's hours before `before`; the first of them,
    None when none is."""
    chosen: LiteralString = (
        "due AND org_id = %(org)s AND project_id = %(project)s"
        " AND hour_at >= %(begin)s AND hour_at < %(until)s"
    )
    hours = _set(
        connection, "false", chosen,
        {
            "org": payer.org_id, "project": payer.project_id, "begin": period.begin,
            "until": min(before, period.end),
        },
    )
    return min(hours, default=None)


def _set(
    connection: _Connection, due: LiteralString, chosen: LiteralString, arguments: dict[str, Any]
) -> list[int]:
    """The hours of the rows that changed."""
    hours = []
    for table, key in _KEYS.items():
        rows = connection.execute(
            f"UPDATE {table} SET due = {due} WHERE ({key}) IN (SELECT {key} FROM {table}"
            f" WHERE {chosen} ORDER BY {key} FOR UPDATE) RETURNING hour_at",
            arguments,
        ).fetchall()
        hours += [row[0] for row in rows]
    return hours

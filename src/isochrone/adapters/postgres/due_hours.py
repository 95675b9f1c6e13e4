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


def first_due(
    connection: _Connection, payer: Payer, period: Period, *, before: int
) -> int | None:
    """The first hour of the period that is due and before `before`; None when none is."""
    return _first_hour(
        connection, "due AND ", payer, since=period.begin, until=min(before, period.end)
    )


def first_used(
    connection: _Connection, payer: Payer, *, since: int, until: int
) -> int | None:
    """The first of these hours in which the project used anything, ever."""
    return _first_hour(connection, "", payer, since=since, until=until)


def take_due(
    connection: _Connection, payer: Payer, *, since: int, until: int, left: int | None
) -> None:
    """Take the marks from what is due of these hours; the hour that is `left` for later gets one.
    """
    chosen: LiteralString = (
        "org_id = %(org)s AND project_id = %(project)s AND ("
        "due AND hour_at >= %(since)s AND hour_at < %(until)s"
        " OR NOT due AND hour_at = %(left)s::bigint)"
    )
    _set(
        connection, "hour_at IS NOT DISTINCT FROM %(left)s::bigint", chosen,
        {**_of(payer), "since": since, "until": until, "left": left},
    )


def _first_hour(
    connection: _Connection, which: LiteralString, payer: Payer, *, since: int, until: int
) -> int | None:
    chosen: LiteralString = (
        "org_id = %(org)s AND project_id = %(project)s"
        " AND hour_at >= %(since)s AND hour_at < %(until)s"
    )
    row = connection.execute(
        "SELECT least((SELECT min(hour_at) FROM request_hours WHERE " + which + chosen + "),"
        " (SELECT min(hour_at) FROM meter_hours WHERE " + which + chosen + "))",
        {**_of(payer), "since": since, "until": until},
    ).fetchone()
    return None if row is None else row[0]


def _of(payer: Payer) -> dict[str, Any]:
    return {"org": payer.org_id, "project": payer.project_id}


def _set(
    connection: _Connection, due: LiteralString, chosen: LiteralString, arguments: dict[str, Any]
) -> None:
    for table, key in _KEYS.items():
        connection.execute(
            f"UPDATE {table} SET due = {due} WHERE ({key}) IN (SELECT {key} FROM {table}"
            f" WHERE {chosen} ORDER BY {key} FOR UPDATE)",
            arguments,
        )

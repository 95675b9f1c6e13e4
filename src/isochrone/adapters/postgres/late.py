"""Sorts out reports of requests whose day was detached: known ones are left out, better ones kept.

It begins with a lock that detaching waits for, so no day is detached between this and the end of
the booking.
"""

from collections import defaultdict
from collections.abc import Sequence

import msgspec
import psycopg
from psycopg.rows import TupleRow

from isochrone.core.ids import RequestId
from isochrone.core.metering.detached import (
    DAY_NS,
    Chunk,
    day_of_request,
    evidence_lateness,
    lateness,
)
from isochrone.core.metering.event import UsageEvent

_Connection = psycopg.Connection[TupleRow]
Incoming = dict[tuple[object, ...], UsageEvent]


def sift_late(
    connection: _Connection, incoming: Incoming, *, now: int
) -> Incoming:
    """The reports that may be booked, in their order: all but those of detached requests."""
    hold_days(connection)
    requests = [event.request_id for event in incoming.values()]
    # Of canonical ids the order as text is that of the days.
    first, last = day_of_request(min(requests)), day_of_request(max(requests))
    rows = connection.execute(
        "SELECT DISTINCT day_at FROM detached_days WHERE day_at BETWEEN %s AND %s", (first, last)
    ).fetchall()
    if not rows:
        return incoming
    detached = {row[0] for row in rows}
    late = [
        event.request_id for event in incoming.values()
        if day_of_request(event.request_id) in detached
    ]
    chunks = _chunks_around(connection, late)
    found: Incoming = {}
    for key, event in incoming.items():
        said = {lateness(event, each) for each in chunks[day_of_request(event.request_id)]}
        if "better" in said:
            _keep(connection, event, day_of_request(event.request_id), now)
        elif "known" not in said:
            found[key] = event
    return found


def hold_days(connection: _Connection) -> None:
    """Until the end of the transaction no day is detached."""
    connection.execute("LOCK TABLE ONLY usage IN ROW EXCLUSIVE MODE")


def hold_evidence_day(connection: _Connection, day_at: int) -> None:
    """Until the end of the transaction nobody books evidence of a day."""
    connection.execute("SELECT pg_advisory_xact_lock(746134, %s)", (day_at // DAY_NS,))


def sift_late_evidence(connection: _Connection, incoming: Incoming) -> Incoming:
    """The evidence that may be booked: all but what is known of days whose evidence is away."""
    days = sorted({day_of_request(event.request_id) for event in incoming.values()})
    # In a statement of its own: what it waited for is seen by the next one only.
    connection.execute(
        "SELECT pg_advisory_xact_lock_shared(746134, day) FROM unnest(%s::int[]) AS day",
        ([day // DAY_NS for day in days],),
    )
    rows = connection.execute(
        "SELECT DISTINCT day_at FROM detached_evidence WHERE day_at = ANY(%s)", (days,)
    ).fetchall()
    if not rows:
        return incoming
    detached = {row[0] for row in rows}
    late = [
        event.request_id for event in incoming.values()
        if day_of_request(event.request_id) in detached
    ]
    chunks = _chunks(connection.execute(
        "SELECT DISTINCT ON (i.day_at, i.part, i.chunk) i.day_at, i.first_id, i.last_id, i.marks"
        " FROM unnest(%s::uuid[]) AS late (id)"
        " JOIN detached_evidence_ids i ON i.day_at = day_of_id(late.id)"
        " AND i.first_id <= late.id AND i.last_id >= late.id",
        (late,),
    ).fetchall())
    return {
        key: event for key, event in incoming.items()
        if "known" not in {
            evidence_lateness(event, each) for each in chunks[day_of_request(event.request_id)]
        }
    }


def _chunks_around(
    connection: _Connection, requests: Sequence[RequestId]
) -> defaultdict[int, list[Chunk]]:
    """By day the chunks that may name one of these requests; each part of a day has at most one
    for each."""
    rows = connection.execute(
        "SELECT DISTINCT ON (i.day_at, i.part, i.first_id)"
        " i.day_at, i.first_id, i.last_id, i.marks"
        " FROM unnest(%s::uuid[]) AS late (id) JOIN detached_ids i ON i.day_at = day_of_id(late.id)"
        " AND i.first_id <= late.id AND i.last_id >= late.id",
        (list(requests),),
    ).fetchall()
    return _chunks(rows)


def _chunks(rows: Sequence[TupleRow]) -> defaultdict[int, list[Chunk]]:
    """By day."""
    found: defaultdict[int, list[Chunk]] = defaultdict(list)
    for day_at, first_id, last_id, marks in rows:
        found[day_at].append(
            Chunk(
                first_id=RequestId(str(first_id)), last_id=RequestId(str(last_id)), marks=marks
            )
        )
    return found


def _keep(connection: _Connection, event: UsageEvent, day_at: int, now: int) -> None:
    connection.execute(
        "INSERT INTO late_reports (request_id, digest, org_id, day_at, report, heard_at)"
        " VALUES (%(id)s, md5(%(report)s), %(org)s, %(day)s, %(report)s::jsonb, %(now)s)"
        " ON CONFLICT DO NOTHING",
        {
            "id": event.request_id, "org": event.org_id, "day": day_at, "now": now,
            "report": msgspec.json.encode(event).decode(),
        },
    )

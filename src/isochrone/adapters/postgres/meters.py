"""Events of meters in PostgreSQL, and the sums of their hours.

The sums of an hour are made again from its events whenever one is added, under a lock of their
project and meter: whatever the order of arrival, they are the same.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import LiteralString

import psycopg
from psycopg.rows import TupleRow

from isochrone.adapters.postgres.hours import COUNTED
from isochrone.adapters.postgres.pool import Pool
from isochrone.core.billing.meter_event import (
    MeterEvent,
    Outcome,
    aggregation_of,
    hours_of,
    problems_of,
    quantities,
)
from isochrone.core.billing.period import day_name
from isochrone.core.billing.sheet import HOUR_NS, Facts
from isochrone.core.errors import Conflict
from isochrone.core.ids import is_uuid7
from isochrone.core.metering.detached import day_of_request
from isochrone.core.world.tenant import EVERY_TENANT, Scope
from isochrone.ports.meters import EventFilter, StoredEvent

_COLUMNS: LiteralString = (
    "SELECT id, org_id, project_id, meter, amount, from_at, until_at, subject, model, class, site,"
    " bound, kind, replaces, request_id, was"
)
_EVENT: LiteralString = f"{_COLUMNS} FROM meter_events e"
_COUNTS: LiteralString = (
    "NOT EXISTS (SELECT FROM meter_events l WHERE l.org_id = e.org_id AND l.replaces = e.id)"
)
_STORED: LiteralString = (
    f"{_COLUMNS}, arrived_at, is_metered AND {_COUNTS} FROM meter_events e"
)
_CHOSEN: dict[str, LiteralString] = {
    "org_id": "org_id = %(org_id)s", "project_id": "project_id = %(project_id)s",
    "meter": "meter = %(meter)s", "since": "from_at >= %(since)s", "until": "from_at < %(until)s",
}
_BOOKED: dict[str, LiteralString] = {
    "input_uncached_tokens": "input_uncached", "input_cached_tokens": "input_cached",
    "output_tokens": "output", "requests": f"{COUNTED}::int",
}

_Connection = psycopg.Connection[TupleRow]


class PostgresMeters:
    """`ports.meters.Meters` on one database; one call is one transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def add_events(
        self, scope: Scope, events: Sequence[MeterEvent], *, now: int
    ) -> Sequence[Outcome]:
        try:
            return self._add_events(scope, events, now)
        except Conflict:
            # Somebody told an id of these at the same time, of another meter or project. What they
            # said is there now, so each is judged by it.
            return self._add_events(scope, events, now)

    def _add_events(
        self, scope: Scope, events: Sequence[MeterEvent], now: int
    ) -> Sequence[Outcome]:
        told = []
        with self._pool.transaction(scope) as connection:
            # In one order, so that two writers cannot wait for each other.
            for lock in sorted({_lock(event) for event in events}):
                connection.execute(
                    "SELECT pg_advisory_xact_lock(746131, hashtext(%s))", (lock,)
                )
            _lock_requests(connection, events)
            # In the order in which charging locks them, for the same reason.
            changed: dict[tuple[str, str, int, str], None] = {}
            for event in events:
                outcome, touched = _add(connection, scope, event, now)
                told.append(outcome)
                for each in touched:
                    changed.update(
                        dict.fromkeys(
                            (each.org_id, each.project_id, hour_at, each.facts.meter)
                            for hour_at in hours_of(each)
                        )
                    )
            for org, project, hour_at, meter in sorted(changed):
                _sum_up(connection, org, project, meter, hour_at)
        return told

    def events(
        self, scope: Scope, chosen: EventFilter, *, most: int, after: tuple[str, str] | None = None
    ) -> Sequence[StoredEvent]:
        conditions: list[LiteralString] = [
            "(%(scope)s::text IS NULL OR org_id = %(scope)s)",
            *(each for name, each in _CHOSEN.items() if getattr(chosen, name) is not None),
        ]
        if after is not None:
            conditions.append("(org_id, id) > (%(after_org)s, %(after_id)s)")
        with self._pool.transaction(scope) as connection:
            rows = connection.execute(
                f"{_STORED} WHERE {' AND '.join(conditions)} ORDER BY org_id, id LIMIT %(most)s",
                {
                    "scope": scope.org_id, "most": most,
                    "after_org": after and after[0], "after_id": after and after[1],
                    **{name: getattr(chosen, name) for name in _CHOSEN},
                },
            ).fetchall()
        return [
            StoredEvent(event=_event(row[:-2]), arrived_at=row[-2], counts=row[-1]) for row in rows
        ]

    def unmetered(self, scope: Scope, *, most: int) -> Sequence[MeterEvent]:
        with self._pool.transaction(scope) as connection:
            rows = connection.execute(
                f"{_EVENT} WHERE NOT is_metered AND (%(org)s::text IS NULL OR org_id = %(org)s)"
                " ORDER BY arrived_at DESC, id LIMIT %(most)s",
                {"org": scope.org_id, "most": most},
            ).fetchall()
        return [_event(row) for row in rows]

    def make_hours_again(self, *, since: int, until: int) -> int:
        with self._pool.transaction(EVERY_TENANT) as connection:
            connection.execute("LOCK TABLE meter_hours IN SHARE ROW EXCLUSIVE MODE")
            wrong = wrong_meter_hours(connection, since, until)
            for place in sorted(set(wrong)):
                _sum_up(connection, *place)
        return len(wrong)


def _lock(event: MeterEvent) -> str:
    return f"{event.org_id}/{event.project_id}/{event.facts.meter}"


def _lock_requests(connection: _Connection, events: Sequence[MeterEvent]) -> None:
    """Those that are said anew, in one order: batches of different meters share no other lock."""
    named = {each.request_id for each in events if each.request_id is not None}
    requests = sorted(each for each in named if is_uuid7(each))
    if requests:
        connection.execute(
            "SELECT 1 FROM usage WHERE request_id = ANY(%s::uuid[]) ORDER BY request_id"
            " FOR UPDATE",
            (requests,),
        )


def _add(
    connection: _Connection, scope: Scope, event: MeterEvent, now: int
) -> tuple[Outcome, list[MeterEvent]]:
    """What became of it, and the events whose hours changed."""
    if scope.org_id not in (None, event.org_id):
        return Outcome(id=event.id, verdict="refused", reason="of another organisation"), []
    problems = problems_of(event)
    if problems:
        return Outcome(id=event.id, verdict="refused", reason="; ".join(problems)), []
    known = connection.execute(
        f"{_EVENT} WHERE org_id = %s AND id = %s", (event.org_id, event.id)
    ).fetchone()
    if known is not None:
        return _again(_event(known), event), []
    touched, reason = [event], ""
    if event.request_id is not None:
        booked, reason = _booked(connection, event)
        if booked is not None:
            event, touched = booked, [booked]
    if event.replaces is not None and not reason:
        earlier, reason = _replaced(connection, event)
        touched += [] if earlier is None else [earlier]
    if reason:
        return Outcome(id=event.id, verdict="conflicting", reason=reason), []
    metered = aggregation_of(event.facts.meter) is not None
    _insert(connection, event, metered, now)
    if not metered:
        why = f"there is no meter {event.facts.meter!r}; it is kept"
        return Outcome(id=event.id, verdict="unmetered", reason=why), []
    return Outcome(id=event.id, verdict="accepted"), touched


def _again(known: MeterEvent, event: MeterEvent) -> Outcome:
    if event.request_id is not None and event.facts.meter == known.facts.meter:
        # Where and when is that of the request.
        event = replace(event, facts=known.facts, from_at=known.from_at, was=known.was)
    if known == event:
        return Outcome(id=event.id, verdict="duplicate")
    return Outcome(
        id=event.id, verdict="conflicting", reason="the id is known with another content"
    )


def _booked(connection: _Connection, event: MeterEvent) -> tuple[MeterEvent | None, str]:
    """The event with the facts of its request and what was booked of it, or why there is none."""
    request = event.request_id
    if request is None or not is_uuid7(request):
        return None, f"{request!r} is not the id of a request"
    row = connection.execute(
        "SELECT received_at, model, class, coalesce(serving_site, ''), bound,"
        f" {_BOOKED[event.facts.meter]}, reporter FROM usage"
        " WHERE request_id = %s AND org_id = %s AND project_id = %s FOR UPDATE",
        (request, event.org_id, event.project_id),
    ).fetchone()
    if row is None:
        away = connection.execute(
            "SELECT 1 FROM detached_days WHERE day_at = day_of_id(%s)", (request,)
        ).fetchone()
        if away is not None:
            day = day_name(day_of_request(request))
            return None, f"the day of {request}, {day}, was detached from the book: attach it first"
    if row is None or row[6] != "ingress":
        return None, f"the request {request} is not booked, or not finally"
    amended = connection.execute(
        "SELECT id FROM meter_events e WHERE org_id = %s AND request_id = %s AND meter = %s"
        f" AND {_COUNTS}",
        (event.org_id, request, event.facts.meter),
    ).fetchone()
    if amended is not None and event.replaces != amended[0]:
        return None, f"the request was amended before: replace {amended[0]!r}"
    facts = Facts(
        meter=event.facts.meter, model=row[1] or None, class_=row[2], site=row[3] or None,
        bound=row[4],
    )
    return replace(event, facts=facts, from_at=row[0], was=int(row[5])), ""


def _replaced(connection: _Connection, event: MeterEvent) -> tuple[MeterEvent | None, str]:
    row = connection.execute(
        f"{_EVENT} WHERE org_id = %s AND id = %s AND project_id = %s AND meter = %s AND {_COUNTS}",
        (event.org_id, event.replaces, event.project_id, event.facts.meter),
    ).fetchone()
    if row is None:
        return None, f"there is no event {event.replaces!r} of this meter and project to replace"
    return _event(row), ""


def _insert(connection: _Connection, event: MeterEvent, metered: bool, now: int) -> None:
    facts = event.facts
    connection.execute(
        "INSERT INTO meter_events (org_id, id, project_id, meter, amount, from_at, until_at,"
        " subject, model, class, site, bound, kind, replaces, request_id, was, is_metered,"
        " arrived_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (event.org_id, event.id, event.project_id, facts.meter, event.amount, event.from_at,
         event.until_at, event.subject, facts.model or "", facts.class_ or "", facts.site or "",
         facts.bound, facts.kind or "", event.replaces, event.request_id, event.was, metered, now),
    )


def _sum_up(connection: _Connection, org: str, project: str, meter: str, hour_at: int) -> None:
    """Make the sums of one hour again from its events; what is no longer there becomes zero."""
    rows = connection.execute(
        f"{_EVENT} WHERE org_id = %s AND project_id = %s AND meter = %s AND from_at < %s"
        f" AND coalesce(until_at, from_at + 1) > %s AND {_COUNTS}",
        (org, project, meter, hour_at + HOUR_NS, hour_at),
    ).fetchall()
    known = connection.execute(
        "SELECT model, class, site, bound, kind FROM meter_hours"
        " WHERE org_id = %s AND project_id = %s AND meter = %s AND hour_at = %s",
        (org, project, meter, hour_at),
    ).fetchall()
    sums = dict.fromkeys([tuple(row) for row in known], (0, 0))
    sums.update(_made([_event(row) for row in rows], hour_at))
    for (model, class_, site, bound, kind), (amount, digest) in sorted(sums.items()):
        connection.execute(
            "INSERT INTO meter_hours (org_id, project_id, hour_at, meter, model, class, site,"
            " bound, kind, amount, digest)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s::bit(128))"
            " ON CONFLICT (org_id, project_id, hour_at, meter, model, class, site, bound, kind)"
            " DO UPDATE SET amount = excluded.amount, digest = excluded.digest, due = true",
            (org, project, hour_at, meter, model, class_, site, bound, kind, amount,
             f"{digest:0128b}"),
        )


def _made(
    events: Sequence[MeterEvent], hour_at: int
) -> dict[tuple[object, ...], tuple[int, int]]:
    """Amount and digest of one hour by model, class, site, bound and kind."""
    return {
        (facts.model or "", facts.class_ or "", facts.site or "", facts.bound, facts.kind or ""):
            sums
        for facts, sums in quantities(events, hour_at).items()
    }


def wrong_meter_hours(
    connection: _Connection, since: int, until: int
) -> list[tuple[str, str, str, int]]:
    """Organisation, project, meter and hour of each sum of these hours that is not that of the
    events that count."""
    span = {"since": since, "until": until}
    events = (
        "is_metered AND from_at < %(until)s AND coalesce(until_at, from_at + 1) > %(since)s"
    )
    hours = "hour_at >= %(since)s AND hour_at < %(until)s"
    right: dict[tuple[object, ...], tuple[int, int]] = {}
    by_hour: dict[tuple[str, str, str, int], list[MeterEvent]] = {}
    for row in connection.execute(f"{_EVENT} WHERE {events} AND {_COUNTS}".encode(), span):
        event = _event(row)
        for hour_at in hours_of(event):
            if since <= hour_at < until:
                place = (event.org_id, event.project_id, event.facts.meter, hour_at)
                by_hour.setdefault(place, []).append(event)
    for of, found in by_hour.items():
        right |= {(*of, *facts): sums for facts, sums in _made(found, of[-1]).items()}
    kept: dict[tuple[object, ...], tuple[int, int]] = {
        tuple(row[:9]): (int(row[9]), int(row[10], 2))
        for row in connection.execute(
            "SELECT org_id, project_id, meter, hour_at, model, class, site, bound, kind, amount,"
            f" digest FROM meter_hours WHERE {hours}".encode(), span
        )
    }
    return [
        (str(each[0]), str(each[1]), str(each[2]), int(str(each[3])))
        for each in {*right, *kept} if right.get(each, (0, 0)) != kept.get(each, (0, 0))
    ]


def _event(row: TupleRow) -> MeterEvent:
    (
        id_, org, project, meter, amount, from_at, until_at, subject, model, class_, site, bound,
        kind, replaces, request, was,
    ) = row
    return MeterEvent(
        id=id_, org_id=org, project_id=project, amount=int(amount), from_at=from_at,
        until_at=until_at, subject=subject, replaces=replaces,
        request_id=None if request is None else str(request),  # type: ignore[arg-type]
        was=int(was),
        facts=Facts(
            meter=meter, model=model or None, class_=class_ or None, site=site or None,
            bound=bound, kind=kind or None,
        ),
    )

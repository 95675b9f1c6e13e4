"""The book of usage on PostgreSQL: each request exactly once, evidence beside it.

Reports come in by COPY. A request that is new is inserted; for one that is there already, both
reports are compared by the rule of the core, under a row lock, so that this file holds no second
copy of that rule.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow, kwargs_row

from isochrone.adapters.postgres.book_rows import (
    COLUMNS,
    event_of,
    ground_of,
    ground_text,
    stops_of,
    values_of,
)
from isochrone.adapters.postgres.hours import (
    BOUND,
    WITHIN,
    Bounds,
    add_moved,
    begin_moving,
    count_wrong,
    insert_and_move,
    make_again,
    move_in,
    move_out,
)
from isochrone.adapters.postgres.late import sift_late, sift_late_evidence
from isochrone.adapters.postgres.pool import Pool
from isochrone.core.errors import InvalidInput
from isochrone.core.ids import RequestId, SiteName, is_uuid7
from isochrone.core.metering.event import UsageEvent
from isochrone.core.metering.merge import better
from isochrone.core.routing.choice import Ground, Stopped
from isochrone.core.world.tenant import EVERY_TENANT, Scope
from isochrone.ports.book import (
    Booked,
    Parked,
    ReplicaTotal,
    UsageFilter,
    UsageGroup,
    UsageTotal,
)

Table = LiteralString
_KEY: dict[Table, tuple[str, ...]] = {
    "usage": ("request_id",),
    "evidence": ("request_id", "serving_site"),
}
_NAMES = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
_GROUPS: dict[UsageGroup, LiteralString] = {
    "key": "key_id",
    "model": "model",
    "site": "coalesce(serving_site, '')",
    "country": "coalesce(serving_country, '')",
    "class": "class",
    # Days of UTC by integer arithmetic: to_timestamp() takes a float and would round.
    "day": "to_char(date '1970-01-01' + (received_at / 86400000000000)::int, 'YYYY-MM-DD')",
}
_SUMS = sql.SQL(
    "sum(input_uncached)::bigint AS input_uncached, sum(input_cached)::bigint AS input_cached,"
    " sum(output)::bigint AS output"
)


class PostgresBook:
    """`ports/book.py` on one pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def keep_grounds(self, grounds: Sequence[tuple[SiteName, Ground]], *, now: int) -> int:
        # In the order of their keys, so that two bookers cannot wait for each other.
        rows = {(site, ground.id): ground_text(ground) for site, ground in grounds}
        new = 0
        with self._pool.transaction(EVERY_TENANT) as connection:
            for (site, name), text in sorted(rows.items()):
                new += connection.execute(
                    "INSERT INTO grounds (site, id, ground, kept_at) VALUES (%s, %s, %s, %s)"
                    " ON CONFLICT DO NOTHING",
                    (site, name, text, now),
                ).rowcount
        return new

    def book_usage(self, events: Sequence[UsageEvent], *, now: int) -> int:
        with self._pool.transaction(EVERY_TENANT) as connection:
            return merge_usage(connection, events, now=now)

    def note_evidence(self, events: Sequence[UsageEvent], *, now: int) -> int:
        with self._pool.transaction(EVERY_TENANT) as connection:
            return _merge(connection, "evidence", events, now=now)

    def book_overdue_evidence(self, older_than: int, *, now: int, most: int = 500) -> int:
        with self._pool.transaction(EVERY_TENANT) as connection:
            rows = connection.execute(
                sql.SQL(
                    "UPDATE evidence SET settled_at = %s WHERE (request_id, serving_site) IN ("
                    " SELECT request_id, serving_site FROM evidence"
                    " WHERE settled_at IS NULL AND booked_at < %s"
                    " ORDER BY booked_at, request_id LIMIT %s FOR UPDATE SKIP LOCKED"
                    ") RETURNING {}"
                ).format(_NAMES),
                (now, older_than, most),
            ).fetchall()
            lost = [replace(event_of(row), outcome="ingress_lost") for row in rows]
            merge_usage(connection, lost, now=now)
        return len(rows)

    def request(self, scope: Scope, request_id: RequestId) -> Booked | None:
        if not is_uuid7(request_id):
            return None
        with self._pool.transaction(scope) as connection:
            row = connection.execute(
                sql.SQL(
                    "SELECT booked_at, bound, {} FROM usage WHERE request_id = %(id)s"
                    " AND (%(org)s::text IS NULL OR org_id = %(org)s)"
                ).format(_NAMES),
                {"id": request_id, "org": scope.org_id},
            ).fetchone()
            if row is None:
                return None
            event = event_of(row[2:])
            return Booked(
                event=event, booked_at=row[0], ground=_ground(connection, event),
                stops=_stops(connection, event), bound=row[1],
            )

    def requests(
        self, scope: Scope, chosen: UsageFilter, *, most: int, after: str | None = None,
        newest: bool = False,
    ) -> Sequence[Booked]:
        names = sql.SQL(", ").join(
            sql.SQL("NULL") if name == "decision" else sql.Identifier(name) for name in COLUMNS
        )
        later = sql.SQL(
            "AND (received_at, request_id) {beyond}"
            " (SELECT received_at, request_id FROM usage WHERE request_id = %(after)s)"
        ).format(beyond=sql.SQL("<" if newest else ">"))
        if after is not None and not is_uuid7(after):
            raise InvalidInput([f"after: {after!r} is not a request id"])
        with self._pool.transaction(scope) as connection:
            rows = connection.execute(
                sql.SQL(
                    "SELECT booked_at, {names} FROM usage WHERE {chosen} {later}"
                    " ORDER BY received_at {order}, request_id {order} LIMIT %(most)s"
                ).format(
                    names=names,
                    order=sql.SQL("DESC" if newest else "ASC"),
                    chosen=_where(scope, chosen),
                    later=later if after is not None else sql.SQL(""),
                ),
                {**_arguments(scope, chosen), "after": after, "most": most},
            ).fetchall()
        return [Booked(event=event_of(row[1:]), booked_at=row[0]) for row in rows]

    def totals(
        self, scope: Scope, chosen: UsageFilter, group: UsageGroup, *, most: int,
        after: str | None = None,
    ) -> Sequence[UsageTotal]:
        with self._pool.transaction(scope) as connection:
            cursor = connection.cursor(row_factory=kwargs_row(UsageTotal))
            return cursor.execute(
                sql.SQL(
                    'SELECT {name} COLLATE "C" AS name, count(*) AS requests,'
                    " count(*) FILTER (WHERE outcome = 'finished') AS finished,"
                    " count(*) FILTER (WHERE token_source NOT IN ('engine', 'none')) AS unmeasured,"
                    " {sums}, min(received_at) AS first_at, max(received_at) AS last_at"
                    " FROM usage WHERE {chosen}"
                    ' AND (%(after)s::text IS NULL OR {name} COLLATE "C" > %(after)s)'
                    " GROUP BY 1 ORDER BY 1 LIMIT %(most)s"
                ).format(name=sql.SQL(_GROUPS[group]), sums=_SUMS, chosen=_where(scope, chosen)),
                {**_arguments(scope, chosen), "after": after, "most": most},
            ).fetchall()

    def replica_totals(self, *, since: int) -> Sequence[ReplicaTotal]:
        with self._pool.transaction(EVERY_TENANT) as connection:
            cursor = connection.cursor(row_factory=kwargs_row(ReplicaTotal))
            return cursor.execute(
                sql.SQL(
                    "SELECT replica, model, serving_site AS site, count(*) AS requests, {sums}"
                    " FROM usage WHERE received_at >= %s AND replica IS NOT NULL"
                    " AND serving_site IS NOT NULL"
                    " GROUP BY replica, model, serving_site"
                    " ORDER BY serving_site, model, replica"
                ).format(sums=_SUMS),
                (since,),
            ).fetchall()

    def wrong_hours(self, *, since: int, until: int) -> int:
        with self._pool.transaction(EVERY_TENANT) as connection:
            return count_wrong(connection, since, until)

    def make_hours_again(self, *, since: int, until: int) -> int:
        with self._pool.transaction(EVERY_TENANT) as connection:
            return make_again(connection, since, until)

    def park(self, messages: Sequence[Parked], *, now: int) -> None:
        with self._pool.transaction(EVERY_TENANT) as connection, connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO parked (id, subject, payload, reason, parked_at)"
                " VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [(m.id, m.subject, m.payload, m.reason, now) for m in messages],
            )

    def parked(self, *, most: int) -> Sequence[Parked]:
        with self._pool.transaction(EVERY_TENANT) as connection:
            cursor = connection.cursor(row_factory=kwargs_row(Parked))
            return cursor.execute(
                "SELECT id, subject, payload, reason FROM parked"
                " ORDER BY parked_at DESC, id LIMIT %s",
                (most,),
            ).fetchall()


def _ground(connection: psycopg.Connection[TupleRow], event: UsageEvent) -> Ground | None:
    """What the decision of `event` names, as its ingress told it."""
    if event.decision is None:
        return None
    row = connection.execute(
        "SELECT ground FROM grounds WHERE site = %s AND id = %s",
        (event.ingress_site, event.decision.ground),
    ).fetchone()
    return None if row is None else ground_of(row[0])


def _stops(
    connection: psycopg.Connection[TupleRow], event: UsageEvent
) -> tuple[Stopped, ...]:
    """Those that its report knows of, then those that evidence of other reporters tells of."""
    own = () if event.decision is None else event.decision.stops
    rows = connection.execute(
        "SELECT decision->'stops' FROM evidence WHERE request_id = %s AND decision IS NOT NULL"
        " AND NOT (%s AND serving_site = %s) ORDER BY received_at, serving_site",
        (event.request_id, event.reporter == "evidence", event.serving_site),
    ).fetchall()
    return (*own, *(stop for row in rows for stop in stops_of(row[0])))


def _where(scope: Scope, chosen: UsageFilter) -> sql.Composable:
    """The conditions that are set, so that the planner sees only those."""
    conditions: list[LiteralString] = ["true"]
    if scope.org_id is not None:
        conditions.append("org_id = %(org)s")
    if chosen.since is not None:
        conditions.append("received_at >= %(since)s")
    if chosen.until is not None:
        conditions.append("received_at < %(until)s")
    if chosen.key_id is not None:
        conditions.append("key_id = %(key)s")
    if chosen.model is not None:
        conditions.append("model = %(model)s")
    if chosen.site is not None:
        conditions.append("serving_site = %(site)s")
    if chosen.ingress is not None:
        conditions.append("ingress_site = %(ingress)s")
    return sql.SQL(" AND ").join(map(sql.SQL, conditions))


def _arguments(scope: Scope, chosen: UsageFilter) -> dict[str, object]:
    return {
        "org": scope.org_id, "since": chosen.since, "until": chosen.until,
        "key": chosen.key_id, "model": chosen.model, "site": chosen.site, "ingress": chosen.ingress,
    }


def merge_usage(
    connection: psycopg.Connection[TupleRow], events: Sequence[UsageEvent], *, now: int
) -> int:
    """Book reports within a transaction; return how many requests are new or were replaced."""
    return _merge(connection, "usage", events, now=now)


def _merge(
    connection: psycopg.Connection[TupleRow],
    table: Table,
    events: Sequence[UsageEvent],
    *,
    now: int,
) -> int:
    """Bring `events` into `table`; return how many rows are new or were replaced."""
    incoming = _best_by_key(table, events)
    if not incoming:
        return 0
    is_usage = table == "usage"
    _copy(connection, incoming.values(), now=now)
    there = len(incoming)
    if is_usage:
        incoming = sift_late(connection, incoming, now=now)
    else:
        incoming = sift_late_evidence(connection, incoming)
    if len(incoming) < there:
        _copy(connection, incoming.values(), now=now)
    key = sql.SQL(", ").join(map(sql.Identifier, _KEY[table]))
    if is_usage:
        begin_moving(connection)
        new = insert_and_move(connection, _NAMES)
    else:
        new = connection.execute(
            sql.SQL(
                "INSERT INTO {table} ({names}, booked_at) SELECT {names}, booked_at FROM incoming"
                " ORDER BY {key} ON CONFLICT DO NOTHING"
            ).format(table=sql.Identifier(table), names=_NAMES, key=key)
        ).rowcount
    replaced = 0 if new == len(incoming) else _replace(connection, table, incoming, now=now)
    if is_usage:
        add_moved(connection)
    return new + replaced


def _replace(
    connection: psycopg.Connection[TupleRow],
    table: Table,
    incoming: Mapping[tuple[object, ...], UsageEvent],
    *,
    now: int,
) -> int:
    """Replace the rows that are there by better reports of `incoming`; return how many."""
    key = sql.SQL(", ").join(map(sql.Identifier, _KEY[table]))
    requests = [event.request_id for event in incoming.values()]
    bounds: Bounds = {"least": min(requests), "greatest": max(requests)}
    # Rows in the order of their keys, so that two bookers cannot wait for each other.
    there = connection.execute(
        sql.SQL(
            "SELECT {names} FROM {table} WHERE ({key}) IN (SELECT {key} FROM incoming)"
            f" AND {WITHIN} ORDER BY {{key}} FOR UPDATE"
        ).format(table=sql.Identifier(table), names=_NAMES, key=key),
        bounds,
    ).fetchall()
    present = _best_by_key(table, map(event_of, there))
    replacing = [
        event for key_, event in incoming.items() if better(present[key_], event) != present[key_]
    ]
    if not replacing:
        return 0
    _copy(connection, replacing, now=now)
    is_usage = table == "usage"
    if is_usage:
        move_out(connection, bounds)
    connection.execute(
        sql.SQL(
            "UPDATE {table} t"
            " SET ({names}, booked_at, {last}) = ROW({values}, i.booked_at, {is_now})"
            " FROM incoming i WHERE {same}"
            " AND t.request_id BETWEEN %(least)s::uuid AND %(greatest)s::uuid"
        ).format(
            table=sql.Identifier(table),
            names=_NAMES,
            values=sql.SQL(", ").join(sql.Identifier("i", name) for name in COLUMNS),
            # Evidence that became better is to be settled again.
            last=sql.Identifier("bound" if is_usage else "settled_at"),
            is_now=sql.SQL(BOUND if is_usage else "NULL::bigint"),
            same=sql.SQL(" AND ").join(
                sql.SQL("{} = {}").format(sql.Identifier("t", name), sql.Identifier("i", name))
                for name in _KEY[table]
            ),
        ),
        bounds,
    )
    if is_usage:
        move_in(connection, bounds)
    return len(replacing)


def _best_by_key(
    table: Table, events: Iterable[UsageEvent]
) -> dict[tuple[object, ...], UsageEvent]:
    """The standing report of each key, in the order of the keys' first appearance."""
    found: dict[tuple[object, ...], UsageEvent] = {}
    for event in events:
        key = tuple(getattr(event, name) for name in _KEY[table])
        found[key] = better(found[key], event) if key in found else event
    return found


def _copy(
    connection: psycopg.Connection[TupleRow], events: Iterable[UsageEvent], *, now: int
) -> None:
    """Put the rows of `events` in the connection's own table `incoming`."""
    connection.execute(
        "CREATE TEMPORARY TABLE IF NOT EXISTS incoming (LIKE usage INCLUDING DEFAULTS)"
        " ON COMMIT DELETE ROWS;"
        "DELETE FROM incoming"
    )
    names = sql.SQL("COPY incoming ({names}, booked_at) FROM STDIN").format(names=_NAMES)
    with connection.cursor() as cursor, cursor.copy(names) as copy:
        for event in events:
            copy.write_row((*values_of(event), now))

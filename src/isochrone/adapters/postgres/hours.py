"""Keeps the sums of requests by hour in step with the rows that they are sums of.

What a booking adds, and what a better report replaces, is gathered in the connection's own table
`moved`, and goes to `request_hours` in one statement at the end, rows in the order of their keys:
so two bookers wait for each other at most, and never in a circle.
"""

from typing import LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

_KEY: LiteralString = "org_id, project_id, hour_at, model, class, site, bound"
_SUMS: LiteralString = "requests, input_uncached, input_cached, output"
# Whether a request counts for any meter: something was processed for it, or it finished.
COUNTED: LiteralString = "(token_source <> 'none' OR outcome = 'finished')"
# Whether the policy of the key names the country that served.
BOUND: LiteralString = (
    "EXISTS (SELECT FROM api_keys k JOIN policies p ON p.id = k.policy_id"
    " WHERE k.id = i.key_id AND i.serving_country = ANY (p.residency))"
)
_MOVED: LiteralString = (
    "org_id, project_id, received_at - mod(received_at, 3600000000000), model, class,"
    " coalesce(serving_site, ''), bound, {sign} count(*), {sign} sum(input_uncached)::bigint,"
    " {sign} sum(input_cached)::bigint, {sign} sum(output)::bigint,"
    " bit_xor(usage_mark(request_id, input_uncached, input_cached, output))"
)

# The least and the greatest id of what comes in: partitions beyond them are not looked at.
Bounds = dict[str, str]
WITHIN: LiteralString = "request_id BETWEEN %(least)s::uuid AND %(greatest)s::uuid"

_Connection = psycopg.Connection[TupleRow]


def begin_moving(connection: _Connection) -> None:
    """Make the table `moved`, or empty it."""
    connection.execute(
        f"CREATE TEMPORARY TABLE IF NOT EXISTS moved AS SELECT {_KEY}, {_SUMS}, digest"
        " FROM request_hours LIMIT 0;"
        "DELETE FROM moved"
    )


def insert_and_move(connection: _Connection, names: sql.Composable) -> int:
    """Insert what is new of `incoming` and note its sums; return how many rows are new."""
    row = connection.execute(
        sql.SQL(
            "WITH fresh AS ("
            " INSERT INTO usage ({names}, booked_at, bound)"
            f" SELECT {{names}}, booked_at, {BOUND} FROM incoming i ORDER BY request_id"
            " ON CONFLICT DO NOTHING"
            " RETURNING request_id, org_id, project_id, received_at, model, class, serving_site,"
            " bound, input_uncached, input_cached, output, token_source, outcome"
            "), noted AS ("
            f" INSERT INTO moved SELECT {_MOVED.format(sign='')} FROM fresh WHERE {COUNTED}"
            " GROUP BY 1, 2, 3, 4, 5, 6, 7"
            ") SELECT count(*) FROM fresh"
        ).format(names=names)
    ).fetchone()
    assert row is not None, "a count is always a row"
    return int(row[0])


def move_out(connection: _Connection, bounds: Bounds) -> None:
    """Note that the rows of `usage` which `incoming` replaces no longer count; `move_in` follows
    when they are replaced."""
    _note(connection, _MOVED.format(sign="-"), bounds)


def move_in(connection: _Connection, bounds: Bounds) -> None:
    """Note that the rows which have replaced others count."""
    _note(connection, _MOVED.format(sign=""), bounds)


def _note(connection: _Connection, moved: LiteralString, bounds: Bounds) -> None:
    connection.execute(
        f"INSERT INTO moved SELECT {moved} FROM usage"
        f" WHERE request_id IN (SELECT request_id FROM incoming) AND {WITHIN} AND {COUNTED}"
        " GROUP BY 1, 2, 3, 4, 5, 6, 7",
        bounds,
    )


def add_moved(connection: _Connection) -> None:
    """Bring what was noted into the sums."""
    connection.execute(
        f"INSERT INTO request_hours ({_KEY}, {_SUMS}, digest)"
        f" SELECT {_KEY}, sum(requests), sum(input_uncached), sum(input_cached), sum(output),"
        f" bit_xor(digest) FROM moved GROUP BY {_KEY} ORDER BY {_KEY}"
        f" ON CONFLICT ({_KEY}) DO UPDATE SET"
        " requests = request_hours.requests + excluded.requests,"
        " input_uncached = request_hours.input_uncached + excluded.input_uncached,"
        " input_cached = request_hours.input_cached + excluded.input_cached,"
        " output = request_hours.output + excluded.output,"
        " digest = request_hours.digest # excluded.digest, due = true"
    )


# What the rows add up to, and those that were detached.
_MADE: LiteralString = (
    f"SELECT {_KEY}, sum(requests)::bigint, sum(input_uncached)::bigint,"
    " sum(input_cached)::bigint, sum(output)::bigint, bit_xor(digest) FROM ("
    f"SELECT {_MOVED.format(sign='')} FROM usage WHERE {COUNTED}"
    " AND received_at >= %(since)s AND received_at < %(until)s GROUP BY 1, 2, 3, 4, 5, 6, 7"
    f" UNION ALL SELECT {_KEY}, {_SUMS}, digest FROM detached_hours"
    " WHERE hour_at >= %(since)s AND hour_at < %(until)s"
    f") AS each_part ({_KEY}, {_SUMS}, digest) GROUP BY {_KEY}"
)
# Of one day's rows: what stands for them once they are detached.
DETACHED_HOURS: LiteralString = (
    f"INSERT INTO detached_hours (day_at, part, {_KEY}, {_SUMS}, digest)"
    f" SELECT %(day)s, %(part)s, {_MOVED.format(sign='')} FROM usage WHERE {COUNTED}"
    " AND request_id >= first_id_of_day(%(day)s) AND request_id < first_id_of_day(%(next)s)"
    " GROUP BY 3, 4, 5, 6, 7, 8, 9"
)
_DIFFERS: LiteralString = (
    f"SELECT {_KEY}, coalesce(made.requests, 0) AS requests,"
    " coalesce(made.input_uncached, 0) AS input_uncached,"
    " coalesce(made.input_cached, 0) AS input_cached, coalesce(made.output, 0) AS output,"
    " coalesce(made.digest, 0::bit(128)) AS digest"
    f" FROM ({_MADE}) AS made ({_KEY}, {_SUMS}, digest) FULL JOIN (SELECT * FROM request_hours"
    f" WHERE hour_at >= %(since)s AND hour_at < %(until)s) AS kept USING ({_KEY})"
    " WHERE (coalesce(made.requests, 0), coalesce(made.input_uncached, 0),"
    " coalesce(made.input_cached, 0), coalesce(made.output, 0), coalesce(made.digest, 0::bit(128)))"
    " IS DISTINCT FROM (coalesce(kept.requests, 0), coalesce(kept.input_uncached, 0),"
    " coalesce(kept.input_cached, 0), coalesce(kept.output, 0),"
    " coalesce(kept.digest, 0::bit(128)))"
)


def count_wrong(connection: _Connection, since: int, until: int) -> int:
    """How many sums of these whole hours are not those of the rows; one statement, so one instant.
    """
    row = connection.execute(
        f"SELECT count(*) FROM ({_DIFFERS}) AS wrong", {"since": since, "until": until}
    ).fetchone()
    assert row is not None, "a count is always a row"
    return int(row[0])


def make_again(connection: _Connection, since: int, until: int) -> int:
    """Make the sums of these hours from the rows; return how many were wrong. Bookings wait."""
    connection.execute("LOCK TABLE request_hours IN SHARE ROW EXCLUSIVE MODE")
    return connection.execute(
        f"INSERT INTO request_hours ({_KEY}, {_SUMS}, digest) {_DIFFERS}"
        f" ON CONFLICT ({_KEY}) DO UPDATE SET requests = excluded.requests,"
        " input_uncached = excluded.input_uncached, input_cached = excluded.input_cached,"
        " output = excluded.output, digest = excluded.digest, due = true",
        {"since": since, "until": until},
    ).rowcount

"""Traffic from the booked requests in PostgreSQL, at most so many of each span.

The indexes on the time of receipt (of all, of an organisation) lead to the first requests of each
span, so a question costs the same at any load.
"""

from collections.abc import Sequence
from typing import LiteralString

from psycopg import sql
from psycopg.rows import TupleRow, class_row

from isochrone.adapters.postgres.pool import Pool
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.world.tenant import Scope
from isochrone.ports.traffic import (
    Flow,
    Flows,
    ReasonCount,
    Span,
    TrafficFilter,
    TrafficGroup,
)

MOST_OF_A_SPAN = 4_000
MOST_LATEST = 5_000
_GROUPS: dict[TrafficGroup, LiteralString] = {
    "all": "''", "model": "model", "class": "class", "org": "org_id",
    "site": "coalesce(serving_site, '')", "ingress": "ingress_site",
}
_SEEN: LiteralString = """
    WITH looked AS (
        SELECT begins.at, requests.*, count(*) OVER span AS looked_at,
               max(received_at) OVER span AS last_at
        FROM generate_series(0, %(spans)s - 1) AS number
        CROSS JOIN LATERAL (SELECT %(since)s + number * %(span)s::bigint AS at) AS begins
        CROSS JOIN LATERAL (
            SELECT received_at, org_id, model, class, ingress_site, serving_site, first_byte_ms,
                   output, outcome, reason
            FROM usage
            WHERE received_at >= begins.at AND received_at < begins.at + %(span)s
              AND (%(org)s::text IS NULL OR org_id = %(org)s)
            ORDER BY received_at LIMIT %(most)s
        ) AS requests
        WINDOW span AS (PARTITION BY begins.at)
    ), seen AS (
        -- How many requests one that was looked at stands for: those of the whole span.
        SELECT *, CASE WHEN looked_at < %(most)s THEN 1.0
                  ELSE greatest(1.0, %(span)s / greatest(last_at - at, 1)::float8) END AS weight
        FROM looked
        WHERE (%(model)s::text IS NULL OR model = %(model)s)
          AND (%(class)s::text IS NULL OR class = %(class)s)
          AND (%(site)s::text IS NULL OR serving_site = %(site)s)
    )
"""
_SPANS: LiteralString = """
    SELECT at, {name} COLLATE "C" AS name, count(*) AS looked_at,
        sum(weight)::float8 AS requests,
        coalesce(sum(weight) FILTER (WHERE outcome = 'finished'), 0)::float8 AS finished,
        coalesce(sum(weight) FILTER (WHERE outcome = 'refused'), 0)::float8 AS refused,
        coalesce(sum(weight) FILTER (
            WHERE outcome NOT IN ('finished', 'refused', 'client_gone')), 0)::float8 AS failed,
        coalesce(sum(weight) FILTER (
            WHERE outcome = 'finished' AND first_byte_ms <= %(target)s), 0)::float8 AS good,
        coalesce(sum(weight) FILTER (WHERE serving_site <> ingress_site), 0)::float8 AS spilled,
        sum(weight * output)::float8 AS output_tokens,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY first_byte_ms) AS p50_ms,
        percentile_cont(0.9) WITHIN GROUP (ORDER BY first_byte_ms) AS p90_ms,
        percentile_cont(0.99) WITHIN GROUP (ORDER BY first_byte_ms) AS p99_ms
    FROM seen GROUP BY 1, 2 ORDER BY 1, 2
"""
_REASONS: LiteralString = """
    SELECT outcome, coalesce(reason, '') AS reason, sum(weight)::float8 AS requests FROM seen
    WHERE outcome <> 'finished' GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT 50
"""
_SPILLS: LiteralString = """
    SELECT ingress_site, serving_site, '', '', 'finished', sum(weight)::float8 FROM seen
    WHERE serving_site <> ingress_site GROUP BY 1, 2 ORDER BY 6 DESC, 1, 2 LIMIT %(rows)s
"""
_FLOWS: LiteralString = """
    SELECT ingress_site, serving_site, model, class, outcome, count(*)::float8, max(booked_at)
    FROM (
        SELECT * FROM usage WHERE received_at >= %(since)s
          AND (%(org)s::text IS NULL OR org_id = %(org)s)
        ORDER BY received_at DESC LIMIT %(most)s
    ) AS latest WHERE booked_at > %(after)s GROUP BY 1, 2, 3, 4, 5 ORDER BY 6 DESC
"""


class PostgresTraffic:
    """`ports/traffic.py` on one pool."""

    def __init__(self, pool: Pool, *, most_of_a_span: int = MOST_OF_A_SPAN) -> None:
        self._pool = pool
        self._most = most_of_a_span

    def spans(
        self, scope: Scope, chosen: TrafficFilter, group: TrafficGroup
    ) -> Sequence[Span]:
        query = sql.SQL(_SEEN + _SPANS).format(name=sql.SQL(_GROUPS[group]))
        with self._pool.transaction(scope) as connection:
            cursor = connection.cursor(row_factory=class_row(Span))
            return cursor.execute(query, self._arguments(scope, chosen)).fetchall()

    def reasons(self, scope: Scope, chosen: TrafficFilter) -> Sequence[ReasonCount]:
        with self._pool.transaction(scope) as connection:
            cursor = connection.cursor(row_factory=class_row(ReasonCount))
            return cursor.execute(
                _SEEN + _REASONS, self._arguments(scope, chosen)
            ).fetchall()

    def spills(self, scope: Scope, chosen: TrafficFilter, *, most: int) -> Sequence[Flow]:
        with self._pool.transaction(scope) as connection:
            rows = connection.execute(
                _SEEN + _SPILLS, {**self._arguments(scope, chosen), "rows": most}
            ).fetchall()
        return [_flow(row) for row in rows]

    def flows(self, scope: Scope, *, since: int, after: int) -> Flows:
        with self._pool.transaction(scope) as connection:
            rows = connection.execute(
                _FLOWS,
                {"since": since, "after": after, "org": scope.org_id, "most": MOST_LATEST},
            ).fetchall()
        return Flows(
            until=max((row[6] for row in rows), default=after),
            flows=tuple(_flow(row[:6]) for row in rows),
        )

    def _arguments(self, scope: Scope, chosen: TrafficFilter) -> dict[str, object]:
        return {
            "since": chosen.since, "span": chosen.span_ns, "spans": chosen.spans,
            "target": chosen.target_ms, "model": chosen.model, "class": chosen.class_,
            "site": chosen.site, "org": scope.org_id or chosen.org_id, "most": self._most,
        }


def _flow(row: TupleRow) -> Flow:
    ingress, site, model, class_, outcome, requests = row
    return Flow(
        ingress=SiteName(ingress), site=None if site is None else SiteName(site),
        model=ModelName(model), class_=class_, outcome=outcome, requests=requests,
    )

"""Finds the requests of which an engine may have counted otherwise than is booked.

Which were cut off, which went from one engine to another, and which were at work in a gap, each
once for every replica that may have worked on it; `core/metering/loose.py` says what that means.
"""

from collections.abc import Sequence
from typing import LiteralString

import psycopg
from psycopg.rows import TupleRow

from isochrone.core.billing.period import DAY_NS
from isochrone.core.ids import uuid7
from isochrone.core.metering.loose import Counts, Gap, Heard, Loose, gaps_of

_Connection = psycopg.Connection[TupleRow]

_TRIED: LiteralString = (
    "jsonb_array_elements(CASE WHEN jsonb_typeof(decision->'tried') = 'array'"
    " THEN decision->'tried' ELSE '[]' END)"
)
# A site that refused has not worked on it; a queue's refusal is told as `saturated`.
_REFUSED: LiteralString = "(t->>'rule' = 'saturated' OR t->>'detail' LIKE 'refused:%%')"
# More tries than refusals explain, or one that failed: some engine may have begun.
_WENT_ON: LiteralString = (
    f"(attempts > 1 AND (attempts > 1 + (SELECT count(*) FROM {_TRIED} t WHERE {_REFUSED})"
    f" OR EXISTS (SELECT FROM {_TRIED} t WHERE NOT {_REFUSED})))"
)
# An engine that refuses has not worked, and neither has one that was sent nothing.
_CUT_OFF: LiteralString = (
    "(token_source <> 'engine'"
    " AND NOT (outcome = 'engine_error' AND status BETWEEN 400 AND 498)"
    " AND NOT (token_source = 'none' AND sent_ms IS NULL AND reporter = 'ingress'))"
)
_LOOSE: LiteralString = f"""
WITH gaps AS (
  SELECT * FROM unnest(%(replicas)s::text[], %(kinds)s::text[], %(begin)s::bigint[],
                       %(end)s::bigint[]) AS g (replica, kind, begins_at, ends_at)
), known AS (
  SELECT DISTINCT replica, site, model FROM engine_counts WHERE day_at = %(since)s
), hops AS (
  SELECT request_id, array_agg(serving_site) AS sites FROM evidence
  WHERE attempts > 1 AND request_id BETWEEN %(least)s::uuid AND %(greatest)s::uuid
  GROUP BY request_id
), asked AS (
  SELECT u.*, {_CUT_OFF} AS cut_off, hops.sites IS NOT NULL OR {_WENT_ON} AS moved,
   coalesce(hops.sites, '{{}}') AS hop_sites,
   finished_at >= %(since)s AND finished_at < %(until)s AS of_day
  FROM usage u LEFT JOIN hops USING (request_id)
  WHERE replica IS NOT NULL AND serving_site IS NOT NULL
   AND received_at >= %(earliest)s AND received_at < %(latest)s
), touched AS (
  SELECT asked.*, replica AS at_replica, serving_site AS at_site FROM asked
  UNION ALL
  SELECT asked.*, known.replica, known.site FROM asked CROSS JOIN LATERAL (
    SELECT serving_site AS site, NULL AS named
    UNION SELECT unnest(hop_sites), NULL
    UNION SELECT t->>'site', substring(t->>'detail' FROM '^replica ([^:]+):')
     FROM {_TRIED} t WHERE NOT {_REFUSED}
  ) AS place JOIN known ON known.site = place.site AND known.model = asked.model
   AND (place.named IS NULL OR place.named = known.replica)
  WHERE moved AND known.replica <> asked.replica
)
SELECT DISTINCT ON (touched.request_id, at_replica)
 at_replica, at_site, input_uncached, input_cached, output, token_source,
 of_day AND at_replica = touched.replica, gaps.kind, moved, cut_off, attempts,
 (total_ms - coalesce(sent_ms, 0)) / 1000, (decision->'bond'->>'prompt_tokens')::bigint,
 models.context_tokens
FROM touched LEFT JOIN models ON models.name = touched.model
LEFT JOIN gaps ON gaps.replica = at_replica
 AND gaps.begins_at <= finished_at AND gaps.ends_at >= received_at
WHERE gaps.kind IS NOT NULL OR (of_day AND (cut_off OR moved))
ORDER BY touched.request_id, at_replica, gaps.kind
"""


def loose_requests(connection: _Connection, day_at: int) -> list[Loose]:
    """Those that touch the day."""
    gaps = gaps_of(_heard(connection, day_at), day_at)
    until = max([day_at + DAY_NS, *(gap.until for gap in gaps)])
    rows = connection.execute(
        _LOOSE,
        {
            "since": day_at, "until": day_at + DAY_NS, "earliest": day_at - DAY_NS,
            "latest": until, **_columns(gaps),
            "least": uuid7(day_at - 2 * DAY_NS, 0), "greatest": uuid7(until + DAY_NS, 0),
        },
    ).fetchall()
    return [
        Loose(
            replica=row[0], site=row[1],
            tokens=Counts(input_uncached=row[2], input_cached=row[3], output=row[4]),
            source=row[5], is_booked=row[6], gap=row[7], moved=row[8], cut_off=row[9], runs=row[10],
            seconds=row[11], prompt_tokens=row[12], context_tokens=row[13],
        )
        for row in rows
    ]


def _columns(gaps: list[Gap]) -> dict[str, Sequence[str] | Sequence[int]]:
    return {
        "replicas": [gap.replica for gap in gaps], "kinds": [gap.kind for gap in gaps],
        "begin": [gap.since for gap in gaps], "end": [gap.until for gap in gaps],
    }


def _heard(connection: _Connection, day_at: int) -> list[Heard]:
    rows = connection.execute(
        "SELECT replica, generation, run, day_at, coalesce(begun_at, heard_at), heard_at"
        " FROM engine_counts WHERE day_at BETWEEN %(day)s - %(ns)s AND %(day)s + %(ns)s",
        {"day": day_at, "ns": DAY_NS},
    ).fetchall()
    return [
        Heard(
            replica=row[0], generation=row[1], run=row[2], day_at=row[3], begun_at=row[4],
            heard_at=row[5],
        )
        for row in rows
    ]

"""What reconciliation reads and keeps in PostgreSQL."""

from collections.abc import Sequence

import psycopg
from psycopg.rows import TupleRow, kwargs_row

from isochrone.adapters.postgres.charges import USED
from isochrone.adapters.postgres.hours import count_wrong
from isochrone.adapters.postgres.loose import loose_requests
from isochrone.adapters.postgres.meters import wrong_meter_hours
from isochrone.adapters.postgres.pool import Pool
from isochrone.core.billing.period import DAY_NS
from isochrone.core.metering.loose import Counts
from isochrone.core.metering.reconcile import (
    EngineDay,
    Life,
    MeterDay,
    Reading,
    UsageDay,
)
from isochrone.core.world.tenant import EVERY_TENANT
from isochrone.ports.reconciling import DaySums, KeptReport

_Connection = psycopg.Connection[TupleRow]


class PostgresReconciling:
    """`ports.reconciling.Reconciling` on one database; one call is one transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def note_counts(self, readings: Sequence[Reading], *, day_at: int, now: int) -> None:
        with self._pool.transaction(EVERY_TENANT) as connection:
            # In one order, so that two copies of control cannot wait for each other.
            for reading in sorted(readings, key=lambda each: (each.replica, each.generation)):
                run = _run(connection, reading)
                connection.execute(
                    "INSERT INTO engine_counts AS known (replica, generation, run, day_at, site,"
                    " model, prompt, cached, output, heard_at, begun_at)"
                    " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
                    " ON CONFLICT (replica, generation, run, day_at) DO UPDATE SET"
                    " prompt = greatest(known.prompt, excluded.prompt),"
                    " cached = greatest(known.cached, excluded.cached),"
                    " output = greatest(known.output, excluded.output),"
                    " heard_at = greatest(known.heard_at, excluded.heard_at)",
                    (reading.replica, reading.generation, run, day_at, reading.site, reading.model,
                     reading.counts.input_uncached, reading.counts.input_cached,
                     reading.counts.output, now, now),
                )

    def still_heard(self, lives: Sequence[Life], *, day_at: int, now: int) -> None:
        with self._pool.transaction(EVERY_TENANT) as connection:
            connection.execute(
                "UPDATE engine_counts AS known SET heard_at = %(now)s"
                # Locked in one order, so that two copies of control cannot wait for each other.
                " FROM (SELECT replica, generation, run, day_at FROM engine_counts"
                "  JOIN (SELECT replica, generation, max(run) AS run FROM engine_counts"
                "   JOIN unnest(%(replicas)s::text[], %(generations)s::bigint[])"
                "    AS life (replica, generation) USING (replica, generation)"
                "   WHERE day_at = %(day)s GROUP BY replica, generation"
                "  ) AS last USING (replica, generation, run)"
                "  WHERE day_at = %(day)s ORDER BY replica, generation FOR UPDATE OF engine_counts"
                " ) AS heard WHERE (known.replica, known.generation, known.run, known.day_at)"
                "  = (heard.replica, heard.generation, heard.run, heard.day_at)"
                "  AND known.heard_at < %(now)s",
                {
                    "replicas": [replica for replica, _ in lives],
                    "generations": [generation for _, generation in lives],
                    "day": day_at, "now": now,
                },
            )

    def day_sums(self, day_at: int) -> DaySums:
        with self._pool.transaction(EVERY_TENANT, one_instant=True) as connection:
            day = {"since": day_at, "until": day_at + DAY_NS}
            return DaySums(
                engines=_engines(connection, day_at), usage=_usage(connection, day),
                meters=_meters(connection, day), loose=loose_requests(connection, day_at),
                wrong_sums=count_wrong(connection, day_at, day_at + DAY_NS)
                + len(wrong_meter_hours(connection, day_at, day_at + DAY_NS)),
                parked=_count(
                    connection, "SELECT count(*) FROM parked WHERE parked_at >= %(since)s"
                    " AND parked_at < %(until)s", day,
                ),
                unmetered=_count(
                    connection, "SELECT count(*) FROM meter_events WHERE NOT is_metered"
                    " AND arrived_at >= %(since)s AND arrived_at < %(until)s", day,
                ),
                late=_count(
                    connection, "SELECT count(*) FROM late_reports WHERE booked_at IS NULL"
                    " AND heard_at >= %(since)s AND heard_at < %(until)s", day,
                ),
            )

    def keep_report(self, report: KeptReport) -> bool:
        with self._pool.transaction(EVERY_TENANT) as connection:
            return connection.execute(
                "INSERT INTO reconciliations (day_at, agrees, report, made_at)"
                " VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                (report.day_at, report.agrees, report.report, report.made_at),
            ).rowcount == 1

    def reports(self, *, most: int) -> Sequence[KeptReport]:
        with self._pool.transaction(EVERY_TENANT) as connection:
            cursor = connection.cursor(row_factory=kwargs_row(KeptReport))
            return cursor.execute(
                "SELECT day_at, agrees, report::text AS report, made_at FROM reconciliations"
                " ORDER BY day_at DESC LIMIT %s",
                (most,),
            ).fetchall()


def _run(connection: _Connection, reading: Reading) -> int:
    """Which run of its life a reading is of: counts that fell began anew."""
    row = connection.execute(
        "SELECT run, prompt, cached, output FROM engine_counts"
        " WHERE replica = %s AND generation = %s ORDER BY run DESC, day_at DESC LIMIT 1 FOR UPDATE",
        (reading.replica, reading.generation),
    ).fetchone()
    if row is None:
        return 0
    counts = reading.counts
    now = (counts.input_uncached, counts.input_cached, counts.output)
    # Of counts that began anew all fall or stay; a mixture is a reading that came late.
    fell = all(new <= old for new, old in zip(now, row[1:], strict=True)) and now != row[1:]
    return int(row[0]) + (1 if fell and 2 * sum(now) < sum(row[1:]) else 0)


def _engines(connection: _Connection, day_at: int) -> list[EngineDay]:
    rows = connection.execute(
        "SELECT replica, min(site), min(model), sum(prompt - p0)::bigint,"
        " sum(cached - c0)::bigint, sum(output - o0)::bigint, count(*) FROM ("
        "  SELECT day_at, replica, site, model, prompt, cached, output,"
        "   lag(prompt, 1, 0::bigint) OVER life AS p0, lag(cached, 1, 0::bigint) OVER life AS c0,"
        "   lag(output, 1, 0::bigint) OVER life AS o0 FROM engine_counts"
        "  WHERE (replica, generation, run) IN ("
        "    SELECT replica, generation, run FROM engine_counts WHERE day_at = %(day)s)"
        "  WINDOW life AS (PARTITION BY replica, generation, run ORDER BY day_at)"
        ") AS counted WHERE day_at = %(day)s GROUP BY replica",
        {"day": day_at},
    ).fetchall()
    return [
        EngineDay(
            replica=replica, site=site, model=model, lives=lives,
            counts=Counts(input_uncached=prompt, input_cached=cached, output=output),
        )
        for replica, site, model, prompt, cached, output, lives in rows
    ]


def _usage(connection: _Connection, day: dict[str, int]) -> list[UsageDay]:
    rows = connection.execute(
        "SELECT replica, min(serving_site), min(model),"
        " sum(input_uncached) FILTER (WHERE exact), sum(input_cached) FILTER (WHERE exact),"
        " sum(output) FILTER (WHERE exact), sum(input_uncached) FILTER (WHERE NOT exact),"
        " sum(input_cached) FILTER (WHERE NOT exact), sum(output) FILTER (WHERE NOT exact),"
        " count(*), count(*) FILTER (WHERE NOT exact),"
        # From a few tokens on and a while, so that no clock's grain makes a speed of its own.
        " max(output * 1000 / (total_ms - sent_ms)) FILTER (WHERE exact AND attempts = 1"
        "  AND output >= 16 AND total_ms - sent_ms >= 5)"
        " FROM (SELECT *, token_source = 'engine' AS exact FROM usage) AS booked"
        " WHERE replica IS NOT NULL AND serving_site IS NOT NULL"
        " AND finished_at >= %(since)s AND finished_at < %(until)s"
        # For the index: no request lasts a day.
        " AND received_at >= %(earliest)s AND received_at < %(until)s GROUP BY replica",
        {**day, "earliest": day["since"] - DAY_NS},
    ).fetchall()
    return [
        UsageDay(
            replica=row[0], site=row[1], model=row[2], exact=_counts(row[3:6]),
            other=_counts(row[6:9]), requests=row[9], others=row[10], fastest_tok_s=row[11],
        )
        for row in rows
    ]


def _counts(sums: Sequence[int | None]) -> Counts:
    uncached, cached, output = (int(each or 0) for each in sums)
    return Counts(input_uncached=uncached, input_cached=cached, output=output)


def _meters(connection: _Connection, day: dict[str, int]) -> list[MeterDay]:
    rows = connection.execute(
        "SELECT meter, sum(used), sum(charged), sum(used - charged) FILTER (WHERE due),"
        " sum(used - charged) FILTER (WHERE NOT due) FROM ("
        "  SELECT org_id, project_id, hour_at, meter, coalesce(u.amount, 0) AS used,"
        "   coalesce(c.quantity, 0) AS charged, coalesce(u.due, false) AS due FROM ("
        f"   SELECT org_id, project_id, hour_at, meter, sum(amount) AS amount, bool_or(due) AS due"
        f"   FROM ({USED}) AS used WHERE hour_at >= %(since)s AND hour_at < %(until)s"
        "    GROUP BY 1, 2, 3, 4) AS u FULL JOIN ("
        "   SELECT org_id, project_id, hour_at, item AS meter, quantity FROM standing_charges"
        "    WHERE hour_at >= %(since)s AND hour_at < %(until)s AND item NOT LIKE '%%:%%') AS c"
        "  USING (org_id, project_id, hour_at, meter)"
        ") AS both_sides GROUP BY meter HAVING sum(used) <> 0 OR sum(charged) <> 0 ORDER BY meter",
        day,
    ).fetchall()
    return [
        MeterDay(
            meter=meter, used=int(used), charged=int(charged), waiting=int(waiting or 0),
            unpriced=int(unpriced or 0),
        )
        for meter, used, charged, waiting, unpriced in rows
    ]


def _count(connection: _Connection, query: str, day: dict[str, int]) -> int:
    row = connection.execute(query.encode(), day).fetchone()
    assert row is not None, "a count is always a row"
    return int(row[0])

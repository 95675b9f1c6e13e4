"""Evidence of a day leaves the book as a file beside the day's usage, and comes back with it.

What serving gateways saw lies in one table. Once it is settled nothing changes it but a better
report of the same site, so it goes when its day does: rows to a file, file compared, and in one
transaction the rows are removed and marks of who they were are kept. Whoever books evidence shares
a lock of its day, which detaching needs alone.
"""

from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from isochrone.adapters.parquet import usage_file
from isochrone.adapters.postgres import day_files
from isochrone.adapters.postgres.day_files import DAY
from isochrone.adapters.postgres.late import hold_evidence_day
from isochrone.adapters.postgres.pool import Pool
from isochrone.core.billing.period import day_name
from isochrone.core.errors import Conflict, InvalidInput
from isochrone.core.metering.detached import DAY_NS
from isochrone.core.world.tenant import EVERY_TENANT, Scope
from isochrone.ports.usage_days import DayFile

IDS_A_CHUNK = 512
EVIDENCE_LISTED: LiteralString = "detached_evidence"
# As core/metering/detached.py reads them.
_IDS: LiteralString = (
    "INSERT INTO detached_evidence_ids (day_at, part, chunk, first_id, last_id, marks)"
    " SELECT %(day)s, %(part)s, chunk, (array_agg(request_id ORDER BY request_id))[1],"
    " (array_agg(request_id ORDER BY request_id DESC))[1],"
    " string_agg(uuid_send(request_id) || site"
    " || int8send(input_uncached + input_cached + output) || int8send(finished_at), ''::bytea"
    " ORDER BY request_id, site) FROM (SELECT *,"
    " (row_number() OVER (ORDER BY request_id, site) - 1) / %(size)s AS chunk"
    f" FROM (SELECT *, site_mark(serving_site) AS site FROM evidence WHERE {DAY}) AS marked"
    ") AS numbered GROUP BY chunk"
)
_NAMES = sql.SQL(", ").join(map(sql.Identifier, usage_file.EVIDENCE_TYPES))

_Connection = psycopg.Connection[TupleRow]


class PostgresEvidenceDays:
    """Evidence of days on one database; `archive` is the folder of files."""

    def __init__(self, pool: Pool, archive: Path) -> None:
        self._pool = pool
        self._archive = archive

    def check_settled(self, day_at: int) -> None:
        """Raises Conflict while some of a day's evidence waits to be settled."""
        with self._pool.transaction(EVERY_TENANT) as connection:
            _check_settled(connection, day_at)

    def detach(self, scope: Scope, day_at: int, *, now: int) -> DayFile | None:
        """None when the day has no evidence. Raises Conflict while some of it waits to be settled,
        or when it changed meanwhile, and InvalidInput where the archive cannot be used."""
        target = self._archive / f"evidence-{day_name(day_at)}.{now}.parquet"
        with day_files.scratch(self._archive, f".evidence-{day_name(day_at)}.rows") as rows:
            said = self._write(day_at, rows, target)
            if said is None:
                return None
            try:
                return self._seal(scope, day_at, target, said, now)
            except (Conflict, InvalidInput):
                target.unlink()  # nothing names it
                raise

    def _write(self, day_at: int, rows: Path, target: Path) -> tuple[int, int] | None:
        day = _span(day_at)
        with self._pool.transaction(EVERY_TENANT, one_instant=True) as connection:
            day_files.take_time(connection)
            said = day_files.sums(connection, "evidence", day)
            if not said[0]:
                return None
            _check_settled(connection, day_at)
            query = sql.SQL(
                f"COPY (SELECT {{}} FROM evidence WHERE {DAY} ORDER BY request_id, serving_site)"
                " TO STDOUT (FORMAT csv)"
            ).format(_NAMES)
            day_files.copy_out(connection, query, day, rows)
        usage_file.write_file(rows, target, usage_file.EVIDENCE_TYPES)
        if usage_file.sums_of(target) != said:
            target.unlink()
            raise Conflict(f"the file of {day_name(day_at)} does not hold the rows that were read")
        day_files.sync(target)
        return said

    def _seal(
        self, scope: Scope, day_at: int, target: Path, said: tuple[int, int], now: int
    ) -> DayFile:
        day = _span(day_at)
        with self._pool.transaction(scope) as connection:
            day_files.take_time(connection)
            hold_evidence_day(connection, day_at)
            if day_files.sums(connection, "evidence", day) != said:
                raise Conflict(f"evidence of {day_name(day_at)} was told meanwhile; try again")
            part = day_files.list_file(connection, EVIDENCE_LISTED, target, said, day, now=now)
            connection.execute(_IDS, {**day, "part": part, "size": IDS_A_CHUNK})
            connection.execute("SELECT drop_evidence_day(%s)", (day_at,))
            (made,) = (each for each in self._files(connection, day_at) if each.part == part)
        return made

    def _files(self, connection: _Connection, day_at: int) -> list[DayFile]:
        return day_files.files(connection, EVIDENCE_LISTED, day_at, day_at + DAY_NS)

    def attach(self, scope: Scope, day_at: int) -> int:
        """Bring the evidence of a day back; how many rows. The files were checked."""
        with (
            day_files.scratch(self._archive, f".evidence-{day_name(day_at)}.rows") as rows,
            self._pool.transaction(scope) as connection,
        ):
            day_files.take_time(connection)
            hold_evidence_day(connection, day_at)
            connection.execute(
                "CREATE TEMPORARY TABLE coming_back (LIKE evidence) ON COMMIT DROP"
            )
            back = 0
            # What came later was better, so it stands: rows that are there, then the latest part.
            for each in reversed(self._files(connection, day_at)):
                usage_file.read_rows(
                    self._archive / each.file, rows, usage_file.EVIDENCE_TYPES
                )
                day_files.copy_in(connection, _NAMES, rows)
                back += connection.execute(
                    sql.SQL(
                        "INSERT INTO evidence ({names}) SELECT {names} FROM coming_back"
                        " ORDER BY request_id, serving_site ON CONFLICT DO NOTHING"
                    ).format(names=_NAMES)
                ).rowcount
                connection.execute("DELETE FROM coming_back")
            connection.execute("SELECT forget_detached_evidence(%s)", (day_at,))
        return back


def overdue_evidence(connection: _Connection, *, before: int, quiet_since: int) -> set[int]:
    """Days that ended before `before` and have settled evidence of which none came lately."""
    found: set[int] = set()
    beyond = 0
    while True:
        # One look-up in the index a day, however many rows each has.
        row = connection.execute(
            "SELECT day_of_id(request_id) FROM evidence WHERE request_id >= first_id_of_day(%s)"
            " ORDER BY request_id LIMIT 1", (beyond,),
        ).fetchone()
        if row is None or row[0] + DAY_NS > before:
            return found
        quiet = connection.execute(
            f"SELECT max(booked_at) < %(since)s AND bool_and(settled_at IS NOT NULL) FROM evidence"
            f" WHERE {DAY}", {**_span(row[0]), "since": quiet_since},
        ).fetchone()
        if quiet is not None and quiet[0]:
            found.add(row[0])
        beyond = row[0] + DAY_NS


def _check_settled(connection: _Connection, day_at: int) -> None:
    waits = connection.execute(
        f"SELECT count(*) FROM evidence WHERE {DAY} AND settled_at IS NULL", _span(day_at)
    ).fetchone()
    if waits is not None and waits[0]:
        raise Conflict(
            f"{waits[0]} pieces of evidence of {day_name(day_at)} wait still to be settled; try"
            " again in a minute"
        )


def _span(day_at: int) -> dict[str, int]:
    return {"day": day_at, "next": day_at + DAY_NS}

"""Days of usage in PostgreSQL, and their way out to Parquet files and back.

Out: the rows are read as one instant saw them, written to a file and compared with it; then, while
nobody writes to that day, what stands for them is noted and the partition is dropped, in one
transaction. In: the reverse, after the file was compared with what was noted of it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString

import msgspec
import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from isochrone.adapters.parquet import usage_file
from isochrone.adapters.postgres import day_files
from isochrone.adapters.postgres.book import merge_usage
from isochrone.adapters.postgres.day_files import DAY
from isochrone.adapters.postgres.evidence_days import (
    EVIDENCE_LISTED,
    PostgresEvidenceDays,
    overdue_evidence,
)
from isochrone.adapters.postgres.hours import DETACHED_HOURS
from isochrone.adapters.postgres.late import hold_days
from isochrone.adapters.postgres.pool import Pool
from isochrone.core.billing.period import day_name
from isochrone.core.errors import Conflict, InvalidInput, NotFound
from isochrone.core.metering.detached import DAY_NS
from isochrone.core.metering.event import UsageEvent
from isochrone.core.world.tenant import EVERY_TENANT, Scope
from isochrone.ports.usage_days import DayFile, UsageDay

QUIET_NS = DAY_NS
COUNTED_MOST = 100_000  # above it, the database's own estimate will do
YOUNGEST_NS = 32 * DAY_NS  # budgets of keys read the rows of their month
IDS_A_CHUNK = 512
LATE_MOST = 500

_LISTED: LiteralString = "detached_days"
# As core/metering/detached.py reads them; ranks are those of core/metering/merge.py.
_IDS: LiteralString = (
    "INSERT INTO detached_ids (day_at, part, first_id, last_id, marks)"
    " SELECT %(day)s, %(part)s, (array_agg(request_id ORDER BY request_id))[1],"
    " (array_agg(request_id ORDER BY request_id DESC))[1],"
    " string_agg(uuid_send(request_id) || set_byte('\\x00', 0, CASE reporter"
    " WHEN 'recovered' THEN 0 WHEN 'evidence' THEN 1 ELSE 2 END)"
    " || int8send(input_uncached + input_cached + output) || int8send(finished_at), ''::bytea"
    " ORDER BY request_id) FROM (SELECT *, (row_number() OVER (ORDER BY request_id) - 1) / %(size)s"
    f" AS chunk FROM usage WHERE {DAY}) AS numbered GROUP BY chunk"
)
_NAMES = sql.SQL(", ").join(map(sql.Identifier, usage_file.COLUMNS))

_Connection = psycopg.Connection[TupleRow]


class PostgresUsageDays:
    """`ports.usage_days.UsageDays` on one database; `archive` is the folder of files, if any."""

    def __init__(self, pool: Pool, archive: Path | None) -> None:
        self._pool = pool
        self._archive = archive

    def keep(self, *, since: int, until: int) -> int:
        with self._pool.transaction(EVERY_TENANT) as connection:
            there = connection.execute("SELECT day, is_own FROM usage_days_there()").fetchall()
        own = {day for day, is_own in there if is_own}
        wanted = {*range(since, until, DAY_NS), *(day for day, _ in there if day < until)}
        for day_at in sorted(wanted - own):
            self._keep(day_at)
        return len(wanted - own)

    def _keep(self, day_at: int) -> None:
        """In a transaction of its own: it holds everybody back for its length."""
        with self._pool.transaction(EVERY_TENANT) as connection:
            day_files.take_time(connection)
            connection.execute("SELECT keep_usage_day(%s)", (day_at,))

    def days(self) -> Sequence[UsageDay]:
        with self._pool.transaction(EVERY_TENANT, one_instant=True) as connection:
            files = day_files.files(connection, _LISTED, None, None)
            evidence = day_files.files(connection, EVIDENCE_LISTED, None, None)
            late = dict(
                connection.execute(
                    "SELECT day_at, count(*) FROM late_reports WHERE booked_at IS NULL GROUP BY 1"
                ).fetchall()
            )
            kept = dict(connection.execute("SELECT day_at, until_at FROM attached_days").fetchall())
            there = connection.execute(
                "SELECT day, max(estimate) FROM usage_days_there() GROUP BY day"
            ).fetchall()
            rows = {
                day: estimate if estimate > COUNTED_MOST else _count(connection, day)
                for day, estimate in there
            }
        names = {
            *(day for day, count in rows.items() if count),
            *(each.day_at for each in (*files, *evidence)),
        }
        return [
            UsageDay(
                day_at=day_at, rows=rows.get(day_at, 0), late_reports=late.get(day_at, 0),
                files=tuple(each for each in files if each.day_at == day_at),
                evidence_files=tuple(each for each in evidence if each.day_at == day_at),
                kept_until=kept.get(day_at),
            )
            for day_at in sorted(names, reverse=True)
        ]

    def detached(self, *, since: int | None, until: int | None) -> Sequence[DayFile]:
        with self._pool.transaction(EVERY_TENANT) as connection:
            return day_files.files(connection, _LISTED, since, until)

    def overdue(self, *, before: int, now: int) -> Sequence[int]:
        with self._pool.transaction(EVERY_TENANT) as connection:
            rows = connection.execute(
                "SELECT DISTINCT day FROM usage_days_there() WHERE day + %(length)s <= %(before)s"
                " AND NOT EXISTS (SELECT FROM attached_days a"
                "  WHERE a.day_at = day AND a.until_at > %(now)s) ORDER BY day",
                {"length": DAY_NS, "before": before, "now": now},
            ).fetchall()
            days = {day for (day,) in rows if _is_quiet(connection, day, now - QUIET_NS)}
            kept = connection.execute(
                "SELECT day_at FROM attached_days WHERE until_at > %s", (now,)
            ).fetchall()
            days |= overdue_evidence(
                connection, before=before, quiet_since=now - QUIET_NS
            ) - {day for (day,) in kept}
        return sorted(days)

    def detach(self, scope: Scope, day_at: int, *, now: int) -> DayFile | None:
        if self._archive is None:
            raise InvalidInput(["there is no archive: name a folder as `archive` in the settings"])
        if day_at + DAY_NS + YOUNGEST_NS > now:
            raise InvalidInput(
                [f"{day_name(day_at)} is too young: a day can be detached once it has been over "
                 "for 32 days"]
            )
        evidence = PostgresEvidenceDays(self._pool, self._archive)
        evidence.check_settled(day_at)  # before requests leave: a refusal has changed nothing
        file = self._detach_usage(scope, day_at, now)
        evidence.detach(scope, day_at, now=now)
        return file

    def _detach_usage(self, scope: Scope, day_at: int, now: int) -> DayFile | None:
        target = self._folder() / f"usage-{day_name(day_at)}.{now}.parquet"
        self._keep(day_at)
        with self._scratch(day_at) as scratch:
            said = self._write(day_at, scratch, target)
            if said is None:
                self._drop_empty(day_at)
                return None
            try:
                return self._seal(scope, day_at, target, said, now)
            except (Conflict, InvalidInput):
                # Nothing names it. After an outage something may: the reply can be what was lost.
                target.unlink()
                raise

    def _drop_empty(self, day_at: int) -> None:
        with self._pool.transaction(EVERY_TENANT) as connection:
            _hold(connection, day_at)
            if _count(connection, day_at):
                raise Conflict(f"requests of {day_name(day_at)} were booked meanwhile; try again")
            connection.execute("SELECT drop_usage_day(%s)", (day_at,))

    def attach(self, scope: Scope, day_at: int, *, now: int, keep_until: int) -> int:
        problems = self.check(day_at)
        if problems:
            raise InvalidInput(problems)
        files = self.detached(since=day_at, until=day_at + DAY_NS)
        self._note_attached(scope, day_at, keep_until)
        self._keep(day_at)
        rows = self._come_back(scope, day_at, files) if files else 0
        PostgresEvidenceDays(self._pool, self._folder()).attach(scope, day_at)
        self.book_late(now=now)
        return rows

    def _note_attached(self, scope: Scope, day_at: int, keep_until: int) -> None:
        """Before its rows come, so that nobody detaches them at once."""
        with self._pool.transaction(scope) as connection:
            connection.execute(
                "INSERT INTO attached_days (day_at, until_at) VALUES (%(day)s, %(until)s)"
                " ON CONFLICT (day_at) DO UPDATE SET until_at = excluded.until_at",
                {"day": day_at, "until": keep_until},
            )

    def _come_back(self, scope: Scope, day_at: int, files: Sequence[DayFile]) -> int:
        """All rows of a day's files, or none of them; how many."""
        archive = self._folder()
        with self._scratch(day_at) as scratch, self._pool.transaction(scope) as connection:
            day_files.take_time(connection)
            connection.execute(
                "CREATE TEMPORARY TABLE coming_back (LIKE usage INCLUDING DEFAULTS) ON COMMIT DROP"
            )
            for each in files:
                usage_file.read_rows(archive / each.file, scratch)
                day_files.copy_in(connection, _NAMES, scratch)
            rows = connection.execute(
                sql.SQL(
                    "INSERT INTO usage ({names}) SELECT {names} FROM coming_back"
                    " ORDER BY request_id"
                ).format(names=_NAMES)
            ).rowcount
            connection.execute("SELECT forget_detached_day(%s)", (day_at,))
            return rows

    def check(self, day_at: int) -> Sequence[str]:
        with self._pool.transaction(EVERY_TENANT) as connection:
            digests = {
                each: day_files.digest_of(connection, table, each)
                for table in (_LISTED, EVIDENCE_LISTED)
                for each in day_files.files(connection, table, day_at, day_at + DAY_NS)
            }
        if not digests:
            raise NotFound(f"{day_name(day_at)} is not detached")
        archive = self._folder()
        return [
            problem for each, digest in digests.items()
            for problem in day_files.problems(archive / each.file, each, digest)
        ]

    def book_late(self, *, now: int) -> int:
        booked = 0
        while True:
            some = self._book_some_late(now)
            booked += some
            if some < LATE_MOST:
                return booked

    def _book_some_late(self, now: int) -> int:
        """Book some of the late reports whose day is here, and note that they are, in one
        transaction: no day is detached in between."""
        with self._pool.transaction(EVERY_TENANT) as connection:
            hold_days(connection)
            rows = connection.execute(
                "SELECT request_id, digest, report::text FROM late_reports l"
                " WHERE booked_at IS NULL AND NOT EXISTS ("
                "  SELECT FROM detached_days d WHERE d.day_at = l.day_at)"
                " ORDER BY request_id, digest LIMIT %s",
                (LATE_MOST,),
            ).fetchall()
            events = [msgspec.json.decode(text, type=UsageEvent) for _, _, text in rows]
            merge_usage(connection, events, now=now)
            with connection.cursor() as cursor:
                cursor.executemany(
                    "UPDATE late_reports SET booked_at = %s WHERE request_id = %s AND digest = %s",
                    [(now, request, digest) for request, digest, _ in rows],
                )
        return len(rows)

    def _folder(self) -> Path:
        if self._archive is None:
            raise InvalidInput(["there is no archive: name a folder as `archive` in the settings"])
        return self._archive

    @contextmanager
    def _scratch(self, day_at: int) -> Iterator[Path]:
        with day_files.scratch(self._folder(), f".usage-{day_name(day_at)}.rows") as path:
            yield path

    def _write(self, day_at: int, scratch: Path, target: Path) -> tuple[int, int] | None:
        """Write a day's file; the number and digest of its rows, None when there are none."""
        day = {"day": day_at, "next": day_at + DAY_NS}
        with self._pool.transaction(EVERY_TENANT, one_instant=True) as connection:
            day_files.take_time(connection)
            said = day_files.sums(connection, "usage", day)
            if not said[0]:
                return None
            query = sql.SQL(
                f"COPY (SELECT {{}} FROM usage WHERE {DAY} ORDER BY request_id)"
                " TO STDOUT (FORMAT csv)"
            ).format(_NAMES)
            day_files.copy_out(connection, query, day, scratch)
        usage_file.write_file(scratch, target)
        if usage_file.sums_of(target) != said:
            target.unlink()
            raise Conflict(f"the file of {day_name(day_at)} does not hold the rows that were read")
        day_files.sync(target)
        return said

    def _seal(
        self, scope: Scope, day_at: int, target: Path, said: tuple[int, int], now: int
    ) -> DayFile:
        """Put what was written in the place of the rows. Raises Conflict when they changed."""
        day = {"day": day_at, "next": day_at + DAY_NS}
        with self._pool.transaction(scope) as connection:
            day_files.take_time(connection)
            _hold(connection, day_at)
            if day_files.sums(connection, "usage", day) != said:
                raise Conflict(f"requests of {day_name(day_at)} were booked meanwhile; try again")
            part = day_files.list_file(connection, _LISTED, target, said, day, now=now)
            named = {**day, "part": part, "size": IDS_A_CHUNK}
            connection.execute(_IDS, named)
            connection.execute(DETACHED_HOURS, named)
            connection.execute("SELECT drop_usage_day(%s)", (day_at,))
            (made,) = (
                each for each in day_files.files(connection, _LISTED, day_at, day_at + DAY_NS)
                if each.part == part
            )
        return made


def _hold(connection: _Connection, day_at: int) -> None:
    """Until the end of the transaction nobody writes to the rows of a day, and nobody else takes
    one away. Two who held days and wanted the whole table would wait for each other."""
    connection.execute("SELECT pg_advisory_xact_lock(746135, 0)")
    connection.execute("SELECT hold_usage_day(%s)", (day_at,))


def _count(connection: _Connection, day_at: int) -> int:
    row = connection.execute(
        f"SELECT count(*) FROM usage WHERE {DAY}", {"day": day_at, "next": day_at + DAY_NS}
    ).fetchone()
    assert row is not None, "a count is always a row"
    return int(row[0])


def _is_quiet(connection: _Connection, day_at: int, since: int) -> bool:
    """Whether a day was never detached, or nothing of it came lately."""
    row = connection.execute(
        "SELECT NOT EXISTS (SELECT FROM detached_days WHERE day_at = %(day)s)"
        f" OR (SELECT max(booked_at) FROM usage WHERE {DAY}) < %(since)s",
        {"day": day_at, "next": day_at + DAY_NS, "since": since},
    ).fetchone()
    return row is not None and bool(row[0])

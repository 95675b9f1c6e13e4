"""Copies a whole book out of a database, as one instant saw it, and into another one.

Out: one read-only transaction for all tables, so the cloud goes on meanwhile. In: one transaction
for everything, from making the tables to the last check, so a database holds all of a book or what
it held before.
"""

import gzip
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

from isochrone.adapters.postgres.consistency import problems_of_book, totals_of_book
from isochrone.adapters.postgres.migrate import (
    knows,
    migrate_within,
    newest,
    owner_connection,
)
from isochrone.core.errors import InvalidInput, StoreUnavailable
from isochrone.wire.backup import BookTotals, FileCopy, TableCopy

CHUNK_BYTES = 1 << 20
GZIP_LEVEL = 2
# More than any cloud signs between a backup and its restoration, should the clock be wrong.
SERIALS_AHEAD = 1_000_000_000

# What a book of any release has; others, too, have their migrations by Alembic.
EVERY_BOOK = {"alembic_version", "organisations", "api_keys", "usage", "view_serial"}
MIGRATED = {"alembic_version", "view_serial"}  # with rows in a book that was never used

Tell = Callable[[str, int], None]  # what is being done, and how many rows of it are
_Connection = psycopg.Connection[TupleRow]


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiedBook:
    """What was copied out of a database."""

    schema: str
    tables: tuple[TableCopy, ...]
    archive: tuple[FileCopy, ...]
    totals: BookTotals


def copy_out(conninfo: str, folder: Path, *, tell: Tell) -> CopiedBook:
    """Write every table into `folder`, as the owner of the tables. Raises StoreUnavailable, and
    InvalidInput where the book is inconsistent or not there."""
    with _connected(conninfo) as connection:
        tables = _tables(connection)
        if "alembic_version" not in {name for name, _, _ in tables}:
            raise InvalidInput(["the database holds no book; is it the one that control works on?"])
        connection.rollback()
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        # Before the first query, which fixes what is seen: nothing is dropped from now on.
        connection.execute(
            sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(
                sql.SQL(", ").join(sql.Identifier("public", name) for name, _, _ in tables)
            )
        )
        _see_everybody(connection)
        schema = _schema(connection)
        if schema != newest():
            raise InvalidInput(
                [f"the book has schema {schema} and this release works with {newest()}: back it up "
                 "with the release that runs it, or start control of this one first"]
            )
        tell("checking the book", 0)
        problems = problems_of_book(connection)
        if problems:
            raise InvalidInput(
                [f"the book is inconsistent and was not backed up: {each}" for each in problems]
            )
        copies = [
            _write(connection, folder, name, columns, key, tell)
            for name, columns, key in tables if name != "alembic_version"
        ]
        return CopiedBook(
            schema=schema, tables=tuple(copies), totals=totals_of_book(connection),
            archive=_archive(connection),
        )


def copy_in(
    conninfo: str, folder: Path, book: CopiedBook, *, replacing: bool, tell: Tell
) -> None:
    """Make the database of `conninfo` hold `book`, whose files lie in `folder`, and nothing else.

    Raises InvalidInput, with nothing changed, where the database holds a book already and not
    `replacing`, somebody works on it, the book is of a newer release, or what came in is not what
    was copied out. Raises StoreUnavailable.
    """
    if not knows(book.schema):
        raise InvalidInput(
            [f"the backup is of a newer release (schema {book.schema}); this one knows up to "
             f"{newest()}: restore it with the release that made it, or a later one"]
        )
    with owner_connection(conninfo) as engine, engine.begin():
        driver = engine.connection.driver_connection
        assert isinstance(driver, psycopg.Connection), "the engine is made for psycopg"
        connection: _Connection = driver
        _refuse_target(connection, replacing=replacing)
        connection.execute(
            "DROP SCHEMA public CASCADE; CREATE SCHEMA public;"
            "DROP SCHEMA IF EXISTS usage_days CASCADE"
        )
        migrate_within(engine, revision=book.schema)
        _see_everybody(connection)
        with _unguarded(connection) as order:
            _load(connection, folder, book, order, tell)
            _number_on(connection)
            _part(connection)
        _compare(connection, folder, book, tell)
        migrate_within(engine)
        _see_everybody(connection)
        tell("checking the book", 0)
        problems = problems_of_book(connection)
        if totals_of_book(connection) != book.totals:
            problems.append("its totals are not those that the backup states")
        if problems:
            raise InvalidInput([f"the restored book is inconsistent: {each}" for each in problems])
        _number_beyond_what_was_seen(connection)
        connection.execute("ANALYZE")


@contextmanager
def _connected(conninfo: str) -> Iterator[_Connection]:
    try:
        with psycopg.connect(make_conninfo(conninfo, connect_timeout=5)) as connection:
            yield connection
    except psycopg.OperationalError as error:
        raise StoreUnavailable(f"PostgreSQL does not answer: {error}") from error


def _see_everybody(connection: _Connection) -> None:
    """Until the end of the transaction: row-level security binds the owner, too."""
    connection.execute(
        "SELECT set_config('isochrone.tenant', '*', true),"
        " set_config('isochrone.actor', 'restore', true)"
    )


def _tables(connection: _Connection) -> list[tuple[str, list[str], list[str]]]:
    """Name, columns and primary key of each table; partitions belong to theirs."""
    rows = connection.execute(
        "SELECT c.relname::text,"
        " (SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a"
        "   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
        "   AND a.attgenerated = ''),"
        " (SELECT array_agg(a.attname::text ORDER BY k.place) FROM pg_index i,"
        "   unnest(i.indkey::int2[]) WITH ORDINALITY AS k (number, place)"
        "   JOIN pg_attribute a ON a.attnum = k.number"
        "   WHERE i.indrelid = c.oid AND a.attrelid = c.oid AND i.indisprimary)"
        " FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace"
        " AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY c.relname"
    ).fetchall()
    return [(name, columns, key or columns) for name, columns, key in rows]


def _schema(connection: _Connection) -> str:
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    if row is None:
        raise InvalidInput(["the database holds no book; is it the one that control works on?"])
    return str(row[0])


def _archive(connection: _Connection) -> tuple[FileCopy, ...]:
    """The files of days that were detached from this book."""
    rows = connection.execute(
        "SELECT file, file_bytes, file_sha256 FROM ("
        "SELECT 0 AS kind, * FROM detached_days UNION ALL SELECT 1, * FROM detached_evidence"
        ") AS away ORDER BY kind, day_at, part"
    ).fetchall()
    return tuple(
        FileCopy(name=name, size_bytes=size, sha256=digest) for name, size, digest in rows
    )


def _text_of(
    connection: _Connection, name: str, columns: Sequence[str], key: Sequence[str], *,
    as_here: bool = False,
) -> Iterator[bytes]:
    """The table as text, in the order of its key: the same rows give the same bytes, in a database
    of whatever locale; or, `as_here`, in that of this database's own."""
    texts = set() if as_here else {
        row[0] for row in connection.execute(
            "SELECT attname::text FROM pg_attribute WHERE attcollation <> 0"
            " AND attrelid = (SELECT oid FROM pg_class WHERE relname = %s"
            "  AND relnamespace = 'public'::regnamespace)", (name,),
        )
    }
    order = sql.SQL(", ").join(
        sql.SQL('{} COLLATE "C"' if each in texts else "{}").format(sql.Identifier(each))
        for each in key
    )
    query = sql.SQL("COPY (SELECT {} FROM {} ORDER BY {}) TO STDOUT").format(
        _names(columns), sql.Identifier(name), order
    )
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        for chunk in copy:
            yield bytes(chunk)


def _names(columns: Sequence[str]) -> sql.Composable:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def _write(
    connection: _Connection, folder: Path, name: str, columns: Sequence[str], key: Sequence[str],
    tell: Tell,
) -> TableCopy:
    path, digest, rows = folder / f"{name}.copy.gz", hashlib.sha256(), 0
    with path.open("wb") as file:
        with gzip.GzipFile(
            filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=file, mtime=0
        ) as packed:
            for chunk in _text_of(connection, name, columns, key):
                packed.write(chunk)
                digest.update(chunk)
                rows += chunk.count(b"\n")
                if rows % 10_000 == 0:
                    tell(name, rows)
        file.flush()
    tell(name, rows)
    return TableCopy(
        name=name, columns=tuple(columns), rows=rows, content_sha256=digest.hexdigest(),
        file=copy_of(path, f"{folder.name}/{path.name}"),
    )


def copy_of(path: Path, name: str) -> FileCopy:
    """A file as a manifest lists it. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileCopy(name=name, size_bytes=path.stat().st_size, sha256=digest)


def _refuse_target(connection: _Connection, *, replacing: bool) -> None:
    """Raise InvalidInput where this database is not to be written to."""
    row = connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND usesysid IS NOT NULL"
    ).fetchone()
    assert row is not None, "a count is always a row"
    if row[0]:
        raise InvalidInput(
            [f"{row[0]} sessions are connected to the database; stop control (or the cloud) first"]
        )
    tables = {name for name, _, _ in _tables(connection)}
    if tables and not tables >= EVERY_BOOK:
        raise InvalidInput(
            [f"the database holds other tables ({', '.join(sorted(tables)[:3])}); restore into a "
             "database of its own"]
        )
    _see_everybody(connection)
    for name in sorted(tables - MIGRATED):
        if not replacing and _has_rows(connection, name):
            raise InvalidInput(
                [f"the database holds a book already ({name} has rows); restore into an empty "
                 "database, or say --replace to lose what it holds"]
            )


def _has_rows(connection: _Connection, name: str) -> bool:
    query = sql.SQL("SELECT EXISTS (SELECT FROM {})").format(sql.Identifier(name))
    row = connection.execute(query).fetchone()
    return row is not None and bool(row[0])


@contextmanager
def _unguarded(connection: _Connection) -> Iterator[list[str]]:
    """Within this context tables take rows as they are: no trigger writes an audit log of them or
    refuses them, and COPY works. Gives the tables, each after those that it refers to."""
    forced = [
        row[0] for row in connection.execute(
            "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            " AND relforcerowsecurity"
        )
    ]
    order = _in_order(connection)
    for name in order:
        connection.execute(_alter(name, "DISABLE TRIGGER USER"))
    for name in forced:
        connection.execute(_alter(name, "NO FORCE ROW LEVEL SECURITY"))
    yield order
    for name in forced:
        connection.execute(_alter(name, "FORCE ROW LEVEL SECURITY"))
    for name in order:
        connection.execute(_alter(name, "ENABLE TRIGGER USER"))


def _alter(name: str, action: LiteralString) -> sql.Composed:
    return sql.SQL("ALTER TABLE {} {}").format(sql.Identifier(name), sql.SQL(action))


def _in_order(connection: _Connection) -> list[str]:
    """Tables, each after those that its foreign keys name."""
    refers: dict[str, set[str]] = {
        name: set() for name, _, _ in _tables(connection) if name != "alembic_version"
    }
    for name, other in connection.execute(
        "SELECT t.relname::text, o.relname::text FROM pg_constraint c"
        " JOIN pg_class t ON t.oid = c.conrelid JOIN pg_class o ON o.oid = c.confrelid"
        " WHERE c.contype = 'f' AND c.conrelid <> c.confrelid"
        " AND t.relnamespace = 'public'::regnamespace"
    ):
        refers[name].add(other)
    order: list[str] = []
    while refers:
        ready = sorted(name for name, others in refers.items() if others <= set(order))
        assert ready, f"tables refer to one another in a circle: {sorted(refers)}"
        order += ready
        for name in ready:
            del refers[name]
    return order


def _load(
    connection: _Connection, folder: Path, book: CopiedBook, order: Sequence[str], tell: Tell
) -> None:
    copies = {each.name: each for each in book.tables}
    if set(copies) != set(order):
        odd = sorted(set(copies) ^ set(order))
        raise InvalidInput([f"the backup and schema {book.schema} differ in {', '.join(odd)}"])
    # What the first migration put there.
    connection.execute(
        sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(map(sql.Identifier, order)))
    )
    for name in order:
        copied = copies[name]
        query = sql.SQL("COPY {} ({}) FROM STDIN").format(
            sql.Identifier(name), _names(copied.columns)
        )
        tell(name, 0)
        try:
            with (
                gzip.open(folder / Path(copied.file.name).name, "rb") as packed,
                connection.cursor() as cursor, cursor.copy(query) as copy,
            ):
                while chunk := packed.read(CHUNK_BYTES):
                    copy.write(chunk)
        except (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError) as error:
            said = " ".join(str(error).split())
            raise InvalidInput([f"the backup's table {name} cannot be restored: {said}"]) from error
        tell(name, copied.rows)


def _number_on(connection: _Connection) -> None:
    """What the database numbers goes on after the rows that came in, and after those that were lost
    since the backup was made: who follows a log by its last number would not see new rows below it.
    By the clock in milliseconds, as no log has a thousand rows a second for long."""
    rows = connection.execute(
        "SELECT c.relname::text, a.attname::text FROM pg_attribute a"
        " JOIN pg_class c ON c.oid = a.attrelid"
        " WHERE c.relnamespace = 'public'::regnamespace AND a.attidentity <> ''"
    ).fetchall()
    for table, column in rows:
        connection.execute(
            sql.SQL(
                "SELECT setval(pg_get_serial_sequence({name}, {text}), greatest(max({column}),"
                " (extract(epoch FROM clock_timestamp()) * 1000)::bigint)) FROM {table}"
            ).format(
                column=sql.Identifier(column), table=sql.Identifier(table),
                name=sql.Literal(f'public."{table}"'), text=sql.Literal(column),
            )
        )


def _number_beyond_what_was_seen(connection: _Connection) -> None:
    """A gateway takes no entry with a lower serial than it has seen, and votes by no voters of an
    earlier epoch than it knows. By the clock, so that a second restoration is beyond the first. The
    voters stay who they were, so the audit log says nothing."""
    connection.execute(
        "UPDATE view_serial SET serial ="
        " greatest(serial, (extract(epoch FROM now()) * 1000000000)::bigint) + %s",
        (SERIALS_AHEAD,),
    )
    connection.execute(_alter("voters", "DISABLE TRIGGER USER"))
    connection.execute(
        "UPDATE voters SET epoch = greatest(epoch, extract(epoch FROM now())::bigint) + 1,"
        " changed_at = (extract(epoch FROM now()) * 1000000000)::bigint"
    )
    connection.execute(_alter("voters", "ENABLE TRIGGER USER"))


def _part(connection: _Connection) -> None:
    """Give requests the partitions of their days, where the schema has them."""
    row = connection.execute("SELECT to_regprocedure('keep_usage_day(bigint)')").fetchone()
    if row is not None and row[0] is not None:
        connection.execute(
            "SELECT keep_usage_day(day) FROM usage_days_there() WHERE NOT is_own"
            " AND day < extract(epoch FROM now() + interval '4 days') * 1000000000 ORDER BY day"
        )


def _compare(connection: _Connection, folder: Path, book: CopiedBook, tell: Tell) -> None:
    """Raise InvalidInput unless each table reads as it was when it was copied out."""
    keys = {name: key for name, _, key in _tables(connection)}
    for copied in book.tables:
        tell(f"comparing {copied.name}", 0)
        stated = (copied.rows, copied.content_sha256)
        found = _content(connection, copied, keys[copied.name], as_here=False)
        # Earlier releases copied in the order of the database that they found.
        if found != stated and stated != _content(
            connection, copied, keys[copied.name], as_here=True
        ):
            raise InvalidInput(
                [f"the table {copied.name} does not hold what was backed up: {found[0]} rows, "
                 f"expected {copied.rows}"]
            )


def _content(
    connection: _Connection, copied: TableCopy, key: Sequence[str], *, as_here: bool
) -> tuple[int, str]:
    """How many rows a table has, and their digest."""
    digest, rows = hashlib.sha256(), 0
    for chunk in _text_of(connection, copied.name, copied.columns, key, as_here=as_here):
        digest.update(chunk)
        rows += chunk.count(b"\n")
    return rows, digest.hexdigest()

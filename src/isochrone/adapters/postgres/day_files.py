"""What usage and evidence share on their way to files of the archive and back."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from isochrone.adapters.parquet import usage_file
from isochrone.adapters.parquet.usage_file import UnreadableFile
from isochrone.core.errors import InvalidInput
from isochrone.core.metering.detached import DAY_NS
from isochrone.ports.usage_days import DayFile

CHUNK_BYTES = 1 << 20
OLD_S = 86_400.0  # nobody works on a day for so long
STATEMENT_TIMEOUT_S = 3600  # a big day takes longer than what requests may

DAY: LiteralString = (
    "request_id >= first_id_of_day(%(day)s) AND request_id < first_id_of_day(%(next)s)"
)

_Connection = psycopg.Connection[TupleRow]
_Table = LiteralString


def take_time(connection: _Connection) -> None:
    """Until the end of the transaction statements may take long; waiting for others may not."""
    connection.execute(
        "SELECT set_config('statement_timeout', %s, true),"
        " set_config('idle_in_transaction_session_timeout', %s, true)",
        (f"{STATEMENT_TIMEOUT_S}s", f"{STATEMENT_TIMEOUT_S}s"),
    )


@contextmanager
def scratch(folder: Path, name: str) -> Iterator[Path]:
    """Where rows lie on their way, in a folder of their own beside the file: another process may be
    at work on the same day. Raises InvalidInput where the archive cannot be used."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=folder))
        try:
            _forget_old(own, name)
            yield own / "rows"
        finally:
            shutil.rmtree(own, ignore_errors=True)
    except OSError as error:
        where = error.filename or folder
        raise InvalidInput([f"the archive cannot be used: {where}: {error.strerror}"]) from error


def _forget_old(own: Path, name: str) -> None:
    """Remove what processes that were killed left of the same day."""
    now_s = own.stat().st_mtime
    for each in own.parent.glob(f"{name}.*"):
        with suppress(FileNotFoundError):  # its owner is done
            if each.stat().st_mtime < now_s - OLD_S:
                shutil.rmtree(each, ignore_errors=True)


def copy_out(connection: _Connection, query: sql.Composed, day: dict[str, int], rows: Path) -> None:
    """Write what a COPY says to `rows`."""
    with rows.open("wb") as file, connection.cursor() as cursor, cursor.copy(query, day) as copy:
        for chunk in copy:
            file.write(chunk)


def copy_in(connection: _Connection, names: sql.Composed, rows: Path) -> None:
    """Put `rows` in the transaction's own table `coming_back`."""
    query = sql.SQL("COPY coming_back ({}) FROM STDIN (FORMAT csv)").format(names)
    with rows.open("rb") as file, connection.cursor() as cursor, cursor.copy(query) as copy:
        while chunk := file.read(CHUNK_BYTES):
            copy.write(chunk)


def sums(connection: _Connection, table: _Table, day: dict[str, int]) -> tuple[int, int]:
    """How many rows of a day are in `table`, and the digest of their marks."""
    row = connection.execute(
        "SELECT count(*), coalesce(bit_xor(usage_mark(request_id, input_uncached, input_cached,"
        f" output)), 0::bit(128)) FROM {table} WHERE {DAY}",
        day,
    ).fetchone()
    assert row is not None, "a count is always a row"
    return int(row[0]), int(row[1], 2)


def files(
    connection: _Connection, table: _Table, since: int | None, until: int | None
) -> list[DayFile]:
    """What `table` lists of days that have a part in that time, by day and part."""
    rows = connection.execute(
        f"SELECT day_at, part, rows, file, file_sha256, file_bytes, detached_at FROM {table}"
        " WHERE (%(since)s::bigint IS NULL OR day_at + %(length)s > %(since)s)"
        " AND (%(until)s::bigint IS NULL OR day_at < %(until)s) ORDER BY day_at, part",
        {"since": since, "until": until, "length": DAY_NS},
    ).fetchall()
    return [
        DayFile(
            day_at=day, part=part, rows=count, file=file, sha256=sha256, size_bytes=size,
            detached_at=at,
        )
        for day, part, count, file, sha256, size, at in rows
    ]


def list_file(
    connection: _Connection, table: _Table, target: Path, said: tuple[int, int],
    day: dict[str, int], *, now: int,
) -> int:
    """Note the file of a day as its next part, which is returned."""
    row = connection.execute(
        f"INSERT INTO {table} (day_at, part, rows, digest, file, file_sha256,"
        " file_bytes, detached_at) SELECT %(day)s, coalesce(max(part), -1) + 1, %(rows)s,"
        " %(digest)s::bit(128), %(file)s, %(sha256)s, %(size)s, %(now)s"
        f" FROM {table} WHERE day_at = %(day)s RETURNING part",
        {
            "day": day["day"], "rows": said[0], "digest": f"{said[1]:0128b}", "now": now,
            "file": target.name, "sha256": sha256_of(target), "size": target.stat().st_size,
        },
    ).fetchone()
    assert row is not None, "an insertion returns its row"
    return int(row[0])


def digest_of(connection: _Connection, table: _Table, file: DayFile) -> int:
    """The digest that stands beside a file in `table`."""
    row = connection.execute(
        f"SELECT digest FROM {table} WHERE day_at = %s AND part = %s", (file.day_at, file.part)
    ).fetchone()
    assert row is not None, "it was read a moment ago, and is never removed alone"
    return int(row[0], 2)


def problems(path: Path, listed: DayFile, digest: int) -> Iterator[str]:
    """What is wrong with a file of the archive; nothing when it is as it was written."""
    try:
        found = sha256_of(path)
    except OSError as error:
        yield f"{path}: {error.strerror}"
        return
    if found != listed.sha256:
        yield f"{path} is damaged: its digest is {found[:16]}..., not {listed.sha256[:16]}..."
        return
    try:
        held = usage_file.sums_of(path)
    except UnreadableFile as error:
        yield f"{path} cannot be read: {error}"
        return
    if held != (listed.rows, digest):
        yield f"{path} does not hold the requests that it should"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have a file and its name on the disk."""
    for each in (path, path.parent):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

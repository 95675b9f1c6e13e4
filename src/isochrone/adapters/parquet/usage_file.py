"""Requests of a day as a Parquet file, and back: the columns of the table `usage`.

PostgreSQL and this speak CSV to each other, in which an empty text is quoted and nothing is not.
Memory stays bounded whatever the size of a day.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb

# Column -> type in the file. A column that the book gets later is added here, at the end.
TYPES = {
    "request_id": "UUID", "org_id": "VARCHAR", "project_id": "VARCHAR", "key_id": "VARCHAR",
    "client_request_id": "VARCHAR", "endpoint": "VARCHAR", "stream": "BOOLEAN", "class": "VARCHAR",
    "model": "VARCHAR", "revision": "VARCHAR", "ingress_site": "VARCHAR",
    "ingress_country": "VARCHAR", "serving_site": "VARCHAR", "serving_country": "VARCHAR",
    "replica": "VARCHAR", "received_at": "BIGINT", "finished_at": "BIGINT", "chosen_ms": "DOUBLE",
    "sent_ms": "DOUBLE", "first_byte_ms": "DOUBLE", "total_ms": "DOUBLE",
    "input_uncached": "BIGINT", "input_cached": "BIGINT", "output": "BIGINT",
    "token_source": "VARCHAR", "outcome": "VARCHAR", "status": "INTEGER", "reason": "VARCHAR",
    "reporter": "VARCHAR", "attempts": "INTEGER", "decision": "VARCHAR", "booked_at": "BIGINT",
    "bound": "BOOLEAN",
}
COLUMNS = tuple(TYPES)
# Of evidence; `settled_at` is when the wait for the ingress was over.
EVIDENCE_TYPES = {
    **{name: kind for name, kind in TYPES.items() if name != "bound"}, "settled_at": "BIGINT",
}
MEMORY_LIMIT = "512MB"
LINE_MOST_BYTES = 16 << 20
_MARK = (
    "sha256(request_id::VARCHAR || '/' || input_uncached || '/' || input_cached || '/' || output)"
)


class UnreadableFile(Exception):
    """A file that is no Parquet file of requests; the message says why."""


def write_file(rows: Path, target: Path, types: Mapping[str, str] = TYPES) -> None:
    """Make the Parquet file `target` of CSV `rows` with the columns of `types`."""
    columns = ", ".join(f"'{name}': '{kind}'" for name, kind in types.items())
    with _database(rows.parent) as database:
        database.execute(
            "COPY (SELECT * FROM read_csv($rows, header = false, auto_detect = false, delim = ',',"
            " quote = '\"', escape = '\"', nullstr = '', allow_quoted_nulls = false,"
            f" parallel = false, max_line_size = {LINE_MOST_BYTES}, columns = {{{columns}}}))"
            f" TO {_quoted(target)} (FORMAT parquet, COMPRESSION zstd)",
            {"rows": str(rows)},
        )


def read_rows(source: Path, target: Path, types: Mapping[str, str] = TYPES) -> None:
    """Write the rows of a Parquet file as CSV. Raises UnreadableFile."""
    texts = [f'"{name}"' for name, kind in types.items() if kind in ("VARCHAR", "UUID")]
    with _database(target.parent) as database, _told():
        database.execute(
            f"COPY (SELECT {_names(types)} FROM read_parquet($source)) TO {_quoted(target)}"
            f" (FORMAT csv, HEADER false, NULLSTR '', FORCE_QUOTE ({', '.join(texts)}))",
            {"source": str(source)},
        )


def sums_of(source: Path) -> tuple[int, int]:
    """How many requests a file holds, and the exclusive or of their marks: as `usage_mark` of the
    database makes them, of id and tokens. Raises UnreadableFile."""
    rows, digest = 0, 0
    with _database(source.parent) as database, _told():
        found = database.execute(f"SELECT {_MARK} FROM read_parquet($1)", [str(source)])
        while marks := found.fetchmany(10_000):
            rows += len(marks)
            for (mark,) in marks:
                digest ^= int(mark[:32], 16)
    return rows, digest


def find(source: Path, *, request_id: str | None, most: int) -> Iterator[dict[str, Any]]:
    """Requests, or evidence, of a file, oldest first, as columns and values. Raises
    UnreadableFile."""
    with _database(source.parent) as database, _told():
        found = database.execute(
            "SELECT * FROM read_parquet($source)"
            " WHERE $id IS NULL OR request_id::VARCHAR = $id"
            " ORDER BY received_at, request_id LIMIT $most",
            {"source": str(source), "id": request_id, "most": most},
        )
        names = [each[0] for each in found.description or ()]
        while row := found.fetchone():
            values = dict(zip(names, row, strict=True))
            yield {**values, "request_id": str(values["request_id"])}


class _told:
    """Turns DuckDB's failures into UnreadableFile."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, duckdb.Error):
            raise UnreadableFile(" ".join(str(error).split())) from error


def _database(folder: Path) -> duckdb.DuckDBPyConnection:
    """A database in memory that spills into `folder` and fetches nothing from anywhere."""
    return duckdb.connect(
        config={
            "memory_limit": MEMORY_LIMIT, "threads": 1, "temp_directory": str(folder / "spill"),
            "autoinstall_known_extensions": False, "autoload_known_extensions": False,
            "preserve_insertion_order": True,
        }
    )


def _names(types: Mapping[str, str]) -> str:
    return ", ".join(f'"{name}"' for name in types)


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


__all__: Sequence[str] = (
    "COLUMNS", "EVIDENCE_TYPES", "UnreadableFile", "find", "read_rows", "sums_of", "write_file",
)

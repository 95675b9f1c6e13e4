"""Reads and writes Parquet files, with DuckDB: columns of numbers and text, one type each."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from isochrone.adapters.disk.whole_file import whole_file
from isochrone.core.errors import InvalidInput

Cell = str | int | float | bool | None


def read_parquet(path: Path) -> list[dict[str, Cell]]:
    """One record a row. Raises InvalidInput."""
    import duckdb  # takes a tenth of a second, and most commands need none of it

    try:
        with duckdb.connect() as database:
            found = database.execute("SELECT * FROM read_parquet(?)", [str(path)])
            names = [each[0] for each in found.description or ()]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
    except duckdb.Error as error:
        raise InvalidInput([f"{path}: cannot be read as Parquet ({error})"]) from error


def write_parquet(path: Path, rows: Sequence[Mapping[str, Cell]]) -> None:
    """All rows or the file as it was; the columns are those of the first row, whose kinds follow
    from all values of a column. Raises InvalidInput where it cannot be written, ValueError without
    rows."""
    import duckdb

    if not rows:
        raise ValueError("a table needs a row")
    kinds = {name: _kind([row[name] for row in rows]) for name in rows[0]}
    try:
        with (
            tempfile.TemporaryDirectory() as folder, whole_file(path) as part,
            duckdb.connect() as database,
        ):
            lines = Path(folder) / "rows.json"
            lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            columns = ", ".join(f"{_quoted(name)}: '{kind}'" for name, kind in kinds.items())
            database.execute(
                f"COPY (SELECT * FROM read_json({_quoted(str(lines))}, format = "
                f"'newline_delimited', columns = {{{columns}}})) TO {_quoted(str(part))} "
                "(FORMAT parquet, COMPRESSION zstd)"
            )
    except (OSError, duckdb.IOException) as error:
        raise InvalidInput([f"{path}: cannot be written ({error})"]) from error


def _kind(values: Sequence[Cell]) -> str:
    there = [each for each in values if each is not None]
    if there and all(isinstance(each, bool) for each in there):
        return "BOOLEAN"
    if there and all(isinstance(each, int) for each in there):
        return "BIGINT"
    return "VARCHAR" if any(isinstance(each, str) for each in there) else "DOUBLE"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"

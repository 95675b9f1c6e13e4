"""Reads recorded traces: arrival, prompt and answer lengths, and shared prefix blocks if recorded.

Two formats, told apart by their content, plain or gzip:
- Azure: CSV with the columns t_s (seconds), context_tokens, generated_tokens.
- Mooncake: one JSON object a line with timestamp (ms), input_length, output_length and hash_ids:
  one id for each 512 tokens of the prompt; equal ids mean the same text up to and with that block.
"""

import csv
import gzip
import math
import zlib
from dataclasses import dataclass
from typing import Literal

import msgspec

from isochrone.core.errors import InvalidInput
from isochrone.core.table_lines import lines_of

MOONCAKE_BLOCK_TOKENS = 512
MOST_BAD_ROWS_TOLD = 20
LARGEST_TOKENS = 2**31 - 1

TraceFormat = Literal["azure", "mooncake"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One recorded request. `number` is its line in the file, `at_s` its arrival since the first
    row; `blocks` are its prefix block ids, empty where the trace records none."""

    number: int
    at_s: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Rows in order of arrival. `bad` says of each row that was left out why."""

    source: str
    format: TraceFormat
    rows: tuple[TraceRow, ...]
    block_tokens: int
    bad: tuple[str, ...] = ()

    def window(self, *, start: int = 0, limit: int | None = None) -> "Trace":
        """`limit` rows from the row at place `start` on, with the clock set to the first."""
        rows = self.rows[start : None if limit is None else start + limit]
        if not rows:
            raise InvalidInput(
                [f"{self.source}: has {len(self.rows)} rows, none from row {start} on"]
            )
        first_s = rows[0].at_s
        moved = tuple(
            TraceRow(
                number=row.number, at_s=row.at_s - first_s, input_tokens=row.input_tokens,
                output_tokens=row.output_tokens, blocks=row.blocks,
            )
            for row in rows
        )
        return Trace(
            source=self.source, format=self.format, rows=moved, block_tokens=self.block_tokens,
            bad=self.bad,
        )


class _Mooncake(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


def parse_trace(data: bytes, source: str) -> Trace:
    """The trace in these bytes of a file. Raises InvalidInput when it is no trace that we know, or
    when every row of it is bad."""
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise InvalidInput([f"{source}: is damaged gzip ({error})"]) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput([f"{source}: is no text ({error.reason})"]) from error
    first = text.lstrip().partition("\n")[0]
    if first.startswith("{") and "hash_ids" in first:
        return _made(source, "mooncake", _mooncake(text), MOONCAKE_BLOCK_TOKENS)
    try:
        columns = next(csv.reader([first.strip()]), [])
        if {"t_s", "context_tokens", "generated_tokens"} <= set(columns):
            return _made(source, "azure", _azure(text), 0)
    except csv.Error as error:  # as a quotation mark that is never closed
        raise InvalidInput([f"{source}: is no table with commas between ({error})"]) from error
    raise InvalidInput(
        [
            f"{source}: no known trace; expected CSV with the columns t_s, context_tokens and "
            "generated_tokens, or JSON lines with timestamp, input_length, output_length and "
            "hash_ids"
        ]
    )


def _made(
    source: str, format_: TraceFormat, read: list[TraceRow | str], block_tokens: int
) -> Trace:
    rows = sorted((r for r in read if isinstance(r, TraceRow)), key=lambda row: row.at_s)
    bad = [f"{source}, {problem}" for problem in read if isinstance(problem, str)]
    if not rows:
        told = bad[:MOST_BAD_ROWS_TOLD] or [f"{source}: has no rows"]
        raise InvalidInput(told)
    whole = Trace(
        source=source, format=format_, rows=tuple(rows), block_tokens=block_tokens,
        bad=tuple(bad),
    )
    return whole.window()


def _azure(text: str) -> list[TraceRow | str]:
    read: list[TraceRow | str] = []
    table = text.lstrip()
    blank = text[: len(text) - len(table)].count("\n")  # lines, before the one with the columns
    reader = csv.DictReader(lines_of(table))
    for record in reader:
        number = reader.line_num + blank
        try:
            row = TraceRow(
                number=number,
                at_s=float(record["t_s"]),
                input_tokens=int(record["context_tokens"]),
                output_tokens=int(record["generated_tokens"]),
            )
        except (TypeError, ValueError) as error:
            read.append(f"row {number}: {error}")
            continue
        read.append(_checked(row))
    return read


def _mooncake(text: str) -> list[TraceRow | str]:
    read: list[TraceRow | str] = []
    decode = msgspec.json.Decoder(_Mooncake).decode
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = decode(line)
        except msgspec.MsgspecError as error:
            read.append(f"row {number}: {error}")
            continue
        row = TraceRow(
            number=number,
            at_s=record.timestamp / 1000,
            input_tokens=record.input_length,
            output_tokens=record.output_length,
            blocks=record.hash_ids,
        )
        blocks = -(-row.input_tokens // MOONCAKE_BLOCK_TOKENS)
        if len(row.blocks) != blocks:
            read.append(
                f"row {number}: {len(row.blocks)} block ids, but {row.input_tokens} tokens "
                f"are {blocks} blocks of {MOONCAKE_BLOCK_TOKENS}"
            )
            continue
        read.append(_checked(row))
    return read


def _checked(row: TraceRow) -> TraceRow | str:
    if not math.isfinite(row.at_s):
        return f"row {row.number}: arrival {row.at_s} is no time"
    for name, tokens in (("a prompt", row.input_tokens), ("an answer", row.output_tokens)):
        if not 1 <= tokens <= LARGEST_TOKENS:
            return f"row {row.number}: {name} of {tokens} tokens; expected 1 to {LARGEST_TOKENS}"
    return row

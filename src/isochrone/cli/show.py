"""Prints what commands found: tables for people, JSON for scripts, times and numbers readable."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

NS_PER_S = 1_000_000_000
WIDEST = 4_000  # letters of a line in a pipe


def print_json(value: object) -> None:
    """JSON on standard output, indented on a terminal."""
    indent = 2 if sys.stdout.isatty() else None
    print(json.dumps(value, indent=indent, ensure_ascii=False))


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None,
    empty: str = "nothing to show",
) -> None:
    """A table; columns whose values are numbers are aligned to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    if not rows:
        print(empty)
        return
    # Texts, not markup: what somebody named `:key:` or `[red]` is shown under this name.
    heading = None if title is None else Text(title, style="table.title")
    table = Table(title=heading, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for number, column in enumerate(columns):
        numeric = all(isinstance(row[number], int | float | None) for row in rows)
        # Identifiers are copied from here, so no cell is ever cut.
        table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row))
    print_rich(table)


def print_rich(*renderables: object) -> None:
    """Print Rich values; without a terminal, wide enough that no id is parted in a pipe."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDEST
    console = Console(width=width, emoji=False)
    for renderable in renderables:
        console.print(renderable, soft_wrap=isinstance(renderable, str))


def cell(value: object) -> str:
    """Text of one value: '-' for nothing, one decimal for floats, commas between list items."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, list | tuple):
        return ", ".join(cell(item) for item in value) or "-"
    return str(value)


def instant(wall_ns: object) -> str:
    """UTC time of an instant in wall nanoseconds; text is returned as it is."""
    if isinstance(wall_ns, int):
        moment = datetime.fromtimestamp(wall_ns / NS_PER_S, UTC)
        return moment.strftime("%Y-%m-%d %H:%M:%S")
    return cell(wall_ns)

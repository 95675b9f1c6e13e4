"""`isochrone replay`: sends a recorded trace to a running cloud, open loop, and sums up."""

from pathlib import Path
from typing import Annotated

import typer

from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: `isochrone replay trace.csv --limit 300` · "
        "`isochrone replay mooncake.jsonl --speed 4 --out result.json`"
    )(replay)


def replay(
    trace: Annotated[Path, typer.Argument(help="A recorded trace.")],
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replay a trace."""
    find_cloud(state, url, key)

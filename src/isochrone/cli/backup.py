"""`isochrone backup | restore`: book and keys into a folder, and back, with checks."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isochrone.cli.cloud import JsonOption, StateOption, state_folder
from isochrone.core.errors import InvalidInput

if TYPE_CHECKING:
    from isochrone.adapters.postgres.book_copy import Tell
    from isochrone.wire.backup import BackupManifest
    from isochrone.wiring.backup import Place

LINE_EVERY_S = 5.0

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the backup.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Control's settings, where it runs by itself."),
]


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: `isochrone backup ./2026-11-28` · `isochrone backup ./2026-11-28 "
        "--config control.toml` · then `isochrone restore ./2026-11-28 --check`"
    )(backup)
    app.command(
        epilog="Examples: `isochrone restore ./2026-11-28 --state ./fresh` and then `isochrone up "
        "--state ./fresh` · `isochrone restore ./2026-11-28 --config control.toml`"
    )(restore)


def backup(
    folder: FolderArgument, state: StateOption = None, config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Back up book and keys into a new folder, while the cloud runs.

    The **book**: organisations, members, keys (as hashes), policies, prices, usage, ledger, audit
    log, sites; as one instant saw it, checked before it is written. The **keys**: the files with
    which control signs and logs in. Who has the folder can be your control: keep it as safe.

    Not in it: files of days that left the book (it lists them: copy the archive folder, whose
    files never change), usage that is still on its way (in journals and NATS), model files, and
    identities of sites, which join anew.
    """
    from isochrone.adapters.clock import SystemClock
    from isochrone.wiring.backup import backup as make

    with progress() as tell:
        made = make(_place(state, config), folder, now=SystemClock().wall_ns(), tell=tell)
    if not as_json:
        print(f"backed up to {folder}; it holds secrets: keep it as safe as control itself")
    _show(made, as_json)


def restore(
    folder: FolderArgument, state: StateOption = None, config: ConfigOption = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Lose the book and the keys that are there.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only see whether the backup is whole; change nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Restore book and keys from a backup: all of it, or nothing.

    Into a state folder for `isochrone up` (**--state**), or into the database and the key files
    that control's settings name (**--config**). Nothing may work on it meanwhile: stop the cloud,
    or control, first.

    Refused, with nothing changed: files that are not as the manifest says, a place that holds a
    book or other keys (unless **--replace**), a backup of a newer release. A backup of an earlier
    release is brought forward. Before it is kept, the restored book is compared with the backup
    row by row, entries must sum to zero, and all sums must be what they are sums of.
    """
    from isochrone.wiring.backup import read_backup
    from isochrone.wiring.backup import restore as put_back
    from isochrone.wiring.local.restoring import restore_cloud

    with progress() as tell:
        if check:
            found, said = read_backup(folder, tell=tell), f"{folder} is whole"
        elif config is None:
            root = state_folder(state)
            found = restore_cloud(root, folder, replacing=replace, tell=tell)
            said = f"restored into {root}; start it with `isochrone up --state {root}`"
        else:
            place = _place(state, config)
            found = put_back(place, folder, replacing=replace, tell=tell)
            said = f"restored; start it with `isochrone control --config {config}`"
    if not as_json:
        print(said)
    _show(found, as_json)


def _place(state: Path | None, config: Path | None) -> "Place":
    from isochrone.control.settings import ControlSettings
    from isochrone.wiring.backup import place_of
    from isochrone.wiring.local.restoring import place_of_cloud
    from isochrone.wiring.settings import load

    if config is None:
        return place_of_cloud(state_folder(state))
    if state is not None:
        raise InvalidInput(["--state and --config name two clouds; give one of them"])
    return place_of(load(config, ControlSettings))


def _show(found: "BackupManifest", as_json: bool) -> None:
    from isochrone.cli.show import instant, print_json, print_table
    from isochrone.core.money import written

    rows = sum(each.rows for each in found.tables)
    size = sum(each.file.size_bytes for each in found.tables)
    ledger = [
        (each.account, f"{written(int(each.amount_pico))} {each.currency}")
        for each in found.totals.ledger
    ]
    if as_json:
        print_json({
            "made_at": found.made_at, "release": found.release, "schema": found.schema,
            "tables": len(found.tables), "rows": rows, "size_bytes": size,
            "archive": [each.name for each in found.archive],
            "requests": found.totals.requests,
            "ledger": [
                {"account": each.account, "currency": each.currency,
                 "amount": written(int(each.amount_pico))}
                for each in found.totals.ledger
            ],
        })
        return
    totals = found.totals
    print_table(("", ""), [
        ("made", f"{instant(found.made_at)} UTC by release {found.release}"),
        ("book", f"{len(found.tables)} tables, {rows:,} rows, {size / 1e6:,.1f} MB, schema "
         f"{found.schema}"),
        ("requests", f"{int(totals.requests):,}; tokens {int(totals.input_uncached):,} uncached, "
         f"{int(totals.input_cached):,} cached, {int(totals.output):,} output"),
        *ledger,
    ])
    if found.archive:
        away = sum(each.size_bytes for each in found.archive)
        print(f"{len(found.archive)} files of detached days ({away / 1e6:,.1f} MB) belong to it "
              "and are not in it: keep the archive folder with it")


@contextmanager
def progress() -> Iterator["Tell"]:
    """Says what is being done: on a terminal in one changing line, elsewhere now and then."""
    if not sys.stderr.isatty():
        said_s = time.monotonic()

        def tell(what: str, rows: int) -> None:
            nonlocal said_s
            if time.monotonic() - said_s >= LINE_EVERY_S:
                said_s = time.monotonic()
                print(_line(what, rows), file=sys.stderr, flush=True)

        yield tell
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield lambda what, rows: status.update(_line(what, rows))


def _line(what: str, rows: int) -> str:
    return f"{what}: {rows:,} rows" if rows else what

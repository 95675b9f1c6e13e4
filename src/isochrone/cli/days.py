"""`isochrone days`: days of usage in the book and out of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud, part
from isochrone.cli.line import MOST
from isochrone.core.errors import InvalidInput
from isochrone.wiring.control_api import ControlApi

PATIENCE_S = 3600.0  # a big day takes minutes

app = typer.Typer(
    help="Days of usage: list them, detach a day to a Parquet file, bring it back, read a file. "
    "Control detaches days by itself once they are older than is retained.",
    no_args_is_help=True,
)
DayArgument = Annotated[str, typer.Argument(metavar="DAY", help="As 2026-08-20, UTC.")]


@app.command("list", epilog="Example: `isochrone days list --json`")
def list_days(
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List days with requests: how many are in the book, and the files of those that left it."""
    from isochrone.cli.show import instant, print_json, print_table

    found = find_cloud(state, url, key).api.get("days")["items"]
    if as_json:
        print_json(found)
        return
    print_table(
        ("day", "in the book", "detached", "evidence", "MB", "late reports", "stays until",
         "files"),
        [
            (
                each["day"], each["rows"], sum(file["rows"] for file in each["files"]),
                sum(file["rows"] for file in each["evidence_files"]),
                sum(file["size_bytes"] for file in _files(each)) / 1e6, each["late_reports"],
                None if each["kept_until"] is None else instant(each["kept_until"]),
                [file["file"] for file in _files(each)],
            )
            for each in found
        ],
        empty="no usage yet; try `isochrone chat 'Hello!'`",
    )
    if any(each["late_reports"] for each in found):
        print("late reports are booked when their day is attached: `isochrone days attach DAY`")


def _files(day: Mapping[str, Any]) -> list[Any]:
    return [*day["files"], *day["evidence_files"]]


@app.command(epilog="Example: `isochrone days detach 2026-08-20`")
def detach(
    day: DayArgument, state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a day's requests to a Parquet file of control's archive, and take them out of the book.

    Sums, charges and ledger stay. A request told again later is still known, and booked once.
    """
    from isochrone.cli.show import print_json

    made = _patient(state, url, key).post(f"days/{part(day)}/detach", {})
    if as_json:
        print_json(made)
    elif made["file"] is None:
        print(f"{day} has no requests in the book")
    else:
        file = made["file"]
        print(f"{day}: {file['rows']} requests are in {file['file']} "
              f"({file['size_bytes'] / 1e6:.1f} MB) now")


@app.command(epilog="Example: `isochrone days attach 2026-08-20 --keep-days 30`")
def attach(
    day: DayArgument,
    keep_days: Annotated[
        int, typer.Option(min=0, max=3650, help="It stays in the book for so long, at least.")
    ] = 7,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a detached day back into the book, with better reports that came since."""
    from isochrone.cli.show import print_json

    made = _patient(state, url, key).post(f"days/{part(day)}/attach", {"keep_days": keep_days})
    if as_json:
        print_json(made)
    else:
        print(f"{day}: {made['rows']} requests are in the book again, for {keep_days} days at "
              "least")


@app.command(epilog="Example: `isochrone days check 2026-08-20`")
def check(
    day: DayArgument, state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the files of a detached day with what the book knows of them.

    Ends with 1 where they are not as they were written.
    """
    from isochrone.cli.show import print_json

    found = _patient(state, url, key).get(f"days/{part(day)}/check")
    if as_json:
        print_json(found)
    else:
        for problem in found["problems"]:
            print(f"wrong: {problem}")
        if not found["problems"]:
            print(f"the files of {day} are as they were written")
    if found["problems"]:
        raise typer.Exit(1)


@app.command(
    epilog="Examples: `isochrone days read archive/usage-2026-08-20.1795.parquet --limit 20` · "
    "`isochrone days read FILE --request 019aa1b2-... --json`"
)
def read(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A Parquet file of the archive.")],
    request: Annotated[str | None, typer.Option(help="Only the request with this id.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST, help="Most rows.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Read requests from a file of the archive, where it lies; any Parquet reader does as well."""
    from isochrone.adapters.parquet.usage_file import UnreadableFile, find
    from isochrone.cli.show import instant, print_json, print_table

    if not file.is_file():
        raise InvalidInput([f"{file}: there is no such file"])
    try:
        rows = list(find(file, request_id=request, most=limit))
    except UnreadableFile as error:
        raise InvalidInput([f"{file} is no file of requests: {error}"]) from error
    if as_json:
        print_json(rows)
        return
    print_table(
        ("request", "received", "project", "model", "class", "site", "uncached", "cached",
         "output", "source", "outcome"),
        [
            (
                row["request_id"], instant(row["received_at"]), row["project_id"], row["model"],
                row["class"], row["serving_site"], row["input_uncached"], row["input_cached"],
                row["output"], row["token_source"], row["outcome"],
            )
            for row in rows
        ],
        empty="it holds no such request",
    )


def _patient(state: Path | None, url: str | None, key: str | None) -> ControlApi:
    cloud = find_cloud(state, url, key)
    return ControlApi(cloud.control, cloud.key, timeout_s=PATIENCE_S)

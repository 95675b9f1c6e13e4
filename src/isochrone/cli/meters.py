"""`isochrone meter`: what is measured, and events of usage that no request tells."""

import json
import uuid
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud
from isochrone.cli.line import LimitOption
from isochrone.core.errors import InvalidInput, IsochroneError, Unavailable
from isochrone.wiring.control_api import ControlApi

app = typer.Typer(help="List meters; send and list events of usage that no request tells.")

BATCH = 1_000


@app.callback(
    invoke_without_command=True,
    epilog="Examples: `isochrone meter` · `isochrone meter send gpu_seconds 8 --at "
    "2026-11-28T10:00:00Z --until 2026-11-28T12:00:00Z` · `isochrone meter events` · "
    "`isochrone meter unmetered`",
)
def meters(
    context: typer.Context,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Requests are metered by gateways. GPU time, storage, links and others are told by events.
    Alone, list the meters."""
    if context.invoked_subcommand is None:
        list_meters(state, url, key, as_json)


@app.command("list", epilog="Example: `isochrone meter list --json`")
def list_meters(
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what is measured, and how events of an hour come to its quantity."""
    from isochrone.cli.show import print_json, print_table

    rows = list(find_cloud(state, url, key).api.items("meters"))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("meter", "events of an hour come to", "told by"),
        [
            (row["meter"], row["aggregation"], "gateways" if row["of_requests"] else "events")
            for row in rows
        ],
    )


@app.command(
    epilog="Examples: `isochrone meter send bytes 1048576 --at 2026-11-28T10:00:00Z` · "
    "`isochrone meter send --file events.jsonl`"
)
def send(
    meter: Annotated[str | None, typer.Argument(help="As `meter list` names it.")] = None,
    amount: Annotated[
        int | None, typer.Argument(help="What was used, or the level of a meter by time.")
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="When it was used, as 2026-11-28T10:00:00Z.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="When that ended, of meters by time.")] = None,
    org: Annotated[str, typer.Option(help="Organisation id.")] = "default",
    project: Annotated[str, typer.Option(help="Project id.")] = "default",
    model: Annotated[str | None, typer.Option(help="Of this model.")] = None,
    site: Annotated[str | None, typer.Option(help="At this site.")] = None,
    kind: Annotated[str | None, typer.Option(help="Hardware, or tier of storage.")] = None,
    subject: Annotated[str, typer.Option(help="Who, where it is counted who.")] = "",
    replaces: Annotated[
        str | None, typer.Option(help="Id of an event that counts no more.")
    ] = None,
    once: Annotated[
        str | None, typer.Option(help="The event's own id; the same again changes nothing.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Events as lines of JSON, as `POST /meters/events` takes them."),
    ] = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell one event, or those of a file. Each has a result of its own; exit 1 when some were
    neither accepted nor known already."""
    from isochrone.cli.show import print_json, print_table

    if file is not None:
        if meter is not None:
            raise InvalidInput(["give either a meter with its amount, or --file"])
        events = _read(file)
    elif meter is None or amount is None or at is None:
        raise InvalidInput(["give a meter, its amount and --at, or --file"])
    else:
        one = {
            "id": once or str(uuid.uuid4()), "org_id": org, "project_id": project, "meter": meter,
            "amount": amount, "at": at, "until": until, "subject": subject, "model": model,
            "site": site, "kind": kind, "replaces": replaces,
        }
        events = [{name: value for name, value in one.items() if value is not None}]
    results, failed = _told(find_cloud(state, url, key).api, events)
    if as_json:
        print_json(results)
    else:
        print_table(
            ("event", "result", "why"),
            [(each["id"], each["result"], each["reason"]) for each in results],
        )
    if failed is not None:
        raise failed
    if any(each["result"] not in ("accepted", "duplicate") for each in results):
        raise typer.Exit(1)


@app.command(epilog="Example: `isochrone meter events --meter gpu_seconds --since 2026-11-01`")
def events(
    meter: Annotated[str | None, typer.Option(help="Only of this meter.")] = None,
    org: Annotated[str | None, typer.Option(help="Only of this organisation (id).")] = None,
    project: Annotated[str | None, typer.Option(help="Only of this project (id).")] = None,
    since: Annotated[
        str | None, typer.Option(help="Used from this instant on, as 2026-11-20T18:00:00Z.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Used before this instant.")] = None,
    limit: LimitOption = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List events of usage; those that others replace say so."""
    from isochrone.cli.show import instant, print_json, print_table

    query = {
        "meter": meter, "org_id": org, "project_id": project, "since": since, "until": until,
    }
    rows = list(islice(find_cloud(state, url, key).api.items("meters/events", query), limit))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("event", "org", "project", "meter", "amount", "at", "until", "of", "counts"),
        [
            (
                row["id"], row["org_id"], row["project_id"], row["meter"], row["amount"],
                instant(row["at"]), instant(row["until"]), _of(row),
                "yes" if row["counts"] else "no",
            )
            for row in rows
        ],
        empty="no events yet; gateways tell what requests use (`isochrone usage`)",
    )


@app.command(epilog="Example: `isochrone meter unmetered --json`")
def unmetered(
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List events of no known meter, the latest first: they are kept and never charged."""
    from isochrone.cli.show import instant, print_json, print_table

    rows = list(find_cloud(state, url, key).api.items("meters/unmetered", {"limit": BATCH}))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("event", "org", "project", "meter", "amount", "at"),
        [
            (row["id"], row["org_id"], row["project_id"], row["meter"], row["amount"],
             instant(row["at"]))
            for row in rows
        ],
        empty="every event is of a known meter",
    )


def _told(
    api: ControlApi, events: Sequence[object]
) -> tuple[list[Any], IsochroneError | None]:
    """The result of each event; where control took only the first ones, also why no more. Raises
    IsochroneError where it took none."""
    results: list[Any] = []
    for first in range(0, len(events), BATCH):
        try:
            results += api.post("meters/events", {"events": events[first : first + BATCH]})["items"]
        except IsochroneError as error:
            if not results:
                raise
            why = "; ".join(error.problems) if isinstance(error, InvalidInput) else error.message
            return results, Unavailable(f"event {first + 1} and all after it were not taken: {why}")
    return results, None


def _of(row: Mapping[str, Any]) -> list[str]:
    """What an event says beside its meter."""
    names = ("model", "class", "site", "kind", "subject", "request_id", "replaces")
    return [f"{name} {row[name]}" for name in names if row[name]]


def _no_number(text: str) -> object:
    """NaN and its like are no JSON, and would have a whole batch refused."""
    raise ValueError(text)


def _read(file: Path) -> list[Any]:
    """One event a line. Raises InvalidInput with all that is wrong."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # others may stand within a text
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput([f"{file}: {error}"]) from error
    found, problems = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line, parse_constant=_no_number)
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict):
            found.append(event)
        else:
            problems.append(f"{file}, line {number}: is no JSON object")
    if not found and not problems:
        problems.append(f"{file}: has no events")
    if problems:
        raise InvalidInput(problems)
    return found

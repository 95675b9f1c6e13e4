"""`isochrone reconcile`: whether engines, usage and charges agree."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: `isochrone reconcile` · `isochrone reconcile --day 2026-11-20 --json`"
    )(reconcile)


def reconcile(
    day: Annotated[
        str | None, typer.Option(help="As 2026-11-20, UTC. [default: today]")
    ] = None,
    mend: Annotated[
        bool, typer.Option("--mend", help="First make wrong sums by hour of that day again.")
    ] = False,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare what engines counted, what was booked and what was charged on a day.

    Ends with 1 where they do not agree.
    """
    from isochrone.cli.show import print_json, print_table

    api = find_cloud(state, url, key).api
    if mend:
        made = api.post("reconciliation/sums", {"day": day})
        if not as_json:
            print(f"{made['wrong']} sums were made again")
    report = api.get("reconciliation", {"day": day})
    if as_json:
        print_json(report)
    else:
        print_table(
            ("replica", "requests", "cut off", "tokens", "engine", "booked", "beyond", "explained",
             "verdict"),
            [row for line in report["replicas"] for row in _rows(line)],
            title="engines and usage", empty="nothing was served on that day",
        )
        print_table(
            ("meter", "used", "charged", "waiting", "no price"),
            [
                (each["meter"], each["used"], each["charged"], each["waiting"], each["unpriced"])
                for each in report["meters"]
            ],
            title="usage and charges", empty="nothing was used on that day",
        )
        for reason in report["explained"]:
            print(reason)
        for finding in report["findings"]:
            print(f"differs: {finding}")
        if report["agrees"]:
            print("all agrees, within what is explained" if report["explained"] else "all agrees")
    if not report["agrees"]:
        raise typer.Exit(1)


def _rows(line: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """A row for each class of tokens."""
    first = (line["replica"], line["requests"], line["others"])
    return [
        (
            *(first if name == "input_uncached" else ("", None, None)), name,
            line["engine"][name], line["exact"][name] + line["other"][name],
            line["difference"][name], _range(line["allowed"], name),
            line["verdict"] if name == "input_uncached" else "",
        )
        for name in ("input_uncached", "input_cached", "output")
    ]


def _range(allowed: Mapping[str, Any], name: str) -> str:
    """By how much a class of tokens may differ."""
    least, most = allowed["least"][name], allowed["most"][name]
    return f"{least:+d} to {most:+d}" if least or most else ""

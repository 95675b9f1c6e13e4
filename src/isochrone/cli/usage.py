"""`isochrone usage`: what requests used, one by one or summed."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Annotated, Any

import typer

from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud
from isochrone.cli.line import LimitOption
from isochrone.core.errors import InvalidInput

GROUPS = ("request", "key", "model", "site", "country", "class", "day")


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: `isochrone usage` · `isochrone usage --by site` · "
        "`isochrone usage --by request --site frankfurt --since 2026-11-20T00:00:00Z --json`"
    )(usage)


def usage(
    by: Annotated[
        str, typer.Option(help="request, key, model, site, country, class or day.")
    ] = "request",
    since: Annotated[
        str | None, typer.Option(help="From this instant on, as 2026-11-20T18:00:00Z.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Before this instant.")] = None,
    key_id: Annotated[str | None, typer.Option(help="Only requests with this key.")] = None,
    model: Annotated[str | None, typer.Option(help="Only requests for this model.")] = None,
    site: Annotated[str | None, typer.Option(help="Only requests served at this site.")] = None,
    limit: LimitOption = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what was used. Tokens come in disjoint classes; `source` says how they were counted."""
    from isochrone.cli.show import print_json, print_table

    if by not in GROUPS:
        raise InvalidInput([f"--by {by}: expected one of {', '.join(GROUPS)}"])
    query = {
        "by": by, "since": since, "until": until, "key_id": key_id, "model": model, "site": site,
    }
    api = find_cloud(state, url, key).api
    rows = list(islice(api.items("usage", query), limit))
    if as_json:
        print_json(rows)
    elif by == "request":
        print_table(
            ("request", "received", "model", "class", "site", "country", "entered", "uncached",
             "cached", "output", "source", "outcome", "ms"),
            [_request(row) for row in rows],
            empty="no usage yet; try `isochrone chat 'Hello!'`",
        )
    else:
        print_table(
            (by, "requests", "finished", "uncached", "cached", "output", "not by engine"),
            [_total(row, by) for row in rows],
            empty="no usage yet; try `isochrone chat 'Hello!'`",
        )
    if not as_json:
        _tell_detached(api.get("usage", {**query, "limit": 1})["detached"])


def _tell_detached(days: Sequence[Mapping[str, Any]]) -> None:
    """Say which days' requests are not in the list, whosever they are."""
    names = sorted({each["day"] for each in days})
    if names:
        span = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        print(f"not in it: requests of {len(names)} days that were detached from the book ({span})")


def _request(row: Mapping[str, Any]) -> tuple[object, ...]:
    from isochrone.cli.show import instant

    return (
        row["id"], instant(row["received_at"]), row["model"], row["class"], row["site"],
        row["country"], row["ingress"], row["input_uncached"], row["input_cached"], row["output"],
        row["source"], row["outcome"], row["total_ms"],
    )


def _total(row: Mapping[str, Any], by: str) -> tuple[object, ...]:
    return (
        row["name"] or f"(no {by})", row["requests"], row["finished"], row["input_uncached"],
        row["input_cached"], row["output"], row["unmeasured"],
    )

"""`isochrone limit`: how much a key, a project or an organisation may use over all sites."""

from typing import Annotated, Any

import typer

from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud, part

app = typer.Typer(help="Set, list, show and remove limits that hold over all sites.")

ProjectOption = Annotated[
    str | None, typer.Option(help="Project id, for a limit of all its keys together.")
]
OrgOption = Annotated[
    str | None,
    typer.Option(help="Organisation id; alone, for a limit of the organisation as a whole."),
]


@app.callback(
    invoke_without_command=True,
    epilog="Examples: `isochrone limit` · `isochrone limit set budget 10 --project default` · "
    "`isochrone limit set requests_per_min 600 --of-key KEY_ID`",
)
def limits(
    context: typer.Context,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set, list, show and remove limits; alone, list them."""
    if context.invoked_subcommand is None:
        list_limits(state, url, key, as_json)


@app.command("list", epilog="Example: `isochrone limit list --json`")
def list_limits(
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List limits, and how each stands."""
    from isochrone.cli.show import print_json, print_table

    rows = list(find_cloud(state, url, key).api.items("limits"))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("id", "of", "kind", "amount", "used", "held", "left", "home"),
        [
            (
                row["id"], _subject(row), _kind(row), row["amount"], *_standing(row),
                row["home"] or "-",
            )
            for row in rows
        ],
    )


@app.command(
    "set",
    epilog="Examples: `isochrone limit set budget 10 --project default` · "
    "`isochrone limit set tokens_per_min 100000 --org ORG_ID`",
)
def set_limit(
    kind: Annotated[
        str, typer.Argument(help="requests_per_min, tokens_per_min, concurrent or budget.")
    ],
    amount: Annotated[str, typer.Argument(help="How much; of a budget, money such as 10.00.")],
    project: ProjectOption = None,
    org: OrgOption = None,
    of_key: Annotated[
        str | None, typer.Option(help="Key id, for a limit of this key alone.")
    ] = None,
    period: Annotated[
        str | None, typer.Option(help="Of a budget: day or month. [default: month]")
    ] = None,
    currency: Annotated[
        str | None, typer.Option(help="Of a budget. [default: that of the prices]")
    ] = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set a limit, in place of the one of the same kind if there is one."""
    from isochrone.cli.show import print_json

    made = find_cloud(state, url, key).api.put("limits", {
        "kind": kind, "amount": amount, "org_id": org, "project_id": project, "key_id": of_key,
        "period": period, "currency": currency,
    })
    if as_json:
        print_json(made)
        return
    print(f"id    {made['id']}")
    print(f"of    {_subject(made)}")
    print(f"limit {made['amount']} {_kind(made)}")


@app.command(epilog="Example: `isochrone limit show LIMIT_ID`")
def show(
    limit_id: Annotated[str, typer.Argument(help="Its id (see `limit list`).")],
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a limit: what was used of it, who keeps it, and what each site may use."""
    from isochrone.cli.show import instant, print_json, print_table

    row = find_cloud(state, url, key).api.get(f"limits/{part(limit_id)}")
    if as_json:
        print_json(row)
        return
    used, held, left = _standing(row)
    print(f"of          {_subject(row)}")
    print(f"limit       {row['amount']} {_kind(row)}")
    if row["spent"] is not None:
        print(f"booked      {row['spent']} before {instant(row['spent_before'])}")
    print(f"used        {used}{' since then' if row['spent'] is not None else ''}")
    print(f"held        {held}")
    print(f"left        {left}")
    print(f"home        {row['home'] or '-'}")
    print(f"successors  {', '.join(row['successors']) or '-'}")
    if row["use"] is None:
        print("No gateway has used it lately.")
        return
    print(f"as {row['use']['by']} said {row['use']['age_s']} s ago:")
    print_table(
        ("site", "granted", "used", "held"),
        [
            (each["site"], each["granted"], each["used"], each["held"])
            for each in row["use"]["sites"]
        ],
    )


@app.command(epilog="Example: `isochrone limit remove LIMIT_ID`")
def remove(
    limit_id: Annotated[str, typer.Argument(help="Its id (see `limit list`).")],
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a limit."""
    from isochrone.cli.show import print_json

    removed = find_cloud(state, url, key).api.delete(f"limits/{part(limit_id)}")
    if as_json:
        print_json(removed)
    else:
        print(f"removed {limit_id}")


def _subject(row: dict[str, Any]) -> str:
    if row["key_id"] is not None:
        return f"key {row['key_id']}"
    if row["project_id"] is not None:
        return f"project {row['project_id']}"
    return f"organisation {row['org_id']}"


def _kind(row: dict[str, Any]) -> str:
    if row["kind"] == "budget":
        return f"{row['currency']} a {row['period']}"
    return str(row["kind"])


def _standing(row: dict[str, Any]) -> tuple[str, str, str]:
    """(used, held, left) as the gateways have it; dashes where none has used it lately."""
    use = row["use"]
    return ("-", "-", "-") if use is None else (use["used"], use["held"], use["left"])

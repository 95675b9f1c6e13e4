"""`isochrone price`: price sheets, which say what usage costs."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud, part
from isochrone.core.errors import InvalidInput, NotFound

app = typer.Typer(help="List, show and add price sheets.")


@app.callback(
    invoke_without_command=True,
    epilog="Examples: `isochrone price` · `isochrone price show standard` · "
    "`isochrone price create prices.toml`",
)
def prices(
    context: typer.Context,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List, show and add price sheets; alone, list them."""
    if context.invoked_subcommand is None:
        list_sheets(state, url, key, as_json)


@app.command("list", epilog="Example: `isochrone price list --json`")
def list_sheets(
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List all versions of the price sheets."""
    from isochrone.cli.show import instant, print_json, print_table

    rows = list(find_cloud(state, url, key).api.items("prices"))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("sheet", "version", "for", "currency", "valid from", "prices"),
        [
            (
                row["id"], row["version"], row["org_id"] or "everybody", row["currency"],
                instant(row["valid_from"]), [each["name"] for each in row["sheet"]["prices"]],
            )
            for row in rows
        ],
        empty="no price sheet yet, so nothing is charged; add one with `isochrone price create`",
    )


@app.command(epilog="Example: `isochrone price show standard --version 2`")
def show(
    sheet: Annotated[str, typer.Argument(help="The id of the sheet.")],
    version: Annotated[int | None, typer.Option(help="Its version. [default: the last]")] = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a price sheet."""
    from isochrone.cli.show import instant, print_json, print_table

    rows = [row for row in find_cloud(state, url, key).api.items("prices") if row["id"] == sheet]
    found = [row for row in rows if version in (None, row["version"])]
    if not found:
        raise NotFound(f"there is no such version of a sheet {sheet!r}; see `isochrone price`")
    row = found[-1]
    if as_json:
        print_json(row)
        return
    print(f"{row['id']} {row['version']}, in {row['currency']}, from {instant(row['valid_from'])}")
    print_table(
        ("price", "charge", "meters", "models", "classes", "sites", "only"),
        [
            (
                each["name"], _charge(each["charge"]), each.get("meters"), each.get("models"),
                each.get("classes"), each.get("sites"), _further(each),
            )
            for each in row["sheet"]["prices"]
        ],
    )
    for each in row["sheet"].get("adjustments", ()):
        print(f"{each['name']}: {each['basis_points'] / 100:+g} % of {_bounds(each)}")
    for each in row["sheet"].get("recurring", ()):
        print(f"{each['name']}: {each['amount']} a month")
    for each in row["sheet"].get("fees", ()):
        print(f"{each['name']}: {each['basis_points'] / 100:g} % of "
              f"{', '.join(each.get('of') or ()) or 'all'}")


def _bounds(entry: Mapping[str, Any]) -> str:
    """What an adjustment is restricted to."""
    lists = (entry.get(name) for name in ("meters", "models", "classes", "sites"))
    return "; ".join([", ".join(each) for each in lists if each] + _further(entry)) or "all"


def _further(entry: Mapping[str, Any]) -> list[str]:
    """The restrictions that have no column of their own."""
    found = [", ".join(entry["kinds"])] if entry.get("kinds") else []
    if entry.get("bound") is not None:
        found.append("named by the policy" if entry["bound"] else "not named by the policy")
    return found + [
        f"{said} {entry[name]}"
        for name, said in (("least", "at least"), ("most", "at most"))
        if entry.get(name) is not None
    ]


def _charge(charge: dict[str, object]) -> str:
    if charge["model"] in ("per_unit", "package"):
        return f"{charge['price']} / {charge.get('size') or charge.get('per', 1)}"
    tiers = charge["tiers"]
    assert isinstance(tiers, list), "the API says so"
    steps = ", ".join(
        f"{tier['price']}" + (f" to {tier['up_to']}" if tier.get("up_to") else "")
        for tier in tiers
    )
    return f"{charge['model']}: {steps} / {charge.get('per', 1)}"


@app.command(epilog="Example: `isochrone price create prices.toml --org acme`")
def create(
    file: Annotated[Path, typer.Argument(help="The sheet as TOML; see docs/prices.md.")],
    org: Annotated[
        str | None, typer.Option(help="Organisation id that it is for. [default: everybody]")
    ] = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add the next version of a sheet. It is never changed; the next one replaces it."""
    import msgspec

    from isochrone.cli.show import print_json
    from isochrone.wiring.sheet_file import read_sheet, read_text

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput([f"{file}: cannot be read: {error}"]) from error
    read_sheet(text, str(file))  # tells all problems before anything is asked
    path = "prices" if org is None else f"prices?org_id={part(org)}"
    made = find_cloud(state, url, key).api.post(
        path, msgspec.to_builtins(read_text(text, str(file))), idempotency_key=str(uuid.uuid4())
    )
    if as_json:
        print_json(made)
        return
    print(f"added {made['id']} {made['version']}")

"""`isochrone policies`: where requests may be processed and where they may enter."""

import uuid
from typing import Annotated

import typer

from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud
from isochrone.cli.keys import (
    CachesOption,
    LogsOption,
    ResidencyOption,
    TransitOption,
    names,
)

app = typer.Typer(help="List and make residency policies.")


@app.callback(
    invoke_without_command=True,
    epilog="Examples: `isochrone policies` · `isochrone policies create --residency DE`",
)
def policies(
    context: typer.Context,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List and make residency policies; alone, list them."""
    if context.invoked_subcommand is None:
        list_policies(state, url, key, as_json)


@app.command("list", epilog="Example: `isochrone policies list --json`")
def list_policies(
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List policies."""
    from isochrone.cli.show import print_json, print_table

    rows = list(find_cloud(state, url, key).api.items("policies"))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("id", "name", "residency", "transit", "caches", "logs"),
        [
            (
                row["id"], row["name"], row["residency"], row["transit"],
                row.get("caches"), row.get("logs"),
            )
            for row in rows
        ],
    )


@app.command(
    epilog="Examples: `isochrone policies create --residency EU --transit EEA` · "
    "`isochrone policies create --residency EEA,-FR,-parent:acme --caches DE`"
)
def create(
    residency: ResidencyOption = "any",
    transit: TransitOption = "any",
    caches: CachesOption = None,
    logs: LogsOption = "any",
    name: Annotated[str, typer.Option(help="A name to recognise it by.")] = "policy",
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a policy."""
    from isochrone.cli.show import print_json

    wanted: dict[str, object] = {
        "name": name,
        "residency": names(residency, "--residency"),
        "transit": names(transit, "--transit"),
        "logs": names(logs, "--logs"),
    }
    if caches is not None:
        wanted["caches"] = names(caches, "--caches")
    made = find_cloud(state, url, key).api.post(
        "policies", wanted, idempotency_key=str(uuid.uuid4())
    )
    if as_json:
        print_json(made)
    else:
        print(made["id"])

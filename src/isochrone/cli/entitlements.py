"""`isochrone entitlement`: capacity that is sold once and honoured at any allowed site."""

import uuid
from typing import Annotated

import typer

from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud, part
from isochrone.cli.keys import names

app = typer.Typer(help="List, sell and revoke entitlements.")


@app.callback(
    invoke_without_command=True,
    epilog="Examples: `isochrone entitlement` · `isochrone entitlement create --model tiny-fable "
    "--tok-s 500 --residency EU --until 2027-12-31T00:00:00Z`",
)
def entitlements(
    context: typer.Context,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List, sell and revoke entitlements; alone, list them."""
    if context.invoked_subcommand is None:
        list_entitlements(state, url, key, as_json)


@app.command("list", epilog="Example: `isochrone entitlement list --json`")
def list_entitlements(
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List entitlements, and where their slices are at home."""
    from isochrone.cli.show import instant, print_json, print_table

    rows = list(find_cloud(state, url, key).api.items("entitlements"))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("id", "name", "org", "model", "class", "tok/s", "residency", "from", "until", "slices",
         "revoked"),
        [
            (
                row["id"], row["name"], row["org_id"], row["model"], row["class"], row["tok_s"],
                row["residency"], instant(row["starts_at"]), instant(row["ends_at"]),
                [f"{each['site']} {each['tok_s']}" for each in row["slices"]],
                instant(row["revoked_at"]),
            )
            for row in rows
        ],
    )


@app.command(
    epilog="Example: `isochrone entitlement create --model tiny-fable --tok-s 500 --residency EU "
    "--until 2027-12-31T00:00:00Z`"
)
def create(
    model: Annotated[str, typer.Option(help="The model that it is for.")],
    tok_s: Annotated[int, typer.Option(help="Tokens/s; an output token counts twice.")],
    until: Annotated[str, typer.Option(help="When it ends, as 2027-12-31T00:00:00Z.")],
    since: Annotated[
        str | None, typer.Option("--from", help="When it begins. [default: now]")
    ] = None,
    residency: Annotated[
        str, typer.Option(help="Where requests may be processed: countries, blocs, or any.")
    ] = "any",
    class_: Annotated[str, typer.Option("--class", help="reserved or on_demand.")] = "reserved",
    org: Annotated[str, typer.Option(help="Organisation id.")] = "default",
    project: Annotated[str | None, typer.Option(help="Project id. [default: all]")] = None,
    name: Annotated[str, typer.Option(help="A name to recognise it by.")] = "entitlement",
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sell capacity. Keys need the class too; see `isochrone key create --classes`.

    Requests in that class are served as on_demand where nothing of what was sold is left.
    """
    from isochrone.cli.show import print_json

    wanted: dict[str, object] = {
        "name": name, "org_id": org, "project_id": project, "model": model, "class": class_,
        "tok_s": tok_s, "residency": names(residency, "--residency"), "ends_at": until,
    }
    if since is not None:
        wanted["starts_at"] = since
    made = find_cloud(state, url, key).api.post(
        "entitlements", wanted, idempotency_key=str(uuid.uuid4())
    )
    if as_json:
        print_json(made)
        return
    print(f"id      {made['id']}")
    for each in made["slices"]:
        print(f"slice   {each['site']}  {each['tok_s']} tok/s")


@app.command(
    epilog="Examples: `isochrone entitlement voters` · "
    "`isochrone entitlement voters --change ashburn,frankfurt,oslo`"
)
def voters(
    change: Annotated[
        str | None, typer.Option(help="1, 3 or 5 sites that have joined, with commas between.")
    ] = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show or change the sites whose votes say who looks after the slices of a site that is gone.

    Change them when one of them leaves for good; see docs/entitlements.md.
    """
    from isochrone.cli.show import instant, print_json

    api = find_cloud(state, url, key).api
    if change is None:
        shown = api.get("voters")
    else:
        shown = api.post(
            "voters", {"sites": names(change, "--change")}, idempotency_key=str(uuid.uuid4())
        )
    if as_json:
        print_json(shown)
        return
    print(f"voters  {', '.join(shown['sites'])}")
    if shown["former"] and shown["former"] != shown["sites"]:
        print(f"before  {', '.join(shown['former'])}; more than half of these must agree as well")
    if shown["settled_at"]:
        print(f"settled {instant(shown['settled_at'])}; not to be changed again before")


@app.command(epilog="Example: `isochrone entitlement revoke ENTITLEMENT_ID`")
def revoke(
    entitlement_id: Annotated[str, typer.Argument(help="Its id (see `entitlement list`).")],
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke an entitlement for good; its requests go on as on_demand."""
    from isochrone.cli.show import print_json

    find_cloud(state, url, key).api.delete(f"entitlements/{part(entitlement_id)}")
    if as_json:
        print_json({"id": entitlement_id, "revoked": True})
    else:
        print(f"revoked {entitlement_id}")

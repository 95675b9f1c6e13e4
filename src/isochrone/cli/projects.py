"""`isochrone project`: the parts of an organisation that keys and usage belong to."""

import uuid
from typing import Annotated

import typer

from isochrone.cli.closing import add_closing
from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud, part

app = typer.Typer(help="Projects of an organisation: list, make, rename, close.")


@app.callback(
    invoke_without_command=True,
    epilog="Examples: `isochrone project` · `isochrone project create chatbot --org ORG_ID` · "
    "`isochrone project rename PROJECT_ID assistant`",
)
def projects(
    context: typer.Context,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keys and usage belong to a project of an organisation. Alone, list those that your key
    sees."""
    if context.invoked_subcommand is None:
        list_projects(None, state, url, key, as_json)


@app.command("list", epilog="Example: `isochrone project list --org ORG_ID`")
def list_projects(
    org: Annotated[str | None, typer.Option(help="Only of this organisation (id).")] = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List projects."""
    from isochrone.cli.show import instant, print_json, print_table

    rows = list(find_cloud(state, url, key).api.items("projects", {"org": org}))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("id", "name", "organisation", "made", "closed"),
        [
            (row["id"], row["name"], row["org_id"], instant(row["created_at"]),
             instant(row["closed_at"]))
            for row in rows
        ],
    )


@app.command(
    epilog="Example: `isochrone project create chatbot`, then "
    "`isochrone key create --project PROJECT_ID`"
)
def create(
    name: Annotated[str, typer.Argument(help="Its name, unlike its siblings'.")],
    org: Annotated[
        str | None, typer.Option(help="Organisation id; operators have to name one.")
    ] = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a project."""
    from isochrone.cli.show import print_json

    wanted = {"name": name} if org is None else {"name": name, "org_id": org}
    made = find_cloud(state, url, key).api.post(
        "projects", wanted, idempotency_key=str(uuid.uuid4())
    )
    if as_json:
        print_json(made)
    else:
        print(made["id"])


@app.command(epilog="Example: `isochrone project rename PROJECT_ID assistant`")
def rename(
    project_id: Annotated[str, typer.Argument(help="Its id (see `project list`).")],
    name: Annotated[str, typer.Argument(help="Its new name.")],
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rename a project; its id, keys and usage stay."""
    from isochrone.cli.show import print_json

    changed = find_cloud(state, url, key).api.patch(f"projects/{part(project_id)}", {"name": name})
    if as_json:
        print_json(changed)
    else:
        print(f"{changed['id']}  {changed['name']}")


add_closing(
    app, "project", "projects", stops="Its keys stop at once.",
    closes="Close a project: its keys work no more, nothing new is made in it, and all that it has "
    "stays.",
    reopens="Open a closed project again; keys that were not revoked work again.",
)

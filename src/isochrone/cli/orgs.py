"""`isochrone org`: organisations, what they retain, and erasing who a person is."""

import uuid
from typing import Annotated

import typer

from isochrone.cli.asking import YesOption, make_sure
from isochrone.cli.closing import add_closing
from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud, part
from isochrone.core.errors import InvalidInput

app = typer.Typer(help="Organisations: list, make, change, close; erase a person.")

OrgArgument = Annotated[str, typer.Argument(help="Id of the organisation (see `org list`).")]


@app.callback(
    invoke_without_command=True,
    epilog="Examples: `isochrone org` · `isochrone org create acme` · "
    "`isochrone org change ORG_ID --retain-days 30` · `isochrone org erase-person MEMBER_ID`",
)
def orgs(
    context: typer.Context,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """An organisation is the tenant: projects, keys, members and usage belong to one. Alone, list
    those that your key sees: an operator's all, everybody else's their own."""
    if context.invoked_subcommand is None:
        list_orgs(state, url, key, as_json)


@app.command("list", epilog="Example: `isochrone org list --json`")
def list_orgs(
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List organisations."""
    from isochrone.cli.show import instant, print_json, print_table

    rows = list(find_cloud(state, url, key).api.items("organisations"))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("id", "name", "made", "retains days", "closed"),
        [
            (row["id"], row["name"], instant(row["created_at"]), row["retain_days"],
             instant(row["closed_at"]))
            for row in rows
        ],
    )


@app.command(
    epilog="Example: `isochrone org create acme`, then `isochrone member add NAME --role owner "
    "--org ORG_ID` and `isochrone project create NAME --org ORG_ID`"
)
def create(
    name: Annotated[str, typer.Argument(help="Its name, which no other has.")],
    project: Annotated[
        str | None, typer.Option(help="Name of a first project. [default: none]")
    ] = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an organisation (operators). It has no member yet, and no other project."""
    from isochrone.cli.show import print_json

    made = find_cloud(state, url, key).api.post(
        "organisations", {"name": name} if project is None else {"name": name, "project": project},
        idempotency_key=str(uuid.uuid4()),
    )
    if as_json:
        print_json(made)
    else:
        print(made["id"])


@app.command(epilog="Example: `isochrone org change ORG_ID --name acme --retain-days 30`")
def change(
    org_id: OrgArgument,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    retain_days: Annotated[
        int | None,
        typer.Option(help="Days after which members who left are erased: 0..3650."),
    ] = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change the name of an organisation, or how long it retains who its former members were."""
    from isochrone.cli.show import print_json

    wanted: dict[str, object] = {}
    if name is not None:
        wanted["name"] = name
    if retain_days is not None:
        wanted["retain_days"] = retain_days
    if not wanted:
        raise InvalidInput(["nothing to change: give --name, --retain-days or both"])
    changed = find_cloud(state, url, key).api.patch(f"organisations/{part(org_id)}", wanted)
    if as_json:
        print_json(changed)
    else:
        print(f"{changed['id']}  {changed['name']}  retains {changed['retain_days']} days")


add_closing(
    app, "org", "organisations", stops="All its keys stop at once.",
    closes="Close an organisation and all its projects: no key of it works any more, nothing new "
    "is made in it, and all that it has stays.",
    reopens="Open a closed organisation again (operators); keys that were not revoked work again.",
)


@app.command("erase-person", epilog="Example: `isochrone org erase-person MEMBER_ID --yes`")
def erase_person(
    member_id: Annotated[str, typer.Argument(help="Id of the member (see `member list`).")],
    yes: YesOption = False,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Erase the name and e-mail address of a person, for good, and revoke them.

    Ledger, usage and audit log know people by their id only and stay as they are.
    """
    from isochrone.cli.show import print_json

    make_sure(f"Erase who {member_id} is? This cannot be undone.", is_sure=yes)
    erased = find_cloud(state, url, key).api.post(f"principals/{part(member_id)}/erase", None)
    if as_json:
        print_json(erased)
    else:
        print(f"erased {erased['id']}")

"""`isochrone member`: people and service accounts, their roles and their admin keys."""

import sys
import uuid
from typing import Annotated, Any

import typer

from isochrone.cli.asking import given
from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud, part
from isochrone.cli.terms import ExpiresOption, OverlapOption, RenewedOption, duration_s

app = typer.Typer(help="Members of an organisation: list, add, change the role, rotate, remove.")

ROLES = "owner, admin, developer, billing, auditor; operator, who belongs to no organisation."
MemberArgument = Annotated[str, typer.Argument(help="Id of the member (see `member list`).")]


@app.callback(
    invoke_without_command=True,
    epilog="Examples: `isochrone member` · `isochrone member add Ada --role developer --email "
    "ada@acme.example` · `isochrone member role MEMBER_ID admin` · "
    "`isochrone member rotate MEMBER_ID`",
)
def members(
    context: typer.Context,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """A member is a person or a service account with one role; docs/tenancy.md says what each role
    may do. Nobody appoints anybody who may do more than themselves. Alone, list them."""
    if context.invoked_subcommand is None:
        list_members(state, url, key, as_json)


@app.command("list", epilog="Example: `isochrone member list --json`")
def list_members(
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List members, without their keys."""
    from isochrone.cli.show import instant, print_json, print_table

    rows = list(find_cloud(state, url, key).api.items("principals"))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("id", "name", "e-mail", "kind", "role", "organisation", "until"),
        [
            (
                row["id"], row["name"], row["email"], row["kind"], row["role"], row["org_id"],
                instant(row["expires_at"]),
            )
            for row in rows
        ],
    )


@app.command(
    epilog="Examples: `isochrone member add Ada --role owner --org ORG_ID --email "
    "ada@acme.example` · `isochrone member add deployer --role developer --service`"
)
def add(
    name: Annotated[str, typer.Argument(help="Who it is.")],
    role: Annotated[str, typer.Option(help=ROLES)],
    org: Annotated[
        str | None, typer.Option(help="Organisation id. [default: your own]")
    ] = None,
    email: Annotated[str | None, typer.Option(help="E-mail address of a person.")] = None,
    service: Annotated[bool, typer.Option("--service", help="A program, not a person.")] = False,
    expires: ExpiresOption = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a member; the answer shows the admin key, once: it goes into --key or ISOCHRONE_KEY."""
    wanted: dict[str, object] = {
        "name": name, "role": role, "kind": "service" if service else "person",
    }
    given = {"org_id": org, "email": email, "expires_at": expires}
    wanted |= {field: value for field, value in given.items() if value is not None}
    made = find_cloud(state, url, key).api.post(
        "principals", wanted, idempotency_key=str(uuid.uuid4())
    )
    _show_key(made, as_json)


@app.command(epilog="Example: `isochrone member role MEMBER_ID admin`")
def role(
    member_id: MemberArgument,
    role: Annotated[str, typer.Argument(help=ROLES)],
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a member another role; what they may do changes at once."""
    from isochrone.cli.show import print_json

    changed = find_cloud(state, url, key).api.patch(
        f"principals/{part(member_id)}", {"role": role}
    )
    if as_json:
        print_json(changed)
    else:
        print(f"{changed['id']}  {changed['role']}")


@app.command(epilog="Example: `isochrone member rotate MEMBER_ID --overlap 1h`")
def rotate(
    member_id: MemberArgument,
    overlap: OverlapOption = "1d",
    expires: RenewedOption = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a member a new admin key, shown once; the old one goes on for --overlap."""
    wanted: dict[str, object] = {"overlap_s": duration_s(overlap, "--overlap")}
    if expires is not None:
        wanted["expires_at"] = expires
    made = find_cloud(state, url, key).api.post(
        f"principals/{part(member_id)}/rotate", wanted, idempotency_key=str(uuid.uuid4())
    )
    _show_key(made, as_json)


@app.command(
    epilog="Examples: `isochrone member password MEMBER_ID` · "
    "`isochrone member password operator --stdin < file`"
)
def password(
    member_id: MemberArgument,
    login: Annotated[
        str | None,
        typer.Option(help="Name to sign in with. [default: as now, else the e-mail address]"),
    ] = None,
    from_stdin: Annotated[
        bool, typer.Option("--stdin", help="Read the password there instead of making one.")
    ] = False,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a member sign in to the console: a name, and a new password, shown once. Who had a
    password before is signed out everywhere."""
    from isochrone.cli.show import print_json

    wanted: dict[str, object] = {} if login is None else {"login": login}
    if from_stdin:
        wanted["password"] = given(sys.stdin.readline).rstrip("\r\n")
    made = find_cloud(state, url, key).api.put(f"principals/{part(member_id)}/password", wanted)
    if as_json:
        print_json(made)
        return
    print(f"name      {made['login']}")
    if made["password"] is not None:
        print(f"password  {made['password']}   (shown once; its owner should choose another)")


@app.command(
    epilog="Example: `isochrone member remove MEMBER_ID`; to erase who they are at once as well: "
    "`isochrone org erase-person MEMBER_ID`"
)
def remove(
    member_id: MemberArgument,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke a member; their key works no more. Project keys that they made go on."""
    from isochrone.cli.show import print_json

    removed = find_cloud(state, url, key).api.delete(f"principals/{part(member_id)}")
    if as_json:
        print_json(removed)
    else:
        print(f"removed {removed['id']}")


def _show_key(made: dict[str, Any], as_json: bool) -> None:
    from isochrone.cli.show import print_json

    if as_json:
        print_json(made)
        return
    print(f"key   {made['key']}   (shown once, keep it)")
    print(f"id    {made['id']}")
    print(f"role  {made['role']}")

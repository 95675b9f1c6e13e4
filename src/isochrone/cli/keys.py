"""`isochrone key`: make, list, rotate and revoke API keys and the policy that binds each."""

import uuid
from typing import Annotated

import typer

from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud, part
from isochrone.cli.terms import ExpiresOption, OverlapOption, RenewedOption, duration_s
from isochrone.core.errors import InvalidInput

SECRET_PREFIX = "iso_"
LEAST_SECRET = 16

app = typer.Typer(help="API keys: list, make, rotate, revoke.")

TERMS = (
    "countries, blocs, operator:NAME, parent:NAME, site:NAME, a minus in front denies; or any."
)
ResidencyOption = Annotated[str, typer.Option(help=f"Where requests may be processed: {TERMS}")]
TransitOption = Annotated[
    str, typer.Option(help=f"Where requests may enter: {TERMS} via:DE asks of links.")
]
CachesOption = Annotated[
    str | None,
    typer.Option(help=f"Where prompts may be remembered: {TERMS} [default: as --residency]"),
]
LogsOption = Annotated[
    str, typer.Option(help=f"Whose records may have the client's own request id: {TERMS}")
]


def names(text: str, option: str) -> list[str]:
    """The names of a list such as DE,EEA; raises InvalidInput when there is none."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise InvalidInput([f"{option} names nothing; expected countries or blocs as in DE,EEA"])
    return found


@app.callback(
    invoke_without_command=True,
    epilog="Examples: `isochrone key` · `isochrone key create --residency DE,EEA` · "
    "`isochrone key rotate KEY_ID` · `isochrone key revoke KEY_ID`",
)
def keys(
    context: typer.Context,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List, make, rotate and revoke API keys; alone, list them."""
    if context.invoked_subcommand is None:
        list_keys(state, url, key, as_json)


@app.command("list", epilog="Example: `isochrone key list --json`")
def list_keys(
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List keys, without their secrets."""
    from isochrone.cli.show import instant, print_json, print_table

    rows = list(find_cloud(state, url, key).api.items("keys"))
    if as_json:
        print_json(rows)
        return
    print_table(
        ("id", "name", "residency", "transit", "classes", "scopes", "made", "until", "revoked"),
        [
            (
                row["id"], row["name"], row["residency"], row["transit"], row["classes"],
                row["scopes"], instant(row["created_at"]), instant(row["expires_at"]),
                instant(row["revoked_at"]),
            )
            for row in rows
        ],
    )


@app.command(
    epilog="Examples: `isochrone key create --residency DE,EEA` · "
    "`isochrone key create --name batch --residency EU --transit EU --json`"
)
def create(
    name: Annotated[str, typer.Option(help="A name to recognise it by.")] = "key",
    residency: ResidencyOption = "any",
    transit: TransitOption = "any",
    caches: CachesOption = None,
    logs: LogsOption = "any",
    classes: Annotated[
        str, typer.Option(help="Classes it may ask for: reserved, on_demand, batch.")
    ] = "on_demand,batch",
    scopes: Annotated[
        str, typer.Option(help="What it is for: chat, embeddings, models, usage.")
    ] = "chat,embeddings,models,usage",
    expires: ExpiresOption = None,
    project: Annotated[str | None, typer.Option(help="Project id. [default: default]")] = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key. The secret is shown once; only its hash is kept."""
    from isochrone.cli.show import instant, print_json

    wanted: dict[str, object] = {
        "name": name,
        "residency": names(residency, "--residency"),
        "transit": names(transit, "--transit"),
        "logs": names(logs, "--logs"),
        "classes": names(classes, "--classes"),
        "scopes": names(scopes, "--scopes"),
    }
    if expires is not None:
        wanted["expires_at"] = expires
    if caches is not None:
        wanted["caches"] = names(caches, "--caches")
    if project is not None:
        wanted["project_id"] = project
    made = find_cloud(state, url, key).api.post("keys", wanted, idempotency_key=str(uuid.uuid4()))
    if as_json:
        print_json({part: made[part] for part in ("id", "key", "residency", "transit")})
        return
    print(f"key        {made['key']}   (shown once, keep it)")
    print(f"id         {made['id']}")
    print(f"residency  {', '.join(made['residency'])}")
    print(f"transit    {', '.join(made['transit'])}")
    if caches is not None:
        print(f"caches     {', '.join(made['caches'])}")
    if made["expires_at"] is not None:
        print(f"until      {instant(made['expires_at'])}")
    if made["logs"] != ["any"]:
        print(f"logs       {', '.join(made['logs'])}")


@app.command(
    epilog="Examples: `isochrone key rotate KEY_ID` · `isochrone key rotate KEY_ID --overlap 7d "
    "--expires 2027-06-30T00:00:00Z` · `isochrone key rotate KEY_ID --overlap 0`"
)
def rotate(
    key_id: Annotated[str, typer.Argument(help="Id of the key (see `key list`).")],
    overlap: OverlapOption = "1d",
    expires: RenewedOption = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key that replaces this one: same project, policy, classes and scopes, as long a term.

    The old one works for --overlap, so that programs can be changed over one by one.
    """
    from isochrone.cli.show import instant, print_json

    wanted: dict[str, object] = {"overlap_s": duration_s(overlap, "--overlap")}
    if expires is not None:
        wanted["expires_at"] = expires
    made = find_cloud(state, url, key).api.post(
        f"keys/{part(key_id)}/rotate", wanted, idempotency_key=str(uuid.uuid4())
    )
    if as_json:
        print_json(made)
        return
    print(f"key       {made['key']}   (shown once, keep it)")
    print(f"id        {made['id']}")
    print(f"replaces  {made['replaces']}   (works for another {overlap})")
    if made["expires_at"] is not None:
        print(f"until     {instant(made['expires_at'])}")


@app.command(
    "hash",
    epilog="Examples: `isochrone key hash --name laptop >> gateway.toml` · "
    "`echo -n $SECRET | isochrone key hash --stdin`",
)
def hash_secret(
    name: Annotated[str, typer.Option(help="A name to recognise it by; usage carries it.")] = "key",
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Read the secret there instead of making one.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a key for the file of a gateway that runs alone: prints its [[key]] table.

    A new secret is said once, on standard error, so that the table can be appended to the file.
    """
    import secrets
    import sys
    from hashlib import sha256

    from isochrone.cli.asking import given
    from isochrone.cli.show import print_json
    from isochrone.wiring.settings import toml_value

    made = f"{SECRET_PREFIX}{secrets.token_urlsafe(32)}"
    secret = given(sys.stdin.read).strip() if stdin else made
    if not secret.isascii() or not secret.isprintable() or len(secret) < LEAST_SECRET:
        raise InvalidInput([f"the secret: expected {LEAST_SECRET} plain characters or more"])
    digest = sha256(secret.encode()).hexdigest()
    if as_json:
        said = {"name": name, "secret_sha256": digest}
        print_json(said if stdin else {**said, "secret": secret})
        return
    if not stdin:
        print(f"secret  {secret}   (shown once, keep it)", file=sys.stderr)
    print(f'\n[[key]]\nname = {toml_value(name)}\nsecret_sha256 = "{digest}"')


@app.command(epilog="Example: `isochrone key revoke KEY_ID`; gateways refuse it within seconds.")
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id of the key (see `key list`).")],
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key for good."""
    from isochrone.cli.show import print_json

    find_cloud(state, url, key).api.delete(f"keys/{part(key_id)}")
    if as_json:
        print_json({"id": key_id, "revoked": True})
    else:
        print(f"revoked {key_id}")

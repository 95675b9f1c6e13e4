"""`isochrone sites` and `isochrone site`: places of the cloud, joining, draining, stopping, cutting
off."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud, part
from isochrone.core.errors import InvalidInput

site_app = typer.Typer(
    help="Join a site to the cloud, drain it, stop it, cut it off.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: `isochrone sites` · `isochrone sites sydney` · `isochrone sites --json`"
    )(sites)
    app.add_typer(site_app, name="site")


def sites(
    name: Annotated[
        str | None, typer.Argument(help="One site, with its links to every other.")
    ] = None,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List sites with country, operator and endpoint; with a NAME also its links."""
    from isochrone.cli.show import print_json, print_table

    api = find_cloud(state, url, key).api
    rows = list(api.items("sites")) if name is None else [api.get(f"sites/{part(name)}")]
    if as_json:
        print_json(rows if name is None else rows[0])
        return
    print_table(
        ("site", "country", "operator", "parent", "latitude", "longitude", "joined", "endpoint"),
        [
            (
                row["name"], row["country"], row.get("operator"), row.get("parent"),
                row.get("latitude_deg"), row.get("longitude_deg"), row.get("joined"),
                row.get("public_url"),
            )
            for row in rows
        ],
    )
    if name is not None:
        print_table(
            ("link to", "round trip ms", "which is", "via"),
            [
                (link["peer"], link["rtt_ms"], link["source"], link.get("via"))
                for link in rows[0]["links"]
            ],
        )


@site_app.command(epilog="Example: `isochrone site token sydney`, then `site join` at the site.")
def token(
    name: Annotated[str, typer.Argument(help="Name of the site.")],
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a one-time token with which the site NAME can join."""
    from isochrone.cli.show import print_json

    made = find_cloud(state, url, key).api.post(f"sites/{part(name)}/token", {})
    if as_json:
        print_json(made)
    else:
        print(made["token"])


@site_app.command(
    epilog="Example: `isochrone site join TOKEN --url http://control:4103 --out identity.json "
    "--host 10.0.0.5 --port 4100`"
)
def join(
    token: Annotated[str, typer.Argument(help="One-time token of `isochrone site token`.")],
    url: Annotated[str, typer.Option("--url", help="Control API to join.")],
    out: Annotated[Path, typer.Option("--out", help="Where to write the identity (mode 0600).")],
    port: Annotated[int, typer.Option("--port", help="Port of the site's gateway.")],
    host: Annotated[str, typer.Option("--host", help="Address of the gateway.")] = "127.0.0.1",
    public_url: Annotated[
        str | None,
        typer.Option("--public-url", help="Clients' URL, ending in /v1. [default: host and port]"),
    ] = None,
) -> None:
    """Give this site its identity: make keys here, send the public halves with the token.

    Safe to repeat when the reply was lost. The identity file holds the site's private keys.
    """
    from isochrone.wiring.joining import join_site

    if not 1 <= port <= 65535:
        raise InvalidInput([f"--port {port}: expected 1..65535"])
    if not out.parent.is_dir():
        raise InvalidInput([f"--out {out}: the folder {out.parent} does not exist"])
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    identity = join_site(
        token, url, host=host, port=port, public_url=public_url or f"http://{place}/v1", out=out,
    )
    print(f"joined as {identity.site} ({identity.country or 'no country'}); identity in {out}")


@site_app.command(epilog="Examples: `isochrone site drain sydney` · `isochrone site drain sydney "
                  "--undo`")
def drain(
    name: Annotated[str, typer.Argument(help="Name of the site.")],
    undo: Annotated[bool, typer.Option("--undo", help="Let it take requests again.")] = False,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the site NAME take no new requests; its replicas go on running."""
    body: dict[str, object] = {"draining": not undo}
    found = find_cloud(state, url, key).api.put(f"sites/{part(name)}/draining", body)
    _said(found, f"{name} takes requests again" if undo else f"{name} is being drained", as_json)


@site_app.command(epilog="Examples: `isochrone site stop sydney` · `isochrone site stop sydney "
                  "--at-once`, as if it was lost")
def stop(
    name: Annotated[str, typer.Argument(help="Name of the site.")],
    at_once: Annotated[
        bool, typer.Option("--at-once", help="End replicas in the middle of their work.")
    ] = False,
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop every replica of the site NAME until `isochrone site start`. Its gateway goes on."""
    body: dict[str, object] = {"running": False, "at_once": at_once}
    found = find_cloud(state, url, key).api.put(f"sites/{part(name)}/running", body)
    _said(found, f"the replicas of {name} are being stopped", as_json)


@site_app.command(epilog="Example: `isochrone site start sydney`")
def start(
    name: Annotated[str, typer.Argument(help="Name of the site.")],
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start as many replicas of the site NAME as ran when it was stopped."""
    found = find_cloud(state, url, key).api.put(f"sites/{part(name)}/running", {"running": True})
    _said(found, f"the replicas of {name} are being started", as_json)


@site_app.command(epilog="Example: `isochrone site revoke sydney`, as its identity was stolen")
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the site.")],
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cut the site NAME off: NATS and its peers refuse its identity until it joins anew."""
    found = find_cloud(state, url, key).api.delete(f"sites/{part(name)}/login")
    _said(found, f"the identity of {name} is refused; it has to join anew", as_json)


def _said(found: Mapping[str, Any], line: str, as_json: bool) -> None:
    from isochrone.cli.show import print_json

    if as_json:
        print_json(found)
    else:
        print(line)

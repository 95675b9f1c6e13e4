"""`isochrone status`: is everything up, where, and how loaded."""

import typer

from isochrone.cli.cloud import JsonOption, KeyOption, StateOption, UrlOption, find_cloud


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: `isochrone status` · `isochrone status --json` · "
        "`isochrone status --url https://control.example --key isoadm_...`"
    )(status)


def status(
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show sites, replicas and load of the cloud."""
    from isochrone.cli.show import print_json, print_table

    cloud = find_cloud(state, url, key)
    found = cloud.api.get("status")
    if as_json:
        print_json(found)
        return
    print(f"control  {cloud.control}")
    rows = [
        (
            site["name"], site["country"], "ready" if site["ready"] else "not ready",
            replica.get("model"), replica.get("state"), replica.get("running"),
            replica.get("waiting"), replica.get("restarts"), replica.get("id"),
        )
        for site in found["sites"]
        for replica in site.get("replicas") or [{}]
    ]
    print_table(
        ("site", "country", "site is", "model", "replica is", "running", "waiting", "restarts",
         "replica"),
        rows,
        empty="no sites yet; start with `isochrone up`, or name one in the world of control: "
        "`isochrone site token NAME` then makes the token with which it joins",
    )

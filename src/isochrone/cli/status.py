"""`isochrone status`: is everything up, where, and how loaded."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
            site["name"], site["country"], _stands(site), site["health"], replica.get("model"),
            _is(replica), replica.get("running"), replica.get("waiting"), replica.get("restarts"),
            replica.get("host"), replica.get("id"),
        )
        for site in found["sites"]
        for replica in site.get("replicas") or [{}]
    ]
    print_table(
        ("site", "country", "site is", "health", "model", "replica is", "running", "waiting",
         "restarts", "host", "replica"),
        rows,
        empty="no sites yet; start with `isochrone up`, or name one in the world of control: "
        "`isochrone site token NAME` then makes the token with which it joins",
    )
    for line in _doubts(found["sites"]):
        print(line)


def _stands(site: Mapping[str, Any]) -> str:
    if site.get("stopped"):
        return "stopped"
    return "ready" if site["ready"] else "not ready"


def _is(replica: Mapping[str, Any]) -> str | None:
    """What its agent says, and, where that is ready, how far its gateway trusts it."""
    state, health = replica.get("state"), replica.get("health")
    return f"{state}, {health}" if state == "ready" and health != "healthy" else state


def _doubts(sites: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Why something is not trusted, a line each."""
    for site in sites:
        for replica in site.get("replicas") or ():
            if replica.get("why"):
                yield f"{replica['id']} is {replica['health']}: {replica['why']}"
        for seen in site.get("seen") or ():
            who = f"the gateway of {seen['by']}"
            yield f"{site['name']} is {seen['state']} for {who}: {seen['why']}"

"""Gathers the commands of `isochrone`."""

from typing import Annotated

import typer

from isochrone.cli import (
    audit,
    backup,
    chat,
    check,
    days,
    entitlements,
    explain,
    hosts,
    keys,
    ledger,
    limits,
    members,
    meters,
    models,
    orgs,
    policies,
    prices,
    processes,
    projects,
    reconcile,
    replay,
    replicas,
    sites,
    status,
    top,
    twin,
    up,
    usage,
)
from isochrone.cli.line import Group, new_line, run_line

app = new_line()

for group in (
    up, status, top, sites, hosts, chat, models, usage, explain, audit, replay, reconcile, backup,
    check, processes,
):
    group.register(app)
app.add_typer(replicas.app, name="replica", cls=Group)
app.add_typer(orgs.app, name="org", cls=Group)
app.add_typer(projects.app, name="project", cls=Group)
app.add_typer(members.app, name="member", cls=Group)
app.add_typer(keys.app, name="key", cls=Group)
app.add_typer(keys.app, name="keys", cls=Group, hidden=True)  # its first name goes on working
app.add_typer(policies.app, name="policies", cls=Group)
app.add_typer(entitlements.app, name="entitlement", cls=Group)
app.add_typer(limits.app, name="limit", cls=Group)
app.add_typer(prices.app, name="price", cls=Group)
app.add_typer(meters.app, name="meter", cls=Group)
app.add_typer(ledger.app, name="ledger", cls=Group)
app.add_typer(days.app, name="days", cls=Group)
app.add_typer(twin.app, name="twin", cls=Group)


@app.command()
def version(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the version."""
    from isochrone import __version__

    typer.echo(f'{{"version": "{__version__}"}}' if as_json else f"isochrone {__version__}")


def run() -> int:
    """Run the command line; return its exit code. Raises KeyboardInterrupt."""
    return run_line(app)

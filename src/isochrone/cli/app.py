"""Gathers the commands of `isochrone` and turns their failures into one clear line."""

import os
import sys
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
from isochrone.core.errors import InvalidInput, IsochroneError

app = typer.Typer(
    name="isochrone",
    help="One inference cloud over GPU pools in many data centres.",
    epilog="Start with `isochrone up`; then, in another terminal, `isochrone chat 'Hello!'`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

for group in (
    up, status, top, sites, hosts, chat, models, usage, explain, audit, replay, reconcile, backup,
    check, processes,
):
    group.register(app)
app.add_typer(replicas.app, name="replica")
app.add_typer(orgs.app, name="org")
app.add_typer(projects.app, name="project")
app.add_typer(members.app, name="member")
app.add_typer(keys.app, name="key")
app.add_typer(keys.app, name="keys", hidden=True)  # its first name, which goes on working
app.add_typer(policies.app, name="policies")
app.add_typer(entitlements.app, name="entitlement")
app.add_typer(limits.app, name="limit")
app.add_typer(prices.app, name="price")
app.add_typer(meters.app, name="meter")
app.add_typer(ledger.app, name="ledger")
app.add_typer(days.app, name="days")
app.add_typer(twin.app, name="twin")


@app.command()
def version(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the version."""
    from isochrone import __version__

    typer.echo(f'{{"version": "{__version__}"}}' if as_json else f"isochrone {__version__}")


def run() -> int:
    """Run the command line; return its exit code. Raises KeyboardInterrupt."""
    try:
        code = app(standalone_mode=False)
    except InvalidInput as error:
        for problem in error.problems:
            _complain(problem)
        return 2
    except IsochroneError as error:
        _complain(error.message)
        return 1
    except typer.TyperException as error:
        _complain(" ".join(f"{error.format_message()} See --help.".split()))
        return error.exit_code
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    except BrokenPipeError:
        # The reader of our output left; without this the interpreter complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if isinstance(code, int) else 0


def _complain(line: str) -> None:
    print(f"isochrone: {line}", file=sys.stderr)

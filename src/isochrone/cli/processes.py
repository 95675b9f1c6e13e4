"""`isochrone control | gateway | agent`: one process, from one TOML file, in the foreground."""

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path, typer.Option("--config", metavar="FILE", help="Settings of the process (TOML).")
]


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: `isochrone control --config control.toml`")(control)
    app.command(epilog="Example: `isochrone gateway --config gateway.toml`")(gateway)
    app.command(epilog="Example: `isochrone agent --config agent.toml`")(agent)


def control(config: ConfigOption) -> None:
    """Run control: the Control API, the view that gateways follow, the book of record."""
    from isochrone.wiring.control import run

    run(config)


def gateway(config: ConfigOption) -> None:
    """Run a gateway: takes OpenAI requests at a site and serves each where it is soonest."""
    from isochrone.wiring.gateway import run

    run(config)


def agent(config: ConfigOption) -> None:
    """Run an agent: keeps a site's engines as desired and reports their load."""
    from isochrone.wiring.agent import run

    run(config)

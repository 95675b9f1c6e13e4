"""`isochrone control | gateway | agent | dns | console`: one process, in front, from one TOML file.
"""

import signal
from pathlib import Path
from typing import Annotated

import typer

from isochrone.adapters.sparing import without
from isochrone.cli.line import new_line, run_line
from isochrone.core.errors import InvalidInput

ConfigOption = Annotated[
    Path, typer.Option("--config", metavar="FILE", help="Settings of the process (TOML).")
]


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: `isochrone control --config control.toml`")(control)
    app.command(epilog="Example: `isochrone console --config console.toml`")(console)
    app.command(
        epilog="Alone: `isochrone key hash` · `isochrone check gateway.toml` · "
        "`isochrone gateway --config gateway.toml`; start from examples/standalone.toml."
    )(gateway)
    app.command(
        epilog="Examples: `isochrone agent --config agent.toml` · `isochrone agent --config "
        "agent.toml --host rack3-gpu07`"
    )(agent)
    app.command(
        epilog="Example: `isochrone check dns.toml` · `isochrone dns --config dns.toml` · "
        "`dig @127.0.0.1 -p 5353 de.api.example.net +subnet=198.51.100.0/24`, with TXT to be told "
        "why; start from examples/dns.toml."
    )(dns)


def console(config: ConfigOption) -> None:
    """Run the console: web pages over the Control API, for whoever signs in there."""
    from isochrone.wiring.console import run

    run(config)


def control(config: ConfigOption) -> None:
    """Run control: the Control API, the view that gateways follow, the book of record."""
    from isochrone.wiring.control import run

    run(config)


def gateway(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE",
            help="TOML: sites, upstreams, keys and policies of a gateway that runs alone, or the "
            "settings of a gateway of a cloud.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=256, help="Processes that share the port; only alone.")
    ] = 1,
    new_peer_secret: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Make the secret of a gateway that has peers, print its public key, and end.",
        ),
    ] = None,
    worker: Annotated[int | None, typer.Option(hidden=True)] = None,
    port: Annotated[int | None, typer.Option(hidden=True)] = None,
    journal: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run a gateway: takes OpenAI requests at a site and serves each where it is soonest.

    With the file of a gateway that runs **alone** it needs nothing else: no NATS, no control, no
    database. The file names the sites and their upstreams, and holds policies and hashed keys;
    usage is appended to a file. Changes of the file are taken while it runs (SIGHUP forces it).
    """
    if new_peer_secret is not None:
        from isochrone.wiring.peer_secret import new_peer_secret as make

        print(f'peer_key = "{make(new_peer_secret)}"')
        return
    if config is None:
        raise InvalidInput(["--config is missing; start from examples/standalone.toml"])
    if worker is not None:
        from isochrone.wiring.alone import run_alone

        run_alone(config, worker=worker, workers=workers, port=port, journal=journal)
    else:
        _run_gateway(config, workers)


def _run_gateway(config: Path, workers: int) -> None:
    """Which kind of file it is decides what is loaded: a gateway alone needs far less."""
    from isochrone.wiring.alone_file import is_alone

    if not is_alone(config):
        if workers > 1:
            raise InvalidInput([f"--workers {workers}: only a gateway that runs alone has workers"])
        from isochrone.wiring.gateway import run

        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        run(config)
    elif workers > 1:
        from isochrone.wiring.workers import run_workers

        run_workers(config, workers)
    else:
        from isochrone.wiring.alone import run_alone

        run_alone(config)


def agent(
    config: ConfigOption,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How this machine is called in the fleet. [default: `host` of the file, else its "
            "node name]",
        ),
    ] = None,
) -> None:
    """Run an agent: keeps a site's engines as desired, reports their load and its host."""
    from isochrone.wiring.agent import run

    run(config, host=host)


def dns(config: ConfigOption) -> None:
    """Run a name server: answers the fleet's address with the nearest ingress that is allowed.

    The zone's own name is answered with the nearest healthy ingress. `de.` before it, or any
    country, bloc or several of them (`eu-ch.`), is answered with ingresses **there** or not at all:
    give such a name to customers whose requests may enter nowhere else.

    Where a client is comes from its resolver (EDNS client subnet, else the resolver's own address)
    and the `[[subnet]]` tables or CSV files, geofeeds included. The sites come from the signed view
    with `identity`, else from the file. Changes of the file are taken while it runs (SIGHUP forces
    it). See docs/dns.md.
    """
    from isochrone.wiring.dns import run

    run(config)


def run() -> int:
    """As `app.run`, of a command line that has these commands only, so that a process does not
    import first what the others need."""
    with without("rich"):  # for tracebacks in colour
        import structlog.dev  # noqa: F401
    app = new_line()
    register(app)
    return run_line(app)

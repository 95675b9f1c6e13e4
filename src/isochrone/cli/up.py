"""`isochrone up`: a whole cloud on this machine, with progress while it starts."""

import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isochrone.cli.cloud import StateOption, state_folder
from isochrone.cli.main import INTERRUPTED

if TYPE_CHECKING:
    from rich.live import Live


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: `isochrone up` · `isochrone up --port 5000` · "
        "`isochrone up --model ./my-model.gguf` · `isochrone up --sites world.toml --state ./mine`"
    )(up)


def up(
    state: StateOption = None,
    port: Annotated[
        int | None,
        typer.Option(metavar="P", help="Port of the first site; the next ones and control follow."),
    ] = None,
    sites: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A world of your own (TOML).")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE.gguf", help="Serve this model in the default world."),
    ] = None,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Listen here, so that sites on other hosts may join."),
    ] = "127.0.0.1",
) -> None:
    """Start a cloud of several sites on this machine and run it until Ctrl-C.

    Real processes: PostgreSQL, NATS, control, the console, and a gateway, an agent and engines for
    each site.
    Keys, ledger and ids stay in the state folder for the next start.
    """
    from isochrone.wiring.local.up import UpOptions, run_up

    screen = Screen(live=sys.stdout.isatty())
    with screen.shown():
        run_up(
            UpOptions(state=state_folder(state), port=port, sites=sites, model=model, host=host),
            tell=screen.tell,
            on_ready=screen.ready,
        )
    print("stopped; nothing is left running")
    if not screen.was_ready:
        raise typer.Exit(INTERRUPTED)


class Screen:
    """What the user sees: a table that changes on a terminal, a line per change elsewhere."""

    def __init__(self, *, live: bool) -> None:
        self.was_ready = False
        self._began = time.monotonic()
        self._parts: dict[str, str] = {}
        self._wants_live = live
        self._live: Live | None = None

    def shown(self) -> AbstractContextManager[object]:
        """Show progress within this context."""
        if not self._wants_live:
            return nullcontext()
        from rich.live import Live

        self._live = Live(self._table(), refresh_per_second=8, transient=True)
        return self._live

    def tell(self, part: str, what: str) -> None:
        """Progress of one part of the cloud."""
        if self._parts.get(part) == what:
            return
        self._parts[part] = what
        if self._live is None:
            print(f"{self._seconds():5.1f} s  {part}: {what}", flush=True)
        elif self._live.is_started:
            self._live.update(self._table())
        else:
            print(f"{part}: {what}", flush=True)

    def ready(self, up: Mapping[str, Any], chat_model: str | None) -> None:
        """End the progress and say where everything is."""
        self.was_ready = True
        if self._live is not None:
            self._live.stop()
        print(welcome(up, chat_model, self._seconds()), flush=True)

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _table(self) -> Any:
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for part, what in self._parts.items():
            done = what == "ready"
            mark = Text("✓", style="green") if done else Spinner("dots", style="cyan")
            table.add_row(mark, part, Text(what, style="green" if done else "dim"))
        return table


def welcome(up: Mapping[str, Any], chat_model: str | None, seconds: float) -> str:
    """Endpoints, key, API address and one line to try."""
    first = up["sites"][0]
    lines = [f"\nThe cloud is up after {seconds:.1f} s: {len(up['sites'])} sites.\n"]
    lines += [
        f"  {site['name']:<12} {site['country'] or '--'}   {site['endpoint']}"
        for site in up["sites"]
    ]
    lines += [
        "",
        f"  endpoint  {first['endpoint']}",
        f"  key       {up['api_key']}",
        f"  API       {up['control']}/api/v1   (admin key in up.json)",
    ]
    lines.append(f"  console   {up['console']}   (sign in as {up['console_login']}, first password"
                 f" {up['console_password']})")
    path, data = "models", ""
    if chat_model is not None:
        body = f'{{"model":"{chat_model}","messages":[{{"role":"user","content":"Hello!"}}]}}'
        path, data = "chat/completions", f" -H 'content-type: application/json' -d '{body}'"
    lines += [
        "",
        "Try:",
        f"  curl -i {first['endpoint']}/{path} -H 'authorization: Bearer {up['api_key']}'{data}",
        "",
        "Ctrl-C stops everything.",
    ]
    return "\n".join(lines)

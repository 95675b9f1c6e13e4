"""Composition root of the console: settings in, one process run."""

import asyncio
import os
from pathlib import Path

from isochrone.adapters.network.web import UvicornServer, listen
from isochrone.adapters.packaged import WORLD_MAP
from isochrone.console.settings import ConsoleSettings
from isochrone.wiring.log import configure_log
from isochrone.wiring.settings import load
from isochrone.wiring.stopping import asked_to_stop


def run(config: Path) -> None:
    """Run the console from a settings file until SIGTERM or SIGINT."""
    settings = load(config, ConsoleSettings)
    configure_log("console")
    # The shell reads this when it is imported, and would use the present folder otherwise.
    os.environ["NICEGUI_STORAGE_PATH"] = str(settings.state)
    asyncio.run(_run(settings))


async def _run(settings: ConsoleSettings) -> None:
    from isochrone.console.app import build_app
    from isochrone.console.process import run_process

    with listen("the console", settings.host, settings.port) as listener:
        stop = asyncio.Event()
        with asked_to_stop(stop.set):
            app = build_app(settings, WORLD_MAP)
            await run_process(UvicornServer(app, listener, is_live=True), stop)

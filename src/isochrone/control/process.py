"""Runs one control process: its loops beside the API server, until asked to stop."""

import asyncio

import structlog

from isochrone.control.loops import ControlLoops
from isochrone.ports.network import WebServer

log = structlog.get_logger()


async def run_process(loops: ControlLoops, server: WebServer, stop: asyncio.Event) -> None:
    """Serve the API beside the loops, until `stop` is set or a loop fails."""
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(loops.run(), name="loops")
        serving = tasks.create_task(server.serve(), name="api")
        host, port = server.address
        log.info("control_listens", host=host, port=port)
        await stop.wait()
        server.stop()
        working.cancel()
        await asyncio.wait([serving])
    await loops.resign()
    log.info("control_stopped")

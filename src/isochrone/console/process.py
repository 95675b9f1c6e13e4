"""Runs one console process until asked to stop."""

import asyncio

import structlog

from isochrone.ports.network import WebServer

log = structlog.get_logger()


async def run_process(server: WebServer, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, or the server ends by itself."""
    serving = asyncio.ensure_future(server.serve())
    stopping = asyncio.ensure_future(stop.wait())
    host, port = server.address
    log.info("console_listens", host=host, port=port)
    try:
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        server.stop()
        await asyncio.wait([serving])
    serving.result()
    log.info("console_stopped")

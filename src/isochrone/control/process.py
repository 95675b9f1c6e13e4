"""Runs one control process: its loops beside the API server, until asked to stop."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import structlog
import uvicorn
from fastapi import FastAPI

from isochrone.control.loops import ControlLoops
from isochrone.core.errors import InvalidInput

GRACE_S = 1
BACKLOG = 512

log = structlog.get_logger()


class ApiServer(uvicorn.Server):
    """uvicorn under our own signal handling: it stops when told, not when it sees a signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises InvalidInput with what to do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise InvalidInput(
            [f"control cannot listen on {host}:{port}: {error.strerror}; choose another port"]
        ) from error


async def run_process(
    loops: ControlLoops, app: FastAPI, listener: socket.socket, stop: asyncio.Event
) -> None:
    """Serve `app` on `listener` beside the loops, until `stop` is set or a loop fails."""
    server = ApiServer(
        uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", ws="none",
            server_header=False, timeout_graceful_shutdown=GRACE_S,
        )
    )
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(loops.run(), name="loops")
        serving = tasks.create_task(server.serve([listener]), name="api")
        host, port = listener.getsockname()[:2]
        log.info("control_listens", host=host, port=port)
        await stop.wait()
        server.should_exit = True
        working.cancel()
        await asyncio.wait([serving])
    await loops.resign()
    log.info("control_stopped")

"""Runs one console process until asked to stop."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import structlog
import uvicorn
from starlette.types import ASGIApp

from isochrone.core.errors import InvalidInput

GRACE_S = 1
BACKLOG = 512

log = structlog.get_logger()


class Server(uvicorn.Server):
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
            [f"the console cannot listen on {host}:{port}: {error.strerror}; choose another port"]
        ) from error


async def run_process(app: ASGIApp, listener: socket.socket, stop: asyncio.Event) -> None:
    """Serve `app` on `listener` until `stop` is set."""
    server = Server(
        uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="on", server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
    )
    serving = asyncio.ensure_future(server.serve([listener]))
    stopping = asyncio.ensure_future(stop.wait())
    host, port = listener.getsockname()[:2]
    log.info("console_listens", host=host, port=port)
    try:
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        server.should_exit = True
        await asyncio.wait([serving])
    serving.result()
    log.info("console_stopped")

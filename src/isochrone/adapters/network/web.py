"""Serves an ASGI application with uvicorn: implements ports.network.WebServer."""

import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from isochrone.core.errors import InvalidInput

GRACE_S = 1
BACKLOG = 512


class _Quiet(uvicorn.Server):
    """uvicorn under our own signal handling: it stops when told, not when it sees a signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class UvicornServer:
    """`is_live`: the application hears of its start and end, and speaks over WebSockets."""

    def __init__(
        self, app: ASGIApp, listener: socket.socket, *, is_live: bool = False
    ) -> None:
        self._listener = listener
        self._server = _Quiet(uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="on" if is_live else "off",
            ws="auto" if is_live else "none", server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        ))

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._listener.getsockname()[:2]
        return host, port

    async def serve(self) -> None:
        await self._server.serve([self._listener])

    def stop(self) -> None:
        self._server.should_exit = True


def listen(who: str, host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises InvalidInput with what to do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise InvalidInput(
            [f"{who} cannot listen on {host}:{port}: {error.strerror}; choose another port"]
        ) from error

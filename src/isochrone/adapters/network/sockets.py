"""Network port on TCP sockets of the running event loop (asyncio or uvloop), with and without TLS.

Both loops set TCP_NODELAY on every TCP connection, so a single event of a stream never waits for
the peer's delayed acknowledgement.
"""

import asyncio
import contextlib
import resource
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import cast

from isochrone.adapters.network.accepting import Accepting
from isochrone.adapters.network.distance import Distance
from isochrone.adapters.network.secured import Arrivals, Handshakes, Secured
from isochrone.adapters.network.tls import ServerTls, client_context
from isochrone.ports.network import Address, Certificate, P, Party

BACKLOG = 2048
REFRESH_S = 2.0
TLS_HANDSHAKE_S = 10.0
MOST_HANDSHAKES = 1024  # at a time; a listener that has more of them is being attacked
TLS_SHUTDOWN_S = 2.0
LATE_S = 0.1  # a loop that is later looks once more before a connection has failed


class SocketListener:
    """One listening TCP port; with `tls` it follows the files of its certificate."""

    def __init__(
        self, server: asyncio.Server, accepting: Accepting, tls: ServerTls | None = None
    ) -> None:
        self._server = server
        self._accepting = accepting
        self._port: int = server.sockets[0].getsockname()[1]
        self._timer: asyncio.TimerHandle | None = None
        if tls is not None:
            self._follow(tls)

    @property
    def port(self) -> int:
        return self._port

    def _follow(self, tls: ServerTls) -> None:
        tls.refresh()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(REFRESH_S, self._follow, tls)

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # Not wait_closed(): from Python 3.12 on it would wait for the connections that go on.
        self._server.close()
        self._accepting.close()


class SocketNetwork:
    """Listens and connects; `Address.rtt_ms` > 0 adds that round trip to the connection.

    `shared_port`: several processes may listen on this port; the kernel deals out connections. Of
    any other port only one process has them all.
    `authorities`: a PEM file of those to trust besides the system's; raises InvalidInput when it
    cannot be used.
    """

    def __init__(
        self, *, shared_port: int | None = None, authorities: Path | None = None
    ) -> None:
        self._shared_port = shared_port
        # The system's authorities take some memory, so they are read when they are needed.
        self._tls = None if authorities is None else client_context(authorities)

    async def listen(
        self, factory: Callable[[], Party], host: str, port: int, *,
        tls: Certificate | None = None,
    ) -> SocketListener:
        _allow_open_files()
        secured = None if tls is None else ServerTls(tls)
        made = factory if secured is None else _secured_by(secured, factory)
        accepting = Accepting(made)
        try:
            server = await asyncio.get_running_loop().create_server(
                _made_by(accepting.make), host, port, backlog=BACKLOG,
                reuse_port=(port == self._shared_port) or None,
            )
        except UnicodeError as error:
            raise _no_name(host, error) from error
        accepting.follow(server)
        return SocketListener(server, accepting, secured)

    async def connect(
        self, factory: Callable[[], P], address: Address, *, timeout_s: float
    ) -> P:
        with _Limit(timeout_s):
            if address.rtt_ms <= 0:
                return await self._dial(factory, address)
            # TCP's handshake is one round trip, TLS's another.
            await asyncio.sleep(address.rtt_ms / 1000 * (2 if address.tls else 1))
            protocol = factory()
            distance = Distance(protocol, asyncio.get_running_loop(), address.rtt_ms / 2000)
            await self._dial(lambda: distance, address)
            return protocol

    async def _dial(self, factory: Callable[[], P], address: Address) -> P:
        loop = asyncio.get_running_loop()
        try:
            if not address.tls:
                made = await loop.create_connection(_made_by(factory), address.host, address.port)
                return cast(P, made[1])
            self._tls = self._tls or client_context(None)
            _, protocol = await loop.create_connection(
                _made_by(factory), address.host, address.port, ssl=self._tls,
                server_hostname=address.tls_name or address.host,
                ssl_shutdown_timeout=TLS_SHUTDOWN_S,
            )
            return cast(P, protocol)
        except UnicodeError as error:
            raise _no_name(address.host, error) from error


class _Limit:
    """As `asyncio.timeout`, but what came in time counts where the loop was too late to look; and
    in a fraction of the time, which would be a good part of what a connection takes."""

    __slots__ = ("_cancelled", "_cancelling", "_due_s", "_loop", "_task", "_timer")

    _task: asyncio.Task[object]
    _timer: asyncio.TimerHandle

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._due_s = self._loop.time() + timeout_s
        self._cancelled = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._timer = self._loop.call_at(self._due_s, self._look)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if (
            self._cancelled and self._task.uncancel() <= self._cancelling
            and kind is asyncio.CancelledError
        ):
            raise TimeoutError from error

    def _look(self) -> None:
        if self._loop.time() < self._due_s + LATE_S:
            self._expire()
        else:
            self._timer = self._loop.call_later(LATE_S, self._expire)

    def _expire(self) -> None:
        self._cancelled = True
        self._task.cancel()


def _no_name(host: str, error: UnicodeError) -> OSError:
    """A name that cannot be one in the DNS (an empty label, one of more than 63 bytes) is a place
    where nobody listens, not a fault of this process."""
    return OSError(f"{host} cannot be a host's name: {error}")


def _made_by(factory: Callable[[], Party]) -> Callable[[], asyncio.Protocol]:
    """What a loop calls it: neither loop asks for more than the methods."""
    return cast(Callable[[], asyncio.Protocol], factory)


def _allow_open_files() -> None:
    """Every connection is an open file, and many systems begin with 1024 for each process."""
    most, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != allowed:
        with contextlib.suppress(OSError, ValueError):  # some systems have a limit behind the limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))


def _secured_by(tls: ServerTls, factory: Callable[[], Party]) -> Callable[[], Party]:
    handshakes = Handshakes(MOST_HANDSHAKES)
    arrivals = Arrivals()
    return lambda: Secured(
        tls.context, factory, handshake_s=TLS_HANDSHAKE_S, shutdown_s=TLS_SHUTDOWN_S,
        handshakes=handshakes, arrivals=arrivals,
    )

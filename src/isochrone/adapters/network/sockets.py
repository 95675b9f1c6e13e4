"""Network port on TCP sockets of the running event loop (asyncio or uvloop), with TLS outwards.

Both loops set TCP_NODELAY on every TCP connection, so a single event of a stream never waits for
the peer's delayed acknowledgement.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import TypeVar

from isochrone.adapters.network.distance import Distance
from isochrone.ports.network import Address

P = TypeVar("P", bound=asyncio.Protocol)

BACKLOG = 2048


class SocketListener:
    """One listening TCP port."""

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server
        self._port: int = server.sockets[0].getsockname()[1]

    @property
    def port(self) -> int:
        return self._port

    async def close(self) -> None:
        # Not wait_closed(): from Python 3.12 on it would wait for the connections that go on.
        self._server.close()


class SocketNetwork:
    """Listens and connects; `Address.rtt_ms` > 0 adds that round trip to the connection.

    `reuse_port`: several processes may listen on one port; the kernel deals out connections.
    """

    def __init__(self, *, reuse_port: bool = False) -> None:
        self._reuse_port = reuse_port
        self._tls: ssl.SSLContext | None = None

    async def listen(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> SocketListener:
        server = await asyncio.get_running_loop().create_server(
            factory, host, port, backlog=BACKLOG, reuse_port=self._reuse_port or None
        )
        return SocketListener(server)

    async def connect(
        self, factory: Callable[[], P], address: Address, *, timeout_s: float
    ) -> P:
        async with asyncio.timeout(timeout_s):
            if address.rtt_ms <= 0:
                return await self._dial(factory, address)
            await asyncio.sleep(address.rtt_ms / 1000)  # the handshake is one round trip
            protocol = factory()
            distance = Distance(protocol, asyncio.get_running_loop(), address.rtt_ms / 2000)
            await self._dial(lambda: distance, address)
            return protocol

    async def _dial(self, factory: Callable[[], P], address: Address) -> P:
        if address.tls and self._tls is None:
            self._tls = ssl.create_default_context()
        _, protocol = await asyncio.get_running_loop().create_connection(
            factory, address.host, address.port, ssl=self._tls if address.tls else None
        )
        return protocol

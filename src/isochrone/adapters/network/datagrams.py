"""Listens for datagrams on a UDP socket of the running event loop (asyncio or uvloop)."""

import asyncio
from collections.abc import Callable


class DatagramListener:
    """One UDP port."""

    def __init__(self, transport: asyncio.DatagramTransport) -> None:
        self._transport = transport
        self._port: int = transport.get_extra_info("sockname")[1]

    @property
    def port(self) -> int:
        return self._port

    async def close(self) -> None:
        self._transport.close()


async def listen_datagrams(
    factory: Callable[[], asyncio.DatagramProtocol], host: str, port: int
) -> DatagramListener:
    """Give datagrams to `host` and `port` (0: any) to a protocol. Raises OSError when the port is
    taken."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(factory, local_addr=(host, port))
    return DatagramListener(transport)

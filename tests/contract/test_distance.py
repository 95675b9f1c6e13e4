"""Emulated distance on real sockets: a round trip takes the stated time, bytes keep their order."""

import asyncio
import socket
from typing import cast

import pytest
import uvloop

from isochrone.adapters.network.sockets import SocketNetwork
from isochrone.ports.network import Address

RTT_MS = 60.0


class Echo(asyncio.Protocol):
    """Sends back what it gets."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Gather(Echo):
    """Keeps what comes, and when."""

    def __init__(self) -> None:
        self.got = b""
        self.at_s: list[float] = []
        self.more = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.got += data
        self.at_s.append(asyncio.get_running_loop().time())
        self.more.set()

    async def until(self, size_bytes: int) -> None:
        while len(self.got) < size_bytes:
            self.more.clear()
            await self.more.wait()


def test_a_round_trip_takes_its_time_and_keeps_order() -> None:
    async def main() -> None:
        network = SocketNetwork()
        listener = await network.listen(Echo, "127.0.0.1", 0)
        address = Address(host="127.0.0.1", port=listener.port, rtt_ms=RTT_MS)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        far = await network.connect(Gather, address, timeout_s=5)
        assert loop.time() - began_s >= RTT_MS / 1000 - 0.002
        sock = far.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        began_s = loop.time()
        sent = b"".join(b"%06d" % i for i in range(20_000))
        for at in range(0, len(sent), 997):
            far.transport.write(sent[at : at + 997])
        await far.until(len(sent))
        assert far.at_s[0] - began_s >= RTT_MS / 1000 - 0.004  # two timers of 1 ms
        assert far.got == sent
        far.transport.close()
        await listener.close()

    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(main(), 30))


def test_nobody_near_enough_within_the_deadline() -> None:
    async def main() -> None:
        network = SocketNetwork()
        listener = await network.listen(Echo, "127.0.0.1", 0)
        address = Address(host="127.0.0.1", port=listener.port, rtt_ms=5000)
        with pytest.raises(TimeoutError):
            await network.connect(Gather, address, timeout_s=0.05)
        await listener.close()

    asyncio.run(main())

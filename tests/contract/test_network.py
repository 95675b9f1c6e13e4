"""The Network port: one suite on live sockets (near and far) and on the twin's memory."""

import asyncio
import resource
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar, cast

import pytest
import uvloop

from isochrone.adapters.network.sockets import SocketNetwork
from isochrone.ports.network import Address, Network, Party
from isochrone.twin import loop as virtual
from isochrone.twin.network import Wire

Main = Callable[[Network], Awaitable[None]]
P = TypeVar("P", bound=Party)


def run_live(main: Main) -> None:
    async def go() -> None:
        async with asyncio.timeout(30):
            await main(SocketNetwork())

    asyncio.run(go())


def run_uvloop(main: Main) -> None:
    async def go() -> None:
        async with asyncio.timeout(30):
            await main(SocketNetwork())

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(go())


class DistantNetwork(SocketNetwork):
    """Sockets with 20 ms of emulated round trip on every connection."""

    async def connect(self, factory: Callable[[], P], address: Address, *, timeout_s: float) -> P:
        return await super().connect(factory, replace(address, rtt_ms=20), timeout_s=timeout_s)


def run_distant(main: Main) -> None:
    async def go() -> None:
        async with asyncio.timeout(30):
            await main(DistantNetwork())

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(go())


def run_memory(main: Main) -> None:
    async def go() -> None:
        await main(Wire(asyncio.get_running_loop()).process("test"))

    virtual.run(go())


@pytest.fixture(
    params=[run_live, run_uvloop, run_distant, run_memory],
    ids=["asyncio", "uvloop", "distant", "memory"],
)
def run(request: pytest.FixtureRequest) -> Callable[[Main], None]:
    chosen: Callable[[Main], None] = request.param
    return chosen


class Recorder(asyncio.Protocol):
    """Notes every call in order; `wait_for` returns once a call of that kind has been seen."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.received = b""
        self.transport: asyncio.Transport | None = None
        self._changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods of asyncio.Transport, but not the class
        self.transport = cast(asyncio.Transport, transport)
        self._note("made")

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._note("data")

    def eof_received(self) -> bool | None:
        self._note("eof")
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._note("lost" if exc is None else f"lost:{type(exc).__name__}")

    def pause_writing(self) -> None:
        self._note("pause")

    def resume_writing(self) -> None:
        self._note("resume")

    def _note(self, call: str) -> None:
        if not self.calls or self.calls[-1] != call:
            self.calls.append(call)
        self._changed.set()

    @property
    def open(self) -> asyncio.Transport:
        assert self.transport is not None
        return self.transport

    async def until(self, holds: Callable[["Recorder"], bool]) -> None:
        while not holds(self):
            self._changed.clear()
            await self._changed.wait()


async def pair(
    network: Network, serves: type[Recorder] = Recorder
) -> tuple[Recorder, Recorder]:
    servers: list[Recorder] = []

    def serve() -> Recorder:
        servers.append(serves())
        return servers[-1]

    listener = await network.listen(serve, "127.0.0.1", 0)
    address = Address(host="127.0.0.1", port=listener.port)
    client = await network.connect(Recorder, address, timeout_s=5)
    client.open.write(b"hello")
    while not servers:
        await asyncio.sleep(0.001)
    await servers[0].until(lambda r: r.received == b"hello")
    await listener.close()
    return client, servers[0]


def test_bytes_arrive_in_order_and_close_ends_both_sides(run: Callable[[Main], None]) -> None:
    async def main(network: Network) -> None:
        client, server = await pair(network)
        for i in range(100):
            client.open.write(b"%03d" % i)
        client.open.close()
        await server.until(lambda r: r.calls[-1] == "lost")
        await client.until(lambda r: r.calls[-1] == "lost")
        assert server.received == b"hello" + b"".join(b"%03d" % i for i in range(100))
        assert server.calls == ["made", "data", "eof", "lost"]
        assert client.calls == ["made", "lost"]

    run(main)


def test_abort_ends_the_other_side_too(run: Callable[[Main], None]) -> None:
    async def main(network: Network) -> None:
        client, server = await pair(network)
        client.open.abort()
        await server.until(lambda r: r.calls[-1].startswith("lost"))
        await client.until(lambda r: r.calls[-1] == "lost")

    run(main)


def test_a_writer_is_paused_by_a_reader_that_does_not_read(run: Callable[[Main], None]) -> None:
    async def main(network: Network) -> None:
        client, server = await pair(network)
        server.open.pause_reading()
        piece = b"x" * 65_536
        sent = 0
        while "pause" not in client.calls and sent < 4096:
            client.open.write(piece)
            sent += 1
            await asyncio.sleep(0)
        assert "pause" in client.calls
        server.open.resume_reading()
        await client.until(lambda r: "resume" in r.calls)
        await server.until(lambda r: len(r.received) == 5 + sent * len(piece))
        client.open.close()
        await server.until(lambda r: r.calls[-1] == "lost")

    run(main)


def test_nothing_comes_after_close(run: Callable[[Main], None]) -> None:
    """However much had arrived: a protocol that has ended its connection is done with it."""

    class Once(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if b"x" in data:
                self.pieces += 1
                self.open.close()

        pieces = 0

    async def main(network: Network) -> None:
        client, server = await pair(network, serves=Once)
        server.open.pause_reading()
        for _ in range(64):
            client.open.write(b"x" * 65_536)
        server.open.resume_reading()
        await server.until(lambda r: r.calls[-1].startswith("lost"))
        assert isinstance(server, Once)
        assert server.pieces == 1
        client.open.abort()
        await client.until(lambda r: r.calls[-1].startswith("lost"))

    run(main)


def test_writes_after_close_are_ignored(run: Callable[[Main], None]) -> None:
    async def main(network: Network) -> None:
        client, server = await pair(network)
        client.open.close()
        assert client.open.is_closing()
        client.open.write(b"late")
        await server.until(lambda r: r.calls[-1] == "lost")
        assert server.received == b"hello"

    run(main)


def test_nobody_listens_is_refused(run: Callable[[Main], None]) -> None:
    async def main(network: Network) -> None:
        listener = await network.listen(Recorder, "127.0.0.1", 0)
        port = listener.port
        await listener.close()
        with pytest.raises(OSError, match=r"refus|nobody|Connect"):
            await network.connect(Recorder, Address(host="127.0.0.1", port=port), timeout_s=5)

    run(main)


@pytest.mark.parametrize("host", ["a..example", "a" * 64 + ".example"])
def test_a_name_that_no_host_can_have_is_nobody(host: str, run: Callable[[Main], None]) -> None:
    async def main(network: Network) -> None:
        with pytest.raises(OSError):
            await network.connect(Recorder, Address(host=host, port=80), timeout_s=5)

    run(main)


def test_nothing_listens_under_a_name_that_no_host_can_have() -> None:
    with pytest.raises(OSError, match="cannot be a host's name"):
        asyncio.run(SocketNetwork().listen(Recorder, "a..example", 0))


def test_a_port_is_taken_once(run: Callable[[Main], None]) -> None:
    async def main(network: Network) -> None:
        first = await network.listen(Recorder, "127.0.0.1", 0)
        with pytest.raises(OSError):
            await network.listen(Recorder, "127.0.0.1", first.port)
        await first.close()

    run(main)


def test_whoever_listens_may_have_as_many_connections_as_the_system_allows() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))

    async def main(network: Network) -> None:
        listener = await network.listen(asyncio.Protocol, "127.0.0.1", 0)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
        await listener.close()

    try:
        run_live(main)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_those_who_come_together_are_let_in_together(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """However long its rounds are, the loop needs a few of them, not one for each."""

    async def main() -> None:
        counted: list[Recorder] = []

        def made() -> Recorder:
            counted.append(Recorder())
            return counted[-1]

        listener = await SocketNetwork().listen(made, "127.0.0.1", 0)
        clients = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(100)]
        for _ in range(10):
            await asyncio.sleep(0)
        assert len([each for each in counted if each.transport is not None]) == len(clients)
        for client in clients:
            client.close()
        await listener.close()
        for _ in range(10):
            await asyncio.sleep(0)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", listener.port))

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def test_only_the_port_that_is_shared_may_be_taken_twice() -> None:
    """Workers share the port of customers. Those of metrics would get a part of the customers."""
    async def main() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            shared = free.getsockname()[1]
        networks = [SocketNetwork(shared_port=shared) for _ in range(2)]
        both = [await network.listen(Recorder, "127.0.0.1", shared) for network in networks]
        other = await networks[0].listen(Recorder, "127.0.0.1", 0)
        with pytest.raises(OSError, match="in use"):
            await networks[1].listen(Recorder, "127.0.0.1", other.port)
        for listener in (*both, other):
            await listener.close()

    asyncio.run(main())


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_that_came_in_time_is_made_by_a_loop_that_is_late(
    factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """As after a pause of the machine: it is no fault of who was asked."""

    async def main() -> None:
        network = SocketNetwork()
        listener = await network.listen(Recorder, "127.0.0.1", 0)
        address = Address(host="127.0.0.1", port=listener.port)
        connecting = asyncio.create_task(network.connect(Recorder, address, timeout_s=0.2))
        await asyncio.sleep(0)
        until_s = time.monotonic() + 0.5
        while time.monotonic() < until_s:
            pass
        client = await connecting
        client.open.close()
        with pytest.raises(TimeoutError):
            await network.connect(Recorder, replace(address, rtt_ms=60_000), timeout_s=0.05)
        await listener.close()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(main(), 20))


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_who_stops_a_connection_that_is_being_made_is_told_apart_from_its_limit(
    factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main() -> None:
        network = SocketNetwork()
        away = Address(host="127.0.0.1", port=9, rtt_ms=60_000)
        connecting = asyncio.create_task(network.connect(Recorder, away, timeout_s=60))
        await asyncio.sleep(0)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05) as outer:
                await network.connect(Recorder, away, timeout_s=60)
        assert outer.expired()
        async with asyncio.timeout(60) as outer:
            with pytest.raises(TimeoutError):
                await network.connect(Recorder, away, timeout_s=0.05)
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
        assert not outer.expired()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(main(), 20))

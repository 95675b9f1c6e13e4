"""Slow clients, fast engines and slow uploads: what a gateway holds for them is bounded."""

import asyncio
import socket
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from isochrone.gateway.server import MOST_SENT_AHEAD_BYTES
from tests.fixtures.gateways import (
    DEADLINE_S,
    Client,
    GatewayCloud,
    RunningSite,
    ask,
    chat_body,
    get,
    post,
    until,
)
from tests.fixtures.loops import RunOnLoop

MB = 1_000_000
MOST_READ_BYTES = 256 * 1024  # by the event loops, at once


@pytest.fixture
def peak_bytes() -> Iterator[Any]:
    """What was allocated at most since the test began; gateway, engine and client together."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


async def a_site(cloud: GatewayCloud, **settings: Any) -> RunningSite:
    site = await cloud.add_site("frankfurt", "DE", **settings)
    await cloud.key("secret")
    await cloud.ready()
    tracemalloc.reset_peak()
    return site


async def slow_client(site: RunningSite) -> Client:
    """One whose kernel takes little ahead of it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", site.port))
    return Client(*await asyncio.open_connection(sock=sock, limit=1024))


def unsent_bytes(site: RunningSite) -> int:
    """Of all answers that the gateway holds for its clients."""
    connections: Any = site.running.server.connections
    return sum(each._transport.get_write_buffer_size() for each in connections)


def test_a_client_that_reads_hardly_anything(on_each_loop: RunOnLoop, peak_bytes: Any) -> None:
    """100 MB from an engine that is as fast as it can be."""

    async def main(cloud: GatewayCloud) -> None:
        site = await a_site(cloud)
        engine = site.engines[0]
        engine.chunks, engine.chunk_bytes = 1000, 100_000
        client = await slow_client(site)
        client.send(post(chat_body(stream=True)))
        await client.reader.readuntil(b"\r\n\r\n")
        connection: Any = next(iter(site.running.server.connections))
        await until(lambda: connection.paused)
        most = 0
        for _ in range(3000):  # far more reads than a second has events
            assert await client.reader.read(1)
            await asyncio.sleep(0)
            most = max(most, unsent_bytes(site))
        assert most < 2 * MB
        assert peak_bytes() < 12 * MB
        assert engine.sent_bytes < 50 * MB
        client.close()

    on_each_loop(main)


def test_a_slow_client_gets_everything(on_each_loop: RunOnLoop, peak_bytes: Any) -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await a_site(cloud)
        engine = site.engines[0]
        engine.chunks, engine.chunk_bytes = 150, 100_000
        client = await slow_client(site)
        client.send(post(chat_body(stream=True)))
        await client.reader.readuntil(b"\r\n\r\n")
        got, end = 0, b""
        while not end.endswith(b"\r\n0\r\n\r\n"):
            piece = await client.reader.read(65_536)
            assert piece
            got += len(piece)
            end = (end + piece)[-16:]
        assert got > 15 * MB
        assert peak_bytes() < 12 * MB
        event = cloud.all_events
        await until(event)
        assert event()[0].tokens.output == 150
        client.close()

    on_each_loop(main)


def test_many_slow_clients(on_each_loop: RunOnLoop, peak_bytes: Any) -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await a_site(cloud)
        engine = site.engines[0]
        engine.chunks, engine.chunk_bytes = 2000, 20_000
        clients = [await slow_client(site) for _ in range(10)]
        for client in clients:
            client.send(post(chat_body(stream=True)))
        connections = site.running.server.connections
        await until(lambda: len([c for c in connections if c.paused]) == 10)
        assert unsent_bytes(site) < 10 * 2 * MB
        assert peak_bytes() < 10 * 4 * MB
        for client in clients:
            client.close()
        await until(lambda: not site.running.context.exchanges)

    on_each_loop(main)


def test_answers_that_nobody_reads_are_not_made(on_each_loop: RunOnLoop) -> None:
    """A client that asks and asks, ahead of answers that it does not take."""

    async def main(cloud: GatewayCloud) -> None:
        site = await a_site(cloud)
        client = await slow_client(site)
        # Large ones, because only so many may be in one read.
        raw = get("/health").replace(b"\r\n\r\n", b"\r\nx-a: " + b"y" * 8000 + b"\r\n\r\n")
        sent = asyncio.get_running_loop().create_task(_send_all(client, raw, 40_000))
        await until(lambda: any(c.paused for c in site.running.server.connections))
        connection: Any = next(iter(site.running.server.connections))
        await until(lambda: not connection._reading)
        assert unsent_bytes(site) < 1 * MB
        assert len(connection._ahead) <= MOST_SENT_AHEAD_BYTES + MOST_READ_BYTES
        assert not sent.done()
        sent.cancel()
        client.close()

    on_each_loop(main)


async def _send_all(client: Client, raw: bytes, times: int) -> None:
    for _ in range(times):
        client.send(raw)
        await client.writer.drain()


def test_answers_wait_until_they_are_taken(on_each_loop: RunOnLoop) -> None:
    """Sixty at a time, of which none is lost while the client does not read."""

    async def main(cloud: GatewayCloud) -> None:
        site = await a_site(cloud)
        site.engines[0].chunks, site.engines[0].chunk_bytes = 100, 100_000
        client = await slow_client(site)
        client.send(post(chat_body(stream=True)) + get("/health") * 60)
        await until(lambda: any(c.paused for c in site.running.server.connections))
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        body, whole = await client._chunks()
        assert whole
        assert body.count(b"data: ") > 100
        for _ in range(60):
            assert (await client.answer()).json == {"status": "ok"}
        client.close()

    on_each_loop(main)


def test_slow_uploads_are_bounded_together(on_each_loop: RunOnLoop, peak_bytes: Any) -> None:
    """Some are refused, and as soon as others have gone there is room again."""

    async def main(cloud: GatewayCloud) -> None:
        limit = 4 * MB
        site = await a_site(cloud, max_body_bytes=MB, max_uploading_bytes=limit)
        uploads = site.running.server.uploads
        clients = [await Client.open(site) for _ in range(12)]
        raw = post(chat_body(padding="x" * (MB - 200)))
        for client in clients:
            client.send(raw[:-100])
        refused = [
            asyncio.get_running_loop().create_task(client.answer()) for client in clients
        ]
        await until(lambda: len([task for task in refused if task.done()]) >= 8)
        answers = [task.result() for task in refused if task.done()]
        assert {each.status for each in answers} == {503}
        assert {each.headers["x-isochrone-reason"] for each in answers} == {"too_many_uploads"}
        await until(lambda: uploads.held_bytes <= limit)
        assert (await ask(site, post(chat_body()))).status == 200
        for client, task in zip(clients, refused, strict=True):
            if not task.done():
                client.send(raw[-100:])
                assert (await task).status == 200
        assert uploads.held_bytes == 0
        assert (await ask(site, raw)).status == 200
        for client in clients:
            client.close()
        assert peak_bytes() < 60 * MB

    on_each_loop(main)


def test_a_body_of_small_chunks_takes_no_more_than_one_of_large_ones(
    on_each_loop: RunOnLoop, peak_bytes: Any
) -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await a_site(cloud, max_body_bytes=MB)
        client = await Client.open(site)
        client.send(post(b"", headers={"content-length": "0"}).replace(
            b"content-length: 0", b"transfer-encoding: chunked"
        ))
        for _ in range(50):
            client.send(b"2\r\n  \r\n" * 5_000)
            await client.writer.drain()
        body = chat_body()
        client.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        assert (await client.answer()).status == 200
        assert peak_bytes() < 12 * MB  # as a list of pieces it was 20 MB
        client.close()

    on_each_loop(main)


@pytest.mark.parametrize(
    ("part", "raw"),
    [
        ("head", post(chat_body()).partition(b"\r\n\r\n")[0] + b"\r\nx-slow: "),
        ("body", post(chat_body(padding="x" * 500_000))[:2000]),
    ],
)
def test_who_sends_a_byte_now_and_then_is_told_that_it_took_too_long(
    on_each_loop: RunOnLoop, part: str, raw: bytes
) -> None:
    """A byte keeps no request alive, and others are served meanwhile."""

    async def main(cloud: GatewayCloud) -> None:
        site = await a_site(cloud, head_timeout_s=0.4, body_timeout_s=0.4, idle_timeout_s=60.0)
        clients = [await Client.open(site) for _ in range(20)]
        for client in clients:
            client.send(raw)
        answers = [asyncio.ensure_future(client.answer()) for client in clients]
        while not all(answer.done() for answer in answers):
            for client in clients:
                if not client.writer.is_closing():
                    client.send(b"x")
            assert (await ask(site, get("/health"))).status == 200
            await asyncio.sleep(0.02)
        for answer in answers:
            assert answer.result().status == 408
            assert answer.result().json["error"]["code"] == f"{part}_timeout"
        await until(lambda: not site.running.server.connections)
        assert site.running.server.uploads.held_bytes == 0
        assert site.engines[0].asked == []
        for client in clients:
            client.close()

    on_each_loop(main)


def test_who_asks_nothing_is_not_kept(on_each_loop: RunOnLoop) -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await a_site(cloud, idle_timeout_s=0.4)
        silent, empty, served = [await Client.open(site) for _ in range(3)]
        served.send(post(chat_body()))
        assert (await served.answer()).status == 200
        async with asyncio.timeout(DEADLINE_S):
            # Where our bytes cross its end of the connection, we see a reset instead of that end.
            while not (empty.reader.at_eof() or empty.writer.is_closing()):
                empty.send(b"\r\n")  # is no request, and keeps nothing open
                await asyncio.sleep(0.02)
        assert await silent.closed()
        assert await served.closed()
        for client in (silent, empty, served):
            client.close()

    on_each_loop(main)

"""Clients that go away, and clients that only stop sending: what is cancelled and what charged."""

import asyncio
import socket
import struct
from dataclasses import dataclass
from typing import Any

import pytest

from isochrone.core.metering.event import UsageEvent
from tests.fixtures.gateways import (
    Client,
    GatewayCloud,
    RunningSite,
    chat_body,
    get,
    post,
    until,
)
from tests.fixtures.loops import RunOnLoop
from tests.fixtures.scripted_engine import Asked, ScriptedEngine

PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
FAR = {"residency": ("DE",)}


async def a_site(cloud: GatewayCloud, *, far: bool = False) -> tuple[RunningSite, RunningSite]:
    """(ingress, serving site) of the key `secret`; the engine holds after its first event."""
    serving = await cloud.add_site("frankfurt", "DE")
    ingress = await cloud.add_site("sydney", "AU", engines=0) if far else serving
    await cloud.key("secret", **(FAR if far else {}))
    await cloud.ready()
    serving.engines[0].hold.clear()
    return ingress, serving


async def ask_and_wait(ingress: RunningSite, serving: RunningSite, *, stream: bool) -> Client:
    """A client whose request is being worked on; it has read everything that was sent."""
    client = await Client.open(ingress)
    client.send(post(chat_body(stream=stream)))
    await until(lambda: serving.engines[0].asked)
    if stream:
        await client.reader.readuntil(b"xxxx")
        await client.reader.readuntil(b"\r\n")
    return client


def close(client: Client, how: str) -> None:
    """As a process that ends does it: with or without a reset."""
    sock = client.writer.get_extra_info("socket")
    if how == "reset":
        linger = struct.pack("ii", 1, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    client.writer.close()


async def billed(cloud: GatewayCloud, reporter: str = "ingress") -> UsageEvent:
    found: list[UsageEvent] = []

    def arrived() -> bool:
        found[:] = [event for event in cloud.all_events() if event.reporter == reporter]
        return bool(found)

    await until(arrived)
    return found[-1]


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("far", [False, True])
def test_a_client_that_closes_cancels_the_engine(
    on_each_loop: RunOnLoop, how: str, stream: bool, far: bool
) -> None:
    async def main(cloud: GatewayCloud) -> None:
        ingress, serving = await a_site(cloud, far=far)
        client = await ask_and_wait(ingress, serving, stream=stream)
        close(client, how)
        await until(lambda: serving.engines[0].cancelled == 1)
        for reporter in ("ingress", "evidence") if far else ("ingress",):
            event = await billed(cloud, reporter)
            assert (event.outcome, event.tokens.output) == ("client_gone", int(stream))
            assert event.status == (200 if stream else 499)
        await until(lambda: not ingress.running.server.connections)
        assert not ingress.running.context.exchanges
        assert not serving.running.context.exchanges

    on_each_loop(main)


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_had_sent_too_much_ahead_and_closes(
    on_each_loop: RunOnLoop, how: str, stream: bool
) -> None:
    """Nothing is read from it any more when it goes."""

    async def main(cloud: GatewayCloud) -> None:
        site, _ = await a_site(cloud)
        client = await ask_and_wait(site, site, stream=stream)
        connection: Any = next(iter(site.running.server.connections))
        client.send(get("/health") * 3000)
        await until(lambda: not connection._reading)
        close(client, how)
        await until(lambda: site.engines[0].cancelled == 1)
        event = await billed(cloud)
        assert (event.outcome, event.tokens.output) == ("client_gone", int(stream))

    on_each_loop(main)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_stops_sending_gets_its_answer(
    on_each_loop: RunOnLoop, stream: bool
) -> None:
    async def main(cloud: GatewayCloud) -> None:
        site, _ = await a_site(cloud)
        engine = site.engines[0]
        client = await ask_and_wait(site, site, stream=stream)
        client.writer.write_eof()
        if stream:
            assert await client.reader.readexactly(1) == b"0"
        else:
            assert await client.reader.readexactly(len(PROBE)) == PROBE
        engine.hold.set()
        if stream:
            body, whole = await client._chunks()
            assert whole
            assert body.endswith(b"data: [DONE]\n\n")
        else:
            assert (await client.answer()).json["object"] == "chat.completion"
        assert await client.closed()
        event = await billed(cloud)
        assert (event.outcome, event.tokens.output) == ("finished", 3 if stream else 2)
        assert engine.cancelled == 0
        client.close()

    on_each_loop(main)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_stops_sending_and_closes_later(
    on_each_loop: RunOnLoop, stream: bool
) -> None:
    async def main(cloud: GatewayCloud) -> None:
        site, _ = await a_site(cloud)
        client = await ask_and_wait(site, site, stream=stream)
        client.writer.write_eof()
        await client.reader.readexactly(1 if stream else len(PROBE))
        assert site.engines[0].cancelled == 0
        close(client, "reset")
        await until(lambda: site.engines[0].cancelled == 1)
        event = await billed(cloud)
        assert (event.outcome, event.tokens.output) == ("client_gone", int(stream))

    on_each_loop(main)


def test_what_was_sent_ahead_of_the_end_is_answered(on_each_loop: RunOnLoop) -> None:
    async def main(cloud: GatewayCloud) -> None:
        site, _ = await a_site(cloud)
        client = await ask_and_wait(site, site, stream=False)
        connection: Any = next(iter(site.running.server.connections))
        client.send(get("/health") * 2000)
        await until(lambda: not connection._reading)
        client.writer.write_eof()
        assert await client.reader.readexactly(len(PROBE)) == PROBE
        site.engines[0].hold.set()
        assert (await client.answer()).json["object"] == "chat.completion"
        answers = await client.reader.read()
        assert answers.count(b"HTTP/1.1 200 OK") == 64  # so many may be ahead
        assert answers.count(b"HTTP/1.1 400 Bad Request") == 1
        client.close()

    on_each_loop(main)


def test_old_http_cannot_be_asked_whether_it_is_there(on_each_loop: RunOnLoop) -> None:
    """HTTP/1.0 has no interim answers and no chunks, so an end of its sending counts as its end."""

    async def main(cloud: GatewayCloud) -> None:
        site, _ = await a_site(cloud)
        client = await Client.open(site)
        client.send(post(chat_body()).replace(b"HTTP/1.1", b"HTTP/1.0"))
        await until(lambda: site.engines[0].asked)
        client.writer.write_eof()
        await until(lambda: site.engines[0].cancelled == 1)
        assert (await billed(cloud)).outcome == "client_gone"
        client.close()

    on_each_loop(main)


@pytest.mark.parametrize("far", [False, True])
def test_a_client_that_goes_before_the_first_byte_of_its_stream(
    on_each_loop: RunOnLoop, far: bool
) -> None:
    async def main(cloud: GatewayCloud) -> None:
        ingress, serving = await a_site(cloud, far=far)
        serving.engines[0].silent = True
        client = await Client.open(ingress)
        client.send(post(chat_body(stream=True)))
        await until(lambda: serving.engines[0].asked)
        close(client, "close")
        await until(lambda: serving.engines[0].cancelled == 1)
        event = await billed(cloud)
        assert (event.outcome, event.status) == ("client_gone", 499)
        assert (event.tokens.total, event.tokens.source) == (0, "none")
        assert not serving.running.context.exchanges

    on_each_loop(main)


@dataclass(slots=True, kw_only=True)
class SlowCounter(ScriptedEngine):
    """Answers at once, and says how many tokens a text has when nobody waits for it any more."""

    one_choice: bool = True
    counting: int = 0

    async def _answer(
        self, asked: Asked, writer: asyncio.StreamWriter, reader: asyncio.StreamReader
    ) -> None:
        if asked.path == "/tokenize":
            self.counting += 1
            await reader.read(1)
            raise ConnectionResetError
        await ScriptedEngine._answer(self, asked, writer, reader)


def test_a_client_that_goes_while_its_choices_are_counted_pays_for_them(
    on_each_loop: RunOnLoop,
) -> None:
    """They were made; the count is that of the first choice's bytes a token."""

    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site(
            "frankfurt", "DE", make_engine=SlowCounter, replica={"usage_counts_one_choice": True}
        )
        await cloud.key("secret")
        await cloud.ready()
        (engine,) = site.engines
        assert isinstance(engine, SlowCounter)
        client = await Client.open(site)
        client.send(post(chat_body(n=2)))
        await until(lambda: engine.counting)
        close(client, "close")
        event = await billed(cloud)
        assert (event.outcome, event.status) == ("client_gone", 499)
        tokens = event.tokens
        assert (tokens.input_uncached + tokens.input_cached, tokens.source) == (10, "counted")
        assert tokens.output >= 4

    on_each_loop(main)


def test_a_client_that_goes_while_it_is_slow(on_each_loop: RunOnLoop) -> None:
    """The engine is paused for it then, and nothing is written to it."""

    async def main(cloud: GatewayCloud) -> None:
        site, _ = await a_site(cloud)
        engine = site.engines[0]
        engine.hold.set()
        engine.chunks, engine.chunk_bytes = 400, 100_000
        client = await Client.open(site)
        client.send(post(chat_body(stream=True)))
        await until(lambda: any(c.paused for c in site.running.server.connections))
        client.close()
        await until(lambda: not site.running.context.exchanges)
        event = await billed(cloud)
        assert (event.outcome, event.status) == ("client_gone", 200)
        assert 0 < event.tokens.output < 400
        await until(lambda: not engine._writers)

    on_each_loop(main)


def test_a_hundred_clients_that_go_at_once(on_each_loop: RunOnLoop) -> None:
    async def main(cloud: GatewayCloud) -> None:
        site, _ = await a_site(cloud)
        clients = [await Client.open(site) for _ in range(100)]
        for at, client in enumerate(clients):
            client.send(post(chat_body(stream=at % 2 == 0)))
        await until(lambda: len(site.engines[0].asked) == 100)
        await asyncio.gather(*(c.reader.readuntil(b"xxxx") for c in clients[::2]))
        for client in clients:
            close(client, "close")
        await until(lambda: site.engines[0].cancelled == 100)
        await until(lambda: len(cloud.all_events()) == 100)
        assert {event.outcome for event in cloud.all_events()} == {"client_gone"}
        assert sum(event.tokens.output for event in cloud.all_events()) == 50

    on_each_loop(main)

"""Gateways with TLS on every side: clients, engines and peers, on both loops."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from isochrone.adapters.network.sockets import SocketNetwork
from isochrone.adapters.network.tls import client_context, server_context
from isochrone.ports.network import Certificate
from tests.fixtures.certificates import Authority
from tests.fixtures.gateways import (
    DEADLINE_S,
    MODEL,
    Answer,
    Client,
    GatewayCloud,
    RunningSite,
    a_cloud,
    ask,
    chat_body,
    post,
)
from tests.fixtures.scripted_engine import ScriptedEngine

Main = Callable[[GatewayCloud], Awaitable[None]]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest, authority: Authority) -> Callable[[Main], None]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def go(main: Main) -> None:
        async def within() -> None:
            async with asyncio.timeout(2 * DEADLINE_S), a_cloud() as cloud:
                cloud.network = SocketNetwork(authorities=authority.file)
                await main(cloud)

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(within())

    return go


class SecureEngine(ScriptedEngine):
    """An engine behind TLS."""

    certificate: Certificate | None = None

    async def start(self) -> None:
        assert self.certificate is not None
        self.hold.set()
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, ssl=server_context(self.certificate)
        )
        self.port = self._server.sockets[0].getsockname()[1]


async def secure(site: RunningSite, authority: Authority) -> Client:
    context = client_context(authority.file)
    return Client(*await asyncio.open_connection("127.0.0.1", site.port, ssl=context))


async def ask_securely(site: RunningSite, authority: Authority, raw: bytes) -> Answer:
    client = await secure(site, authority)
    try:
        client.send(raw)
        return await client.answer()
    finally:
        client.close()


def test_clients_and_engines_with_tls(run: Callable[[Main], None], authority: Authority) -> None:
    certificate = authority.certificate("127.0.0.1")

    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU", certificate=certificate)
        await cloud.key("secret")
        await cloud.ready()
        engine = SecureEngine()
        engine.certificate, engine.chunks, engine.chunk_bytes = certificate, 500, 4096
        await engine.start()
        sydney.engines.append(engine)
        url = f"https://127.0.0.1:{engine.port}/v1"
        client = await secure(sydney, authority)
        client.send(post(chat_body(stream=True)))  # from an engine without TLS
        assert (await client.answer()).events[-1] == "[DONE]"
        await cloud.deploy("sydney", MODEL, {"base_url": url, "generation": 2})
        while not engine.asked:
            client.send(post(chat_body()))  # one connection after the other
            answer = await client.answer()
            assert (answer.status, answer.whole) == (200, True)
        client.send(post(chat_body(stream=True)))
        answer = await client.answer()
        assert (answer.status, answer.whole, answer.events[-1]) == (200, True, "[DONE]")
        assert len(answer.body) > 500 * 4096
        client.close()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await ask(sydney, post(chat_body()))  # without TLS

    run(main)


def test_a_refusal_from_the_head_arrives_whole(
    run: Callable[[Main], None], authority: Authority
) -> None:
    certificate = authority.certificate("127.0.0.1")

    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU", certificate=certificate)
        await cloud.key("secret")
        await cloud.ready()
        for _ in range(10):
            raw = post(b"x" * 1_000_000, key="wrong")
            assert (await ask_securely(sydney, authority, raw)).status == 401

    run(main)


def test_hops_are_encrypted_and_verified(
    run: Callable[[Main], None], authority: Authority
) -> None:
    good = authority.certificate("127.0.0.1")
    bad = authority.certificate("elsewhere.test", file="bad")

    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU")
        await cloud.add_site("frankfurt", "DE", certificate=good)
        paris = await cloud.add_site("paris", "FR", certificate=bad)
        await cloud.key("german", residency=("DE",))
        await cloud.key("french", residency=("FR",))
        await cloud.ready()
        for stream in (False, True):
            answer = await ask(sydney, post(chat_body(stream=stream), key="german"))
            assert (answer.status, answer.whole) == (200, True)
            assert answer.headers["x-isochrone-site"] == "frankfurt"
        answer = await ask(sydney, post(chat_body(), key="french"))
        assert answer.status == 503
        assert paris.engines[0].asked == []

    run(main)

"""Engines that fail late, and connections that were closing: tried elsewhere, within the budget."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.contract.test_bad_answers import LENGTH, OK, WHOLE
from tests.fixtures.gateways import MODEL, GatewayCloud, ask, chat_body, post, until
from tests.fixtures.loops import RunOnLoop

CONNECT_S = 0.2
LATE_S = 0.4
BUSY = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"


class MoodyEngine:
    """Answers the first request of a connection, unless it `fails`: then it closes, or says `last`,
    after `after_s`. It closes at the second request of a connection."""

    def __init__(self) -> None:
        self.fails = False
        self.last = b""
        self.after_s = 0.0
        self.asked = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._take(reader)
            if not self.fails:
                writer.write(OK + LENGTH + b"\r\n" + WHOLE)
                await self._take(reader)
            else:
                await asyncio.sleep(self.after_s)
                writer.write(self.last)
        writer.close()

    async def _take(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        self.asked += 1


@asynccontextmanager
async def moody_engine() -> AsyncIterator[tuple[MoodyEngine, str]]:
    """(engine, its base URL)."""
    engine = MoodyEngine()
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    try:
        yield engine, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()


@pytest.mark.parametrize("last", [b"", BUSY])
@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_late_is_no_connect_time_out(
    on_each_loop: RunOnLoop, last: bytes, stream: bool
) -> None:
    """It was connected at once, so another site has all the time to be."""

    async def main(cloud: GatewayCloud) -> None:
        async with moody_engine() as (engine, url):
            engine.fails, engine.last, engine.after_s = True, last, LATE_S
            near = await cloud.add_site(
                "frankfurt", "DE", connect_timeout_s=CONNECT_S, replica={"base_url": url}
            )
            await cloud.add_site("paris", "FR")
            await cloud.link("frankfurt", "paris", 1.0)
            secret = await cloud.key("secret")
            await cloud.ready()
            got = await ask(near, post(chat_body(stream=stream), key=secret))
            assert engine.asked == 1
            assert (got.status, got.headers["x-isochrone-site"]) == (200, "paris")
            told = {each.reporter: each for each in await cloud.events(got.request_id, 2)}
            assert told["ingress"].attempts == 2

    on_each_loop(main)


def test_a_connection_that_was_closing_costs_a_retry(on_each_loop: RunOnLoop) -> None:
    async def main(cloud: GatewayCloud) -> None:
        async with moody_engine() as (engine, url):
            site = await cloud.add_site(
                "frankfurt", "DE", retry_ratio=0.0, retry_min_per_s=0.1,  # one retry in ten seconds
            )
            secret = await cloud.key("secret")
            await cloud.deploy("frankfurt", MODEL, {"base_url": url})
            await cloud.ready()
            replicas = site.running.context.view.replicas
            await until(lambda: {each.base_url for each in replicas._by_entry.values()} == {url})
            attempts, reasons = [], []
            for _ in range(4):
                got = await ask(site, post(chat_body(), key=secret))
                reasons.append(got.headers.get("x-isochrone-reason"))
                attempts.append((await cloud.events(got.request_id))[0].attempts)
            assert reasons == [None, None, "retry_budget", None]
            assert attempts == [1, 2, 1, 1]
            assert engine.asked == sum(attempts)

    on_each_loop(main)

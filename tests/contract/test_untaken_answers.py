"""Answers that clients are still taking when their gateway is told to stop."""

import asyncio

from tests.contract.test_back_pressure import slow_client
from tests.contract.test_bad_answers import OK, a_site, raw_engine
from tests.fixtures.gateways import Client, GatewayCloud, RunningSite, chat_body, post, until
from tests.fixtures.loops import RunOnLoop

FULL = b'{"choices":[],"x":"%b","usage":{"prompt_tokens":1,"completion_tokens":1}}' % (
    b"y" * 8_000_000
)


async def answered(site: RunningSite, client: Client) -> None:
    """The request is over for the gateway, which holds most of its answer."""
    client.send(post(chat_body()))
    await client.reader.readuntil(b"\r\n\r\n")
    await until(lambda: not site.running.context.exchanges)
    assert site.running.server.is_waited_for


def test_a_whole_answer_is_taken_to_its_end(on_each_loop: RunOnLoop) -> None:
    async def main(cloud: GatewayCloud) -> None:
        async with raw_engine() as (engine, url):
            site = await a_site(cloud, url)
            engine.answer = OK + b"content-length: %d\r\n\r\n%b" % (len(FULL), FULL)
            client = await slow_client(site)
            await answered(site, client)
            site.stop.set()
            await until(lambda: site.running.context.stopping)
            assert await client.reader.readexactly(len(FULL)) == FULL
            assert site.task is not None
            await asyncio.wait_for(site.task, 20)
            client.close()

    on_each_loop(main)


def test_nobody_is_waited_for_for_ever(on_each_loop: RunOnLoop) -> None:
    async def main(cloud: GatewayCloud) -> None:
        async with raw_engine() as (engine, url):
            site = await a_site(cloud, url, drain_timeout_s=0.3)
            engine.answer = OK + b"content-length: %d\r\n\r\n%b" % (len(FULL), FULL)
            client = await slow_client(site)
            await answered(site, client)
            site.stop.set()
            assert site.task is not None
            await asyncio.wait_for(site.task, 20)
            client.close()

    on_each_loop(main)

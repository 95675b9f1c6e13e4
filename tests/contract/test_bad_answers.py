"""Engines that answer nonsense: clients get a typed error, or an answer from another engine."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from isochrone.core.admission.retry_budget import RetryBudget
from isochrone.core.metering.event import Tokens
from tests.fixtures.gateways import (
    MODEL,
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

OK = b"HTTP/1.1 200 OK\r\n"
EVENTS = OK + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
WHOLE = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
LENGTH = b"content-length: %d\r\n" % len(WHOLE)
FULL = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: %b\r\ncontent-length: 0\r\n\r\n"

NONSENSE = {
    "nothing": b"",
    "no http": b"hello\r\n\r\n",
    "bad status": b"HTTP/1.1 2x0 OK\r\n" + LENGTH + b"\r\n" + WHOLE,
    "status of no class": b"HTTP/1.1 099 OK\r\n" + LENGTH + b"\r\n" + WHOLE,
    "status beyond all": b"HTTP/1.1 999 OK\r\n" + LENGTH + b"\r\n" + WHOLE,
    "compressed": OK + LENGTH + b"content-encoding: gzip\r\n\r\n" + WHOLE,
    "another version": b"HTTP/2.0 200 OK\r\n" + LENGTH + b"\r\n" + WHOLE,
    "both framings": OK + LENGTH + b"transfer-encoding: chunked\r\n\r\n" + WHOLE,
    "two lengths": OK + LENGTH + b"content-length: 1\r\n\r\n" + WHOLE,
    "folded": OK + b"x: a\r\n b\r\n" + LENGTH + b"\r\n" + WHOLE,
    "bare line feeds": b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
    "unknown coding": OK + b"transfer-encoding: gzip\r\n\r\n" + WHOLE,
    "endless head": OK + b"x: " + b"y" * 400_000,
    "endless headers": OK + b"x: y\r\n" * 100_000,
    "endless interim answers": b"HTTP/1.1 100 Continue\r\n\r\n" * 30_000,
    "switched protocols": b"HTTP/1.1 101 Yes\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n\0\1\2",
    "part of a body": OK + LENGTH + b"\r\n" + WHOLE[:10],
    "part of a head": OK + b"content-le",
    "bad chunk": OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n" + WHOLE,
    "a redirect": b"HTTP/1.1 302 Found\r\nlocation: http://a/\r\n" + LENGTH + b"\r\n" + WHOLE,
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "a page": OK + b"content-type: text/html\r\ncontent-length: 13\r\n\r\n<html></html>",
    "an empty answer": OK + b"content-length: 0\r\n\r\n",
    "half an object": OK + b"content-length: 10\r\n\r\n" + WHOLE[:10],
    "endless trailers": OK + b"transfer-encoding: chunked\r\n\r\n0\r\nx: " + b"y" * 400_000,
}
SENSE = {
    "plain": OK + LENGTH + b"\r\n" + WHOLE,
    "interim answers": b"HTTP/1.1 100 Continue\r\n\r\n"
    b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" + OK + LENGTH + b"\r\n" + WHOLE,
    "up to the end": OK + b"\r\n" + WHOLE,
    "more than an answer": OK + LENGTH + b"\r\n" + WHOLE + OK + b"content-length: 4\r\n\r\nevil",
    "an answer and noise": OK + LENGTH + b"\r\n" + WHOLE + b"\0\0\0",
    "old": b"HTTP/1.0 200 OK\r\n\r\n" + WHOLE,
}


class RawEngine:
    """Answers every request with the same bytes, with `rest` once it `may_go_on`, and ends the
    connection."""

    def __init__(self) -> None:
        self.answer = self.rest = b""
        self.may_go_on = asyncio.Event()
        self.asked = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            self.asked += 1
            writer.write(self.answer)
            await writer.drain()
            if self.rest:
                await self.may_go_on.wait()
                writer.write(self.rest)
        writer.close()


@asynccontextmanager
async def raw_engine() -> AsyncIterator[tuple[RawEngine, str]]:
    """(engine, its base URL)."""
    engine = RawEngine()
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield engine, f"http://127.0.0.1:{port}/v1"
    finally:
        server.close()


async def a_site(cloud: GatewayCloud, url: str, **settings: Any) -> RunningSite:
    """Its only engine is the one at `url`, and is always tried again."""
    site = await cloud.add_site(
        "frankfurt", "DE", breaker_failures=20, breaker_failure_rate=1.0, retry_min_per_s=1000.0,
        breaker_first_hold_s=0.01, breaker_longest_hold_s=0.01, **settings,
    )
    await cloud.key("secret")
    await cloud.deploy("frankfurt", MODEL, {"base_url": url})
    await cloud.ready()
    await until(lambda: replica_urls(site) == {url})
    return site


def replica_urls(site: RunningSite) -> set[str]:
    return {each.base_url for each in site.running.context.view.replicas._by_entry.values()}


@pytest.mark.parametrize("stream", [False, True])
def test_nonsense_is_a_typed_error(on_each_loop: RunOnLoop, stream: bool) -> None:
    async def main(cloud: GatewayCloud) -> None:
        async with raw_engine() as (engine, url):
            site = await a_site(cloud, url)
            for name, answer in NONSENSE.items():
                engine.answer, engine.asked = answer, 0
                async with asyncio.timeout(20):
                    while not engine.asked:  # its breaker may be open for a moment
                        got = await ask(site, post(chat_body(stream=stream)))
                assert (got.status, got.headers["x-isochrone-reason"]) == (
                    503, "no_healthy_site"
                ), name
                assert got.json["error"]["message"], name
                event = (await cloud.events(got.request_id))[0]
                assert (event.outcome, event.tokens.total) == ("refused", 0), name
                assert (await ask(site, get("/health"))).status == 200
            assert not site.running.context.exchanges

    on_each_loop(main)


def test_engines_that_take_no_more_say_when_to_come_back(on_each_loop: RunOnLoop) -> None:
    async def main(cloud: GatewayCloud) -> None:
        async with raw_engine() as (engine, url):
            site = await a_site(cloud, url)
            for said, told in ((b"7", "7"), (b"0", "1"), (b"soon", "1"), (b"9" * 40, "1")):
                engine.answer = FULL % said
                got = await ask(site, post(chat_body()))
                assert (got.status, got.headers["x-isochrone-reason"]) == (429, "queue_full")
                assert got.headers["retry-after"] == told
                event = (await cloud.events(got.request_id))[0]
                assert (event.outcome, event.tokens.total) == ("refused", 0)
            engine.answer = OK + LENGTH + b"\r\n" + WHOLE  # and it was not taken for broken
            assert (await ask(site, post(chat_body()))).status == 200

    on_each_loop(main)


def test_engines_that_take_no_more_say_so_when_no_retry_is_left(on_each_loop: RunOnLoop) -> None:
    async def main(cloud: GatewayCloud) -> None:
        async with raw_engine() as (engine, url):
            site = await a_site(cloud, url, engines=2)
            context = site.running.context
            await until(lambda: context.view.replicas.are_several(site.site.name, MODEL))
            context.retries = RetryBudget(0.0, 0.0)
            engine.answer = FULL % b"7"
            got = await ask(site, post(chat_body()))
            assert (got.status, got.headers["x-isochrone-reason"]) == (429, "queue_full")
            assert got.headers["retry-after"] == "7"
            engine.answer = b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"
            got = await ask(site, post(chat_body()))
            assert (got.status, got.headers["x-isochrone-reason"]) == (503, "retry_budget")

    on_each_loop(main)


def test_an_engine_alone_takes_no_retries_from_others(on_each_loop: RunOnLoop) -> None:
    async def main(cloud: GatewayCloud) -> None:
        async with raw_engine() as (engine, url):
            site = await a_site(cloud, url)
            retries = site.running.context.retries = RetryBudget(0.0, 0.3)  # three
            engine.answer = FULL % b"7"
            for _ in range(5):
                got = await ask(site, post(chat_body()))
                assert (got.status, got.headers["retry-after"]) == (429, "7")
            assert (retries.spent, retries.refused) == (0, 0)

    on_each_loop(main)


def test_what_makes_sense_comes_through(on_each_loop: RunOnLoop) -> None:
    async def main(cloud: GatewayCloud) -> None:
        async with raw_engine() as (engine, url):
            site = await a_site(cloud, url)
            for name, answer in SENSE.items():
                engine.answer = answer
                for _ in range(3):
                    got = await ask(site, post(chat_body()))
                    assert (got.status, got.body) == (200, WHOLE), name
            spaced = b"\r\n" + WHOLE + b" \n"
            engine.answer = OK + b"content-length: %d\r\n\r\n%b" % (len(spaced), spaced)
            got = await ask(site, post(chat_body()))
            assert (got.status, got.body) == (200, spaced)

    on_each_loop(main)


@pytest.mark.parametrize("stream", [False, True])
def test_events_are_counted_whoever_asked_for_them(on_each_loop: RunOnLoop, stream: bool) -> None:
    async def main(cloud: GatewayCloud) -> None:
        async with raw_engine() as (engine, url):
            site = await a_site(cloud, url)
            kind = b"Text/Event-Stream; charset=UTF-8"
            engine.answer = EVENTS.replace(b"text/event-stream", kind)
            done = b"data: [DONE]\n\n"
            engine.answer += CHUNK * 3 + b"%x\r\n%b\r\n0\r\n\r\n" % (len(done), done)
            got = await ask(site, post(chat_body(stream=stream)))
            assert (got.status, got.body) == (200, EVENT * 3 + done)
            event = (await cloud.events(got.request_id))[0]
            assert (event.outcome, event.tokens.output, event.tokens.source) == (
                "finished", 3, "counted"
            )

    on_each_loop(main)


def test_events_that_nobody_asked_for_are_counted_to_the_last(on_each_loop: RunOnLoop) -> None:
    async def main(cloud: GatewayCloud) -> None:
        async with raw_engine() as (engine, url):
            site = await a_site(cloud, url)
            last = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":7}}'
            engine.answer = EVENTS + CHUNK * 3 + b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last)
            got = await ask(site, post(chat_body()))
            assert (got.status, got.body) == (200, EVENT * 3 + last)
            event = (await cloud.events(got.request_id))[0]
            assert (event.outcome, event.tokens) == (
                "finished", Tokens(input_uncached=9, output=7, source="engine")
            )

    on_each_loop(main)


def test_a_chunk_goes_on_as_the_engine_framed_it(on_each_loop: RunOnLoop) -> None:
    async def main(cloud: GatewayCloud) -> None:
        async with raw_engine() as (engine, url):
            site = await a_site(cloud, url)
            odd = b"000%X\r\n%b\r\n" % (len(EVENT), EVENT)
            usage = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
            done = b"data: [DONE]\n\n"
            last = usage + done  # of which the client gets the second only, framed anew
            engine.answer = EVENTS + CHUNK
            engine.rest = odd + b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last)
            client = await Client.open(site)
            client.send(post(chat_body(stream=True)))
            await client.reader.readuntil(b"\r\n\r\n")
            assert await client.reader.readexactly(len(CHUNK)) == CHUNK
            engine.may_go_on.set()
            body, whole = await client._chunks()
            assert (body, whole) == (EVENT + done, True)
            client.close()

            engine.answer, engine.rest = EVENTS + CHUNK, odd
            engine.may_go_on.clear()
            client = await Client.open(site)
            client.send(post(chat_body(stream=True)))
            await client.reader.readuntil(b"\r\n\r\n")
            assert await client.reader.readexactly(len(CHUNK)) == CHUNK
            engine.may_go_on.set()
            assert await client.reader.readexactly(len(odd)) == odd
            client.close()

    on_each_loop(main)


def test_nonsense_within_a_stream_is_its_end(on_each_loop: RunOnLoop) -> None:
    async def main(cloud: GatewayCloud) -> None:
        async with raw_engine() as (engine, url):
            site = await a_site(cloud, url)
            for rest in (
                b"zz\r\n", b"-1\r\n", b"5\r\nabc", b"0\r\n\r\n", b"", b"1\r\nab\r\n",
                b"0\r\nx: " + b"y" * 400_000, b"1;" + b"y" * 400_000,
            ):
                engine.answer, engine.rest = EVENTS + CHUNK, CHUNK + rest
                engine.may_go_on.clear()
                client = await Client.open(site)
                client.send(post(chat_body(stream=True)))
                head = await client.reader.readuntil(b"\r\n\r\n")
                assert await client.reader.readexactly(len(CHUNK)) == CHUNK
                engine.may_go_on.set()
                body, whole = await client._chunks()
                assert not whole
                assert body.startswith(EVENT + b"data: {"), "what came before it is passed on"
                last = body.rpartition(b"data: ")[2]
                assert json.loads(last)["error"]["code"] == "engine_lost", rest[:20]
                named = head.partition(b"x-isochrone-request: ")[2].partition(b"\r\n")[0]
                event = (await cloud.events(named.decode()))[0]
                assert (event.outcome, event.tokens.output) == ("engine_lost", 2)
                client.close()

    on_each_loop(main)

"""Bodies and answers that are nested as deeply as a reader bears, or just more: whoever reads them
again may stand deeper in the stack than who read them first."""

import asyncio

import pytest

from tests.contract.test_bad_answers import (
    CHUNK,
    EVENTS,
    LENGTH,
    OK,
    WHOLE,
    a_site,
    raw_engine,
)
from tests.fixtures.gateways import Answer, Client, GatewayCloud, RunningSite, chat_body, post
from tests.fixtures.loops import RunOnLoop

NESTED = b"[" * 5000 + b"]" * 5000
BODY = b'{"model":"tiny-fable","messages":[{"role":"user","content":"hello"}]%b,"x":%b}'
MORE = {
    "whole": b"", "a stream": b',"stream":true', "with a seed": b',"stream":true,"seed":null'
}
DONE = b"data: [DONE]\n\n"
STREAM = EVENTS + CHUNK + b"%x\r\n%b\r\n0\r\n\r\n" % (len(DONE), DONE)
ANSWERS = {"whole": OK + LENGTH + b"\r\n" + WHOLE, "a stream": STREAM, "with a seed": STREAM}


def nested(more: bytes, depth: int) -> bytes:
    return post(BODY % (more, b"[" * depth + b"]" * depth))


@pytest.mark.parametrize("kind", MORE)
def test_no_depth_of_a_body_is_a_way_out(on_each_loop: RunOnLoop, kind: str) -> None:
    async def main(cloud: GatewayCloud) -> None:
        async with raw_engine() as (engine, url):  # which is connected to anew each time
            site = await a_site(cloud, url)
            engine.answer = ANSWERS[kind]
            statuses = set()
            for depth in range(900, 1000):
                client = await Client.open(site)
                for _ in range(2):  # the second one has a head that is known
                    client.send(nested(MORE[kind], depth))
                    async with asyncio.timeout(5):
                        statuses.add((await client.answer()).status)
                client.close()
            assert statuses == {200, 400}
            assert site.task is not None
            assert not site.task.done()

    on_each_loop(main)


async def asked(site: RunningSite, *, stream: bool = False) -> Answer:
    client = await Client.open(site)
    client.send(post(chat_body(stream=stream)))
    async with asyncio.timeout(5):
        answer = await client.answer()
    client.close()
    return answer


def test_a_nested_answer_is_passed_on(on_each_loop: RunOnLoop) -> None:
    async def main(cloud: GatewayCloud) -> None:
        async with raw_engine() as (engine, url):
            site = await a_site(cloud, url)
            usage = b'"usage":{"prompt_tokens":1,"completion_tokens":1}'
            for body in (b'{"choices":%b}', b'{"choices":[],"x":%b}', b'{"x":%b,' + usage + b"}"):
                body = body % NESTED
                for status in (b"200 OK", b"400 Bad Request"):
                    top = b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
                    engine.answer = top + body
                    answer = await asked(site)
                    assert (answer.status, answer.body) == (int(status[:3]), body)
            event = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"y":%b}]}\n\n' % NESTED
            body = event + DONE
            engine.answer = EVENTS + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            answer = await asked(site, stream=True)
            assert (answer.status, answer.whole, answer.body) == (200, True, body)
            assert not site.running.context.exchanges

    on_each_loop(main)

"""Engines that have said the last of an answer and keep its stream open."""

import asyncio
import json

from tests.contract.test_bad_answers import EVENTS, a_site, raw_engine
from tests.fixtures.gateways import MODEL, GatewayCloud, ask, chat_body, post
from tests.fixtures.loops import RunOnLoop

LAST = b'data: {"choices":[{"index":%d,"text":"x","finish_reason":"stop"}]}\n\n'
TWO = LAST % 0 + LAST % 1 + b"data: [DONE]\n\n"
SAID = (
    b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'
    b"data: [DONE]\n\n"
)


def test_what_is_complete_is_no_failure(on_each_loop: RunOnLoop) -> None:
    """Whether or not such a stream could be gone on with."""

    async def main(cloud: GatewayCloud) -> None:
        async with raw_engine() as (engine, url):
            site = await a_site(cloud, url, between_events_timeout_s=0.2)
            prompts = json.dumps({"model": MODEL, "prompt": ["a", "b"], "stream": True}).encode()
            for raw, said in (
                (post(chat_body(stream=True)), SAID),
                (post(prompts, path="/v1/completions"), TWO),
            ):
                engine.answer = EVENTS + b"%x\r\n%b\r\n" % (len(said), said)
                engine.rest = b"never"
                async with asyncio.timeout(10):
                    answer = await ask(site, raw)
                assert (answer.status, answer.whole, answer.body) == (200, True, said)
                event = (await cloud.events(answer.request_id))[0]
                assert (event.outcome, event.reason) == ("finished", None)
            engine.may_go_on.set()

    on_each_loop(main)

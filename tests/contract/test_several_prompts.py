"""What llama.cpp sends for several prompts, and that metering counts each of them once.

Run it again whenever the version of the llama.cpp wheel moves.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isochrone.adapters.clock import SystemClock
from isochrone.adapters.engines.llamacpp import LlamaCppDriver
from isochrone.adapters.network.sockets import SocketNetwork
from isochrone.core.metering.event import Tokens
from isochrone.core.world.model import Replica
from isochrone.gateway.counts import tokens_of_answer
from isochrone.gateway.meter import StreamMeter
from isochrone.gateway.outbox import Outbox
from isochrone.gateway.recount import recount
from isochrone.gateway.request import parse_request
from isochrone.gateway.upstream import UpstreamPool
from isochrone.ports.engine import Engine
from tests.contract.test_engines import START_S, a_start, ask, events
from tests.contract.test_gateway_http import one_site
from tests.fixtures.gateways import MODEL, a_cloud, post
from tests.fixtures.gateways import ask as ask_gateway

PROMPTS = ["x", "Once upon a time there was a fox", "word " * 40]
ODD = ["", "<|im_start|>hi</s> \u00e9\u4e16", [1, 5, 6, 7], [5, "x y"], ["a b", 9, "c"], "y" * 50]


def with_engine(
    path: Path, main: Callable[[Engine], Awaitable[None]], *, shares_cache: bool = False
) -> None:
    start = a_start(spec=replace(a_start().spec, shares_cache=shares_cache))

    async def bounded() -> None:
        async with asyncio.timeout(60):
            engine = await LlamaCppDriver(path).start(start, deadline_s=START_S)
            try:
                await main(engine)
            finally:
                await engine.stop(deadline_s=3)

    asyncio.run(bounded())


async def each_alone(engine: Engine, prompts: list[Any]) -> list[int]:
    """What the engine itself counts for each prompt when it is the only one."""
    alone = [await ask(engine, "/completions", {"prompt": p, "max_tokens": 1}) for p in prompts]
    return [answer.json()["usage"]["prompt_tokens"] for answer in alone]


def replica_of(engine: Engine) -> Replica:
    start = a_start()
    return Replica(
        id=start.replica, site=start.site, model=start.model, revision=None, generation=1,
        state="ready", engine="llamacpp", base_url=engine.base_url, engine_key=engine.key,
        credential=None, upstream_model="tiny", slots=2, pid=engine.pid, started_at=0,
        usage_counts_one_choice=True,
    )


async def counted(engine: Engine, body: dict[str, Any], answer: bytes) -> Tokens:
    """Counted as the gateway counts an answer without stream."""
    raw = json.dumps({"model": "tiny"} | body).encode()
    request = parse_request("completions", raw)
    estimate = tokens_of_answer(
        answer, "completions", request.choices, prompt_bytes=request.prompt_bytes,
        usage_counts_one_choice=True, prompts=request.prompts,
    )
    pool = UpstreamPool(SocketNetwork(), SystemClock(), Outbox(lambda: None))
    try:
        return await recount(pool, replica_of(engine), answer, estimate, request_body=raw)
    finally:
        pool.close()


@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_has_a_usage_for_every_choice(tmp_path: Path, n: int) -> None:
    async def main(engine: Engine) -> None:
        alone = await each_alone(engine, PROMPTS)
        asked = {"prompt": PROMPTS, "n": n, "max_tokens": 4, "ignore_eos": True, "stream": True}
        body = asked | {"stream_options": {"include_usage": True}, "timings_per_token": True}
        stream = await ask(engine, "/completions", body)
        usages = {}
        for event in filter(None, events(stream)):  # None: an event of `data: null`
            assert len(event["choices"]) == 1, "no event has usage alone"
            if event.get("usage"):
                assert event["choices"][0]["finish_reason"] == "length"
                usages[event["choices"][0]["index"]] = event["usage"]
        assert sorted(usages) == list(range(3 * n))
        for index, usage in usages.items():
            assert usage["prompt_tokens"] == alone[index // n], "choices lie prompt by prompt"
            assert usage["completion_tokens"] == 4

        meter = StreamMeter(3 * n, "completions", False, prompts=3)
        seen = meter.feed(stream.body)
        assert b"data: null" not in seen
        assert seen.count(b"data: ") == sum(event is not None for event in events(stream)) + 1
        tokens = meter.tokens(0)
        assert tokens.input_uncached + tokens.input_cached == sum(alone)
        assert (tokens.output, tokens.source) == (3 * n * 4, "engine")

    with_engine(tmp_path, main)


@pytest.mark.parametrize("n", [1, 2])
def test_an_answer_without_stream_has_the_usage_of_the_first_choice(
    tmp_path: Path, n: int
) -> None:
    async def main(engine: Engine) -> None:
        odd = ODD if n == 1 else ODD[1:]  # llama.cpp never answers an empty prompt with n > 1
        for prompts in (PROMPTS, odd):
            alone = await each_alone(engine, prompts)
            body = {"prompt": prompts, "n": n, "max_tokens": 4, "ignore_eos": True}
            answer = await ask(engine, "/completions", body)
            whole = answer.json()
            choices = len(prompts) * n
            assert [c["index"] for c in whole["choices"]] == list(range(choices))
            assert whole["usage"]["prompt_tokens"] == alone[0]
            assert whole["usage"]["completion_tokens"] <= 4
            tokens = await counted(engine, body, answer.body)
            assert tokens.input_uncached + tokens.input_cached == sum(alone)
            assert tokens.source == "counted"
            assert 0 < tokens.output <= 4 * choices

    with_engine(tmp_path, main)


def test_the_tokenizer_counts_a_prompt_as_the_engine_does(tmp_path: Path) -> None:
    async def main(engine: Engine) -> None:
        for prompt, alone in zip(PROMPTS + ODD, await each_alone(engine, PROMPTS + ODD),
                                 strict=True):
            body = {"prompt": [prompt, [7]], "max_tokens": 1}
            answer = await ask(engine, "/completions", body)
            tokens = await counted(engine, body, answer.body)
            assert tokens.input_uncached + tokens.input_cached == alone + 1, prompt

    with_engine(tmp_path, main)


@pytest.mark.parametrize("stream", [False, True])
def test_the_gateway_books_every_prompt(tmp_path: Path, stream: bool) -> None:
    async def main(engine: Engine) -> None:
        total = sum(await each_alone(engine, PROMPTS))
        replica = {
            "base_url": engine.base_url, "engine_key": engine.key, "upstream_model": "tiny",
            "running_counts": "timings", "usage_counts_one_choice": True,
        }
        async with a_cloud() as cloud:
            site = await one_site(cloud, replica=replica)
            body = {"model": MODEL, "prompt": PROMPTS, "n": 2, "max_tokens": 4, "stream": stream}
            raw = json.dumps(body | {"ignore_eos": True}).encode()
            answer = await ask_gateway(site, post(raw, path="/v1/completions"))
            tokens = (await cloud.events(answer.request_id))[0].tokens
        assert b"data: null" not in answer.body
        assert tokens.input_uncached + tokens.input_cached == total
        assert tokens.source == ("engine" if stream else "counted")
        assert 24 * stream <= tokens.output <= 24

    with_engine(tmp_path, main)

"""Answers of the real engine, cut in the middle and gone on with by another one of the same file.

Run again whenever the version of the llama.cpp wheel moves: which way is honest is a habit of the
engine, not a promise (docs/continuation.md).
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import uvloop

from isochrone.adapters.engines.llamacpp import LlamaCppDriver
from isochrone.adapters.http import request
from isochrone.adapters.packaged import bundled_model
from isochrone.core.continuation.kin import Kin
from isochrone.core.continuation.plan import (
    ContinueText,
    FinishLocally,
    Lost,
    Plan,
    Replay,
)
from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.metering.event import Endpoint, Tokens
from isochrone.core.world.model import EngineSpec
from isochrone.gateway.continuation.coordinator import Continuation, Loss, StreamRequest
from isochrone.gateway.continuation.retained import Retained
from isochrone.gateway.meter import StreamMeter
from isochrone.gateway.request import rewrite
from isochrone.ports.engine import Engine, EngineStart
from tests.fixtures.recorded_answers import Received, received

GGUF = bundled_model("tiny-fable-q8_0.gguf")
KIN = Kin(engine="llamacpp", revision="sha256")
START_S = ANSWER_S = 30.0
LEAST_TOKENS = 5
CUTS = 200
NEAR_TIES = 2  # of them; a token from a prefill may fall the other way than one from a decode step

QUESTIONS = (
    "Tell me a story about a dragon and a key.", "Tell me a story about a fox.", "Hello!",
    "What is a KV cache?", "Tell me a story about the sea.", "Tell me a story about a lost dog.",
    "What can you do?", "Tell me a story about a kind bear.",
)


@dataclass(slots=True, kw_only=True)
class Pair:
    """Two engines: one that is lost, and the other."""

    lost: Engine
    other: Engine
    plans: list[Plan] = field(default_factory=list)

    async def stream(self, engine: Engine, endpoint: Endpoint, body: bytes) -> bytes:
        path = {"chat.completions": "/chat/completions", "completions": "/completions"}[endpoint]
        sent = rewrite(body, model=None, stream=True, running_counts="timings")
        answer = await request(
            "POST", engine.base_url + path, body=json.loads(sent),
            headers={"authorization": f"Bearer {engine.key}"}, timeout_s=ANSWER_S,
        )
        assert answer.status == 200, answer.body
        return answer.body

    async def lose(
        self, endpoint: Endpoint, body: bytes, stream: bytes
    ) -> tuple[Received, Tokens]:
        """What the client has when its engine was lost behind `stream`; the bill."""
        n = json.loads(body).get("n") or 1
        meter, retained = StreamMeter(n, endpoint, True), Retained()
        sent = meter.feed(stream)
        retained.take(sent)
        asked = StreamRequest(endpoint=endpoint, body=body, n_choices=n, client_gets_usage=True)
        continuation = Continuation(asked, retained)
        plan = continuation.plan(Loss(kin=KIN, metered=meter.tokens(40), usual_gap_ms=1.0))
        self.plans.append(plan)
        assert not isinstance(plan, Lost)
        if isinstance(plan, FinishLocally):
            return received(sent + continuation.closing(plan)), continuation.tokens()
        second = await self.stream(self.other, endpoint, continuation.ask(plan))
        assert continuation.seam is not None
        sent += continuation.seam.feed(second) + continuation.seam.end()
        assert continuation.seam.outcome == "finished", (plan, received(sent).text)
        return received(sent), continuation.seam.tokens(40)


def run(main: Callable[[Pair], Awaitable[None]], tmp_path: Path) -> None:
    """Run a test body with two engines of one file."""
    start = EngineStart(
        replica=ReplicaId("sydney/tiny/0"), site=SiteName("sydney"), model=ModelName("tiny"),
        generation=1, spec=EngineSpec(kind="llamacpp", source=str(GGUF), slots=2),
        context_tokens=1024,
    )

    async def bounded() -> None:
        driver = LlamaCppDriver(tmp_path / "logs")
        async with asyncio.timeout(120):
            one = await driver.start(start, deadline_s=START_S)
            try:
                again = replace(start, replica=ReplicaId("oslo/tiny/0"), site=SiteName("oslo"))
                two = await driver.start(again, deadline_s=START_S)
                try:
                    await main(Pair(lost=one, other=two))
                finally:
                    await two.stop(deadline_s=3)
            finally:
                await one.stop(deadline_s=3)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


def chat(question: str, **fields: Any) -> bytes:
    messages = [{"role": "user", "content": question}]
    body = {"model": "tiny", "messages": messages, "stream": True, "temperature": 0, "seed": 11}
    return json.dumps(body | {"max_tokens": 80} | fields).encode()


def events(stream: bytes) -> list[bytes]:
    return [event + b"\n\n" for event in stream.split(b"\n\n") if event]


def is_one_answer(got: Received, whole: Received, bill: Tokens) -> None:
    """Everything but the text, which may fall the other way at a near tie."""
    assert (got.ids, got.models) == (whole.ids, whole.models)
    assert got.created <= whole.created  # this engine dates each event by itself
    assert (got.roles, got.done, len(got.usages)) == (whole.roles, 1, 1)
    usage = got.usages[0]
    assert usage["prompt_tokens"] == whole.usages[0]["prompt_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert bill.total == usage["total_tokens"]


def test_plain_text_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    async def main(pair: Pair) -> None:
        rng, ties, cuts = Random(3), [], 0
        bodies: list[tuple[Endpoint, bytes]] = [
            ("chat.completions", chat(question)) for question in QUESTIONS
        ]
        plain = {"model": "tiny", "prompt": "Once upon a time", "temperature": 0}
        tale = plain | {"stream": True, "max_tokens": 80}
        bodies.append(("completions", json.dumps(tale).encode()))
        for endpoint, body in bodies:
            stream = events(await pair.stream(pair.lost, endpoint, body))
            whole = received(b"".join(stream))
            last = len(stream) - 3  # before the finish reason, usage and [DONE]
            points = range(LEAST_TOKENS + 1, last)
            for at in sorted(rng.sample(points, min(CUTS // len(bodies), len(points)))):
                got, bill = await pair.lose(endpoint, body, b"".join(stream[:at]))
                cuts += 1
                is_one_answer(got, whole, bill)
                if got.text != whole.text:
                    ties.append((received(b"".join(stream[:at])).text[-20:], got.text))
                else:
                    assert got.finish == whole.finish
                    assert bill.output == whole.usages[0]["completion_tokens"]
        assert cuts > CUTS // 2
        assert all(isinstance(plan, ContinueText) for plan in pair.plans)
        assert len(ties) <= NEAR_TIES, ties

    run(main, tmp_path)


def test_limits_and_stop_strings_hold_across_the_seam(tmp_path: Path) -> None:
    async def main(pair: Pair) -> None:
        question = QUESTIONS[0]
        bodies = [
            chat(question, max_tokens=17), chat(question, max_completion_tokens=12),
            chat(question, max_tokens=40, stop=["loved honey"]),
            chat(question, max_tokens=40, stop=["ucy", "xyz"]),
        ]
        for body in bodies:
            stream = events(await pair.stream(pair.lost, "chat.completions", body))
            whole = received(b"".join(stream))
            for at in range(2, len(stream)):
                got, bill = await pair.lose("chat.completions", body, b"".join(stream[:at]))
                assert got.text == whole.text, (json.loads(body), at)
                assert got.finish == whole.finish
                is_one_answer(got, whole, bill)
                most = json.loads(body).get("max_completion_tokens")
                assert bill.output <= (most or json.loads(body)["max_tokens"])

    run(main, tmp_path)


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "x", "schema": {
        "type": "object", "required": ["name", "age"], "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 99},
        },
    }},
}


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.7}, {"temperature": 0.7, "n": 2}, {"tools": [TOOL]},
        {"response_format": SCHEMA},
    ],
    ids=["sampled", "two choices", "tools", "schema"],
)
def test_what_has_state_beside_its_text_is_replayed(fields: dict[str, Any], tmp_path: Path) -> None:
    async def main(pair: Pair) -> None:
        body = chat("What is the weather in Paris?", max_tokens=40, **fields)
        stream = events(await pair.stream(pair.lost, "chat.completions", body))
        whole = received(b"".join(stream))
        last = len(stream) - 3
        for at in Random(5).sample(range(3, last), min(6, last - 3)):
            got, _ = await pair.lose("chat.completions", body, b"".join(stream[:at]))
            assert got.channels == whole.channels
            assert (got.finish, got.tool_ids) == (whole.finish, whole.tool_ids)
            assert (got.ids, got.roles, got.done) == (whole.ids, whole.roles, 1)
        assert pair.plans
        assert all(plan == Replay() for plan in pair.plans)
        if "tools" in fields:
            assert (0, "0/arguments") in whole.channels, whole

    run(main, tmp_path)


def test_a_schema_is_picked_up_in_the_middle(tmp_path: Path) -> None:
    """What a schema on chat falls back on where a replay would be too long."""

    async def main(pair: Pair) -> None:
        body = chat("Who are you?", response_format=SCHEMA)
        stream = events(await pair.stream(pair.lost, "chat.completions", body))
        for at in range(4, len(stream) - 3):
            retained = Retained()
            retained.take(b"".join(stream[:at]))
            asked = StreamRequest(
                endpoint="chat.completions", body=body, n_choices=1, client_gets_usage=True
            )
            continuation = Continuation(asked, retained)
            plan = continuation.plan(Loss(kin=KIN, metered=Tokens(), usual_gap_ms=5000.0))
            assert isinstance(plan, ContinueText)
            second = await pair.stream(pair.other, "chat.completions", continuation.ask(plan))
            assert continuation.seam is not None
            got = received(b"".join(stream[:at]) + continuation.seam.feed(second))
            assert json.loads(got.text).keys() == {"name", "age"}

    run(main, tmp_path)

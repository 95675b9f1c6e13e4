"""The engine port: one suite on llama.cpp and on the fake; the openai driver; known engine habits.

The table of habits is what metering and routing rely on: it must be run again whenever the version
of the llama.cpp wheel moves.
"""

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from isochrone.adapters.clock import SystemClock
from isochrone.adapters.engines.llamacpp import LlamaCppDriver, check_gguf
from isochrone.adapters.engines.openai import OpenAiDriver
from isochrone.adapters.http import HttpAnswer, request
from isochrone.adapters.network.sockets import SocketNetwork
from isochrone.adapters.packaged import bundled_model
from isochrone.core.errors import EngineUnavailable
from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.world.model import EngineSpec
from isochrone.ports.engine import Engine, EngineDriver, EngineStart
from isochrone.twin.fakes.engine import FakeEngineDriver

START_S = 30.0
ANSWER_S = 30.0
GGUF = bundled_model("tiny-fable-q8_0.gguf")
HELLO = [{"role": "user", "content": "Tell me a story about a fox."}]

Main = Callable[[EngineDriver], Awaitable[None]]
Runner = Callable[[Main], None]


def a_start(**changes: Any) -> EngineStart:
    spec = EngineSpec(kind="llamacpp", source=str(GGUF), slots=2)
    start = EngineStart(
        replica=ReplicaId("sydney/tiny/0"), site=SiteName("sydney"), model=ModelName("tiny"),
        generation=1, spec=spec, context_tokens=512,
    )
    return replace(start, **changes)


@pytest.fixture(params=["llamacpp", "fake"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Runner:
    """Run a test body with one driver on a real loop."""

    def go(main: Main) -> None:
        driver: EngineDriver = LlamaCppDriver(tmp_path / "logs")
        if request.param == "fake":
            driver = FakeEngineDriver(SocketNetwork(), start_s=0.01)

        async def bounded() -> None:
            async with asyncio.timeout(60):
                await main(driver)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(bounded())

    return go


async def ask(engine: Engine, path: str, body: Mapping[str, Any], **headers: str) -> HttpAnswer:
    key = {"authorization": f"Bearer {engine.key}"}
    return await request(
        "POST", engine.base_url + path, body={"model": "tiny", **body}, headers=key | headers,
        timeout_s=ANSWER_S,
    )


def events(answer: HttpAnswer) -> list[dict[str, Any]]:
    """The parsed events of a stream, which must end with [DONE]."""
    lines = [line[6:] for line in answer.body.decode().splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_replica_starts_ready_answers_its_key_only_and_stops(run: Runner) -> None:
    async def main(driver: EngineDriver) -> None:
        engine = await driver.start(a_start(), deadline_s=START_S)
        try:
            assert engine.base_url.startswith("http://127.0.0.1:")
            assert engine.base_url.endswith("/v1")
            assert engine.pid is not None
            assert engine.traits.running_counts == "timings"
            body = {"messages": HELLO, "max_tokens": 5}
            assert (await ask(engine, "/chat/completions", body)).status == 200
            wrong = await ask(engine, "/chat/completions", body, authorization="Bearer wrong")
            assert wrong.status == 401
            assert wrong.json()["error"]["message"]
        finally:
            before = asyncio.get_running_loop().time()
            await engine.stop(deadline_s=3)
            assert asyncio.get_running_loop().time() - before < 5
        assert not exists(engine.pid)
        with pytest.raises(EngineUnavailable):
            await engine.load()

    run(main)


def test_load_grows_by_what_was_served(run: Runner) -> None:
    async def main(driver: EngineDriver) -> None:
        engine = await driver.start(a_start(), deadline_s=START_S)
        try:
            before = await engine.load()
            usage = (
                await ask(engine, "/chat/completions", {"messages": HELLO, "max_tokens": 40})
            ).json()["usage"]
            after = await engine.load()
        finally:
            await engine.stop(deadline_s=3)
        assert before.running == before.waiting == 0
        assert before.prompt_tokens_total is not None
        assert before.cached_tokens_total is not None
        assert before.output_tokens_total is not None
        assert after.prompt_tokens_total is not None
        assert after.cached_tokens_total is not None
        assert after.output_tokens_total is not None
        prompt = after.prompt_tokens_total - before.prompt_tokens_total
        cached = after.cached_tokens_total - before.cached_tokens_total
        assert prompt + cached == usage["prompt_tokens"]
        assert cached == usage["prompt_tokens_details"]["cached_tokens"]
        assert after.output_tokens_total - before.output_tokens_total == 40
        assert after.prefill_tok_s is not None
        assert after.prefill_tok_s > 0
        assert after.decode_tok_s is not None
        assert after.decode_tok_s > 0

    run(main)


def test_more_requests_than_slots_wait_and_leaving_frees_the_slot(run: Runner) -> None:
    async def main(driver: EngineDriver) -> None:
        engine = await driver.start(a_start(), deadline_s=START_S)
        body = {"prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": True, "n": 1}
        try:
            asking = [asyncio.create_task(ask(engine, "/completions", body)) for _ in range(6)]
            while (load := await engine.load()).running != 2 or not load.waiting:
                assert not all(task.done() for task in asking), "never seen two slots and a queue"
                await asyncio.sleep(0.002)
            for task in asking:
                task.cancel()
            await asyncio.wait(asking)
            while (load := await engine.load()).running or load.waiting:
                await asyncio.sleep(0.02)
        finally:
            await engine.stop(deadline_s=3)

    run(main)


def test_a_death_is_noticed_with_its_reason(run: Runner) -> None:
    async def main(driver: EngineDriver) -> None:
        engine = await driver.start(a_start(), deadline_s=START_S)
        if isinstance(driver, FakeEngineDriver):
            await driver.crash(a_start().replica)
        else:
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGKILL)
        assert "SIGKILL" in await engine.exited()
        await engine.stop(deadline_s=3)

    run(main)


def test_a_start_that_is_cancelled_or_too_slow_leaves_no_process(tmp_path: Path) -> None:
    async def children() -> str:
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
        return await asyncio.to_thread(children.read_text)

    async def main() -> None:
        driver = LlamaCppDriver(tmp_path)
        before = await children()
        with pytest.raises(EngineUnavailable, match="not ready within"):
            await driver.start(a_start(), deadline_s=0.01)
        starting = asyncio.create_task(driver.start(a_start(), deadline_s=START_S))
        while await children() == before:
            await asyncio.sleep(0.001)
        starting.cancel()
        await asyncio.wait([starting])
        assert await children() == before

    asyncio.run(main())


def test_a_file_that_is_no_model_is_refused_with_a_reason(tmp_path: Path) -> None:
    text, cut = tmp_path / "text.gguf", tmp_path / "cut.gguf"
    text.write_text("not a model")
    cut.write_bytes(GGUF.read_bytes()[:100_000])
    assert check_gguf(GGUF) is None
    assert "not a GGUF file" in (check_gguf(text) or "")
    assert "no such file" in (check_gguf(tmp_path / "missing.gguf") or "")
    assert "cannot be read" in (check_gguf(tmp_path) or "")
    old = tmp_path / "old.gguf"
    old.write_bytes(b"GGUF\x01\x00\x00\x00" + bytes(16))
    assert "version 1" in (check_gguf(old) or "")

    async def main() -> None:
        driver = LlamaCppDriver(tmp_path / "logs")
        for path, reason in ((text, "not a GGUF file"), (cut, "failed to load model")):
            spec = replace(a_start().spec, source=str(path))
            with pytest.raises(EngineUnavailable, match=reason):
                await driver.start(a_start(spec=spec), deadline_s=START_S)
        with pytest.raises(EngineUnavailable, match="No such file"):
            await driver.revision(replace(a_start().spec, source=str(tmp_path / "gone")))

    asyncio.run(main())


def test_no_secret_is_on_a_command_line_and_the_log_is_kept(tmp_path: Path) -> None:
    async def main() -> None:
        driver = LlamaCppDriver(tmp_path)
        engine = await driver.start(a_start(), deadline_s=START_S)
        try:
            proc = Path(f"/proc/{engine.pid}")
            for name in ("cmdline", "environ"):
                content = await asyncio.to_thread((proc / name).read_bytes)
                assert (engine.key or "?").encode() not in content
            assert b"OMP_WAIT_POLICY=PASSIVE" in content
        finally:
            await engine.stop(deadline_s=3)
        log = await asyncio.to_thread((tmp_path / "sydney_tiny_0.log").read_text)
        assert "generation 1" in log
        assert "fox" not in log

    asyncio.run(main())


def test_the_revision_is_the_sha256_of_the_file(tmp_path: Path) -> None:
    async def main() -> None:
        found = await LlamaCppDriver(tmp_path).revision(a_start().spec)
        assert found == "1b2515f0bbe30fab38a3003e98f76ab54e1389ad582fab55297ad4167b8269d7"

    asyncio.run(main())


def test_the_openai_driver_watches_an_upstream_with_its_key(tmp_path: Path) -> None:
    async def main() -> None:
        engine = await LlamaCppDriver(tmp_path).start(a_start(), deadline_s=START_S)
        key_file = tmp_path / "upstream.key"
        await asyncio.to_thread(key_file.write_text, f"{engine.key}\n")
        spec = EngineSpec(kind="openai", source=engine.base_url, credential=f"file:{key_file}")
        driver = OpenAiDriver(SystemClock())
        try:
            upstream = await driver.start(a_start(spec=spec), deadline_s=START_S)
            assert (upstream.pid, upstream.key) == (None, None)
            assert upstream.base_url == engine.base_url
            assert upstream.traits == engine.traits
            assert (await upstream.load()).running == 0
            for wrong in (None, f"file:{tmp_path / 'missing'}", "env:NO_SUCH_KEY_HERE"):
                with pytest.raises(EngineUnavailable):
                    await driver.start(
                        a_start(spec=replace(spec, credential=wrong)), deadline_s=START_S
                    )
        finally:
            await engine.stop(deadline_s=3)
        with pytest.raises(EngineUnavailable):
            await upstream.load()
        exited = asyncio.ensure_future(upstream.exited())
        await upstream.stop(deadline_s=1)
        assert await exited == "stopped"

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
def test_streams_state_usage_last_and_counts_on_request(run: Runner, path: str) -> None:
    async def main(driver: EngineDriver) -> None:
        engine = await driver.start(a_start(), deadline_s=START_S)
        body: dict[str, Any] = {
            "messages": HELLO, "prompt": "Once upon a time", "max_tokens": 8, "stream": True,
            "ignore_eos": True,
        }
        counted = body | {"stream_options": {"include_usage": True}, "timings_per_token": True}
        try:
            bare = events(await ask(engine, path, body))
            first = events(await ask(engine, path, counted | {"id_slot": 0}))
            unused = events(await ask(engine, path, counted | {"id_slot": 0}))
            second = events(
                await ask(engine, path, counted | {"id_slot": 0, "cache_prompt": True})
            )
        finally:
            await engine.stop(deadline_s=3)
        if path == "/chat/completions":
            assert all(event.get("usage") is None for event in bare)
            assert first[-1]["choices"] == []
        else:  # here usage needs no asking and comes with the last text
            assert bare[-1]["usage"]["completion_tokens"] == 8
            assert first[-1]["choices"][0]["finish_reason"] == "length"
        usage = first[-1]["usage"]
        assert usage["completion_tokens"] == 8
        running = [event["timings"]["predicted_n"] for event in first if "timings" in event][:-1]
        assert running == sorted(running)
        assert running[-1] == 8
        # What is in a slot is used where a request says so: tenants are kept apart by that.
        assert unused[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        again = second[-1]["usage"]
        assert again["prompt_tokens"] == usage["prompt_tokens"]
        cached = again["prompt_tokens_details"]["cached_tokens"]
        assert cached == usage["prompt_tokens"] - 1, "all but the last token come from the cache"
        timings = second[-1]["timings"]
        assert (timings["cache_n"], timings["prompt_n"]) == (cached, 1)

    run(main)


def test_usage_of_several_choices_covers_one(run: Runner) -> None:
    async def main(driver: EngineDriver) -> None:
        engine = await driver.start(a_start(), deadline_s=START_S)
        body = {"messages": HELLO, "max_tokens": 5, "n": 2, "ignore_eos": True}
        try:
            answer = (await ask(engine, "/chat/completions", body)).json()
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            stream = events(await ask(engine, "/chat/completions", body))
        finally:
            await engine.stop(deadline_s=3)
        assert engine.traits.usage_counts_one_choice
        assert len(answer["choices"]) == 2
        assert answer["usage"]["completion_tokens"] == 5
        assert {c["index"] for event in stream for c in event["choices"]} == {0, 1}
        usages = [event["usage"] for event in stream if event.get("usage")]
        assert [usage["completion_tokens"] for usage in usages] == [5, 5], "each has its own"

    run(main)


def test_errors_of_the_engine(run: Runner) -> None:
    async def main(driver: EngineDriver) -> None:
        engine = await driver.start(a_start(), deadline_s=START_S)
        try:
            long = await ask(engine, "/completions", {"prompt": "word " * 2000})
            vectors = await ask(engine, "/embeddings", {"input": "a text"})
        finally:
            await engine.stop(deadline_s=3)
        assert long.status == 400
        assert long.json()["error"]["type"] == "exceed_context_size_error"
        assert vectors.status == 501

    run(main)


def test_embeddings_where_asked_for(run: Runner) -> None:
    async def main(driver: EngineDriver) -> None:
        spec = replace(a_start().spec, embeddings=True)
        engine = await driver.start(a_start(spec=spec), deadline_s=START_S)
        try:
            answer = await ask(engine, "/embeddings", {"input": "a text"})
        finally:
            await engine.stop(deadline_s=3)
        assert answer.status == 200
        assert len(answer.json()["data"][0]["embedding"]) >= 8

    run(main)

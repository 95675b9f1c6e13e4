"""Asking over HTTP, keys by reference, logs of children, and upstreams without or with metrics."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from isochrone.adapters.clock import SystemClock
from isochrone.adapters.credentials import read_credential
from isochrone.adapters.engines.child_log import MOST_BYTES, ChildLog
from isochrone.adapters.engines.openai import MODELS_EVERY_S, OpenAiDriver
from isochrone.adapters.http import HttpAnswer, request
from isochrone.core.errors import EngineUnavailable, Unavailable
from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.world.engine_load import UNKNOWN_LOAD
from isochrone.core.world.model import ALL_ENDPOINTS, EngineSpec
from isochrone.ports.engine import EngineStart, EngineTraits
from tests.fixtures.stepped_clock import SteppedClock

Reply = Callable[[bytes], bytes | None]


async def asked(reply: Reply, use: Callable[[str], Coroutine[Any, Any, Any]]) -> Any:
    """Run `use(url)` against a server that answers each request head by `reply` (None: never)."""
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = reply(await reader.readuntil(b"\r\n\r\n"))
        if answer is None:
            await done.wait()
        else:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        return await use(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    finally:
        done.set()
        server.close()


def ask_once(answer: bytes | None, *, timeout_s: float = 20.0, most_bytes: int = 1000) -> Any:
    async def use(url: str) -> HttpAnswer:
        return await request("GET", url, timeout_s=timeout_s, most_bytes=most_bytes)

    return asyncio.run(asked(lambda _: answer, use))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx: y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ],
)
def test_every_framing_of_an_answer_is_read(answer: bytes) -> None:
    found = ask_once(answer)
    assert (found.status, found.body) == (200, b"hello")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "0 bytes read"),
        (b"SSH-2.0-x\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", "5 bytes read"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n", "1001 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(1001), "more than 1000"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n", "more than 1000"),
    ],
)
def test_answers_that_break_off_or_are_too_long_are_unavailable(answer: bytes, why: str) -> None:
    with pytest.raises(Unavailable, match=why):
        ask_once(answer)


def test_no_answer_is_unavailable_after_the_deadline() -> None:
    with pytest.raises(Unavailable, match=r"within 0\.05 s"):
        ask_once(None, timeout_s=0.05)
    with pytest.raises(Unavailable, match="must start with http"):
        asyncio.run(request("GET", "ftp://127.0.0.1/", timeout_s=1))


def test_a_header_cannot_smuggle_another() -> None:
    async def use(url: str) -> None:
        await request("GET", url, headers={"x": "a\r\nb: c"}, timeout_s=20)

    with pytest.raises(Unavailable, match="line break"):
        asyncio.run(asked(lambda _: b"", use))


def test_keys_are_read_where_they_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text("sk-one\n")
    monkeypatch.setenv("UPSTREAM_KEY", "sk-two")
    assert read_credential(None) is None
    assert read_credential(f"file:{file}") == "sk-one"
    assert read_credential("env:UPSTREAM_KEY") == "sk-two"
    file.write_text("two\nlines")
    for wrong in (f"file:{file}", "env:NO_SUCH_KEY", f"file:{tmp_path}", "vault:x"):
        with pytest.raises(Unavailable):
            read_credential(wrong)


def a_start(url: str) -> EngineStart:
    return EngineStart(
        replica=ReplicaId("sydney/partner/0"), site=SiteName("sydney"),
        model=ModelName("partner"), generation=1,
        spec=EngineSpec(kind="openai", source=url), context_tokens=2048,
    )


def with_body(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d -\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def test_an_upstream_without_metrics_has_an_unknown_load() -> None:
    def reply(head: bytes) -> bytes:
        return with_body(b'{"data": []}', 200 if head.startswith(b"GET /v1/models ") else 404)

    async def use(url: str) -> None:
        engine = await OpenAiDriver(SystemClock()).start(a_start(url), deadline_s=20)
        assert await engine.load() == UNKNOWN_LOAD
        assert engine.traits == EngineTraits()

    asyncio.run(asked(reply, use))


def test_vllm_is_known_by_its_metrics() -> None:
    metrics = b'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_waiting{engine="0"} 1\n'

    def reply(head: bytes) -> bytes:
        return with_body(metrics if head.startswith(b"GET /metrics ") else b'{"data": []}')

    async def use(url: str) -> None:
        engine = await OpenAiDriver(SystemClock()).start(a_start(url + "/"), deadline_s=20)
        load = await engine.load()
        assert (load.running, load.waiting, load.output_tokens_total) == (3, 1, None)
        assert engine.traits == EngineTraits(
            running_counts="usage", endpoints=ALL_ENDPOINTS, cache_salt=True
        )
        assert engine.base_url == url

    asyncio.run(asked(reply, use))


@pytest.mark.parametrize(("status", "why"), [(401, "refuses the key"), (500, "answers 500")])
def test_an_upstream_that_lists_no_models_is_not_ready(status: int, why: str) -> None:
    async def use(url: str) -> None:
        with pytest.raises(EngineUnavailable, match=why):
            await OpenAiDriver(SystemClock()).start(a_start(url), deadline_s=20)

    asyncio.run(asked(lambda _: with_body(b"{}", status), use))


def test_a_log_is_bounded_and_ends_with_the_latest_lines(tmp_path: Path) -> None:
    path = tmp_path / "replica.log"

    async def main() -> str:
        log = ChildLog(path)
        stream = asyncio.StreamReader()
        for number in range(40):
            stream.feed_data(b"x" * 65_535 + b"\n%d\n" % number)
        stream.feed_eof()
        await log.follow(stream)
        return log.last_lines()

    assert asyncio.run(main()).endswith("| 39")
    older = path.with_name("replica.log.1")
    assert path.read_text().endswith("\n39\n")
    assert 0 < path.stat().st_size <= MOST_BYTES
    assert 0 < older.stat().st_size <= MOST_BYTES
    assert len(list(tmp_path.iterdir())) == 2


METRICS = b"vllm:num_requests_running 3\nvllm:num_requests_waiting 1\n"


def listing(*names: str) -> bytes:
    return with_body(json.dumps({"data": [{"id": name} for name in names]}).encode())


@pytest.mark.parametrize("late", [None, with_body(b"gone", 503)], ids=["too slow", "refused"])
def test_an_upstream_that_cannot_say_its_load_just_now_is_still_there(late: bytes | None) -> None:
    said = [with_body(METRICS), with_body(METRICS), late, with_body(METRICS)]

    def reply(head: bytes) -> bytes | None:
        return said.pop(0) if head.startswith(b"GET /metrics ") else listing("partner")

    async def use(url: str) -> None:
        engine = await OpenAiDriver(SystemClock()).start(a_start(url), deadline_s=20)
        assert (await engine.load()).running == 3
        assert await engine.load() == UNKNOWN_LOAD
        assert (await engine.load()).running == 3

    asyncio.run(asked(reply, use))


def test_an_upstream_that_answers_nothing_is_away() -> None:
    is_away = False

    def reply(head: bytes) -> bytes:
        if is_away:
            return with_body(b"", 503)
        return with_body(METRICS) if head.startswith(b"GET /metrics ") else listing("partner")

    async def use(url: str) -> None:
        nonlocal is_away
        engine = await OpenAiDriver(SystemClock()).start(a_start(url), deadline_s=20)
        is_away = True
        with pytest.raises(EngineUnavailable, match="503"):
            await engine.load()

    asyncio.run(asked(reply, use))


def test_a_vllm_that_serves_another_model_is_not_ready() -> None:
    def reply(head: bytes) -> bytes:
        return with_body(METRICS) if head.startswith(b"GET /metrics ") else listing("other")

    async def use(url: str) -> None:
        with pytest.raises(EngineUnavailable, match="serves other, not partner"):
            await OpenAiDriver(SystemClock()).start(a_start(url), deadline_s=20)

    asyncio.run(asked(reply, use))


def test_a_vllm_that_serves_another_model_from_now_on_is_noticed() -> None:
    models, clock = ["partner"], SteppedClock()

    def reply(head: bytes) -> bytes:
        return with_body(METRICS) if head.startswith(b"GET /metrics ") else listing(*models)

    async def use(url: str) -> None:
        engine = await OpenAiDriver(clock).start(a_start(url), deadline_s=20)
        await engine.load()
        models[:] = ["other"]
        clock.ahead_ns = int((MODELS_EVERY_S + 1) * 1e9)
        with pytest.raises(EngineUnavailable, match="serves other, not partner"):
            await engine.load()
        with pytest.raises(EngineUnavailable):
            await engine.load()

    asyncio.run(asked(reply, use))

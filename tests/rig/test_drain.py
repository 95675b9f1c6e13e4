"""SIGTERM under load: streams end in good order, new work is refused, and all usage is written."""

import asyncio
import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.fixtures.scripted_engine import ScriptedEngine
from tests.rig.alone import MODEL, Alone, EngineThread, a_gateway, an_engine, config_text
from tests.rig.load import Load
from tests.rig.streams import Ask, Client, Stream, until
from tests.rig.waiting import wait_until

pytestmark = pytest.mark.rig

STREAMS = 12
MESSAGES = [{"role": "user", "content": "Hello!"}]
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\nauthorization: Bearer secret\r\n"
    b"content-length: 66\r\n\r\n"
    b'{"model":"tiny-fable","messages":[{"role":"user","content":"Hi"}]}'
)


@pytest.fixture
def engine() -> Iterator[EngineThread]:
    with an_engine() as running:
        yield running


def ask(number: int) -> Ask:
    body = {"model": MODEL, "messages": MESSAGES, "stream": True, "max_tokens": 8}
    return Ask(own_id=f"stream-{number}", path="/chat/completions", body=body)


async def begun(client: Client, base: str) -> list[Stream]:
    """Streams that have their first event; the engine holds the others back."""
    streams = [client.add(ask(number), base, "secret") for number in range(STREAMS)]
    await client.begin()
    await until(lambda: all(stream.texts for stream in streams), "every stream has begun")
    return streams


def connect(gateway: Alone) -> socket.socket:
    parts = urlsplit(gateway.url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port or 80), timeout=30)


def answer(link: socket.socket) -> bytes:
    """Whatever still comes until the gateway closes."""
    found = b""
    while piece := link.recv(65536):
        found += piece
    return found


def refuses(gateway: Alone) -> bool:
    try:
        connect(gateway).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("workers", [1, 2])
def test_streams_end_while_new_work_is_refused(
    tmp_path: Path, engine: EngineThread, workers: int
) -> None:
    text = config_text(engine.url, gateway="drain_timeout_s = 60")
    with a_gateway(
        tmp_path / "g", text, "--workers", str(workers), listening=workers
    ) as gateway:
        asyncio.run(drain(gateway, engine, workers))
        assert gateway.stop() == 0
        lines = gateway.usage()
        assert Counter(line["outcome"] for line in lines) == {"finished": STREAMS + 3}
        streams = [line for line in lines if line["stream"]]
        assert {(line["output"], line["token_source"]) for line in streams} == {(3, "engine")}
        assert len({line["request_id"] for line in lines}) == STREAMS + 3


async def drain(gateway: Alone, engine: EngineThread, workers: int) -> None:
    """Tell it to stop with streams, an idle connection, and two that are in use."""
    with connect(gateway) as idle, connect(gateway) as half, connect(gateway) as busy:
        idle.sendall(REQUEST)
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")
        engine.call(engine.engine.hold.clear)
        client = Client()
        streams = await begun(client, gateway.url)
        half.sendall(REQUEST[:-10])
        before = len(engine.engine.asked)
        busy.sendall(REQUEST)
        await until(lambda: len(engine.engine.asked) > before, "the engine works for it")

        os.kill(gateway.pid, signal.SIGTERM)
        await until(
            lambda: len(gateway.logged("gateway_draining")) == workers, "it drains"
        )
        await until(lambda: refuses(gateway), "nobody listens any more")
        assert answer(idle) == b""
        # What comes behind a request that is being answered is new work.
        busy.sendall(REQUEST)
        half.sendall(REQUEST[-10:])
        os.kill(gateway.pid, signal.SIGTERM)
        assert not gateway.ended
        assert all(stream.open for stream in streams)
        engine.call(engine.engine.hold.set)
        await client.finish()
        assert [stream.data for stream in streams if not stream.error_free] == []
        first, _, second = answer(busy).partition(b"\r\n\r\n")[2].partition(b"HTTP/1.1 ")
        assert b'"chat.completion"' in first
        if second:  # the answer before may have said that the connection ends with it
            assert second.startswith(b"503 ")
            assert b"\r\nconnection: close\r\n" in second
        assert b"\r\nconnection: close\r\n" in answer(half)


@pytest.mark.parametrize("comes", [True, False])
def test_what_was_let_in_is_answered_though_nothing_else_is_open(
    tmp_path: Path, engine: EngineThread, comes: bool
) -> None:
    """It is waited for, up to the limit."""
    text = config_text(engine.url, gateway=f"drain_timeout_s = {60 if comes else 1}")
    with a_gateway(tmp_path / "g", text) as gateway, connect(gateway) as half:
        with connect(gateway) as begun:
            begun.sendall(REQUEST[:40])  # of this not even the head has come: nobody let it in
            half.sendall(REQUEST[:-10])
            assert gateway.status("secret") == 200
            os.kill(gateway.pid, signal.SIGTERM)
            wait_until(lambda: bool(gateway.logged("gateway_draining")), "it drains")
            if comes:
                half.sendall(REQUEST[-10:])
            found = answer(half)
            assert b"\r\nconnection: close\r\n" in found
            status, outcome = (b"200", "finished") if comes else (b"503", "refused")
            assert found.startswith(b"HTTP/1.1 " + status)
            assert (b"gateway_stopping" in found) == (not comes)
        assert gateway.stop() == 0
        assert [line["outcome"] for line in gateway.usage()] == ["finished", outcome]


def test_what_is_open_beyond_the_limit_ends_with_a_typed_error_and_is_billed(
    tmp_path: Path, engine: EngineThread
) -> None:
    engine.call(engine.engine.hold.clear)
    text = config_text(engine.url, gateway="drain_timeout_s = 1")

    async def main(gateway: Alone) -> list[Stream]:
        client = Client()
        streams = await begun(client, gateway.url)
        os.kill(gateway.pid, signal.SIGTERM)
        await client.finish()
        return streams

    with a_gateway(tmp_path / "g", text) as gateway:
        streams = asyncio.run(main(gateway))
        assert gateway.stop() == 0
        for stream in streams:
            assert stream.error is not None
            assert (stream.error["code"], stream.whole) == ("gateway_stopping", False)
            line = gateway.usage_of(stream.headers["x-isochrone-request"])
            assert (line["outcome"], line["reason"]) == ("timed_out", "gateway_stopping")
            assert line["output"] >= 1
        assert len(gateway.usage()) == STREAMS


@pytest.mark.parametrize("workers", [1, 2])
def test_one_that_is_asked_again_and_again_ends_with_its_own_exit_code(
    tmp_path: Path, engine: EngineThread, workers: int
) -> None:
    text = config_text(engine.url)
    with a_gateway(
        tmp_path / "g", text, "--workers", str(workers), listening=workers
    ) as gateway:
        assert gateway.status("secret") == 200

        def asked_again() -> bool:
            if not gateway.ended:
                os.kill(gateway.pid, signal.SIGTERM)
            return gateway.ended

        wait_until(asked_again, "it ends", poll_s=0.0005)
        assert gateway.stop() == 0
        assert len(gateway.usage()) == 1


def test_restarts_of_workers_under_load_lose_no_usage(
    tmp_path: Path, engine: EngineThread
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = config_text(engine.url, gateway="drain_timeout_s = 60")
    text = text.replace("port = 0", f"port = {port}")
    with a_gateway(tmp_path / "g", text, "--workers", "2", listening=2) as gateway:
        load = Load([("here", gateway.url)], "secret", name="restart", threads=6).start()
        try:
            for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
                runs_for_a_while(load)
                code = gateway.stop(number)
                assert code == (0 if number == signal.SIGTERM else -number)
                gateway.start(listening=2)
            runs_for_a_while(load)
        finally:
            results = load.stop()
        assert gateway.stop() == 0
        with a_gateway(tmp_path / "g", text) as alone:  # one process ships what all have left
            for one in results:
                if one.request_id is not None:
                    alone.usage_of(one.request_id)
            lines = {line["request_id"]: line for line in alone.usage()}
            assert len(alone.usage()) == len(lines)
    for one in results:
        if one.status not in (0, 200):
            assert one.reason == "gateway_stopping", one
        if one.request_id is not None and one.whole and one.status == 200:
            assert lines[one.request_id]["outcome"] == "finished", lines[one.request_id]
    cut = [one for one in results if one.request_id is not None and not one.whole]
    assert len(cut) <= 6, "only a kill cuts streams"
    finished = [line for line in lines.values() if line["outcome"] == "finished"]
    assert {line["output"] for line in finished} == {ScriptedEngine().chunks}


def runs_for_a_while(load: Load) -> None:
    """Return once enough further requests were answered."""
    seen = len(load.results)

    def enough() -> bool:
        return sum(one.whole and one.status == 200 for one in load.results[seen:]) > 60

    wait_until(enough, "the load runs")

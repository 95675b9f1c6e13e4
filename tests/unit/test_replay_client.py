"""The replay's client on the twin's network: open loop, sent once, every end has its code."""

import asyncio
from collections.abc import Callable
from typing import cast

import msgspec

from isochrone.replay.client import Call, Client, Ingress, Sent, Target
from isochrone.replay.session import Plan, replay
from isochrone.replay.trace import parse_trace
from isochrone.twin.clock import VirtualClock
from isochrone.twin.loop import VirtualLoop, run
from isochrone.twin.network import Wire

HEAD = (
    b"HTTP/1.1 200 OK\r\nx-isochrone-request: id-1\r\nx-isochrone-site: perth\r\n"
    b"x-isochrone-country: AU\r\ncontent-type: text/event-stream\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
Script = Callable[["Server", bytes], None]


def chunk(*events: object) -> bytes:
    data = b"".join(
        b"data: " + (e if isinstance(e, bytes) else msgspec.json.encode(e)) + b"\n\n"
        for e in events
    )
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def text(content: str | None) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"role": "assistant", "content": content}}]}


class Server(asyncio.Protocol):
    """Reads one request whole, then does what its script says."""

    def __init__(self, script: Script, seen: list[bytes]) -> None:
        self._script = script
        self._seen = seen
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, blank, body = self._data.partition(b"\r\n\r\n")
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if blank and len(body) == length:
            self._seen.append(self._data)
            self._script(self, body)


def answers(server: Server, body: bytes) -> None:
    """An answer like an engine's: one token for each that was asked, after half a second."""
    asked = msgspec.json.decode(body)
    words = len(asked["messages"][0]["content"].split())
    usage = {"prompt_tokens": words + 7, "completion_tokens": asked["max_tokens"],
             "prompt_tokens_details": {"cached_tokens": 3}}
    server.transport.write(HEAD + chunk(text(None)))
    loop = asyncio.get_running_loop()
    loop.call_later(0.5, server.transport.write, chunk(text("a")))
    stop = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
    end = chunk(stop, {"choices": [], "usage": usage}, b"[DONE]") + b"0\r\n\r\n"
    loop.call_later(1.0, server.transport.write, end)


def ask(
    script: Script, *, calls: int = 1, down: bool = False, host: str = "h"
) -> tuple[list[Sent], list[bytes]]:
    """Replay `calls` requests, one each 0.1 s, against one server; `down` puts a dead ingress
    before it."""

    async def main() -> tuple[list[Sent], list[bytes]]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        wire, seen = Wire(loop), list[bytes]()
        listener = await wire.process("server").listen(lambda: Server(script, seen), host, 0)
        ingresses = [Ingress(name="up", host=host, port=listener.port)]
        if down:
            ingresses.insert(0, Ingress(name="down", host="h", port=1))
        target = Target(ingresses=tuple(ingresses), api_key="k", model="m", timeout_s=20.0)
        client = Client(wire.process("client"), VirtualClock(loop), target, run="t")
        todo = [
            Call(row=i, at_s=i / 10, text="one two", input_tokens=9, output_tokens=4)
            for i in range(calls)
        ]
        told: list[Sent] = []
        sent = await client.send_all(todo, told.append)
        assert sorted(one.row for one in told) == [one.row for one in sent]
        return sent, seen

    return run(main())


def test_requests_leave_at_their_moments_however_slow_the_answers() -> None:
    sent, seen = ask(answers, calls=5)
    assert [round(one.at_s, 3) for one in sent] == [0.0, 0.1, 0.2, 0.3, 0.4]
    first = sent[0]
    assert (first.error, first.status, first.request_id, first.site) == (None, 200, "id-1", "perth")
    assert first.ttft_ms == 500.0
    assert first.total_ms == 1000.0
    assert (first.input_tokens, first.cached_tokens, first.output_tokens) == (9, 3, 4)
    assert b"x-request-id: replay-t-0\r\n" in seen[0]
    assert b'"ignore_eos":true' in seen[0]


def test_an_address_of_ipv6_is_named_in_brackets() -> None:
    _, (request,) = ask(answers, host="2001:db8::1")
    assert b"\r\nhost: [2001:db8::1]:" in request


def test_a_refused_connection_goes_to_the_next_ingress() -> None:
    sent, seen = ask(answers, calls=2, down=True)
    assert [one.ingress for one in sent] == ["up", "up"]
    assert [one.error for one in sent] == [None, None]
    assert len(seen) == 2


def test_nothing_is_sent_twice_and_every_end_has_a_code() -> None:
    def silent(server: Server, body: bytes) -> None:
        pass

    def dies(server: Server, body: bytes) -> None:
        server.transport.abort()

    def cuts(server: Server, body: bytes) -> None:
        server.transport.write(HEAD + chunk(text("a")))
        server.transport.close()

    def ends_early(server: Server, body: bytes) -> None:
        server.transport.write(HEAD + chunk(text("a")) + b"0\r\n\r\n")

    def breaks(server: Server, body: bytes) -> None:
        error = {"error": {"code": "engine_lost", "message": "m"}}
        server.transport.write(HEAD + chunk(text("a"), error) + b"0\r\n\r\n")

    def refuses(server: Server, body: bytes) -> None:
        server.transport.write(
            b"HTTP/1.1 503 X\r\nx-isochrone-reason: no_ready_replica\r\ncontent-length: 2\r\n\r\n{}"
        )

    def babbles(server: Server, body: bytes) -> None:
        server.transport.write(b"220 smtp ready\r\n\r\n")

    expected: list[tuple[Script, str]] = [
        (silent, "timed_out"), (dies, "lost"), (cuts, "cut"), (ends_early, "cut"),
        (breaks, "stream:engine_lost"), (refuses, "status_503:no_ready_replica"),
        (babbles, "no_http"),
    ]
    for script, error in expected:
        (sent,), seen = ask(script)
        assert sent.error == error
        assert len(seen) == 1


def test_a_whole_replay_at_twice_the_speed() -> None:
    trace = parse_trace(
        b"t_s,context_tokens,generated_tokens\n0,400,20\n4,2000,60\n6,50,3\n", "three.csv"
    )

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        wire, seen = Wire(loop), list[bytes]()
        listener = await wire.process("server").listen(lambda: Server(answers, seen), "h", 0)
        target = Target(
            ingresses=(Ingress(name="one", host="h", port=listener.port),), api_key="k", model="m"
        )
        report = await replay(
            trace, Plan(run="t", context_tokens=1024, speed=2.0), target,
            wire.process("client"), VirtualClock(loop),
        )
        assert report.wall_s == 4.0
        assert report.whole.finished == 3
        assert report.input_error is not None
        assert report.input_error < 0.02
        assert report.output_error == 0.0
        assert report.lifted_rows == ()
        wanted = [(one.wanted_input_tokens, one.wanted_output_tokens) for one in report.requests]
        assert wanted[1] == (int(2000 * report.factor), int(60 * report.factor))

    run(main())

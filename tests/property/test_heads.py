"""Remembering heads changes nothing: with and without it, the same bytes are the same requests."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isochrone.adapters.clock import SystemClock
from isochrone.gateway import heads
from isochrone.gateway.heads import HeadMemory, RequestHead
from isochrone.gateway.incoming import Fault, Incoming
from isochrone.gateway.outbox import Outbox
from isochrone.gateway.server import ClientConnection, Handler, Server
from isochrone.gateway.settings import GatewaySettings
from isochrone.wire import peer

SETTINGS = GatewaySettings(identity=Path("i"), port=0, journal=Path("j"), max_body_bytes=4096)


class Wire(asyncio.Transport):
    """A transport that remembers whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


def others(headers: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """All headers but the hop, which is read from each request itself."""
    return {name: value for name, value in headers.items() if name != peer.HOP.encode()}


@dataclass
class Seen:
    """An application that writes down what it was asked, and answers at once."""

    requests: list[tuple[Any, ...]] = field(default_factory=list)

    def begin(self, connection: ClientConnection, incoming: Incoming) -> Handler:
        seen = self

        class One:
            def serve(self) -> None:
                head = incoming.head
                seen.requests.append(
                    (head.method, head.path, others(head.headers), head.secret_sha256,
                     incoming.body, incoming.keep_alive, incoming.hop)
                )
                connection.answer(b"", close=connection.will_close(incoming))

            def fail(self, fault: Fault) -> None:
                seen.fail(connection, incoming, fault)

        return One()

    def fail(self, connection: ClientConnection, incoming: Incoming, fault: Fault) -> None:
        self.requests.append(("fault", fault.reason))
        connection.answer(b"", close=True)


def served(packets: list[bytes], *, remember: bool) -> tuple[list[tuple[Any, ...]], bool]:
    """What the application saw of one connection, and whether the connection was closed."""

    async def main() -> tuple[list[tuple[Any, ...]], bool]:
        app, wire = Seen(), Wire()
        server = Server(app, SETTINGS, SystemClock(), Outbox(lambda: None))
        if not remember:
            server.heads = HeadMemory(-1)
        connection = server.accept()
        connection.connection_made(wire)
        for packet in packets:
            if not wire.closed:
                connection.data_received(packet)
        return app.requests, wire.closed

    return asyncio.run(main())


bodies = st.binary(max_size=40)
lengths = st.sampled_from(
    ["{n}", "0{n}", "+{n}", "{n} ", " {n}", "{n}, {n}", "-1", "", "99999", "1e1", "0x1", "\u0661"]
)
names = st.sampled_from(["Content-Length", "content-length", "CONTENT-LENGTH", "X-Content-Length"])
extras = st.lists(
    st.sampled_from([
        "Authorization: Bearer a", "Authorization: Bearer b", "Connection: close", "X: y",
        "Transfer-Encoding: chunked", "Content-Length: 3", "Expect: 100-continue", "Upgrade: h2c",
        "X-A: content-length: 5", "Host: h", "Expect: more", f"{peer.HOP}: a 1 b",
    ]),
    max_size=3,
)


hop_names = st.sampled_from([peer.HOP, peer.HOP.title(), "x-hop"])
hops = st.sampled_from([
    "id-1 17 abc", "id-2 18 def", "id-3", "", " ", "a b ", "a\tb", "a\x00b", "a\nb", "a\rb",
    "\u00e9", "a" * 300, "x: y", "a,b-c 1",
])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    body = draw(bodies)
    lines = [f"POST /{draw(st.sampled_from('ab'))} HTTP/1.1"]
    if draw(st.integers(0, 9)):
        lines.append("Host: h")
    before = draw(extras)
    length = draw(lengths if draw(st.booleans()) else st.just("{n}")).format(n=len(body))
    separator = draw(st.sampled_from([": ", ":", ":  "]))
    if draw(st.booleans()):
        before.append(f"{draw(hop_names)}{separator}{draw(hops)}")
    lines += [*before, f"{draw(names)}{separator}{length}", *draw(extras)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@given(st.lists(requests(), min_size=1, max_size=3), st.lists(st.integers(0, 400), max_size=4))
def test_what_is_remembered_is_what_the_parser_says(parts: list[bytes], cuts: list[int]) -> None:
    """Each request twice, so that the second may be recalled; packets cut anywhere."""
    packets = [part for part in parts for _ in range(2)]
    stream = b"".join(packets)
    marks = sorted({min(cut, len(stream)) for cut in cuts})
    packets += [
        stream[a:b] for a, b in zip([0, *marks], [*marks, len(stream)], strict=True) if a < b
    ]
    assert served(packets, remember=True) == served(packets, remember=False)


def test_a_known_head_is_recalled_with_another_length() -> None:
    memory: HeadMemory[str] = HeadMemory(100)
    memory.learn(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nab", {b"content-length": b"2"}, "x")
    known = memory.recall(b"POST / HTTP/1.1\r\nContent-Length: 12\r\n\r\nabcdefghijkl")
    assert known == ("x", b"abcdefghijkl", b"")
    assert memory.recall(b"POST / HTTP/1.1\r\nContent-Length: 12\r\n\r\nabcdefghijk") is None
    assert memory.recall(b"POST /x HTTP/1.1\r\nContent-Length: 2\r\n\r\nab") is None
    long = b"POST / HTTP/1.1\r\nContent-Length: 101\r\n\r\n" + bytes(101)
    assert memory.recall(long) is None


def test_heads_that_differ_behind_their_length_only_are_all_recalled() -> None:
    def message(session: int) -> bytes:
        return b"POST / HTTP/1.1\r\ncontent-length: 2\r\nx-session-id: %d\r\n\r\nab" % session

    memory: HeadMemory[int] = HeadMemory(100)
    for session in range(3):
        assert memory.recall(message(session)) is None
        memory.learn(message(session), {b"content-length": b"2"}, session)
    for session in (0, 1, 2, 0, 0, 2):
        assert memory.recall(message(session)) == (session, b"ab", b"")
    assert memory.recall(message(3)) is None


def test_a_known_head_of_a_hop_is_recalled_with_another_proof() -> None:
    def message(hop: bytes, length: bytes, body: bytes) -> bytes:
        top = b"POST / HTTP/1.1\r\nx-isochrone-hop: %b\r\ncontent-length: %b\r\n\r\n"
        return top % (hop, length) + body

    memory: HeadMemory[str] = HeadMemory(100)
    memory.learn(message(b"one 1 aa", b"2", b"ab"), {b"content-length": b"2"}, "x")
    assert memory.recall(message(b"two 22 bb", b"3", b"abc")) == ("x", b"abc", b"two 22 bb")
    for hop in (b"", b" two", b"a\nb", b"a;b", b"a" * 257):
        assert memory.recall(message(hop, b"3", b"abc")) is None
    assert memory.recall(message(b"two 22 bb", b"3", b"abcd")) is None
    assert memory.recall(message(b"two 22 bb", b"+3", b"abc")) is None


def test_memory_is_bounded() -> None:
    memory: HeadMemory[int] = HeadMemory(100)
    for number in range(heads.MOST_REMEMBERED + 5):
        data = b"POST /%d HTTP/1.1\r\nContent-Length: 0\r\n\r\n" % number
        memory.learn(data, {b"content-length": b"0"}, number)
    assert memory.recall(b"POST /0 HTTP/1.1\r\nContent-Length: 0\r\n\r\n") is None
    last = heads.MOST_REMEMBERED + 4
    data = b"POST /%d HTTP/1.1\r\nContent-Length: 0\r\n\r\n" % last
    assert memory.recall(data) == (last, b"", b"")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/v1/models?x=1", "/v1/models"),
        (b"http://h/v1/models", "/v1/models"),
        (b"HTTP://h:80/v1/models?x", "/v1/models"),
        (b"http://h", "/"),
        (b"http://h?x/v1/models", "/"),
    ],
)
def test_the_path_of_a_target(target: bytes, path: str) -> None:
    head = RequestHead()
    head.url = target
    head.settle()
    assert head.path == path

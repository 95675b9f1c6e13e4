"""Clients that send, or take, a little at a time: how long a connection lasts without a request."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from isochrone.gateway.incoming import Fault, Incoming
from isochrone.gateway.outbox import Outbox
from isochrone.gateway.server import ClientConnection, Handler, Server
from isochrone.gateway.settings import GatewaySettings
from tests.fixtures.wires import Wire

SETTINGS = GatewaySettings(
    identity=Path("i"), port=0, journal=Path("j"), head_timeout_s=30, body_timeout_s=120,
    idle_timeout_s=75, max_connections=2001,
)
HEAD = b"POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 1000\r\n"
GET = b"GET / HTTP/1.1\r\nhost: t\r\n\r\n"


class Clock:
    """Goes on when it is told."""

    def __init__(self) -> None:
        self.now_s = 1.0

    def monotonic_ns(self) -> int:
        return int(self.now_s * 1e9)

    def wall_ns(self) -> int:
        return self.monotonic_ns()


class App:
    """Answers at once."""

    def begin(self, connection: ClientConnection, incoming: Incoming) -> Handler:
        class One:
            def serve(self) -> None:
                connection.answer(b"x" * 100, close=connection.will_close(incoming))

            def fail(self, fault: Fault) -> None:
                self.serve()

        return One()

    def fail(self, connection: ClientConnection, incoming: Incoming, fault: Fault) -> None:
        connection.answer(b"x", close=True)


class Cutting(App):
    """Begins an answer, and leaves it at that."""

    def begin(self, connection: ClientConnection, incoming: Incoming) -> Handler:
        class One:
            def serve(self) -> None:
                connection.write(b"x" * 100)

            def fail(self, fault: Fault) -> None:
                self.serve()

        return One()


class Stage:
    """A server that is swept once a second, and one connection to it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.server = Server(App(), SETTINGS, self.clock, Outbox(lambda: None))
        self.connection, self.wire = self.connect()

    def connect(self) -> tuple[ClientConnection, Wire]:
        connection, wire = self.server.accept(), Wire()
        connection.connection_made(wire)
        return connection, wire

    def lasts_s(self, each_second: Callable[[], None]) -> float:
        """How long the connection lasts while something happens every second; at most 1000 s."""
        since_s = self.clock.now_s
        while not self.wire.closed and self.clock.now_s - since_s < 1000:
            self.clock.now_s += 1
            each_second()
            self.server.sweep()
        return self.clock.now_s - since_s


def on_stage(body: Callable[[Stage], None]) -> None:
    async def main() -> None:
        body(Stage())

    asyncio.run(main())


def test_nothing_at_all() -> None:
    on_stage(lambda stage: exactly(stage, lambda: None, 76))


def exactly(stage: Stage, each_second: Callable[[], None], seconds: float) -> None:
    assert stage.lasts_s(each_second) == seconds


def trickle(stage: Stage, data: bytes) -> Callable[[], None]:
    rest = iter(data)

    def one_byte() -> None:
        byte = next(rest, None)
        if byte is not None:
            stage.connection.data_received(bytes([byte]))

    return one_byte


def test_a_head_in_single_bytes() -> None:
    """From its first byte on it has 30 s, however often something comes."""

    def body(stage: Stage) -> None:
        exactly(stage, trickle(stage, HEAD * 100), 32)
        assert said(stage) == "head_timeout"

    on_stage(body)


def said(stage: Stage) -> str:
    """Why the connection was closed."""
    head, _, body = b"".join(stage.wire.written).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nconnection: close\r\n" in head
    assert f"content-length: {len(body)}".encode() in head
    code: str = json.loads(body)["error"]["code"]
    return code


def test_a_body_in_single_bytes() -> None:
    def body(stage: Stage) -> None:
        stage.connection.data_received(HEAD + b"\r\n")
        exactly(stage, trickle(stage, b"x" * 1000), 121)
        assert said(stage) == "body_timeout"

    on_stage(body)


def test_half_a_request_behind_an_answer_that_is_not_taken() -> None:
    """Nothing more is written to whoever takes nothing."""

    def body(stage: Stage) -> None:
        stage.connection.data_received(GET + HEAD)
        before = list(stage.wire.written)
        stage.wire.unsent_bytes = 500
        exactly(stage, lambda: None, 31)
        assert stage.wire.written == before

    on_stage(body)


def test_trailers_in_single_bytes() -> None:
    def body(stage: Stage) -> None:
        head = HEAD.replace(b"content-length: 1000", b"transfer-encoding: chunked")
        stage.connection.data_received(head + b"\r\n2\r\n{}\r\n0\r\n")
        exactly(stage, trickle(stage, b"x-a: b\r\n" * 1000), 121)

    on_stage(body)


def test_empty_lines_are_no_request() -> None:
    on_stage(lambda stage: exactly(stage, trickle(stage, b"\r\n" * 1000), 76))


def test_requests_keep_a_connection() -> None:
    def body(stage: Stage) -> None:
        def now_and_then() -> None:
            if stage.clock.now_s % 70 == 0:
                stage.connection.data_received(GET)

        exactly(stage, now_and_then, 1000)

    on_stage(body)


def test_an_answer_that_is_taken_slowly() -> None:
    """While some of it goes out between two looks the connection lasts."""

    def body(stage: Stage) -> None:
        stage.connection.data_received(GET)
        stage.connection.pause_writing()
        stage.wire.unsent_bytes = 500

        def takes_a_byte() -> None:
            stage.wire.unsent_bytes = max(0, stage.wire.unsent_bytes - 1)

        lasted_s = stage.lasts_s(takes_a_byte)
        assert 500 < lasted_s < 500 + 3 * 76

    on_stage(body)


def test_an_answer_that_is_not_taken() -> None:
    def body(stage: Stage) -> None:
        stage.connection.data_received(GET)
        stage.connection.pause_writing()
        stage.wire.unsent_bytes = 500
        stage.connection.data_received(GET)  # waits
        assert stage.lasts_s(lambda: None) < 3 * 76

    on_stage(body)


def test_an_answer_that_is_cut_and_not_taken() -> None:
    def body(stage: Stage) -> None:
        stage.server.app = Cutting()
        stage.connection.data_received(GET)
        stage.connection.pause_writing()
        stage.wire.unsent_bytes = 500
        stage.connection.cut()
        assert stage.lasts_s(lambda: None) < 3 * 76

    on_stage(body)


@pytest.mark.parametrize("data", [b"", b"GET", HEAD + b"\r\n123"])
def test_thousands_of_them_at_once(data: bytes) -> None:
    def body(stage: Stage) -> None:
        stage.clock.now_s = 2
        many = [stage.connect() for _ in range(2000)]
        for connection, _ in many:
            connection.data_received(data)
        stage.clock.now_s = 200
        stage.server.sweep()  # begins to count for those that have just become idle
        stage.clock.now_s = 400
        stage.server.sweep()
        assert all(wire.closed for _, wire in many)
        for connection, _ in many:
            connection.connection_lost(None)
        assert stage.server.uploads.held_bytes == 0
        assert len(stage.server.connections) == 1

    on_stage(body)


def test_too_many_of_them() -> None:
    def body(stage: Stage) -> None:
        many = [stage.connect() for _ in range(SETTINGS.max_connections)]
        assert [wire.closed for _, wire in many[-2:]] == [False, True]
        many[-1][0].data_received(GET)
        assert many[-1][1].written == []
        many[-1][0].connection_lost(None)
        many[0][0].connection_lost(None)
        assert not stage.connect()[1].closed

    on_stage(body)

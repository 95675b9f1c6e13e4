"""Clients that send, or take, a little at a time: how long a connection lasts without a request."""

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isochrone.gateway.incoming import Fault, Incoming
from isochrone.gateway.outbox import Outbox
from isochrone.gateway.replies import Refusal, error_body
from isochrone.gateway.server import CONTINUE, LINGER_S, ClientConnection, Handler, Server
from isochrone.gateway.settings import GatewaySettings
from isochrone.twin import loop as virtual
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
                app.fail(connection, incoming, fault)

        app = self
        return One()

    def fail(self, connection: ClientConnection, incoming: Incoming, fault: Fault) -> None:
        refusal = Refusal(status=fault.status, reason=fault.reason, message=fault.message)
        body = error_body(refusal)
        top = b"HTTP/1.1 %d No\r\nconnection: close\r\n" % fault.status
        connection.answer(top + b"content-length: %d\r\n\r\n%b" % (len(body), body), close=True)


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

    def lasts_s(self, each_second: Callable[[], None], *, half: bool = False) -> float:
        """How long the connection lasts while something happens every second; at most 1000 s.
        `half`: or the gateway's half of it, which ends first where something is said."""
        since_s = self.clock.now_s
        while not (self.wire.closed or (half and self.wire.ended)):
            if self.clock.now_s - since_s >= 1000:
                break
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
    assert stage.lasts_s(each_second, half=True) == seconds


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
    async def main() -> None:
        stage = Stage()
        stage.clock.now_s = 2
        many = [stage.connect() for _ in range(2000)]
        for connection, _ in many:
            connection.data_received(data)
        stage.clock.now_s = 200
        stage.server.sweep()  # begins to count for those that have just become idle
        stage.clock.now_s = 400
        stage.server.sweep()
        await asyncio.sleep(2 * LINGER_S)
        assert all(wire.closed for _, wire in many)
        for connection, _ in many:
            connection.connection_lost(None)
        assert stage.server.uploads.held_bytes == 0
        assert len(stage.server.connections) == 1

    virtual.run(main())


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


class Slow(App):
    """Each answer is more than its client takes at once."""

    def begin(self, connection: ClientConnection, incoming: Incoming) -> Handler:
        class One:
            def serve(self) -> None:
                connection.pause_writing()
                connection.answer(b"x" * 100, close=connection.will_close(incoming))

            def fail(self, fault: Fault) -> None:
                app.fail(connection, incoming, fault)

        app = self
        return One()


class Late(App):
    """Answers when it is told."""

    def __init__(self) -> None:
        self.asked: list[Incoming] = []

    def begin(self, connection: ClientConnection, incoming: Incoming) -> Handler:
        class One:
            def serve(self) -> None:
                app.asked.append(incoming)

            def fail(self, fault: Fault) -> None:
                app.fail(connection, incoming, fault)

        app = self
        return One()


class Halved(Wire):
    """One that may be ended by halves: there is a socket to watch."""

    def __init__(self) -> None:
        super().__init__()
        self._pair = socket.socketpair()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._pair[0] if name == "socket" else default


def test_a_request_behind_an_answer_that_is_taken_slowly() -> None:
    """It has come in whole, so no time for its coming can be over."""

    def body(stage: Stage) -> None:
        stage.server.app = Slow()
        stage.connection.data_received(GET + GET)
        stage.wire.unsent_bytes = 500

        def takes_a_byte() -> None:
            stage.wire.unsent_bytes = max(0, stage.wire.unsent_bytes - 1)

        assert 500 < stage.lasts_s(takes_a_byte) < 500 + 3 * 76

    on_stage(body)


def test_half_a_request_behind_an_answer_that_takes_long() -> None:
    """The rest of it was not read meanwhile."""

    def body(stage: Stage) -> None:
        app = stage.server.app = Late()
        stage.connection.data_received(GET + HEAD + b"\r\n" + b"x" * 10)
        for _ in range(300):
            stage.clock.now_s += 1
            stage.server.sweep()
        stage.connection.answer(b"x" * 100, close=False)
        stage.clock.now_s += 100
        stage.server.sweep()
        assert not stage.wire.closed
        assert not stage.wire.ended
        stage.connection.data_received(b"x" * 990)
        assert [each.body for each in app.asked] == [b"", b"x" * 1000]

    on_stage(body)


@pytest.mark.parametrize("when", ["while it is answered", "behind it"])
def test_what_a_slow_client_had_asked_before_it_ended_its_half(when: str) -> None:
    def body(stage: Stage) -> None:
        app, wire = Late(), Halved()
        stage.server.app = app
        connection = stage.server.accept()
        connection.connection_made(wire)
        connection.data_received(GET * 3)
        if when == "while it is answered":
            assert connection.eof_received()
        connection.pause_writing()
        connection.answer(b"1", close=False)
        assert len(app.asked) == 1
        if when == "behind it":
            assert connection.eof_received()
        assert [wire.closed] == [False]
        for number in (b"2", b"3"):
            connection.resume_writing()
            connection.pause_writing()
            connection.answer(number, close=False)
        stage.server.outbox.flush()
        assert b"".join(wire.written).replace(CONTINUE, b"") == b"123"
        assert wire.closed
        stage.server.hangups.close()

    on_stage(body)

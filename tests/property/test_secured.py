"""TLS of an accepted connection: however its bytes are cut, the party gets what was sent."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isochrone.adapters.network.secured import Arrivals, Handshakes, Secured
from isochrone.adapters.network.tls import client_context, server_context
from isochrone.twin import loop as virtual
from tests.fixtures.certificates import Authority

HANDSHAKE_S, SHUTDOWN_S = 10.0, 2.0


class Tcp(asyncio.Transport):
    """What the server's end wrote, and whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = self.aborted = self.ended = self.paused = False

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


class Listener(asyncio.Protocol):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.ended = self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.got += data

    def eof_received(self) -> bool:
        self.ended = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


class Pair:
    """A client of OpenSSL in memory, and the end under test."""

    def __init__(
        self, folder: Path, handshakes: Handshakes | None = None, arrivals: Arrivals | None = None
    ) -> None:
        authority = Authority(folder)
        certificate = authority.certificate("gateway.test")
        self.party = Listener()
        self.made = 0
        self.tcp = Tcp()
        self.arrivals = arrivals or Arrivals()
        self.end = Secured(
            server_context(certificate), self._make, handshake_s=HANDSHAKE_S,
            shutdown_s=SHUTDOWN_S, handshakes=handshakes or Handshakes(1), arrivals=self.arrivals,
        )
        self.to_client, self.to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client_context(authority.file).wrap_bio(
            self.to_client, self.to_server, server_hostname="gateway.test"
        )
        self.end.connection_made(self.tcp)

    def _make(self) -> Listener:
        self.made += 1
        return self.party

    def deliver(self, cut: Callable[[bytes], list[bytes]] = lambda data: [data]) -> None:
        """What each has written reaches the other."""
        for piece in cut(self.to_server.read()):
            if piece:
                self.end.data_received(piece)
                self.arrivals.deliver()
        self.to_client.write(bytes(self.tcp.written))
        self.tcp.written.clear()

    def shake_hands(self) -> "Pair":
        for _ in range(4):
            try:
                self.client.do_handshake()
            except ssl.SSLWantReadError:
                self.deliver()
        self.deliver()
        assert self.made == 1
        return self

    def read(self) -> bytes:
        got = b""
        while True:
            try:
                piece = self.client.read(1 << 20)
            except ssl.SSLWantReadError:
                return got
            if not piece:
                return got
            got += piece


def within_loop(folder: Path, main: Callable[[Pair], Any]) -> None:
    async def go() -> None:
        result = main(Pair(folder))
        if asyncio.iscoroutine(result):
            await result

    virtual.run(go())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@given(
    st.lists(st.integers(0, 40_000), min_size=1, max_size=3),
    st.lists(st.integers(1, 20_000), max_size=5),
    st.lists(st.integers(0, 70_000), max_size=3),
)
def test_bytes_arrive_however_they_are_cut(
    folder: Path, sent: list[int], cuts: list[int], answers: list[int]
) -> None:
    def cut(data: bytes) -> list[bytes]:
        marks = sorted({min(mark, len(data)) for mark in cuts})
        return [data[a:b] for a, b in zip([0, *marks], [*marks, len(data)], strict=True)]

    def main(pair: Pair) -> None:
        pair.shake_hands()
        expected = b""
        for number, size in enumerate(sent):
            data = bytes([number]) * min(size, 16_000)  # one record each
            expected += data
            if data:
                pair.client.write(data)
        pair.deliver(cut)
        assert pair.party.got == expected
        for size in answers:
            pair.party.transport.write(b"a" * size)
        pair.deliver()
        assert pair.read() == b"a" * sum(answers)

    within_loop(folder, main)


def test_a_handshake_byte_by_byte(folder: Path) -> None:
    def main(pair: Pair) -> None:
        for _ in range(4):
            try:
                pair.client.do_handshake()
            except ssl.SSLWantReadError:
                pair.deliver(lambda data: [data[at : at + 1] for at in range(len(data))])
        pair.client.write(b"hello")
        pair.deliver(lambda data: [data[at : at + 1] for at in range(len(data))])
        assert pair.party.got == b"hello"

    within_loop(folder, main)


def test_a_client_that_does_not_shake_hands_is_ended(folder: Path) -> None:
    async def main(pair: Pair) -> None:
        await asyncio.sleep(HANDSHAKE_S - 1)
        assert not pair.tcp.is_closing()
        await asyncio.sleep(2)
        assert pair.tcp.aborted
        assert pair.made == 0

    within_loop(folder, main)


def test_a_handshake_too_many_is_ended_and_those_that_are_over_do_not_count(folder: Path) -> None:
    async def main(first: Pair) -> None:
        handshakes = Handshakes(1)
        waiting = Pair(folder, handshakes)
        assert Pair(folder, handshakes).tcp.aborted
        waiting.shake_hands()
        lost = Pair(folder, handshakes)
        assert not lost.tcp.is_closing()
        lost.end.connection_lost(None)
        lost.end.connection_lost(None)  # counts once
        failed = Pair(folder, handshakes)
        failed.end.data_received(b"GET / HTTP/1.1\r\n\r\n")
        failed.end.connection_lost(None)
        assert handshakes.open == 0
        refused = Pair(folder, Handshakes(0))
        refused.deliver()  # what still comes is thrown away
        assert refused.made == 0
        assert refused.tcp.aborted

    within_loop(folder, main)


def test_a_client_that_says_goodbye(folder: Path) -> None:
    def main(pair: Pair) -> None:
        pair.shake_hands()
        pair.client.write(b"last")
        with pytest.raises(ssl.SSLWantReadError):
            pair.client.unwrap()
        pair.deliver()
        assert (bytes(pair.party.got), pair.party.ended) == (b"last", True)
        assert pair.party.transport.is_closing()
        pair.end.connection_lost(None)
        assert pair.party.lost

    within_loop(folder, main)


def test_a_party_that_closes_waits_for_the_other_side(folder: Path) -> None:
    async def main(pair: Pair) -> None:
        pair.shake_hands()
        pair.party.transport.write(b"bye")
        pair.party.transport.pause_reading()
        pair.party.transport.close()
        pair.party.transport.write(b"too late")
        assert pair.tcp.ended
        assert not pair.tcp.closed
        assert not pair.tcp.paused
        pair.client.write(b"what nobody reads any more")
        pair.deliver()
        assert pair.read() == b"bye"
        assert pair.party.got == b""
        await asyncio.sleep(SHUTDOWN_S + 1)
        assert pair.tcp.closed

    within_loop(folder, main)


def test_what_is_not_tls_ends_the_connection(folder: Path) -> None:
    def main(pair: Pair) -> None:
        pair.shake_hands()
        pair.end.data_received(b"GET / HTTP/1.1\r\n\r\n" * 100)
        pair.arrivals.deliver()
        assert pair.tcp.aborted
        assert pair.party.got == b""

    within_loop(folder, main)


class Failing(Listener):
    def data_received(self, data: bytes) -> None:
        raise RuntimeError("a fault of the party's")


def test_a_round_ends_with_everybody_having_got_what_came(folder: Path) -> None:
    async def main(first: Pair) -> None:
        faults: list[str] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: faults.append(str(context["exception"]))
        )
        pairs = [first, *(Pair(folder, arrivals=first.arrivals) for _ in range(2))]
        pairs[1].party = Failing()
        for pair in pairs:
            pair.shake_hands()
        for number, pair in enumerate(pairs):
            pair.client.write(b"%d" % number)
            pair.end.data_received(pair.to_server.read())
        assert [bytes(pair.party.got) for pair in pairs] == [b"", b"", b""]
        await asyncio.sleep(0.001)
        assert [bytes(pair.party.got) for pair in pairs] == [b"0", b"", b"2"]
        assert [pair.tcp.aborted for pair in pairs] == [False, True, False]
        assert faults == ["a fault of the party's"]

    within_loop(folder, main)


def test_what_comes_while_another_party_fails_is_not_left_lying(folder: Path) -> None:
    async def main(first: Pair) -> None:
        first.party = Failing()
        other = Pair(folder, arrivals=first.arrivals)
        for pair in (first, other):
            pair.shake_hands()
        for pair in (first, other):
            pair.client.write(b"one ")
            pair.end.data_received(pair.to_server.read())
        with pytest.raises(RuntimeError):
            first.arrivals.deliver()
        other.client.write(b"two")
        other.end.data_received(other.to_server.read())
        await asyncio.sleep(0.001)
        assert other.party.got == b"one two"

    within_loop(folder, main)


@pytest.mark.parametrize("lost", [False, True])
def test_what_came_before_the_end_is_handed_on_before_it(folder: Path, lost: bool) -> None:
    async def main(pair: Pair) -> None:
        pair.shake_hands()
        pair.client.write(b"last words")
        pair.end.data_received(pair.to_server.read())
        if lost:
            pair.end.connection_lost(None)
        else:
            pair.end.eof_received()
        assert (bytes(pair.party.got), pair.party.ended, pair.party.lost) == (
            b"last words", not lost, lost
        )
        await asyncio.sleep(0.001)
        assert pair.party.got == b"last words"

    within_loop(folder, main)


@pytest.mark.parametrize("then", ["send", "write", "close"])
def test_what_is_sealed_goes_out_in_its_order(folder: Path, then: str) -> None:
    def main(pair: Pair) -> None:
        pair.shake_hands()
        sealing = pair.party.transport.get_extra_info("sealing")
        sealing.seal(b"one ")
        sealing.seal(b"two ")
        assert not pair.tcp.written
        if then == "write":
            pair.party.transport.write(b"three")
        else:
            getattr(sealing, then)()
        pair.deliver()
        assert pair.read() == (b"one two three" if then == "write" else b"one two ")

    within_loop(folder, main)


def test_what_has_come_is_handed_on_though_a_record_is_framed_by_less(tmp_path: Path) -> None:
    """ChaCha20 in TLS 1.2 takes a byte less than TLS 1.3 does: each read has a byte of the record
    after the next, as if it were one record by itself, until a whole one is there."""

    def main(pair: Pair) -> None:
        context = client_context(tmp_path / "authority.pem")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE+CHACHA20")
        pair.client = context.wrap_bio(
            pair.to_client, pair.to_server, server_hostname="gateway.test"
        )
        pair.shake_hands()
        for _ in range(40):
            pair.client.write(b"0123456789")
        sent = pair.to_server.read()
        record = len(sent) // 40
        assert record == 10 + 21
        for number in range(1, 36):
            pair.end.data_received(sent[(number - 1) * (record + 1) : number * (record + 1)])
            pair.arrivals.deliver()
            assert len(pair.party.got) == number * (record + 1) // record * 10

    within_loop(tmp_path, main)

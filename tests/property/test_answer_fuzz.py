"""Damaged answers of engines: each request hears of its own answer only, and hears its end once."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from isochrone.adapters.clock import SystemClock
from isochrone.gateway import upstream
from isochrone.gateway.outbox import Outbox
from isochrone.gateway.upstream import UpstreamConnection, UpstreamPool
from isochrone.ports.network import Address, Certificate, Listener, Party
from tests.fixtures.fuzzing import damaged, packets, seeds
from tests.fixtures.wires import Wire

ROUNDS = 4000
ADDRESS = Address(host="127.0.0.1", port=1)
P = TypeVar("P", bound=Party)

OK = b"HTTP/1.1 200 OK\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nContent-Length: %d\r\n\r\n"
PLAIN = OK + b"Content-Length: 8\r\n\r\n%b"
SAID = b"%b"  # where each says which request it answers
# What an engine may answer, and the body that then comes through. None: it makes no sense.
ANSWERS: dict[bytes, bytes | None] = {
    PLAIN: SAID,
    OK + b"content-length: 10\r\nkeep-alive: timeout=5\r\n\r\n<%b>": b"<%b>",
    OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"8\r\n%b\r\n8\r\n%b\r\n0\r\n\r\n": SAID + SAID,
    OK + b"Transfer-Encoding: chunked\r\n\r\n8;a=b\r\n%b\r\n0\r\nx-trailer: a\r\n\r\n": SAID,
    b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN: SAID,
    HINTS % 8 + PLAIN: SAID,
    HINTS % (len(PLAIN) + 6) + PLAIN: SAID,
    OK + b"\r\n%b": SAID,
    OK + b"Connection: close\r\nContent-Length: 8\r\n\r\n%b": SAID,
    b"HTTP/1.0 200 OK\r\nContent-Length: 8\r\n\r\n%b": SAID,
    b"HTTP/1.1 204 No Content\r\n\r\n": b"",
    b"HTTP/1.1 503 Busy\r\nContent-Length: 8\r\nRetry-After: 1\r\n\r\n%b": SAID,
    PLAIN + b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ntoo much": SAID,
    PLAIN + b"too much": SAID,
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n%b": None,
    OK + b"Content-Length: 8\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n%b\r\n0\r\n\r\n": None,
    OK + b"Content-Length: 8\r\nContent-Length: 9\r\n\r\n%b": None,
    OK + b"Content-Length: 9\r\n\r\n%b": None,
    OK + b"Transfer-Encoding: gzip\r\n\r\n%b": None,
    OK + b"X: a\r\n b\r\nContent-Length: 8\r\n\r\n%b": None,
    b"HTTP/1.1 102 Processing\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nHTTP\r\n0\r\n\r\n": None,
    b"HTTP/1.1 153 Odd\r\nContent-Length: 4\r\n\r\nHTTP" + PLAIN: None,
    b"HTTP/1.1 099 Odd\r\nContent-Length: 8\r\n\r\n%b": None,
    b"HTTP/1.1 700 Odd\r\nContent-Length: 8\r\n\r\n%b": None,
    b"HTTP/2.0 200 OK\r\nContent-Length: 8\r\n\r\n%b": None,
    OK + b"".join(b"x-%d: 1\r\n" % i for i in range(300)) + b"Content-Length: 8\r\n\r\n%b": None,
    OK + b"X: " + b"y" * 400_000 + b"\r\nContent-Length: 8\r\n\r\n%b": None,
    b"HTTP/1.1 100 Continue\r\n\r\n" * 16_000 + PLAIN: None,
    OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\nx-trailer: " + b"y" * 400_000: None,
}
SHORT = [answer for answer in ANSWERS if len(answer) < 5000]
MOST_READ_BYTES = 256 * 1024  # at once, by the event loops


class NoNetwork:
    """The test connects by itself."""

    async def listen(
        self, factory: Callable[[], Party], host: str, port: int, *,
        tls: Certificate | None = None,
    ) -> Listener:
        raise OSError

    async def connect(
        self, factory: Callable[[], P], address: Address, *, timeout_s: float
    ) -> P:
        raise OSError


@dataclass
class Receiver:
    """Hears of one answer, and holds the connection to its promises."""

    heads: list[int] = field(default_factory=list)
    body: bytes = b""
    ends: list[str] = field(default_factory=list)

    def answered(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        assert not self.ends
        assert not self.heads, "one answer"
        assert 200 <= status < 600
        assert len(headers) <= upstream.MOST_HEADERS
        self.heads.append(status)

    def received(self, data: bytes) -> None:
        assert self.heads
        assert not self.ends
        assert data
        self.body += data

    def ended(self) -> None:
        assert self.heads
        assert not self.ends
        self.ends.append("")

    def lost(self, why: str) -> None:
        assert not self.ends
        assert why
        self.ends.append(why)


def connected(pool: UpstreamPool) -> UpstreamConnection:
    connection = pool.idle(ADDRESS)
    if connection is None:
        connection = UpstreamConnection(pool, ADDRESS)
        connection.connection_made(Wire())
    return connection


def wire_of(connection: UpstreamConnection) -> Wire:
    wire: Any = connection._transport
    assert isinstance(wire, Wire)
    return wire


def one_round(
    random: Random, pool: UpstreamPool, earlier: deque[bytes], counts: Counter[str]
) -> None:
    """Ask once and be answered with something. Whatever comes late comes before the next one."""
    marker = b"%08x" % random.getrandbits(32)
    sound = random.random() < 0.3
    template = random.choice(SHORT) if random.random() < 0.99 else random.choice(list(ANSWERS))
    answer = template.replace(SAID, marker)
    if not sound:
        known = [each.replace(SAID, marker) for each in SHORT]
        for _ in range(random.choice((1, 1, 2, 4))):
            answer = damaged(random, answer, known)
    connection, receiver = connected(pool), Receiver()
    wire = wire_of(connection)
    if random.random() < 0.02:
        connection.data_received(answer[:20] or b"x")  # an answer before the request
        assert not connection.open
        connection.connection_lost(None)
        return
    connection.send(b"request", receiver)
    for packet in packets(random, answer):
        for begin in range(0, len(packet), MOST_READ_BYTES):
            if not wire.closed:
                connection.data_received(packet[begin : begin + MOST_READ_BYTES])
    if wire.closed or random.random() < 0.2 or not receiver.ends:
        connection.connection_lost(None)
    assert len(receiver.ends) == 1, "the end is told once"
    assert not any(other in receiver.body for other in earlier), "only its own answer"
    earlier.append(marker)
    meant = ANSWERS[template]
    if sound and meant is not None:
        assert receiver.ends == [""], "what makes sense comes through"
        assert receiver.body == meant.replace(SAID, marker)
    elif sound:
        assert receiver.ends != [""], "what makes none does not"
    counts["lost" if receiver.ends[0] else "ended"] += 1


def test_damaged_answers() -> None:
    async def main() -> None:
        pool = UpstreamPool(NoNetwork(), SystemClock(), Outbox(lambda: None))
        counts: Counter[str] = Counter()
        earlier: deque[bytes] = deque(maxlen=100)
        for seed in seeds(ROUNDS):
            try:
                one_round(Random(seed), pool, earlier, counts)
            except Exception as error:
                error.add_note(f"FUZZ_SEED={seed}")
                raise
            if seed % 100 == 0:
                await asyncio.sleep(0)
        assert counts["ended"] > counts["lost"] / 4
        assert counts["lost"]

    asyncio.run(main())

"""Damaged requests in damaged order: what is served is what was sent, and nothing else happens.

The protocol objects are driven directly, with transports that only remember, so a round takes
well under a millisecond. One server lives through all rounds: heads are remembered across them.
"""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from isochrone.adapters.clock import SystemClock
from isochrone.gateway.incoming import Fault, Incoming
from isochrone.gateway.outbox import Outbox
from isochrone.gateway.server import ClientConnection, Handler, Server
from isochrone.gateway.settings import GatewaySettings
from tests.fixtures.fuzzing import damaged, packets, seeds
from tests.fixtures.http_corpus import cases
from tests.fixtures.http_oracle import Read, Reading, read
from tests.fixtures.wires import Wire

ROUNDS = 4000
MOST_BODY_BYTES = 4096
SETTINGS = GatewaySettings(
    identity=Path("i"), port=0, journal=Path("j"), max_body_bytes=MOST_BODY_BYTES
)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass
class Client:
    """One connection: what was served on it, in order, and what waits for its answer."""

    connection: ClientConnection
    wire: Wire
    at_once: bool
    served: list[Read] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    waiting: list["One"] = field(default_factory=list)

    def answer(self) -> None:
        """Answer what waits."""
        for one in self.waiting[:]:
            self.waiting.remove(one)
            one.answer(200)

    def answered(self) -> list[int]:
        """The statuses of the answers; fails when they are not what a client could read."""
        data, statuses = b"".join(self.wire.written).replace(CONTINUE, b""), []
        while data:
            head, _, data = data.partition(b"\r\n\r\n")
            status, number, head_only = head.removeprefix(b"HTTP/1.1 ").split(b" ")
            if head_only == b"False":
                assert data[:5] == b"body" + number, "answers in order, each with its body"
                data = data[5:]
            statuses.append(int(status))
        return statuses


@dataclass
class One:
    """One request that is being served; listens as an exchange does."""

    client: Client
    incoming: Incoming
    head_sent: bool = False

    def serve(self) -> None:
        head, client = self.incoming.head, self.client
        assert self.incoming.complete
        assert not client.waiting, "one after the other"
        headers = {name: value.strip(b" \t") for name, value in head.headers.items()}
        if b"content-length" in headers:  # of a remembered head it is that of the first request
            headers[b"content-length"] = str(len(self.incoming.body)).encode()
        client.served.append(
            Read(head.method, head.url, headers, self.incoming.body, self.head_only)
        )
        client.waiting.append(self)
        client.connection.listener = self
        if client.at_once:
            client.answer()

    @property
    def head_only(self) -> bool:
        try:
            return self.incoming.bodiless
        except AttributeError:  # one whose head was remembered
            return False

    def fail(self, fault: Fault) -> None:
        self.client.faults.append(fault)
        self.answer(fault.status)

    def answer(self, status: int) -> None:
        connection = self.client.connection
        number = len(self.client.served) % 10
        head = b"HTTP/1.1 %d %d %r" % (status, number, self.head_only)
        connection.write(head + b"\r\n\r\nbody%d" % number)
        connection.done(close=connection.will_close(self.incoming))

    def client_gone(self) -> None:
        self.client.waiting.remove(self)

    def client_paused(self) -> None:
        pass

    def client_resumed(self) -> None:
        pass


class App:
    """Serves everything."""

    def __init__(self) -> None:
        self.clients: dict[ClientConnection, Client] = {}

    def begin(self, connection: ClientConnection, incoming: Incoming) -> Handler:
        return One(self.clients[connection], incoming)

    def fail(self, connection: ClientConnection, incoming: Incoming, fault: Fault) -> None:
        One(self.clients[connection], incoming).fail(fault)


def streams() -> list[bytes]:
    """What the corpus sends, as far as it is short."""
    return [
        case.data + case.later for case in cases() if len(case.data) < 3000
        and len(case.answers) < 5
    ]


def one_round(random: Random, server: Server, app: App, known: list[bytes]) -> bytes:
    """Send a few messages, damaged or not, and look at what came of them. Returns what was sent."""
    parts = [random.choice(known) for _ in range(random.choice((1, 1, 2, 3)))]
    for at, part in enumerate(parts):
        for _ in range(random.choice((0, 0, 1, 1, 2, 5))):
            part = damaged(random, part, known)
        parts[at] = part
    stream = b"".join(parts)
    connection, wire = server.accept(), Wire()
    client = app.clients[connection] = Client(connection, wire, random.random() < 0.5)
    connection.connection_made(wire)
    held: list[bytes] = []
    for packet in packets(random, stream):
        held.append(packet)
        if random.random() < 0.1:
            connection.pause_writing()
        if wire.reading and not wire.closed:
            connection.data_received(b"".join(held))
            held.clear()
        if random.random() < 0.5:
            client.answer()
        if connection.paused and random.random() < 0.5:
            connection.resume_writing()
    if connection.paused:
        connection.resume_writing()
    while client.waiting or (held and wire.reading and not wire.closed):
        client.answer()
        if held and wire.reading and not wire.closed:
            connection.data_received(b"".join(held))
            held.clear()
    server.outbox.flush()
    judge(client, read(stream, max_body_bytes=MOST_BODY_BYTES))
    leave(random, client)
    return stream


def judge(client: Client, told: Reading) -> None:
    """Hold what was served to what was sent."""
    served, wire = client.served, client.wire
    ended = wire.closed or wire.ended
    assert served == told.requests[: len(served)], "what was served is what was sent"
    assert client.answered() == [200] * len(served) + [each.status for each in client.faults]
    assert len(client.faults) <= ended
    if len(served) < len(told.requests):
        assert told.unsure_from is not None, "whole requests are served"
        assert len(served) >= told.unsure_from
        assert ended
    elif told.last:
        assert ended
    elif told.broken:
        assert ended
        assert client.faults or told.unsure_from is not None
    elif told.unsure_from is None and not client.faults:
        assert not ended, "a connection that is all right stays open"


def leave(random: Random, client: Client) -> None:
    """The end of a connection."""
    connection, wire = client.connection, client.wire
    before = len(client.served)
    if not wire.closed and random.random() < 0.5:
        assert not connection.eof_received()
    connection.connection_lost(None)
    assert not client.waiting
    assert len(client.served) == before


def test_damaged_requests() -> None:
    async def main() -> None:
        app = App()
        server = Server(app, SETTINGS, SystemClock(), Outbox(lambda: None))
        known = streams()
        for seed in seeds(ROUNDS):
            random = Random(seed)
            try:
                one_round(random, server, app, known)
            except Exception as error:
                error.add_note(f"FUZZ_SEED={seed}")
                raise
            app.clients.clear()
            if seed % 100 == 0:
                await asyncio.sleep(0)
        assert server.uploads.held_bytes == 0
        assert not server.connections

    asyncio.run(main())

"""Connections to engines and peer gateways: kept alive, one request at a time, HTTP/1.1.

A receiver hears of its answer through four calls, at most one of `ended` and `lost` as the last.
Body bytes come without their framing, joined per read: what arrived together is handed on together.
A stream mostly comes a chunk a read; where that is plain to see, the parser is spared it.
Cancelling is closing: the other side sees it at once.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, Protocol, cast

import httptools

from isochrone.gateway.chunks import is_whole, lone_chunk, whole_chunks
from isochrone.gateway.coalescing import Coalescing
from isochrone.gateway.heads import HeadMemory
from isochrone.gateway.outbox import Outbox
from isochrone.ports.clock import Clock
from isochrone.ports.network import Address, Network
from isochrone.wire import peer

# Engines close idle connections after a few seconds without saying so (llama.cpp: 5 s).
IDLE_S: Final = 4.0
IDLE_MARGIN_S: Final = 1.0
MOST_IDLE: Final = 256  # an address
MOST_ANSWER_BYTES = 64 * 1024 * 1024  # of an answer that is taken in one read
MOST_SILENT_BYTES: Final = 64 * 1024  # in reads without a byte of a body: heads, trailers
MOST_HEADERS: Final = 256
LARGE_BYTES: Final = 64 * 1024  # passed on at once, so that a slow client pauses its engine at once
_HOP: Final = peer.HOP.encode()
VERSIONS: Final = ("1.1", "1.0")


def without_address(error: OSError) -> str:
    """Why there is no connection: `Connect call failed ('10.0.0.7', 8001)` up to its address, as
    customers read it, too."""
    return str(error.strerror or error).partition(" (")[0]


class Receiver(Protocol):
    """Who takes an answer."""

    def answered(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        """The head; names are in lower case."""
        ...

    def received(self, data: bytes) -> None: ...

    def ended(self) -> None:
        """The whole body has been received."""
        ...

    def lost(self, why: str) -> None:
        """The connection ended, or made no sense, before the end of the answer."""
        ...


class UpstreamConnection:
    """One connection; `fresh` until it has been given back to the pool once."""

    __slots__ = (
        "_absurd",
        "_between",
        "_by_close",
        "_complete",
        "_excess",
        "_head_due",
        "_headers",
        "_interim",
        "_parser",
        "_pieces",
        "_pool",
        "_reading",
        "_receiver",
        "_resting",
        "_reusable",
        "_silent_bytes",
        "_status",
        "_transport",
        "_untouched",
        "address",
        "fresh",
        "idle_until_ns",
        "open",
    )

    _transport: asyncio.Transport

    def __init__(self, pool: "UpstreamPool", address: Address) -> None:
        self._pool = pool
        self.address = address
        self.fresh = True
        self.open = False
        self.idle_until_ns = 0
        self._receiver: Receiver | None = None
        self._parser: Any = None
        self._headers: dict[bytes, bytes] = {}
        self._pieces: list[bytes] = []
        self._head_due = False
        self._interim = False
        self._complete = False
        self._by_close = False
        self._absurd = False  # the head makes no sense
        self._excess = False  # the other side sent more than one answer to one request
        self._reusable = False
        self._reading = True
        self._resting = False
        self._untouched = True  # nothing of this answer has come
        self._between = False  # the parser waits for the size of a chunk
        self._status = 0
        self._silent_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.open = True

    def send(self, data: bytes, receiver: Receiver) -> None:
        """Send one request; the receiver gets its answer."""
        self._receiver = receiver
        self._complete = self._by_close = False
        self._untouched, self._between = True, False
        self._pool.outbox.write(self._transport, data)

    def abort(self) -> None:
        """Forget the answer and close now."""
        self._receiver = None
        self.open = False
        self._transport.abort()

    def set_reading(self, reading: bool) -> None:
        """Pause or resume taking the answer from the network."""
        if reading != self._reading:
            self._reading = reading
            if not self._resting:
                self._set_transport_reading(reading)

    def rest(self) -> None:
        """Leave a stream unread for a moment: it brings more than its client can tell apart."""
        if not self._resting and self.open:
            self._pool.coalescing.rest(self)

    def set_resting(self, resting: bool) -> None:
        """As `set_reading`, whatever the client does."""
        if resting != self._resting:
            self._resting = resting
            if self._reading:
                self._set_transport_reading(not resting)

    def _set_transport_reading(self, reading: bool) -> None:
        if self.open and not self._transport.is_closing():
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # -- called by the parser: only notes --------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:
            self._excess = True
        else:
            self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._excess:
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self._excess:
            return
        self._status = self._parser.get_status_code()
        self._interim = 100 <= self._status < 200
        chunked = b"transfer-encoding" in self._headers
        framed = chunked or b"content-length" in self._headers
        # An interim answer has no body, whatever it says, but the parser believes some of them.
        bodied = self._interim and framed and (chunked or self._status > 103)
        self._absurd = self._absurd or (
            self._parser.get_http_version() not in VERSIONS
            or not 100 <= self._status < 600
            or len(self._headers) > MOST_HEADERS
            or bodied
        )
        self._head_due = not self._interim or self._absurd
        self._by_close = not framed and not self._interim

    def on_body(self, body: bytes) -> None:
        if not self._excess:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        if not self._excess:
            self._complete = not self._interim
            self._reusable = self._parser.should_keep_alive()

    # -- called by the transport -----------------------------------------------------------------

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        """Requests are bounded: there is nobody to hold back."""

    def resume_writing(self) -> None:
        pass

    def data_received(self, data: bytes) -> None:
        outbox = self._pool.outbox
        outbox.begin_read()
        try:
            self._take(data)
        finally:
            outbox.end_read()

    def _take(self, data: bytes) -> None:
        receiver = self._receiver
        if receiver is None:
            self.abort()  # nobody asked
            return
        if self._untouched:
            self._untouched = False
            known = self._pool.heads.recall(data)
            if known is not None:
                self._take_known(receiver, known[0], known[1], known[2])
                return
            if self._parser is None:
                self._parser = httptools.HttpResponseParser(self)
            self._feed(data, receiver, first=True)
            if b"transfer-encoding" in self._headers and not self._interim:
                self._between = is_whole(data, data.find(b"\r\n\r\n") + 4)
            return
        if self._between:
            content = lone_chunk(data) or whole_chunks(data)
            if content:
                self._silent_bytes = 0
                outbox = self._pool.outbox
                outbox.content, outbox.framed = content, data
                receiver.received(content)
                outbox.content = outbox.framed = b""
                if len(data) > LARGE_BYTES:
                    outbox.flush()
                return
            self._between = is_whole(data, 0)
        self._feed(data, receiver)

    def _take_known(
        self, receiver: Receiver, headers: dict[bytes, bytes], body: bytes, hop: bytes
    ) -> None:
        """A whole answer of status 200 whose head is remembered."""
        if hop:
            headers = {**headers, _HOP: hop}
        self._headers, self._reusable = headers, True
        receiver.answered(200, headers)
        if body and self._receiver is receiver:
            receiver.received(body)
        if self._receiver is receiver:
            self._receiver = None
            self._give_back()
            receiver.ended()

    def _feed(self, data: bytes, receiver: Receiver, *, first: bool = False) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._complete:
                self._break(receiver, f"the answer is not valid HTTP/1.1: {error}")
                return
            self._excess = True  # the answer is whole, and what follows it is not read
        if self._head_due:
            if self._absurd:
                self._fail("the answer has a head that HTTP/1.1 does not know")
                return
            self._head_due = False
            receiver.answered(self._status, self._headers)
        if self._pieces:
            self._silent_bytes = 0
            pieces, self._pieces = self._pieces, []
            if self._receiver is receiver:
                receiver.received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
                if len(data) > LARGE_BYTES:
                    self._pool.outbox.flush()
        elif not self._complete and self._is_noise(len(data)):
            self._fail("the answer has too much that is no content")
            return
        if self._complete and self._receiver is receiver:
            self._receiver, self._silent_bytes = None, 0
            if first and self._status == 200 and self._reusable and not self._excess:
                self._learn(data)
            self._give_back()
            receiver.ended()

    def _break(self, receiver: Receiver, why: str) -> None:
        """The answer makes no sense any more. Where it had begun, what came before that counts."""
        pieces, self._pieces = self._pieces, []
        if pieces and not self._head_due:
            receiver.received(b"".join(pieces))
        self._fail(why)

    def _is_noise(self, size_bytes: int) -> bool:
        self._silent_bytes += size_bytes
        return self._silent_bytes > MOST_SILENT_BYTES

    def _learn(self, data: bytes) -> None:
        """Remember the head of an answer that came in one read, with no interim one before it."""
        if data.startswith(b"HTTP/1.1 200"):
            self._pool.heads.learn(data, self._headers, self._headers)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._pool.forget(self)
        receiver, self._receiver = self._receiver, None
        self._parser = None  # breaks the cycle between the parser and its callbacks
        if receiver is None:
            return
        if self._by_close and exc is None:
            receiver.ended()
        else:
            receiver.lost("the connection was closed" if exc is None else f"{exc}")

    def _fail(self, why: str) -> None:
        receiver = self._receiver
        self.abort()
        if receiver is not None:
            receiver.lost(why)

    def _give_back(self) -> None:
        if (
            self._excess or not self._reusable or not self.open or self._transport.is_closing()
            or _closes_behind(self._headers)
            or self._transport.get_write_buffer_size()  # of a request that was answered early
        ):
            self.abort()
            return
        self.fresh = False
        self.set_reading(True)
        self.set_resting(False)
        self._pool.give(self, _idle_s(self._headers.get(b"keep-alive")))


class UpstreamPool:
    """Idle connections by address; the last one used is used first."""

    def __init__(
        self, network: Network, clock: Clock, outbox: Outbox, *,
        max_answer_bytes: int = MOST_ANSWER_BYTES,
    ) -> None:
        self.outbox = outbox
        self.coalescing = Coalescing()
        self._network = network
        self._clock = clock
        self._idle: dict[str, list[UpstreamConnection]] = {}
        self.heads: HeadMemory[dict[bytes, bytes]] = HeadMemory(max_answer_bytes)

    def take(self, address: Address, now_ns: int) -> UpstreamConnection | None:
        """An idle connection, None when there is none."""
        idle = self._idle.get(address.key)
        while idle:
            connection = idle.pop()
            if connection.open and connection.idle_until_ns > now_ns:
                return connection
            connection.abort()
        return None

    def idle(self, address: Address) -> UpstreamConnection | None:
        """As `take`, now."""
        return self.take(address, self._clock.monotonic_ns())

    @property
    def idle_count(self) -> int:
        """Connections that are kept and not in use."""
        return sum(len(idle) for idle in self._idle.values())

    async def connect(self, address: Address, *, timeout_s: float) -> UpstreamConnection:
        """A new connection. Raises OSError or TimeoutError."""
        connection = await self._network.connect(
            lambda: UpstreamConnection(self, address), address, timeout_s=timeout_s
        )
        if not connection.open:
            raise ConnectionResetError("closed before it was asked anything")
        return connection

    def give(self, connection: UpstreamConnection, idle_s: float) -> None:
        """Keep a connection whose answer is complete."""
        key = connection.address.key
        idle = self._idle.get(key)
        if idle is None:
            idle = self._idle[key] = []
        if len(idle) >= MOST_IDLE:
            connection.abort()
            return
        connection.idle_until_ns = self._clock.monotonic_ns() + int(idle_s * 1e9)
        idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """A connection was closed."""
        idle = self._idle.get(connection.address.key)
        if idle and connection in idle:
            idle.remove(connection)

    def sweep(self) -> None:
        """Close what has been idle for too long."""
        now_ns = self._clock.monotonic_ns()
        for key, idle in list(self._idle.items()):
            for connection in [c for c in idle if c.idle_until_ns <= now_ns]:
                idle.remove(connection)
                connection.abort()
            if not idle:
                del self._idle[key]

    def close(self) -> None:
        for idle in self._idle.values():
            for connection in list(idle):
                connection.abort()
        self._idle.clear()


def _closes_behind(headers: dict[bytes, bytes]) -> bool:
    """Whether the engine closes behind this answer though it says that it does not: llama.cpp,
    behind every stream. The next request would be lost, where it is sent at once."""
    return headers.get(b"server") == b"llama.cpp" and b"content-length" not in headers


def _idle_s(keep_alive: bytes | None) -> float:
    """How long a connection may stay idle, from `keep-alive: timeout=N` where it is given."""
    if keep_alive is None:
        return IDLE_S
    for part in keep_alive.split(b","):
        name, _, value = part.strip().partition(b"=")
        if name.lower() == b"timeout" and value.isdigit() and len(value) < 6:
            return max(0.0, float(value) - IDLE_MARGIN_S)
    return IDLE_S

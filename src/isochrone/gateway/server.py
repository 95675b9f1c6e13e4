"""The client side of the gateway: parses HTTP/1.1 connections and hands over whole requests.

Requests of one connection are answered in order. While one is being answered, what the client
sends ahead is kept unread, up to a bound. A client that closes is noticed at once, and a slow one
pauses whoever writes to it. Whatever two HTTP readers could understand differently is refused.
"""

import asyncio
from collections import deque
from typing import Any, Protocol, cast

import httptools

from isochrone.gateway.heads import HeadMemory, RequestHead
from isochrone.gateway.incoming import MOST_HEADERS, SINGLE, Fault, Incoming
from isochrone.gateway.outbox import Outbox
from isochrone.gateway.settings import GatewaySettings
from isochrone.ports.clock import Clock

MOST_SENT_AHEAD_BYTES = 64 * 1024
MOST_PIPELINED = 64
LINGER_S = 1.0
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Listening(Protocol):
    """Who is being answered on a connection hears of the client through this."""

    def client_gone(self) -> None: ...

    def client_paused(self) -> None: ...

    def client_resumed(self) -> None: ...


class Handler(Protocol):
    """One request whose head was accepted. Each call answers now, or later by the connection."""

    def serve(self) -> None:
        """The whole request is there."""
        ...

    def fail(self, fault: Fault) -> None:
        """The request cannot be read to its end: answer, the connection closes after it."""
        ...


class Application(Protocol):
    """What the requests are for."""

    def begin(self, connection: "ClientConnection", incoming: Incoming) -> Handler | None:
        """The head is known. None when it was answered already, with the body unread."""
        ...

    def fail(self, connection: "ClientConnection", incoming: Incoming, fault: Fault) -> None:
        """As Handler.fail, before the head was accepted."""
        ...


class Server:
    """All client connections of one gateway."""

    def __init__(
        self, app: Application, settings: GatewaySettings, clock: Clock, outbox: Outbox
    ) -> None:
        self.app = app
        self.settings = settings
        self.clock = clock
        self.outbox = outbox
        self.connections: dict[ClientConnection, None] = {}
        self.heads: HeadMemory[RequestHead] = HeadMemory(settings.max_body_bytes)
        self.draining = False

    def accept(self) -> "ClientConnection":
        """The protocol factory of the listener."""
        return ClientConnection(self)

    def drain(self) -> None:
        """Close idle connections now and every other one after its answer."""
        self.draining = True
        for connection in list(self.connections):
            connection.close_if_idle()

    def sweep(self) -> None:
        """Close connections that are idle or that send their request too slowly."""
        now_ns = self.clock.monotonic_ns()
        for connection in list(self.connections):
            connection.expire(now_ns)

    def close(self) -> None:
        for connection in list(self.connections):
            connection.abort()


class ClientConnection(asyncio.Protocol):
    """One connection. `listener` is told of the client while its request is being answered."""

    __slots__ = (
        "_ahead",
        "_answering",
        "_ending",
        "_handler",
        "_parser",
        "_pumping",
        "_queue",
        "_quiet_ns",
        "_reading",
        "_resuming",
        "_server",
        "_skipping",
        "_transport",
        "listener",
        "paused",
    )

    _transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser: Any = None  # made when there is something that only it can read
        self._queue: deque[Incoming] = deque()
        self._ahead = b""
        self._answering = False
        self._pumping = False
        self._reading = True
        self._resuming = False  # the parser is told again what it has forgotten
        self._ending = False  # no further request is read
        self._skipping = False  # whatever still comes is thrown away
        self._quiet_ns = server.clock.monotonic_ns()
        self._handler: Handler | None = None
        self.listener: Listening | None = None
        self.paused = False

    # -- called by the transport -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections[self] = None

    def data_received(self, data: bytes) -> None:
        if self._skipping:
            return
        if self._answering:
            self._ahead += data
            if len(self._ahead) > MOST_SENT_AHEAD_BYTES:
                self._set_reading(False)
            return
        if not self._queue:
            server = self._server
            known = server.heads.recall(data)
            if known is not None:
                self._quiet_ns = now_ns = server.clock.monotonic_ns()
                incoming = Incoming.whole(now_ns, *known)
                self._queue.append(incoming)
                self._answering = True
                handler = server.app.begin(self, incoming)
                if handler is not None:
                    handler.serve()
                return
        self._read(data)
        self._pump()

    def eof_received(self) -> bool | None:
        """A client that closes its half gets no further answer: the request is cancelled."""
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.pop(self, None)
        self._ending = self._skipping = True
        self._queue.clear()
        self._handler = None
        self._parser = None  # breaks the cycle between the parser and its callbacks
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.client_gone()

    def pause_writing(self) -> None:
        self.paused = True
        if self.listener is not None:
            self.listener.client_paused()

    def resume_writing(self) -> None:
        self.paused = False
        if self.listener is not None:
            self.listener.client_resumed()

    # -- called by the parser: only notes, so that no error of ours passes for one of HTTP ---------

    def on_message_begin(self) -> None:
        if self._resuming:
            return
        self._queue.append(Incoming(self._server.clock.monotonic_ns()))

    def on_url(self, url: bytes) -> None:
        if self._resuming:
            return
        self._queue[-1].head.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        incoming = self._queue[-1]
        if self._resuming or incoming.head.complete:
            return  # a trailer is no header: nobody looks at it
        headers = incoming.head.headers
        name = name.lower()
        if name in headers and incoming.fault is None and name in SINGLE:
            text = f"The header '{name.decode('latin-1')}' is given twice."
            incoming.fault = Fault(status=400, reason="duplicate_header", message=text)
        headers[name] = value
        incoming.head.size_bytes += len(name) + len(value) + 4
        if len(headers) > MOST_HEADERS and incoming.fault is None:
            incoming.fault = self._head_too_large()

    def on_headers_complete(self) -> None:
        if self._resuming:
            return
        incoming = self._queue[-1]
        head = incoming.head
        head.method = self._parser.get_method()
        version = self._parser.get_http_version()
        head.old_http = version == "1.0"
        head.keep_alive = incoming.keep_alive = self._parser.should_keep_alive()
        head.settle()
        if incoming.fault is not None:
            return
        settings = self._server.settings
        length = head.headers.get(b"content-length", b"0")
        if head.size_bytes + len(head.url) > settings.max_head_bytes:
            incoming.fault = self._head_too_large()
        elif version not in ("1.1", "1.0"):
            incoming.fault = Fault(status=400, reason="http_version", message="Use HTTP/1.1.")
        elif head.old_http and b"transfer-encoding" in head.headers:
            text = "HTTP/1.0 has no transfer-encoding."
            incoming.fault = Fault(status=400, reason="bad_framing", message=text)
        elif len(length) > 18 or int(length) > settings.max_body_bytes:
            incoming.fault = self._body_too_large()

    def on_body(self, body: bytes) -> None:
        incoming = self._queue[-1]
        if incoming.fault is not None:
            return
        incoming.body_bytes += len(body)
        if incoming.body_bytes > self._server.settings.max_body_bytes:
            incoming.fault = self._body_too_large()
            incoming.pieces.clear()
        else:
            incoming.pieces.append(body)

    def on_message_complete(self) -> None:
        self._queue[-1].complete = True
        self._queue[-1].ended_ns = self._quiet_ns

    # -- reading ---------------------------------------------------------------------------------

    def _read(self, data: bytes) -> None:
        """Feed the parser; what it finds wrong becomes the fault of the request at the end."""
        self._quiet_ns = self._server.clock.monotonic_ns()
        before = self._queue[-1] if self._queue else None
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            text = f"The request is not valid HTTP/1.1: {error}."
            self._spoil(Fault(status=400, reason="bad_http", message=text))
        if before is None:
            if len(self._queue) == 1 and self._queue[0].complete and not self._queue[0].fault:
                head = self._queue[0].head
                self._server.heads.learn(data, head.headers, head)
        elif before is self._queue[-1] and not before.head.complete:
            before.grown_bytes += len(data)
            if before.grown_bytes > self._server.settings.max_head_bytes:
                before.fault = before.fault or self._head_too_large()
        if len(self._queue) > MOST_PIPELINED:
            text = f"At most {MOST_PIPELINED} requests may be sent ahead."
            self._spoil(Fault(status=400, reason="too_many_pipelined", message=text))

    def _ignore_upgrade(self, rest: bytes) -> None:
        """An upgrade may be ignored (RFC 9110, 7.8), but the parser has stopped behind the head:
        a new one is told how the body is framed and goes on with it."""
        incoming = self._queue[-1]
        self._parser = httptools.HttpRequestParser(self)
        headers = incoming.head.headers
        if incoming.head.has_body:
            incoming.complete = False
            chunked = b"transfer-encoding" in headers
            name = b"transfer-encoding" if chunked else b"content-length"
            self._resuming = True
            self._parser.feed_data(
                b"POST / HTTP/1.1\r\n%b: %b\r\n\r\n" % (name, headers[name])
            )
            self._resuming = False
        if rest:
            self._read(rest)

    def _spoil(self, fault: Fault) -> None:
        if not self._queue or self._queue[-1].complete:
            self._queue.append(Incoming(self._quiet_ns))
        incoming = self._queue[-1]
        incoming.fault = incoming.fault or fault

    def _head_too_large(self) -> Fault:
        text = f"The head has more than {self._server.settings.max_head_bytes} bytes."
        return Fault(status=431, reason="head_too_large", message=text)

    def _body_too_large(self) -> Fault:
        text = f"The body has more than {self._server.settings.max_body_bytes} bytes."
        return Fault(status=413, reason="body_too_large", message=text)

    def _pump(self) -> None:
        """Answer what has been read, in order, until one answer has to wait."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while not self._answering and not self._ending:
                if self._queue and self._advance(self._queue[0]):
                    continue
                if not self._ahead:
                    break
                ahead, self._ahead = self._ahead, b""
                self._set_reading(True)
                self._read(ahead)
        finally:
            self._pumping = False

    def _advance(self, incoming: Incoming) -> bool:
        """Take the first request one step on; False when more bytes are needed."""
        if incoming.fault is not None:
            self._answering = True
            incoming.keep_alive = False
            if self._handler is None:
                self._server.app.fail(self, incoming, incoming.fault)
            else:
                self._handler.fail(incoming.fault)
            return True
        if not incoming.head.complete:
            return False
        if self._handler is None:
            self._answering = True
            handler = self._server.app.begin(self, incoming)
            if handler is None:
                return True
            self._answering = False
            self._handler = handler
            expect = incoming.head.headers.get(b"expect", b"").lower()
            if expect == b"100-continue" and not incoming.body_bytes and not incoming.complete:
                self.write(CONTINUE)
        if not incoming.complete:
            return False
        self._answering = True
        self._handler.serve()
        return True

    # -- answering -------------------------------------------------------------------------------

    def will_close(self, incoming: Incoming) -> bool:
        """Whether the connection ends after the answer to this request."""
        return not incoming.keep_alive or not incoming.complete or self._server.draining

    def write(self, data: bytes) -> None:
        """Part of an answer."""
        self._server.outbox.write(self._transport, data)

    def answer(self, data: bytes, *, close: bool) -> None:
        """A whole answer; `close` says what its head says about the connection."""
        self._server.outbox.write(self._transport, data)
        self.done(close=close)

    def done(self, *, close: bool) -> None:
        """The answer is complete. `close` says what its head said about the connection."""
        self.listener = None
        self._handler = None
        self._answering = False
        self._quiet_ns = 0  # the next sweep says since when
        if not self._queue:
            return  # the client is gone
        incoming = self._queue.popleft()
        if close:
            self._end(read_on=not incoming.complete)
        elif self._queue or self._ahead:
            self._pump()

    def cut(self) -> None:
        """End in the middle of an answer: what was written goes out, and no end of a body."""
        self.listener = None
        self._end(read_on=False)

    def _end(self, *, read_on: bool) -> None:
        self._ending = self._skipping = True
        self._queue.clear()
        self._server.outbox.flush()
        if read_on and self._transport.can_write_eof() and not self._transport.is_closing():
            # Closing with unread bytes would reset the connection and could destroy the answer.
            self._transport.write_eof()
            self._set_reading(True)
            asyncio.get_running_loop().call_later(LINGER_S, self._transport.close)
        else:
            self._transport.close()

    def _set_reading(self, reading: bool) -> None:
        if reading != self._reading and not self._transport.is_closing():
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # -- limits ----------------------------------------------------------------------------------

    def close_if_idle(self) -> None:
        if not self._answering and not self._queue and not self._ending:
            self._end(read_on=False)

    def expire(self, now_ns: int) -> None:
        """Close when idle for too long, or when a request takes too long to arrive."""
        if self._answering:
            return
        settings = self._server.settings
        if not self._quiet_ns:
            self._quiet_ns = now_ns
        if not self._queue:
            if now_ns - self._quiet_ns > settings.idle_timeout_s * 1e9:
                self.abort()
            return
        incoming = self._queue[0]
        limit_s = settings.body_timeout_s if incoming.head.complete else settings.head_timeout_s
        if now_ns - incoming.began_ns > limit_s * 1e9:
            self.abort()

    def abort(self) -> None:
        self._transport.abort()

"""The client side of the gateway: takes connections and hands over whole requests.

Requests of one connection are answered in order. While one is being answered, or the client does
not take its answers, what it sends ahead is kept unread, up to a bound. A client that goes away is
noticed at once, also where nothing is read from it, and a slow one pauses whoever writes to it.
"""

import asyncio
from collections import deque
from typing import Final, Protocol, cast

from isochrone.gateway.hangups import Hangups
from isochrone.gateway.heads import HeadMemory, RequestHead
from isochrone.gateway.incoming import Fault, Incoming
from isochrone.gateway.outbox import Outbox
from isochrone.gateway.request_reader import RequestReader, Uploads
from isochrone.gateway.settings import GatewaySettings
from isochrone.ports.clock import Clock
from isochrone.ports.network import Sealing

MOST_SENT_AHEAD_BYTES: Final = 64 * 1024
LINGER_S: Final = 1.0
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Listening(Protocol):
    """Who is being answered on a connection hears of the client through this."""

    @property
    def head_sent(self) -> bool:
        """Whether the head of a stream has been written."""
        ...

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
        self.uploads = Uploads()
        self.hangups = Hangups()
        self.draining = False

    def accept(self) -> "ClientConnection":
        """The protocol factory of the listener."""
        return ClientConnection(self)

    def drain(self) -> None:
        """Close idle connections now and every other one after its answer."""
        self.outbox.flush()  # what this round has answered already goes out before a close
        self.draining = True
        self.heads = HeadMemory(self.settings.max_body_bytes)  # so that every head is examined anew
        for connection in list(self.connections):
            connection.close_if_idle()

    @property
    def is_waited_for(self) -> bool:
        """Whether some client has still to take an answer, or to send a request that was let in."""
        return any(each.has_untaken or each.is_receiving for each in self.connections)

    def turn_away(self, fault: Fault) -> None:
        """Wait no longer for what is still coming."""
        for connection in list(self.connections):
            connection.turn_away(fault)

    def sweep(self) -> None:
        """Close connections that are idle or that send their request too slowly."""
        now_ns = self.clock.monotonic_ns()
        for connection in list(self.connections):
            connection.expire(now_ns)

    def close(self) -> None:
        for connection in list(self.connections):
            connection.abort()
        self.hangups.close()


class ClientConnection:
    """One connection. `listener` is told of the client while its request is being answered."""

    __slots__ = (
        "_ahead",
        "_answering",
        "_bodiless",
        "_ending",
        "_half_closed",
        "_handler",
        "_holding",
        "_pumping",
        "_queue",
        "_quiet_ns",
        "_reader",
        "_reading",
        "_sealing",
        "_server",
        "_skipping",
        "_transport",
        "_untaken",
        "_watched",
        "listener",
        "outbox",
        "paused",
    )

    _transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self._server = server
        self.outbox = server.outbox
        self._reader: RequestReader | None = None  # made when there is something to parse
        self._queue: deque[Incoming] = deque()
        self._ahead = b""
        self._answering = False
        self._bodiless = False  # of the answer only the head is sent
        self._pumping = False
        self._reading = True
        self._holding = False  # what comes is kept or thrown away: paused, or skipping
        self._half_closed = False  # the client sends nothing more and takes its answers
        self._ending = False  # no further request is read
        self._skipping = False  # whatever still comes is thrown away
        self._quiet_ns = server.clock.monotonic_ns()
        self._handler: Handler | None = None
        self._sealing: Sealing | None = None
        self._untaken = 0  # bytes of answers, when they were counted last
        self._watched = -1
        self.listener: Listening | None = None
        self.paused = False

    # -- called by the transport -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._sealing = transport.get_extra_info("sealing")
        server = self._server
        if len(server.connections) >= server.settings.max_connections:
            self._forget_requests()
            self._transport.abort()  # so that files are left for connections to engines
        server.connections[self] = None

    def data_received(self, data: bytes) -> None:
        self.outbox.begin_read()
        try:
            self._take(data)
        finally:
            self.outbox.end_read()

    def _take(self, data: bytes) -> None:
        if self._answering or self._holding:
            self._hold(data)
            return
        if not self._queue:
            server = self._server
            known = server.heads.recall(data)
            if known is not None:
                self._quiet_ns = now_ns = server.clock.monotonic_ns()
                incoming = Incoming.whole(now_ns, known[0], known[1], known[2])
                self._queue.append(incoming)
                self._answering = True
                handler = server.app.begin(self, incoming)
                if handler is not None:
                    handler.serve()
                return
        self._read(data)
        self._pump()

    def eof_received(self) -> bool:
        """The client sends nothing more. It may have closed, or wait for what it asked for; what
        is written to it now tells which: the kernel of a client that is gone resets."""
        if self._skipping or not (self._answering or self._ahead or self._is_held_up):
            self.outbox.flush()  # what it is owed of this round, before the transport is closed
            return False
        self._half_closed = self._probe()
        return self._half_closed

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.pop(self, None)
        self._unwatch()
        self._forget_requests()
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.client_gone()

    def pause_writing(self) -> None:
        self.paused = self._holding = True
        if self.listener is not None:
            self.listener.client_paused()

    def resume_writing(self) -> None:
        self.paused = False
        self._holding = self._skipping
        if self.listener is not None:
            self.listener.client_resumed()
        elif not self._answering:
            self._go_on()

    @property
    def _is_held_up(self) -> bool:
        """Whether requests wait until the client has taken the answers before them."""
        return self.paused and len(self._queue) > 0

    # -- a client that is gone, though nothing is read from it ------------------------------------

    def _probe(self) -> bool:
        """Write something that changes nothing, and hear of the reset that a client that has closed
        answers with. False where that cannot be done: such a client counts as gone.

        Before its answer has begun any client of HTTP/1.1 takes an interim one; within a stream, a
        zero is the beginning of the next chunk's size. Peers never close one half only.
        """
        transport = self._transport
        if transport.get_extra_info("ssl_object") is not None:  # cannot be closed by halves
            return False
        if self._answering:
            incoming = self._queue[0]
            if incoming.head.old_http or incoming.hop:
                return False
        self._watched = self._server.hangups.watch(transport, self._hung_up, its_end=False)
        if self._watched < 0:
            return False
        if self.listener is not None and not self.paused:
            probe = b"0" if self.listener.head_sent else CONTINUE
            self.outbox.write(transport, probe)
        return True

    def _hung_up(self, gone: bool) -> None:
        if not gone:
            self._half_closed = self._probe()
            gone = not self._half_closed
        if gone:
            self._transport.abort()

    def _unwatch(self) -> None:
        if self._watched >= 0:
            self._server.hangups.forget(self._watched, self._hung_up)
            self._watched = -1

    # -- reading ---------------------------------------------------------------------------------

    def _hold(self, data: bytes) -> None:
        """Keep what is sent ahead."""
        if self._skipping:
            return
        self._ahead += data
        if len(self._ahead) > MOST_SENT_AHEAD_BYTES:
            self._set_reading(False)

    def _read(self, data: bytes) -> None:
        server, quiet_ns = self._server, self._quiet_ns
        self._quiet_ns = now_ns = server.clock.monotonic_ns()
        if self._reader is None:
            self._reader = RequestReader(
                self._queue, server.heads, server.uploads, server.settings
            )
        self._reader.read(data, now_ns)
        if not self._queue:
            self._quiet_ns = quiet_ns  # empty lines begin no request

    def _go_on(self) -> None:
        """The answer before is out of the way. Of what has begun to come behind it nothing was read
        meanwhile, so its time begins anew."""
        if self._queue and not self._queue[0].complete:
            self._queue[0].began_ns = self._server.clock.monotonic_ns()
        self._pump()

    def _pump(self) -> None:
        """Answer what has been read, in order, until one answer has to wait."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while not (self._answering or self._ending or self.paused):
                if self._queue and self._advance(self._queue[0]):
                    continue
                if not self._ahead:
                    break
                ahead, self._ahead = self._ahead, b""
                self._set_reading(True)
                self._read(ahead)
        finally:
            self._pumping = False
        waits = self._answering or self._ending or self._ahead or self._is_held_up
        if self._half_closed and not waits:
            self._end()  # nothing more will come

    def _advance(self, incoming: Incoming) -> bool:
        """Take the first request one step on; False when more bytes are needed."""
        if incoming.fault is not None:
            self._answering = True
            self._bodiless = incoming.bodiless
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
            self._bodiless = incoming.bodiless
            handler = self._server.app.begin(self, incoming)
            if handler is None:
                return True
            self._answering = False
            self._handler = handler
            if self._is_awaited(incoming):
                self._send(CONTINUE)
        if not incoming.complete:
            return False
        self._answering = True
        if incoming.ended_ns != self._quiet_ns:
            # It waited behind another answer since it was read: its time to be served, and its
            # place in the minute of a limit, begin now.
            incoming.ended_ns = self._server.clock.monotonic_ns()
        self._handler.serve()
        return True

    def _is_awaited(self, incoming: Incoming) -> bool:
        """Whether the client waits for a word before it sends the body."""
        return (
            b"expect" in incoming.head.headers and not incoming.head.old_http
            and not incoming.body_bytes and not incoming.complete
        )

    def _forget_requests(self) -> None:
        """Read nothing more."""
        self._ending = self._skipping = self._holding = True
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._queue.clear()
        self._ahead = b""
        self._handler = None

    # -- answering -------------------------------------------------------------------------------

    def will_close(self, incoming: Incoming) -> bool:
        """Whether the connection ends after the answer to this request."""
        return not incoming.keep_alive or not incoming.complete or self._server.draining

    def write(self, data: bytes) -> None:
        """Part of an answer; the first part has the whole head."""
        if self._bodiless:
            self._bodiless = False
            data = data[: data.find(b"\r\n\r\n") + 4]
        self._send(data)

    def _send(self, data: bytes) -> None:
        if self._sealing is None:
            self.outbox.write(self._transport, data)
        else:
            self.outbox.seal(self._sealing, data)

    def answer(self, data: bytes, *, close: bool) -> None:
        """A whole answer; `close` says what its head says about the connection."""
        self.write(data)
        self.done(close=close)

    def done(self, *, close: bool) -> None:
        """The answer is complete. `close` says what its head said about the connection."""
        self.listener = None
        self._handler = None
        self._answering = False
        self._quiet_ns = 0  # the next sweep says since when
        if not self._queue:
            return  # the client is gone
        self._queue.popleft()
        if close:
            self._end()
        elif self._queue or self._ahead or self._half_closed:
            self._go_on()

    def cut(self) -> None:
        """End in the middle of an answer: what was written goes out, and no end of a body."""
        self.listener = None
        self._answering = False
        self._quiet_ns = 0  # a client that takes nothing more is not waited for for ever
        self._end()

    def _end(self) -> None:
        """Close in two steps: closing with unread bytes, or before more of them come, would reset
        the connection and could destroy the answer (RFC 9112, 9.6)."""
        self._forget_requests()
        self.outbox.flush()
        transport = self._transport
        if self._half_closed or not transport.can_write_eof() or transport.is_closing():
            transport.close()
            return
        transport.write_eof()
        self._set_reading(True)
        asyncio.get_running_loop().call_later(LINGER_S, transport.close)

    def _set_reading(self, reading: bool) -> None:
        if reading != self._reading and not self._transport.is_closing():
            self._reading = reading
            if reading:
                self._unwatch()
                self._half_closed = False  # to be read once more, behind what came before it
                self._transport.resume_reading()
            else:
                self._watched = self._server.hangups.watch(
                    self._transport, self._hung_up, its_end=True
                )
                self._transport.pause_reading()

    # -- limits ----------------------------------------------------------------------------------

    def close_if_idle(self) -> None:
        if not self._answering and not self._queue and not self._ending:
            self._forget_requests()
            self._transport.close()

    def expire(self, now_ns: int) -> None:
        """Close when nothing moves for too long, or when a request takes too long to arrive."""
        if self._answering:
            return
        settings = self._server.settings
        if not self._quiet_ns:
            self._quiet_ns = now_ns
        if not self._queue or self.paused:
            if now_ns - self._quiet_ns > settings.idle_timeout_s * 1e9 and not self._takes(now_ns):
                self.abort()
            return
        incoming = self._queue[0]
        limit_s = settings.body_timeout_s if incoming.head.complete else settings.head_timeout_s
        if now_ns - incoming.began_ns > limit_s * 1e9:
            self._time_out("body" if incoming.head.complete else "head", limit_s)

    def _time_out(self, part: str, limit_s: float) -> None:
        """Say so and close (RFC 9110, 15.5.9). Whoever takes nothing of what it was sent before is
        not waited for, and nobody is to take this."""
        if self._transport.get_write_buffer_size():
            self.abort()
            return
        text = f"The {part} of the request has not come in whole within {limit_s:g} s."
        self._queue[0].fault = Fault(status=408, reason=f"{part}_timeout", message=text)
        self._pump()

    @property
    def has_untaken(self) -> bool:
        """Whether the client has still to take some of what was written for it."""
        return self._transport.get_write_buffer_size() > 0

    @property
    def is_receiving(self) -> bool:
        """Whether a request of which the head was let in is still coming."""
        return self._handler is not None and not self._answering

    def turn_away(self, fault: Fault) -> None:
        """Answer the request that is still coming, if there is one."""
        if self.is_receiving:
            self._queue[0].fault = fault
            self._pump()

    def _takes(self, now_ns: int) -> bool:
        """Whether the client has taken some of its answer since this was asked before."""
        untaken, self._untaken = self._untaken, self._transport.get_write_buffer_size()
        self._quiet_ns = now_ns
        return self._untaken not in (0, untaken)

    def abort(self) -> None:
        self._transport.abort()

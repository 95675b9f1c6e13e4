"""TLS on one accepted connection: to TCP a party, to the party within it a transport.

The loops' own TLS asks OpenSSL for more after every record and pays an exception to hear that there
is none. Here it is asked only while bytes wait, which halves what TLS adds to a short request.
OpenSSL does all that is cryptography or protocol; here bytes are carried to it and back.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, Final, cast

from isochrone.ports.network import Party

READ_BYTES: Final = 65536  # a record has 16 KiB at the most
# What a record of TLS 1.3 has beside its content, at the least: header, tag, type of content. One
# of TLS 1.2 may have a byte less, with ChaCha20, and then a size tells nothing.
LEAST_FRAME_BYTES: Final = 22


class Handshakes:
    """How many of one listener are in progress; `most` may be. Who is still shaking hands is no
    party yet, so that nobody else counts it, and each has a file and a state of OpenSSL."""

    __slots__ = ("most", "open")

    def __init__(self, most: int) -> None:
        self.most = most
        self.open = 0


class Arrivals:
    """What came on the connections of one listener in this round of the loop: opened for all of
    them in a row, and only then handed on. What OpenSSL needs for it is in the processor's caches
    then; after the whole work for another request it no longer would be."""

    __slots__ = ("_loop", "_waiting")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[Secured] = []

    def add(self, connection: "Secured") -> None:
        waiting = self._waiting
        waiting.append(connection)
        if len(waiting) == 1:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self.deliver)

    def deliver(self) -> None:
        """The round is over."""
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.open()
        served = 0
        try:
            for connection in waiting:
                served += 1
                connection.deliver()
        finally:
            # One party failed. The others are opened once more, as more may have come by then.
            if served < len(waiting) and self._loop is not None:
                self._waiting[:0] = waiting[served:]
                self._loop.call_soon(self.deliver)


class Secured:
    """`factory` makes the party once the handshake is done. A handshake that takes longer than
    `handshake_s`, or is one too many, ends the connection; a party that closes waits up to
    `shutdown_s` for the other side to close too, since closing with unread bytes would destroy what
    was sent."""

    __slots__ = (
        "_alone_bytes", "_arrivals", "_arrived", "_closing", "_context", "_ended", "_established",
        "_factory", "_handshake_s", "_handshakes", "_incoming", "_object", "_opened", "_outgoing",
        "_partial", "_party", "_records", "_shaking", "_shutdown_s", "_silent", "_sizes_tell",
        "_tcp", "_timer",
    )

    _tcp: asyncio.Transport
    _object: ssl.SSLObject
    _records: Any  # what `_object` calls for each record

    def __init__(
        self, context: ssl.SSLContext, factory: Callable[[], Party], *, handshake_s: float,
        shutdown_s: float, handshakes: Handshakes, arrivals: Arrivals,
    ) -> None:
        self._arrivals = arrivals
        self._handshakes = handshakes
        self._shaking = False
        self._context = context
        self._factory = factory
        self._handshake_s = handshake_s
        self._shutdown_s = shutdown_s
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._party: Party | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._established = False
        self._closing = False
        self._arrived = False  # among the arrivals of this round
        self._alone_bytes = 0  # of one read, where OpenSSL has nothing else; 0: that is not known
        self._silent = False   # OpenSSL has nothing to say to what was opened
        self._sizes_tell = False  # records are those of TLS 1.3
        self._opened = b""  # what of them is to be handed on
        self._ended = False  # the other side has said goodbye
        self._partial = False  # OpenSSL holds a part of a record

    # -- called by TCP ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._tcp = cast(asyncio.Transport, transport)
        handshakes = self._handshakes
        if handshakes.open >= handshakes.most:
            self._closing = True
            self._tcp.abort()
            return
        handshakes.open += 1
        self._shaking = True
        self._object = self._context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        # Its own methods do nothing but call these, at the price of a frame of Python.
        self._records = getattr(self._object, "_sslobj", self._object)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._handshake_s, self._tcp.abort)

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        if self._arrived:
            self._alone_bytes = 0
            return
        if self._established:
            self._alone_bytes = len(data) if self._sizes_tell and not self._partial else 0
        elif self._shaking:
            self._shake_hands()
        else:
            return
        self._arrived = True
        self._arrivals.add(self)

    def eof_received(self) -> bool:
        """TLS is not closed by halves: whoever sends nothing more is gone."""
        self._catch_up()
        if self._party is not None and not self._closing:
            self._party.eof_received()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._catch_up()
        self._closing = True
        self._shaken()
        self._cancel()
        party, self._party = self._party, None
        if party is not None:
            party.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._party is not None:
            self._party.pause_writing()

    def resume_writing(self) -> None:
        if self._party is not None:
            self._party.resume_writing()

    # -- records ---------------------------------------------------------------------------------

    def _shake_hands(self) -> None:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
            return
        except ssl.SSLError:
            self._send()  # the alert that says why
            self._closing = True
            self._tcp.close()
            return
        self._send()
        self._cancel()
        self._shaken()
        self._established = True
        self._sizes_tell = self._object.version() == "TLSv1.3"
        self._party = self._factory()
        self._party.connection_made(cast(asyncio.Transport, self))

    def _shaken(self) -> None:
        """The handshake is over, however it ended."""
        if self._shaking:
            self._shaking = False
            self._handshakes.open -= 1

    def open(self) -> None:
        """Decrypt what whole records hold. What is left waits for the rest of its record. Mostly
        a read is one record, as its size tells: then OpenSSL need not be asked what else there is.
        """
        incoming, pieces = self._incoming, []
        waiting, self._alone_bytes = self._alone_bytes, 0
        alone, self._silent = waiting > 0, False
        if not alone:
            waiting = incoming.pending
        while waiting:
            try:
                # What a record holds is less than the record, so nothing is left within OpenSSL.
                piece = self._records.read(READ_BYTES if self._partial else waiting)
                self._partial = False
            except ssl.SSLWantReadError:
                self._partial = True
                break
            except ssl.SSLZeroReturnError:
                piece = b""
            except ssl.SSLError:
                self._send()
                self.abort()
                return
            if not piece:
                self._ended = True
                break
            pieces.append(piece)
            if alone and waiting - len(piece) == LEAST_FRAME_BYTES:
                self._silent = True
                break
            alone = False
            waiting = incoming.pending
        if pieces:
            opened = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._opened = self._opened + opened if self._opened else opened

    def deliver(self) -> None:
        """Hand on what was opened."""
        self._arrived = False
        party, opened = self._party, self._opened
        if party is None:
            return
        self._opened = b""
        if not self._silent and self._outgoing.pending:
            self._send()
        if self._closing:
            if self._ended:
                self._tcp.close()
            return
        if opened:
            taken = False
            try:
                party.data_received(opened)
                taken = True
            finally:
                if not taken:
                    self.abort()  # as the loop does with a party that fails
        if self._ended:
            if not self._closing:
                party.eof_received()
            self.close()

    def _catch_up(self) -> None:
        """What came last is handed on before the end is told."""
        if self._arrived:
            self.open()
            self.deliver()

    def _send(self) -> None:
        data = self._outgoing.read()
        if data and not self._tcp.is_closing():
            self._tcp.write(data)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- called by the party, as an asyncio.Transport --------------------------------------------

    def write(self, data: bytes) -> None:
        self.seal(data)
        self._send()

    def seal(self, data: bytes) -> None:
        """See `ports.network.Sealing`."""
        if self._closing or not data:
            return
        sent = self._records.write(data)
        while sent < len(data):  # a record at a time
            sent += self._records.write(data[sent:])

    def send(self) -> None:
        """See `ports.network.Sealing`: nothing is sealed where this is closing."""
        data = self._outgoing.read()
        if data:
            self._tcp.write(data)

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        with contextlib.suppress(ssl.SSLError):  # the other side has not said goodbye yet
            self._object.unwrap()
        self._send()
        if self._tcp.can_write_eof():
            self._tcp.write_eof()
        self._tcp.resume_reading()
        self._timer = asyncio.get_running_loop().call_later(self._shutdown_s, self._tcp.close)

    def abort(self) -> None:
        self._closing = True
        self._tcp.abort()

    def is_closing(self) -> bool:
        return self._closing or self._tcp.is_closing()

    def pause_reading(self) -> None:
        self._tcp.pause_reading()

    def resume_reading(self) -> None:
        self._tcp.resume_reading()

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return self._tcp.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "sealing":
            return self
        if name == "ssl_object":
            return self._object
        return self._tcp.get_extra_info(name, default)

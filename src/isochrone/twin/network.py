"""Network port in memory: listeners in a table, connections as pairs of transports with delay.

Bytes travel FIFO with half the round trip in each direction; the writer is paused by what the
reader has not consumed, as with sockets. Every transport belongs to a named process, so that a kill
can close all of its connections and listeners at once, as the operating system would.

Faults of the way between two processes: `slow_s` adds to a piece's travel, and while the way
`is_cut` nothing arrives; what was sent waits, as TCP sends it again, until `healed`.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from isochrone.ports.network import Address, Certificate, P, Party

HIGH_WATER_BYTES = 64 * 1024
CHUNK_BYTES = 64 * 1024


class Reset:
    """The other end is gone, on its way to this one."""


RESET = Reset()


class MemoryTransport(asyncio.Transport):
    """One end of a connection. `process` owns it; `delay_s` is the one-way travel time."""

    def __init__(
        self, wire: "Wire", process: str, protocol: Party, delay_s: float
    ) -> None:
        super().__init__()
        self._wire = wire
        self.process = process
        self._protocol = protocol
        self._delay_s = delay_s
        self.other: MemoryTransport = self
        self._inbox: deque[bytes | None] = deque()  # None is the end of the stream
        self._unread_bytes = 0  # written by the other end, not yet given to our protocol
        self._reading = True
        self._closing = False
        self._eof_sent = False
        self._lost = False
        self._writer_paused = False
        self._high = HIGH_WATER_BYTES
        self._last_s = 0.0  # when what was sent last arrives: nothing overtakes it
        self._held: deque[bytes | Reset | None] = deque()  # arrived while the way was cut

    # -- what protocols call ---------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 0) if name in ("peername", "sockname") else default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(Party, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast(asyncio.BaseProtocol, self._protocol)

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._reading

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_WATER_BYTES if high is None else high

    def get_write_buffer_size(self) -> int:
        return self.other._unread_bytes

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or not data:
            return
        if self._eof_sent:
            raise RuntimeError("Cannot call write() after write_eof()")
        piece = bytes(data)
        self.other._unread_bytes += len(piece)
        self._send(piece)
        if not self._writer_paused and self.other._unread_bytes > self._high:
            self._writer_paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._eof_sent and not self._closing:
            self._eof_sent = True
            self._send(None)

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._wire.loop.call_soon(self._deliver)

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if not self._eof_sent:
            self._eof_sent = True
            self._send(None)
        self._wire.loop.call_soon(self._lose, None)

    def abort(self) -> None:
        self._closing = True
        if not self._lost:
            self._wire.loop.call_soon(self._lose, None)
            self._wire.loop.call_later(self._delay_s, self.other._arrive, RESET)

    # -- inside ----------------------------------------------------------------------------------

    def _send(self, piece: bytes | None) -> None:
        wire = self._wire
        way_s = self._delay_s + wire.slow_s(self.process, self.other.process)
        self._last_s = max(wire.loop.time() + way_s, self._last_s)
        wire.loop.call_at(self._last_s, self.other._arrive, piece)

    def release(self) -> None:
        """The way is whole again: take what waited, in its order."""
        held, self._held = self._held, deque()
        for piece in held:
            self._arrive(piece)

    def _arrive(self, piece: "bytes | Reset | None") -> None:
        if self._wire.is_cut(self.process, self.other.process):
            self._held.append(piece)
            return
        if isinstance(piece, Reset):
            self._reset()
            return
        if self._lost:
            if piece:
                self._unread_bytes -= len(piece)
                self._wire.loop.call_later(self._delay_s, self.other._arrive, RESET)
            return
        self._inbox.append(piece)
        self._deliver()

    def _deliver(self) -> None:
        while self._inbox and self._reading and not self._closing:
            piece = self._inbox.popleft()
            if piece is None:
                if not self._protocol.eof_received():
                    self.close()
                continue
            self._unread_bytes -= len(piece)
            self.other._drained()
            self._protocol.data_received(piece)

    def _drained(self) -> None:
        if self._writer_paused and self.other._unread_bytes <= self._high // 4:
            self._writer_paused = False
            if not self._lost:
                self._protocol.resume_writing()

    def break_off(self) -> None:
        """It was reset from the middle: this end finds out now, the other a little later."""
        self._closing = True
        self._wire.loop.call_soon(self._reset)
        self._wire.loop.call_later(self._delay_s, self.other._arrive, RESET)

    def _reset(self) -> None:
        self._closing = True
        self._lose(ConnectionResetError("the other end is gone"))

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            self._wire.forget(self)
            self._protocol.connection_lost(error)


class _Listener:
    def __init__(self, wire: "Wire", port: int) -> None:
        self._wire = wire
        self._port = port

    @property
    def port(self) -> int:
        return self._port

    async def close(self) -> None:
        self._wire.unlisten(self._port)


class Wire:
    """All listeners and connections of one simulated world; `process(name)` is the Network port of
    one process. `rtt_ms(one, other)` gives the round trip between two processes."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, rtt_ms: Callable[[str, str], float] | None = None
    ) -> None:
        self.loop = loop
        self._rtt_ms = rtt_ms or (lambda one, other: 0.0)
        self._listeners: dict[int, tuple[str, Callable[[], Party]]] = {}
        self._transports: dict[MemoryTransport, None] = {}
        self._next_port = 20_000
        self.slow_s: Callable[[str, str], float] = lambda one, other: 0.0
        self.is_cut: Callable[[str, str], bool] = lambda one, other: False

    def healed(self) -> None:
        """Ways that were cut may be whole again."""
        for transport in list(self._transports):
            transport.release()

    def reset(self, process: str) -> None:
        """Every connection of `process` breaks, as when a middlebox forgets them; it lives."""
        for transport in [t for t in self._transports if t.process == process]:
            transport.break_off()

    def process(self, name: str) -> "MemoryNetwork":
        return MemoryNetwork(self, name)

    def kill(self, process: str) -> None:
        """Close all listeners and reset all connections of `process`, as its sudden death would."""
        for port in [p for p, (owner, _) in self._listeners.items() if owner == process]:
            del self._listeners[port]
        for transport in [t for t in self._transports if t.process == process]:
            transport.abort()

    def listen(self, process: str, factory: Callable[[], Party], port: int) -> _Listener:
        if port == 0:
            self._next_port += 1
            port = self._next_port
        if port in self._listeners:
            raise OSError(98, f"port {port} is taken")
        self._listeners[port] = (process, factory)
        return _Listener(self, port)

    def unlisten(self, port: int) -> None:
        self._listeners.pop(port, None)

    def forget(self, transport: MemoryTransport) -> None:
        self._transports.pop(transport, None)

    def delay_s(self, process: str, port: int, emulated_rtt_ms: float) -> float:
        """One-way travel time from `process` to whoever listens on `port`."""
        found = self._listeners.get(port)
        own = self._rtt_ms(process, found[0]) if found else 0.0
        return (own + emulated_rtt_ms) / 2000

    def reaches_nobody(self, process: str, port: int) -> bool:
        """Whether the way from `process` to whoever listens on `port` is cut."""
        found = self._listeners.get(port)
        return found is not None and self.is_cut(process, found[0])

    def join(
        self, process: str, factory: Callable[[], P], port: int, delay_s: float
    ) -> P:
        """Make a connected pair; raises ConnectionRefusedError when nobody listens."""
        found = self._listeners.get(port)
        if found is None:
            raise ConnectionRefusedError(111, f"nobody listens on port {port}")
        owner, serve = found
        near_protocol, far_protocol = factory(), serve()
        near = MemoryTransport(self, process, near_protocol, delay_s)
        far = MemoryTransport(self, owner, far_protocol, delay_s)
        near.other, far.other = far, near
        self._transports[near] = self._transports[far] = None
        far_protocol.connection_made(far)
        near_protocol.connection_made(near)
        return near_protocol


class MemoryNetwork:
    """The Network port as one process sees it."""

    def __init__(self, wire: Wire, process: str) -> None:
        self._wire = wire
        self._process = process

    async def listen(
        self, factory: Callable[[], Party], host: str, port: int, *,
        tls: Certificate | None = None,
    ) -> _Listener:
        assert tls is None, "nobody listens in on memory: there is no TLS here"
        return self._wire.listen(self._process, factory, port)

    async def connect(
        self, factory: Callable[[], P], address: Address, *, timeout_s: float
    ) -> P:
        delay_s = self._wire.delay_s(self._process, address.port, address.rtt_ms)
        if 2 * delay_s > timeout_s or self._wire.reaches_nobody(self._process, address.port):
            await asyncio.sleep(timeout_s)
            raise TimeoutError(f"no connection to port {address.port} in {timeout_s} s")
        await asyncio.sleep(2 * delay_s)
        return self._wire.join(self._process, factory, address.port, delay_s)

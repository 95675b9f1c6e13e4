"""Emulates distance on a connection: every byte travels half the round trip, in order.

`Distance` sits between the real transport and the protocol that wants to be far away: to the
transport it is a protocol, to the protocol it hands a `DistantTransport`. Two delay lines carry the
bytes, ends and resets; what is under way is bounded, and a side that does not read pauses the other
as it would over a real link.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from isochrone.ports.network import Party

UNDER_WAY_BYTES = 4 * 1024 * 1024  # one direction; 16 MB/s at a round trip of 500 ms


class DelayLine:
    """Delivers actions in order, each `delay_s` after it was put; may be held meanwhile."""

    def __init__(self, loop: asyncio.AbstractEventLoop, delay_s: float) -> None:
        self._loop = loop
        self._delay_s = delay_s
        self._items: deque[tuple[float, int, Callable[[], None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._held = False
        self.size_bytes = 0

    def put(self, size_bytes: int, action: Callable[[], None]) -> None:
        self._items.append((self._loop.time() + self._delay_s, size_bytes, action))
        self.size_bytes += size_bytes
        self._arm()

    def hold(self) -> None:
        self._held = True

    def release(self) -> None:
        self._held = False
        self._arm()

    def clear(self) -> None:
        self._items.clear()
        self.size_bytes = 0

    def _arm(self) -> None:
        if self._timer is None and self._items and not self._held:
            wait_s = max(0.0, self._items[0][0] - self._loop.time())
            self._timer = self._loop.call_later(wait_s, self._deliver)

    def _deliver(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._items and not self._held and self._items[0][0] <= now:
            _, size_bytes, action = self._items.popleft()
            self.size_bytes -= size_bytes
            action()
        self._arm()


class DistantTransport(asyncio.Transport):
    """What the far-away protocol writes to; behaves as the transport of a slow link."""

    def __init__(self, distance: "Distance") -> None:
        super().__init__()
        self._distance = distance

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._distance.real.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._distance.protocol = cast(Party, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast(asyncio.BaseProtocol, self._distance.protocol)

    def is_closing(self) -> bool:
        return self._distance.closing

    def is_reading(self) -> bool:
        return self._distance.reading

    def get_write_buffer_size(self) -> int:
        return self._distance.outward.size_bytes

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._distance.write(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        self._distance.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return self._distance.real.can_write_eof()

    def write_eof(self) -> None:
        self._distance.write_eof()

    def pause_reading(self) -> None:
        self._distance.set_reading(False)

    def resume_reading(self) -> None:
        self._distance.set_reading(True)

    def close(self) -> None:
        self._distance.close()

    def abort(self) -> None:
        self._distance.abort()


class Distance(asyncio.Protocol):
    """Carries bytes between the real transport and `protocol`, `one_way_s` later."""

    real: asyncio.Transport

    def __init__(
        self, protocol: Party, loop: asyncio.AbstractEventLoop, one_way_s: float
    ) -> None:
        self.protocol = protocol
        self.outward = DelayLine(loop, one_way_s)
        self.inward = DelayLine(loop, one_way_s)
        self.closing = False
        self.reading = True
        self._loop = loop
        self._lost = False
        self._writer_paused = False

    # -- towards the real transport --------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self.closing or not data:
            return
        self.outward.put(len(data), lambda: self._depart(data))
        if not self._writer_paused and self.outward.size_bytes > UNDER_WAY_BYTES:
            self._writer_paused = True
            self.protocol.pause_writing()

    def _depart(self, data: bytes) -> None:
        self.real.write(data)
        self._relieve_writer()

    def _relieve_writer(self) -> None:
        if self._writer_paused and self.outward.size_bytes <= UNDER_WAY_BYTES // 4:
            self._writer_paused = False
            if not self._lost:
                self.protocol.resume_writing()

    def write_eof(self) -> None:
        self.outward.put(0, lambda: self.real.write_eof())

    def set_reading(self, reading: bool) -> None:
        self.reading = reading
        if reading:
            self.inward.release()
            self.real.resume_reading()
        else:
            self.inward.hold()

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.inward.clear()
            self.outward.put(0, lambda: self.real.close())
            self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        self.closing = True
        self.inward.clear()
        self.outward.clear()
        self.outward.release()
        self.outward.put(0, lambda: self.real.abort())
        self._loop.call_soon(self._lose, None)

    # -- from the real transport -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: uvloop's transports do not derive from asyncio's.
        self.real = cast(asyncio.Transport, transport)
        self.protocol.connection_made(DistantTransport(self))

    def data_received(self, data: bytes) -> None:
        self.inward.put(len(data), lambda: self._arrive(data))
        if self.inward.size_bytes > UNDER_WAY_BYTES:
            self.real.pause_reading()

    def _arrive(self, data: bytes) -> None:
        if self.inward.size_bytes <= UNDER_WAY_BYTES // 4 and not self.real.is_closing():
            self.real.resume_reading()
        if not self.closing:
            self.protocol.data_received(data)

    def eof_received(self) -> bool:
        self.inward.put(0, self._arrive_eof)
        return True

    def _arrive_eof(self) -> None:
        if not self.closing and not self.protocol.eof_received():
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.outward.clear()
        self.inward.put(0, lambda: self._lose(exc))

    def _lose(self, exc: Exception | None) -> None:
        self.closing = True
        if not self._lost:
            self._lost = True
            self.protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self.outward.hold()

    def resume_writing(self) -> None:
        self.outward.release()

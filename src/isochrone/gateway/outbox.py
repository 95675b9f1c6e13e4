"""Writes that wait for the end of the event loop's round, so that they go out together.

One round of the loop reads from many connections. Writing while it goes on wakes whoever waits at
the other end for every single message; writing at its end wakes them once, which on virtual
machines is most of what a write costs. A round without other work ends at once, so nothing waits.
"""

import asyncio
from collections.abc import Callable


class Outbox:
    """The writes of one event loop, in order. `before` runs ahead of them: what they are about is
    on record by then."""

    __slots__ = ("_before", "_loop", "_waiting")

    def __init__(self, before: Callable[[], None]) -> None:
        self._before = before
        self._waiting: list[tuple[asyncio.Transport, bytes]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        """Write `data` at the end of this round, or with the next `flush`."""
        waiting = self._waiting
        if not waiting:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self.flush)
        waiting.append((transport, data))

    def flush(self) -> None:
        """Write what waits now: before a connection is closed, or at the end of a round."""
        waiting = self._waiting
        if waiting:
            self._before()
            self._waiting = []
            for transport, data in waiting:
                if not transport.is_closing():
                    transport.write(data)

"""Writes that wait for the end of the event loop's round, so that they go out together.

One round of the loop reads from many connections. Writing while it goes on wakes whoever waits at
the other end for every single message; writing at its end wakes them once, which on virtual
machines is most of what a write costs. A round without other work ends at once, so nothing waits.
Where requests come one by one, nothing would gather: what a read gives rise to goes out at the
end of that read, which saves the loop a round.
"""

import asyncio
from collections.abc import Callable

from isochrone.gateway.waking import Waking
from isochrone.ports.network import Sealing


class Outbox:
    """The writes of one event loop, in order. `before` runs ahead of them: what they are about is
    on record by then. `quiet`: lately at most one request was open at a time; `waking` hears of
    what goes out then. `content` came as the whole chunks `framed`, so it can go on as it came."""

    __slots__ = (
        "_before", "_due", "_loop", "_reading", "_unsealed", "_waiting", "_waking", "content",
        "framed", "quiet",
    )

    def __init__(self, before: Callable[[], None], waking: Waking | None = None) -> None:
        self._before = before
        self._waking = waking
        self._waiting: list[tuple[asyncio.Transport, bytes]] = []
        self._unsealed: list[tuple[Sealing, bytes]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due = False      # a flush is to come
        self._reading = False  # within a read, at whose end it comes
        self.quiet = False
        self.content = b""
        self.framed = b""

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        """Write `data` at the end of this round, or with the next `flush`."""
        self._waiting.append((transport, data))
        if not self._due:
            self.due()

    def seal(self, transport: Sealing, data: bytes) -> None:
        """As `write`, where a transport seals what it sends."""
        self._unsealed.append((transport, data))
        if not self._due:
            self.due()

    def due(self) -> None:
        """See to it that there is a flush at the end of this round."""
        if self._due:
            return
        self._due = True
        if not self._reading:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self.flush)

    def begin_read(self) -> None:
        """Something was read; `end_read` follows."""
        self._reading = self.quiet
        if self.quiet and self._waking is not None:
            self._waking.came()

    def end_read(self) -> None:
        """All that follows from what was read has been done."""
        if self._reading:
            self._reading = False
            if self._due:
                self.flush()

    def flush(self) -> None:
        """Write what waits now: before a connection is closed, or at the end of a round."""
        self._due = False
        self._before()
        waiting, unsealed = self._waiting, self._unsealed
        if not (waiting or unsealed):
            return
        if unsealed:
            self._unsealed = []
            for sealing, data in unsealed:
                if not sealing.is_closing():
                    sealing.seal(data)
        if waiting:
            self._waiting = []
            for transport, data in waiting:
                if not transport.is_closing():
                    transport.write(data)
        for sealing, _ in unsealed:
            sealing.send()
        if self.quiet and self._waking is not None:
            self._waking.sent()

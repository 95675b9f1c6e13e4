"""Reads streams that come faster than a client can tell less often.

Each read of a stream costs a read, a write and a wake-up at the other end, whatever is in it. An
engine that gives a token in 20 ms gets one for each. Where so many events came at once that a read
holds DENSE_BYTES (a burst behind a pause, the replay of an answer, a gateway that has much to do),
the stream rests for at most REST_S, and what comes meanwhile goes on together. What was read never
waits.
"""

import asyncio
from typing import Final, Protocol

DENSE_BYTES: Final = 1024  # of one read of a stream: some four events
REST_S: Final = 0.008


class Resting(Protocol):
    """A connection that can be left unread for a while."""

    def set_resting(self, resting: bool) -> None: ...


class Coalescing:
    """The streams of one event loop that rest; all of them go on together."""

    def __init__(self) -> None:
        self._resting: list[Resting] = []

    def rest(self, connection: Resting) -> None:
        """Leave a connection unread until streams go on the next time."""
        if not self._resting:
            asyncio.get_running_loop().call_later(REST_S, self._go_on)
        self._resting.append(connection)
        connection.set_resting(True)

    def _go_on(self) -> None:
        resting, self._resting = self._resting, []
        for connection in resting:
            connection.set_resting(False)

"""Stays awake for a moment after something was sent, where answers lately came within that moment.

A core that sleeps takes tens of microseconds to wake and comes back with cold caches; between two
messages of one quick exchange that is most of the time it takes. So where requests come one by one
and the last few waits were all short, the loop asks for news without sleeping, for no longer than
such a wait. Where engines take their time, as models do, waits are long and nothing is spent. After
many short waits one long one changes nothing: something else had the core for a moment, and whoever
slept at once would make the next few requests late as well.
"""

import asyncio
from typing import Final

from isochrone.ports.clock import Clock

SHORT_IN_A_ROW: Final = 4
MOST_IN_A_ROW: Final = 12  # that count: a long wait takes SHORT_IN_A_ROW of them
MOST_ROUNDS: Final = 1000  # of the loop, whatever the clock says


class Waking:
    """`awake_us`: the longest wait that counts as short; 0: always sleep."""

    __slots__ = ("_awake_ns", "_clock", "_loop", "_rounds", "_scheduled", "_sent_ns", "_short")

    def __init__(self, clock: Clock, awake_us: float) -> None:
        self._clock = clock
        self._awake_ns = int(awake_us * 1000)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sent_ns = 0    # when something was sent last, until there is news; else 0
        self._short = 0      # short waits in a row, 0 to MOST_IN_A_ROW
        self._rounds = 0
        self._scheduled = False

    def sent(self) -> None:
        """Something went out, and nothing else is left to do."""
        if not self._awake_ns:
            return
        self._sent_ns = self._clock.monotonic_ns()
        self._rounds = 0
        if self._short >= SHORT_IN_A_ROW and not self._scheduled:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._scheduled = True
            self._loop.call_soon(self._look)

    def came(self) -> None:
        """There is news."""
        if self._sent_ns:
            waited_ns = self._clock.monotonic_ns() - self._sent_ns
            if waited_ns < self._awake_ns:
                self._short = min(self._short + 1, MOST_IN_A_ROW)
            else:
                self._short = max(self._short - SHORT_IN_A_ROW, 0)
            self._sent_ns = 0

    def _look(self) -> None:
        """Once a round of the loop, which looks for news in between."""
        self._scheduled = False
        self._rounds += 1
        if not self._sent_ns or self._short < SHORT_IN_A_ROW or self._rounds > MOST_ROUNDS:
            return
        if self._loop is not None and self._clock.monotonic_ns() - self._sent_ns < self._awake_ns:
            self._scheduled = True
            self._loop.call_soon(self._look)

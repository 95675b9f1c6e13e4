"""What is due when. Among events of one instant the one that was put first comes first.

Events of the present millisecond are in order; those of later ones lie in lists of their own,
unsorted until their turn comes, so that putting one costs an append and taking one a few
comparisons, however many are waiting.
"""

from bisect import insort
from heapq import heappop, heappush
from math import inf
from typing import Final

from isochrone.twin.fast.policy import Flight

BINS_S: Final = 1000.0  # in a second

Event = tuple[float, int, int, int, Flight | None]  # instant, serial number, kind, number, flight


class Timeline:
    """Instants are seconds >= 0, and never before that of the event that was taken last."""

    def __init__(self) -> None:
        self.put_count = 0
        self._now: list[Event] = []
        self._taken = 0  # of them
        self._bin = 0
        self._later: dict[int, list[Event]] = {}
        self._bins: list[int] = []

    def put(self, at_s: float, kind: int, number: int, flight: Flight | None) -> None:
        """Something is due then."""
        self.put_count += 1
        event = (at_s, self.put_count, kind, number, flight)
        place = int(at_s * BINS_S)
        if place <= self._bin:
            insort(self._now, event, self._taken)
            return
        waiting = self._later.get(place)
        if waiting is None:
            self._later[place] = [event]
            heappush(self._bins, place)
        else:
            waiting.append(event)

    def next_s(self) -> float:
        """The instant of the next event; infinite when nothing is due any more."""
        if self._taken == len(self._now) and not self._turn():
            return inf
        return self._now[self._taken][0]

    def take(self) -> Event:
        """The next event. There must be one."""
        if self._taken == len(self._now):
            self._turn()
        event = self._now[self._taken]
        self._taken += 1
        return event

    def _turn(self) -> bool:
        if not self._bins:
            return False
        self._bin = heappop(self._bins)
        self._now = self._later.pop(self._bin)
        self._now.sort()
        self._taken = 0
        return True

"""Until when each request may wait, the first first."""

from heapq import heapify, heappop, heappush

from isochrone.core.admission.class_line import NEVER_NS
from isochrone.core.admission.fair_order import Ticket

_SPARE_DEADLINES = 64


class Deadlines:
    """Of what waits at a site; those of what does not wait any more are left out when they come up,
    or when they are most. Mutable, owned by its queue."""

    __slots__ = ("_heap", "_sequence")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Ticket]] = []
        self._sequence = 0

    def put(self, ticket: Ticket, queued: int) -> None:
        """It waits from now on, as one of `queued`."""
        self._sequence += 1
        heappush(self._heap, (ticket.deadline_ns, self._sequence, ticket))
        if len(self._heap) > 2 * queued + _SPARE_DEADLINES:
            self._heap = [each for each in self._heap if _counts(each)]
            heapify(self._heap)

    def take(self, now_ns: int) -> Ticket | None:
        """One whose time is over."""
        heap = self._heap
        while heap and heap[0][0] <= now_ns:
            entry = heappop(heap)
            if _counts(entry):
                return entry[2]
        return None

    def next_ns(self) -> int:
        return self._heap[0][0] if self._heap else NEVER_NS


def _counts(entry: tuple[int, int, Ticket]) -> bool:
    ticket = entry[2]
    return ticket.state == "queued" and ticket.deadline_ns == entry[0]

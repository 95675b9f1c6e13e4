"""When slots will be free: what each request that runs is expected to take still, in order.

Slots that get free work off what waits. Whoever comes begins once all that is ahead of it has
begun; how soon that is depends on which requests run, not on how long they are on the average: one
slot that is soon free and one that is not are not two that are free in a while. See
docs/admission.md.
"""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from itertools import accumulate

from isochrone.core.admission.fair_order import Ticket

_MOST_BEGUN = 4   # one in so many of the slots begins another request before all are looked at anew
_MOST_AGE = 8     # or such a part of the usual time in a slot passes
_MOST_CHANGE = 8  # or the measured time a token changes by such a part


class SlotEnds:
    """The ends of what runs, from the first on; each time as it was when they were looked at, for
    an instant. What has begun since took its turn among them, so they are true for longer than
    that, as far as requests take what was expected. Mutable, owned by its queue."""

    __slots__ = ("_begun", "_begun_ns", "_ends_ns", "_made_ns", "_pace_ns", "_sums_ns", "_usual_ns")

    def __init__(self) -> None:
        self._ends_ns: list[float] = []
        self._sums_ns: list[float] = []  # of all ends before each
        self._made_ns = 0
        self._usual_ns = 0.0
        self._pace_ns = 0.0
        self._begun = 0
        self._begun_ns = 0.0

    def forget(self) -> None:
        """There are more slots, or fewer."""
        self._ends_ns = []

    def began(self, tokens: int) -> None:
        """A request that waited has begun in a slot that got free."""
        self._begun += 1
        self._begun_ns += tokens * self._pace_ns

    def look(
        self, running: Sequence[Collection[Ticket]], slots: int, pace_ns: float, now_ns: int
    ) -> None:
        """See when what runs, of some classes, ends at `pace_ns` a token, unless that is known well
        enough. Of more than `slots` that run, the first that end leave none free."""
        count = len(self._ends_ns)
        if (
            count
            and self._begun * _MOST_BEGUN <= count
            and (now_ns - self._made_ns) * _MOST_AGE <= self._usual_ns
            and abs(pace_ns - self._pace_ns) * _MOST_CHANGE <= self._pace_ns
        ):
            return
        ends_ns = [
            ticket.started_ns + ticket.tokens * pace_ns for tickets in running for ticket in tickets
        ]
        ends_ns.sort()
        late = bisect_left(ends_ns, now_ns)
        if late:  # each is taken to be as late again
            ends_ns[:late] = [now_ns + now_ns - end_ns for end_ns in ends_ns[:late]]
            ends_ns.sort()
        if len(ends_ns) > slots:
            del ends_ns[: len(ends_ns) - slots]
        self._ends_ns = ends_ns
        self._sums_ns = sums_ns = list(accumulate(ends_ns, initial=0.0))
        self._usual_ns = 2 * (sums_ns[-1] / max(len(ends_ns), 1) - now_ns)
        self._made_ns, self._pace_ns = now_ns, pace_ns
        self._begun, self._begun_ns = 0, 0.0

    def turn_ns(
        self, ahead_ns: float, each_ns: float, part: float, free: int, now_ns: int
    ) -> float:
        """When a slot begins somebody's request who has `ahead_ns` of slots' time ahead of him, in
        requests of `each_ns`, where his class has `part` of what slots get free. `free`: as many
        are already. A request that has begun counts by half more than what was done of it: on the
        average that half will have been done once the next begins in its place."""
        half_ns = each_ns / 2
        due_ns = (ahead_ns + half_ns) / part + self._begun_ns
        ends_ns, sums_ns = self._ends_ns, self._sums_ns
        low, high = 0, len(ends_ns)  # as many ends at least, and at most, come before it
        while low < high:
            middle = (low + high) // 2
            end_ns = ends_ns[middle]
            done_ns = free * (end_ns - now_ns) + middle * end_ns - sums_ns[middle]
            if done_ns + (free + middle) * half_ns < due_ns:
                low = middle + 1
            else:
                high = middle
        if low == 0 and free == 0:
            return max(ends_ns[0] - now_ns, 0.0) if ends_ns else 0.0
        last_ns = sums_ns[low - 1] + ends_ns[low - 1] if low else 0.0
        turn_ns = (due_ns + last_ns + free * now_ns) / (low + free) - half_ns
        return max(turn_ns, ends_ns[low - 1] if low else now_ns, now_ns) - now_ns

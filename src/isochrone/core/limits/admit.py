"""Decides over all limits of a request: admitted, refused, or worth waiting for a grant.

A request is admitted where it fits in all of them, and takes of all at once. Where one lacks
something that its home may still have, the request waits for the answer; it is refused by what the
home said lately, never by what it said a while ago.

Whoever waits keeps what it has of the limits before the one that it lacks, and nothing of those
after it. The order is the same at all gateways, so no two requests ever wait for what the other
keeps: the one that waits for the last of the limits that anybody waits for has all others.
"""

from collections.abc import Sequence
from typing import Literal

from isochrone.core.limits.part import Part
from isochrone.core.limits.terms import WAIT_NS

Verdict = Literal["admitted", "waits", "refused"]


class Claim:
    """What one request takes of its limits; `amounts` go with `parts`, which come in one order at
    all gateways. `lacking` is the limit that it was refused for, or waits for. Mutable, owned by
    one event loop."""

    __slots__ = ("_taken", "_waits_for", "amounts", "at", "began_ns", "lacking", "parts")

    def __init__(
        self, parts: Sequence[Part], amounts: Sequence[int], at: int, now_ns: int
    ) -> None:
        self.parts = parts
        self.amounts = amounts
        self.at = at
        self.began_ns = now_ns
        self.lacking: Part | None = None
        self._waits_for = 0  # so many limits know that it waits
        self._taken = False

    def decide(self, now_ns: int) -> Verdict:
        """Take what is needed, if there is enough of all; call it again for one that waits."""
        parts, amounts = self.parts, self.amounts
        if self._waits_for:
            self._go()
        for index in range(len(parts)):
            part, amount = parts[index], amounts[index]
            if part.fits(amount, now_ns):
                continue
            too_small = self._too_small()
            self.lacking = part if too_small is None else too_small
            if too_small is not None or part.lacks(amount, now_ns) or (
                now_ns - self.began_ns >= WAIT_NS
            ):
                return "refused"
            for each in range(index + 1):
                parts[each].wait(amounts[each])
            self._waits_for = index + 1
            return "waits"
        for index in range(len(parts)):
            parts[index].take(amounts[index], now_ns)
        self._taken, self.lacking = True, None
        return "admitted"

    def to_ask(self, now_ns: int) -> list[Part]:
        """For one that waits: the limits that a grant is to be asked of now. Those before the one
        that lacks are among them where nothing is granted yet."""
        return [
            part for part in self.parts[:self._waits_for]
            if not part.is_asking() and (part is self.lacking or now_ns >= part.until_ns)
        ]

    def settle(self, used: Sequence[int], now_ns: int) -> None:
        """The request has ended, in whatever way, admitted or not; call it once. `used` is what
        it used of each limit."""
        if self._waits_for:
            self._go()
        if self._taken:
            self._taken = False
            for index in range(len(self.parts)):
                self.parts[index].settle(self.amounts[index], used[index], self.at, now_ns)

    def _too_small(self) -> Part | None:
        """A limit that the request alone is larger than: it can wait for none."""
        for index in range(len(self.parts)):
            if self.amounts[index] > self.parts[index].limit.amount:
                return self.parts[index]
        return None

    def _go(self) -> None:
        """It waits no longer."""
        for index in range(self._waits_for):
            self.parts[index].waiting -= self.amounts[index]
        self._waits_for = 0

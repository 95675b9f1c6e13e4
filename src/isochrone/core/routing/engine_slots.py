"""Which slot of an engine a request goes to, so that no tenant meets what another one left there.

An engine such as llama.cpp keeps in each of its slots the last prompt that ran there with its
answer, and a prompt that begins alike is read from there. It knows no tenants. So each request is
sent to a slot by number, and may use what the slot holds only if that is certainly of its owner.

Not certain is what nobody has heard of: a request that was given up before its answer began may
still be on its way into its slot. And what cannot be sent by number may run anywhere: while one of
those is open nobody uses anything, and afterwards nothing is known of any slot.
"""

from collections.abc import Sequence
from typing import Final

DOUBT_NS: Final = 60_000_000_000  # by then an engine has noticed that a request was given up


class Place:
    """Of one request at an engine: its slot, None for any, and whether it may use what is there."""

    __slots__ = ("_is_certain", "_marks", "_owner", "_slots", "_turn", "may_reuse", "slot")

    def __init__(
        self, slots: "EngineSlots", slot: int | None, *, may_reuse: bool = False,
        is_certain: bool = False, owner: str = "", marks: Sequence[int] = (), turn: int = 0,
    ) -> None:
        self.slot = slot
        self.may_reuse = may_reuse
        self._slots = slots
        self._is_certain = is_certain  # nobody else is on the way into the slot
        self._owner = owner
        self._marks = marks
        self._turn = turn

    def left(self, now_ns: int, *, ran: bool | None) -> None:
        """It is over, once. `ran`: the slot had its prompt, as the engine began to answer, or has
        answered in full where it has no slot; False: the engine refused it; None: it was given up,
        and may still run, or a part of it."""
        if self.slot is None:
            self._slots.left_any(now_ns, unheard=ran is None)
            return
        owner = self._owner if ran and self._is_certain else None
        self._slots.left(self.slot, owner, self._marks, self._turn, now_ns, unheard=ran is None)


class _Slot:
    __slots__ = ("doubt_ns", "marks", "open", "owner", "turn")

    def __init__(self) -> None:
        self.owner: str | None = None      # of all that is in it; None while that is not certain
        self.marks: Sequence[int] = ()     # of the prompt in it
        self.open = 0                      # requests that were sent there and are not over
        self.turn = 0                      # of the last request that was sent there
        self.doubt_ns = 0                  # until then somebody may still be on the way into it


class EngineSlots:
    """The slots of one run of one engine. Owned by the only one that sends it requests."""

    def __init__(self, count: int) -> None:
        self._slots = [_Slot() for _ in range(count)]
        self._turn = 0
        self._loose = 0  # requests that may be in any slot

    def take(self, owner: str, marks: Sequence[int], now_ns: int) -> Place:
        """A place for a request whose prompt has these marks, chained hashes of its beginning.

        Of the slots that are free, else of those with the fewest requests, the one that has most of
        its prompt, if that is at least half of it; else the one that was used least recently.
        """
        fewest = min([slot.open for slot in self._slots])
        number = max(
            [number for number, slot in enumerate(self._slots) if slot.open == fewest],
            key=lambda number: (
                _held(self._slots[number], owner, marks), -self._slots[number].turn
            ),
        )
        slot = self._slots[number]
        is_certain = not self._loose and now_ns >= slot.doubt_ns
        may_reuse = is_certain and slot.owner == owner
        if not may_reuse:
            slot.owner, slot.marks = None, ()
        self._turn += 1
        slot.open, slot.turn = slot.open + 1, self._turn
        return Place(
            self, number, may_reuse=may_reuse, is_certain=is_certain, owner=owner, marks=marks,
            turn=self._turn,
        )

    def take_any(self) -> Place:
        """A place for a request that the engine itself gives slots, one or several."""
        self._loose += 1
        self._forget()
        return Place(self, None)

    def left(
        self, number: int, owner: str | None, marks: Sequence[int], turn: int, now_ns: int, *,
        unheard: bool,
    ) -> None:
        """See `Place.left`. `owner` None: nobody knows what the slot holds."""
        slot = self._slots[number]
        slot.open -= 1
        if unheard:
            slot.owner, slot.doubt_ns = None, now_ns + DOUBT_NS
        elif slot.turn == turn:  # who was sent there since may have run already, or will
            slot.owner, slot.marks = owner if now_ns >= slot.doubt_ns else None, marks

    def left_any(self, now_ns: int, *, unheard: bool) -> None:
        """See `Place.left`."""
        self._loose -= 1
        self._forget()
        if unheard:
            for slot in self._slots:
                slot.doubt_ns = now_ns + DOUBT_NS

    def _forget(self) -> None:
        for slot in self._slots:
            slot.owner, slot.marks = None, ()


def _held(slot: _Slot, owner: str, marks: Sequence[int]) -> int:
    """How many of the marks a slot has, 0 for less than half."""
    if slot.owner != owner:
        return 0
    held = 0
    for mine, known in zip(marks, slot.marks, strict=False):
        if mine != known:
            break
        held += 1
    return held if 2 * held >= len(marks) else 0

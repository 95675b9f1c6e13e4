"""Which slot of an engine a request goes to, so that no tenant meets what another one left there.

An engine such as llama.cpp keeps in each of its slots the last prompt that ran there with its
answer, and a prompt that begins alike is read from there. It knows no tenants. So each request is
sent to a slot by number, and may use what the slot holds only if that is certainly of its owner.

Not certain is in which order an engine began what it was sent, nor when it was done: its answers
come late where their clients are slow. So a slot is of one owner only if nobody else was sent there
since it was last empty. A request that was given up before its answer began may still be on its
way there. What may use what a slot holds has to be in it before anybody else is sent there, so who
comes right behind it waits for a moment. And what cannot be sent by number may run anywhere: while
one of those is open nobody uses anything, and afterwards nothing is known of any slot.
"""

from collections.abc import Sequence
from typing import Final

DOUBT_NS: Final = 60_000_000_000  # by then an engine has noticed that a request was given up
COMES_IN_NS: Final = 250_000_000  # by then it has a request in its slot that was free


class Place:
    """Of one request at an engine: its slot, None for any, whether it may use what is there, and
    for how long it has to wait before it is sent."""

    __slots__ = ("_has_no_number", "_marks", "_slots", "may_reuse", "slot", "wait_ns")

    def __init__(
        self, slots: "EngineSlots", slot: int | None, *, wait_ns: int, may_reuse: bool = False,
        marks: Sequence[int] = (), has_no_number: bool = False,
    ) -> None:
        self.slot = slot
        self.may_reuse = may_reuse
        self.wait_ns = wait_ns
        self._slots = slots
        self._marks = marks
        self._has_no_number = has_no_number

    def left(self, now_ns: int, *, ran: bool | None) -> None:
        """It is over, once. `ran`: the slot had its prompt, as the engine began to answer, or has
        answered in full where it has no slot; False: the engine refused it; None: it was given up,
        and may still run, or a part of it."""
        if self.slot is None:
            self._slots.left_any(now_ns, ran=ran, has_no_number=self._has_no_number)
        else:
            self._slots.left(self.slot, self._marks, now_ns, ran=ran)


class _Slot:
    __slots__ = ("doubt_ns", "marks", "open", "owner", "reused_ns", "sent", "turn")

    def __init__(self) -> None:
        self.owner: str | None = None      # of all that is in it; None while that is not certain
        self.marks: Sequence[int] = ()     # of the prompt in it
        self.open = 0                      # requests that were sent there and are not over
        self.sent: str | None = None       # whose they all are; None if that is not certain
        self.turn = 0                      # when one was last sent there, or over
        self.doubt_ns = 0                  # until then somebody may still be on the way into it
        self.reused_ns = 0                 # until then who may use what is in it comes in

    def forget(self) -> None:
        """Somebody may have been in it, or may come, of whom nobody knows when."""
        self.owner, self.marks, self.sent = None, (), None


class EngineSlots:
    """The slots of one run of one engine. Owned by the only one that sends it requests."""

    def __init__(self, count: int) -> None:
        self._slots = [_Slot() for _ in range(count)]
        self._turn = 0
        self._loose = 0       # requests that may be in any slot,
        self._numberless = 0  # and those of them that have to be

    def take(self, owner: str, marks: Sequence[int], now_ns: int) -> Place:
        """A place for a request whose prompt has these marks, chained hashes of its beginning.

        Of the slots that are free, else of those with the fewest requests, the one that has most of
        its prompt, if that is at least half of it; else the one that was used least recently. While
        one may be busy with a request that has no number, the engine itself knows which is free.
        """
        if self._numberless:
            return self._anywhere(now_ns, has_no_number=False)
        fewest = min([slot.open for slot in self._slots])
        number = max(
            [number for number, slot in enumerate(self._slots) if slot.open == fewest],
            key=lambda number: (
                _held(self._slots[number], owner, marks), -self._slots[number].turn
            ),
        )
        slot = self._slots[number]
        if self._loose or now_ns < slot.doubt_ns:
            slot.forget()
        elif not slot.open:
            slot.sent = owner
        elif slot.sent != owner:
            slot.forget()
        may_reuse = slot.sent == owner and slot.owner == owner
        if not may_reuse:
            slot.owner, slot.marks = None, ()
        wait_ns = 0 if slot.sent == owner else max(slot.reused_ns - now_ns, 0)
        if may_reuse:
            slot.reused_ns = now_ns + COMES_IN_NS
        slot.open += 1
        self._used(slot)
        return Place(self, number, wait_ns=wait_ns, may_reuse=may_reuse, marks=marks)

    def take_any(self, now_ns: int) -> Place:
        """A place for a request that the engine itself gives slots, one or several."""
        return self._anywhere(now_ns, has_no_number=True)

    def left(self, number: int, marks: Sequence[int], now_ns: int, *, ran: bool | None) -> None:
        """See `Place.left`."""
        slot = self._slots[number]
        slot.open -= 1
        if ran and not slot.open and now_ns >= slot.doubt_ns:
            slot.reused_ns = 0  # all that were sent there have come in
        self._used(slot)  # it may be for a moment still, if it was given up
        if ran is None:
            slot.forget()
            slot.doubt_ns = now_ns + DOUBT_NS
        elif ran and slot.sent is not None:
            slot.owner, slot.marks = slot.sent, marks

    def left_any(self, now_ns: int, *, ran: bool | None, has_no_number: bool) -> None:
        """See `Place.left`."""
        self._loose -= 1
        self._numberless -= has_no_number
        for slot in self._slots:
            slot.forget()
            if ran is None:
                slot.doubt_ns = now_ns + DOUBT_NS

    def _anywhere(self, now_ns: int, *, has_no_number: bool) -> Place:
        self._loose += 1
        self._numberless += has_no_number
        for slot in self._slots:
            slot.forget()
        wait_ns = max(max([slot.reused_ns for slot in self._slots]) - now_ns, 0)
        return Place(self, None, wait_ns=wait_ns, has_no_number=has_no_number)

    def _used(self, slot: _Slot) -> None:
        self._turn += 1
        slot.turn = self._turn


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

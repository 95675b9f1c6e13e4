"""Tenants at an engine that knows none: what one of them left in a slot is never read by another.

The engine here is a model of llama.cpp's: tasks come from threads of its own, later than they were
sent and in any order; one that has a slot by number waits for that, one that has none takes any,
one or several; what was given up is noticed late, and may run until then.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isochrone.core.routing.engine_slots import DOUBT_NS, EngineSlots, Place

SLOTS = 3
STEP_NS = 10_000_000_000
OWNERS = ("a", "b", "c")


@dataclass(eq=False)
class Task:
    """`given_up_ns`: its client closed the connection then; the engine sees it within a minute."""

    owner: str
    place: Place
    slots: int = 1
    given_up_ns: int | None = None
    in_slots: list[int] = field(default_factory=list)
    answers: bool = False


class Engine:
    """Slots hold the owner of their content. `read` are pairs of who read and whose that was."""

    def __init__(self) -> None:
        self.content: list[str | None] = [None] * SLOTS
        self.busy: list[Task | None] = [None] * SLOTS
        self.threads: list[Task] = []
        self.waiting: list[Task] = []
        self.read: list[tuple[str, str]] = []
        self.reuses = 0

    def comes_in(self, index: int) -> None:
        if self.threads:
            self.waiting.append(self.threads.pop(index % len(self.threads)))
            self.go_on()

    def go_on(self) -> None:
        """Start whatever can start, in the order in which it came."""
        for task in list(self.waiting):
            free = [number for number, busy in enumerate(self.busy) if busy is None]
            if task.place.slot is not None:
                numbers = [task.place.slot] if task.place.slot in free else []
            else:
                numbers = free[: task.slots] if len(free) >= task.slots else []
            if not numbers:
                continue
            self.waiting.remove(task)
            task.in_slots, task.answers = numbers, True
            for number in numbers:
                held = self.content[number]
                if task.place.may_reuse and held is not None:
                    self.reuses += 1
                    self.read.append((task.owner, held))
                self.busy[number], self.content[number] = task, task.owner

    def ends(self, task: Task) -> None:
        for number in task.in_slots:
            self.busy[number] = None
        self.go_on()

    def notices(self, now_ns: int) -> None:
        """Whoever was given up long ago is found now, wherever it is."""
        for task in [*self.threads, *self.waiting, *[busy for busy in self.busy if busy]]:
            if task.given_up_ns is not None and now_ns - task.given_up_ns >= DOUBT_NS - STEP_NS:
                self.drop(task)

    def drop(self, task: Task) -> None:
        if task in self.threads:
            self.threads.remove(task)
        elif task in self.waiting:
            self.waiting.remove(task)
        else:
            self.ends(task)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["send", "send", "send any", "in", "in", "end", "end", "give up", "late"]),
        st.integers(0, 5), st.integers(0, 3),
    ),
    max_size=80,
)


def play(steps: list[tuple[str, int, int]]) -> Engine:
    slots, engine, now_ns, open_tasks = EngineSlots(SLOTS), Engine(), 0, list[Task]()
    for what, index, number in steps:
        now_ns += STEP_NS
        engine.notices(now_ns)
        owner = OWNERS[index % len(OWNERS)]
        if what == "send":
            task = Task(owner, slots.take(owner, range(number), now_ns))
            engine.threads.append(task)
            open_tasks.append(task)
        elif what == "send any":
            task = Task(owner, slots.take_any(), slots=1 + number % SLOTS)
            engine.threads.append(task)
            open_tasks.append(task)
        elif what == "in":
            engine.comes_in(index)
        elif what == "late":
            now_ns += DOUBT_NS
            engine.notices(now_ns)
        elif open_tasks:
            task = open_tasks[index % len(open_tasks)]
            if what == "end" and not task.answers:
                continue
            open_tasks.remove(task)
            if what == "end":
                task.place.left(now_ns, ran=True)
                engine.ends(task)
            else:
                task.given_up_ns = now_ns
                began = task.answers and task.place.slot is not None
                task.place.left(now_ns, ran=True if began else None)
    return engine


@settings(max_examples=400)
@given(STEPS)
def test_nobody_reads_what_another_tenant_left(steps: list[tuple[str, int, int]]) -> None:
    assert all(reader == writer for reader, writer in play(steps).read)


def test_a_conversation_goes_on_in_its_slot() -> None:
    slots = EngineSlots(2)
    marks = [[1, 2, 3], [1, 2, 3, 4, 5], [9], [1, 2, 3, 4, 5, 6]]
    places = []
    for each in marks:
        place = slots.take("a", each, 0)
        place.left(0, ran=True)
        places.append((place.slot, place.may_reuse))
    assert places == [(0, False), (0, True), (1, False), (0, True)]


def test_who_comes_next_takes_the_slot_that_was_left_alone_for_longest() -> None:
    slots = EngineSlots(2)
    for owner in ("a", "b", "c"):
        slots.take(owner, [ord(owner)], 0).left(0, ran=True)
    again = slots.take("b", [ord("b")], 0)
    assert (again.slot, again.may_reuse) == (1, True)
    beside = slots.take("b", [ord("b")], 0)  # its own one is busy
    assert (beside.slot, beside.may_reuse) == (0, False)


@pytest.mark.parametrize(("ran", "waits_ns", "may"), [
    (True, 0, True), (False, 0, False), (None, 0, False), (None, DOUBT_NS, False),
])
def test_a_slot_is_a_tenants_once_its_request_ran(ran: Any, waits_ns: int, may: bool) -> None:
    slots = EngineSlots(1)
    slots.take("a", [1], 0).left(0, ran=ran)
    assert slots.take("a", [1], waits_ns).may_reuse is may


def test_while_a_request_may_be_anywhere_nobody_uses_anything() -> None:
    slots = EngineSlots(1)
    slots.take("a", [1], 0).left(0, ran=True)
    anywhere = slots.take_any()
    assert (anywhere.slot, anywhere.may_reuse) == (None, False)
    within = slots.take("a", [1], 0)
    assert not within.may_reuse
    within.left(0, ran=True)
    anywhere.left(0, ran=True)
    after = slots.take("a", [1], 0)
    assert not after.may_reuse
    after.left(0, ran=True)
    assert slots.take("a", [1], 0).may_reuse

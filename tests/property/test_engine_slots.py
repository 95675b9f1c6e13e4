"""Tenants at an engine that knows none: what one of them left in a slot is never read by another.

The engine here is a model of llama.cpp's: tasks come from threads of its own, later than they were
sent and in any order; one that has a slot by number waits for that, one that has none takes any,
one or several; what was given up is noticed late, and may run until then. An answer may be done
long before its client has taken it. A moment after it was sent a request has come in.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isochrone.core.routing.engine_slots import COMES_IN_NS, DOUBT_NS, EngineSlots, Place

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

    def __init__(self, slots: int) -> None:
        self.content: list[str | None] = [None] * slots
        self.busy: list[Task | None] = [None] * slots
        self.threads: list[Task] = []
        self.waiting: list[Task] = []
        self.read: list[tuple[str, str]] = []
        self.reuses = 0

    def comes_in(self, index: int) -> None:
        if self.threads:
            self.waiting.append(self.threads.pop(index % len(self.threads)))
            self.go_on()

    def passes(self, time_ns: int) -> None:
        """By then whatever may use something has come in."""
        if time_ns:
            for each in [each for each in self.threads if each.place.may_reuse]:
                self.comes_in(self.threads.index(each))

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
            if self.busy[number] is task:
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
        st.sampled_from([
            "send", "send", "send any", "in", "in", "done", "end", "end", "give up", "late",
        ]),
        st.integers(0, 5), st.integers(0, 3),
    ),
    max_size=80,
)


def play(steps: list[tuple[str, int, int]], count: int) -> Engine:
    slots, engine, now_ns, open_tasks = EngineSlots(count), Engine(count), 0, list[Task]()
    for what, index, number in steps:
        passed_ns = STEP_NS * (number % 2)
        now_ns += passed_ns
        engine.passes(passed_ns)
        engine.notices(now_ns)
        owner = OWNERS[index % len(OWNERS)]
        if what == "send":
            task = Task(owner, slots.take(owner, range(number), now_ns))
            engine.passes(task.place.wait_ns)
            engine.threads.append(task)
            open_tasks.append(task)
        elif what == "send any":
            task = Task(owner, slots.take_any(now_ns), slots=1 + number % count)
            engine.passes(task.place.wait_ns)
            engine.threads.append(task)
            open_tasks.append(task)
        elif what == "in":
            engine.comes_in(index)
        elif what == "late":
            now_ns += DOUBT_NS
            engine.passes(DOUBT_NS)
            engine.notices(now_ns)
        elif open_tasks:
            task = open_tasks[index % len(open_tasks)]
            if what in ("done", "end") and not task.answers:
                continue
            if what == "done":
                engine.ends(task)
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
@given(STEPS, st.integers(1, 3))
def test_nobody_reads_what_another_tenant_left(
    steps: list[tuple[str, int, int]], count: int
) -> None:
    assert all(reader == writer for reader, writer in play(steps, count).read)


SEND_A, SEND_B, ANY_B = ("send", 0, 1), ("send", 1, 1), ("send any", 1, 0)
FIRST_IN, NEXT_IN = ("in", 0, 0), ("in", 1, 0)


@pytest.mark.parametrize("steps", [
    [SEND_A, FIRST_IN, ("done", 0, 0), ANY_B, FIRST_IN, ("end", 1, 0), ("end", 0, 0), SEND_A,
     FIRST_IN],
    [SEND_B, SEND_A, NEXT_IN, ("end", 1, 0), FIRST_IN, SEND_A, ("end", 0, 0), FIRST_IN],
    [SEND_B, SEND_A, NEXT_IN, ("done", 1, 0), FIRST_IN, ("end", 0, 0), ("end", 0, 0), SEND_A,
     FIRST_IN],
    [SEND_A, FIRST_IN, ("end", 0, 0), ("send", 0, 0), ("send", 1, 0), NEXT_IN, ("end", 1, 0),
     FIRST_IN],
    [SEND_A, FIRST_IN, ("end", 0, 0), ("send", 0, 0), ANY_B, NEXT_IN, ("end", 1, 0), FIRST_IN],
], ids=["a slow client", "out of order", "both", "overtaken", "overtaken by one without number"])
def test_a_slot_is_nobodys_where_its_last_request_is_not_known(
    steps: list[tuple[str, int, int]]
) -> None:
    assert all(reader == writer for reader, writer in play(steps, 1).read)


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


def test_a_slot_that_was_just_left_is_the_last_that_anybody_is_sent_to() -> None:
    """What was given up may be running there still, while another slot is free."""
    slots = EngineSlots(2)
    long, short = slots.take("a", [1], 0), slots.take("b", [2], 0)
    short.left(0, ran=True)
    long.left(0, ran=None)
    assert slots.take("c", [3], 0).slot == short.slot


def test_nobody_is_sent_to_a_slot_that_a_request_may_have_which_has_no_number() -> None:
    slots = EngineSlots(2)
    anywhere = slots.take_any(0)
    beside = slots.take("b", [1], 0)
    assert (beside.slot, beside.may_reuse) == (None, False)
    anywhere.left(0, ran=True)
    assert slots.take("c", [1], 0).slot is not None, "though others came meanwhile"
    beside.left(0, ran=True)


def test_who_comes_right_behind_what_uses_a_slot_waits_until_that_is_in_it() -> None:
    slots = EngineSlots(1)
    slots.take("a", [1], 0).left(0, ran=True)
    uses = slots.take("a", [1], 0)
    assert (uses.may_reuse, uses.wait_ns) == (True, 0)
    assert slots.take("a", [1], 0).wait_ns == 0, "their order does not matter"
    assert slots.take("b", [1], 10).wait_ns == COMES_IN_NS - 10
    assert slots.take_any(10).wait_ns == COMES_IN_NS - 10
    assert slots.take_any(COMES_IN_NS).wait_ns == 0


def test_what_an_engine_refuses_leaves_its_tenant_what_there_was() -> None:
    slots = EngineSlots(1)
    slots.take("a", [1], 0).left(0, ran=True)
    slots.take("a", [1], 0).left(0, ran=False)
    assert slots.take("a", [1], 0).may_reuse


def test_while_a_request_may_be_anywhere_nobody_uses_anything() -> None:
    slots = EngineSlots(1)
    slots.take("a", [1], 0).left(0, ran=True)
    anywhere = slots.take_any(0)
    assert (anywhere.slot, anywhere.may_reuse) == (None, False)
    within = slots.take("a", [1], 0)
    assert not within.may_reuse
    within.left(0, ran=True)
    anywhere.left(0, ran=True)
    after = slots.take("a", [1], 0)
    assert not after.may_reuse
    after.left(0, ran=True)
    assert slots.take("a", [1], 0).may_reuse

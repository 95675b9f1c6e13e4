"""The example of docs/admission.md, and what a class is clamped to."""

import pytest

from isochrone.core.admission.classes import (
    CLASSES,
    RANK,
    check_policy,
    clamp,
    divide,
    sold_slots,
    weighted_tokens,
)
from isochrone.core.admission.fair_order import Ticket
from isochrone.core.admission.queue_commands import Refused, Start, Stop, TurnAway
from isochrone.core.admission.site_queue import SiteQueue
from isochrone.core.world.site_policy import ClassRule, SitePolicy
from isochrone.core.world.tenant import Class

MS = 1_000_000
FOR_RESERVED = RANK["reserved"]
SECOND_NS = 1_000_000_000
POLICY = SitePolicy(
    reserved=ClassRule(floor=0.4, share=6),
    on_demand=ClassRule(share=3, queue_most=2, wait_ms=60_000),
    batch=ClassRule(share=1, wait_ms=600_000),
)


def offered(queue: SiteQueue, class_: Class, tenant: str, tokens: int, now_ns: int) -> Ticket:
    ticket = queue.offer(class_, tenant, tokens, most_tokens=tokens, now_ns=now_ns)
    assert isinstance(ticket, Ticket)
    return ticket


def drained(queue: SiteQueue) -> list[Start | Stop | TurnAway]:
    commands, queue.outbox = queue.outbox, []
    return commands


def test_worked_example() -> None:
    """Ten slots; a slot takes 10 ms a token; a lent slot must be back within 15 s."""
    queue = SiteQueue(POLICY, 10, 10.0 * MS)
    assert [part.floor for part in divide(POLICY, 10)] == [4, 0, 0]

    long = [offered(queue, "on_demand", "a", 2_000, 0) for _ in range(7)]
    assert [ticket.state for ticket in long] == ["running"] * 6 + ["queued"]
    short = [offered(queue, "on_demand", "b", 500, 0) for _ in range(2)]
    batch = [offered(queue, "batch", "c", 9_000, 0) for _ in range(2)]
    assert {ticket.state for ticket in (*short, *batch)} == {"running"}
    assert queue.running == 10
    for ticket in (*long[:6], *short, *batch):
        queue.first_byte(ticket)
    assert drained(queue) == []

    second = SECOND_NS
    firm = [offered(queue, "reserved", "r", 1_000, second) for _ in range(3)]
    assert drained(queue) == [Stop(batch[1], FOR_RESERVED), Stop(batch[0], FOR_RESERVED)]
    queue.stopped(batch[1], 110, second + 50 * MS)
    queue.stopped(batch[0], 110, second + 50 * MS)
    assert drained(queue) == [Start(firm[0], 50 * MS), Start(firm[1], 50 * MS)]
    assert (batch[0].state, batch[0].tokens) == ("queued", 8_890)

    offered(queue, "on_demand", "a", 500, 2 * second)
    refused = queue.offer("on_demand", "a", 500, most_tokens=500, now_ns=2 * second)
    assert isinstance(refused, Refused)
    assert refused.reason == "queue_full"
    assert refused.retry_after_ns is not None
    # 13,000 tokens run and 2,500 wait ahead of 500, in 3 of 10 slots while others wait too.
    pace_ns = queue.slot_ns / 3
    assert refused.retry_after_ns == pytest.approx(16_000 * pace_ns, abs=2)

    queue.finished(short[0], 500, 5 * second)
    assert drained(queue) == [Start(firm[2], 4 * second)]


def test_a_crowd_whose_time_is_over_at_once_is_not_told_to_wait_for_each_other() -> None:
    """Two slots that are taken for 3 s; engines are slower than they were, so all forty expire."""
    rule = ClassRule(share=3, queue_most=256, wait_ms=10_000)
    queue = SiteQueue(SitePolicy(on_demand=rule), 2, 1.0 * MS, guessed=True)
    for number in range(42):
        offered(queue, "on_demand", f"t{number}", 3_000, number * 20 * MS)
    assert (queue.running, queue.queued) == (2, 40)
    times_ns, now_ns = [], 0
    for number in range(2, 42):
        now_ns = 10 * SECOND_NS + number * 20 * MS
        queue.tick(now_ns)
        (away,) = drained(queue)
        assert isinstance(away, TurnAway)
        assert away.refused.reason == "expired"
        assert away.refused.retry_after_ns is not None
        times_ns.append(now_ns + away.refused.retry_after_ns)
    # 0.8 s until nobody waits, 3 s for those that run, 1.5 s for its own 3,000 tokens in two slots
    assert times_ns[0] == pytest.approx((10.04 + 0.78 + 3.0 + 1.5) * SECOND_NS, abs=MS)
    assert times_ns[1] - times_ns[0] == pytest.approx(1.5 * SECOND_NS, abs=MS)
    assert times_ns == sorted(times_ns), "they are told different times all the same"


def test_who_gives_way_while_the_last_engine_goes_away_does_not_wait_for_nothing() -> None:
    rule = ClassRule(share=3, wait_ms=600_000)
    queue = SiteQueue(SitePolicy(reserved=ClassRule(floor=0.5), batch=rule), 2, 10.0 * MS)
    batch = [offered(queue, "batch", "lab", 9_000, 0) for _ in range(2)]
    firm = offered(queue, "reserved", "shop", 100, 0)
    assert drained(queue) == [Stop(batch[1], FOR_RESERVED)]
    queue.resize(0, MS)
    nobody = Refused("no_capacity", None)
    assert drained(queue) == [TurnAway(firm, nobody)]
    queue.stopped(batch[1], 0, 2 * MS)
    assert drained(queue) == [TurnAway(batch[1], nobody)]
    assert (queue.queued, queue.running) == (0, 1)


@pytest.mark.parametrize(
    ("has", "others", "makes_room"), [(1, 9, True), (3, 3, True), (9, 3, False)]
)
def test_in_a_full_queue_whoever_has_two_more_makes_room(
    has: int, others: int, makes_room: bool
) -> None:
    """However many tenants have few: what each has on the average is no measure."""
    rule = ClassRule(share=3, queue_most=has + others + 10, wait_ms=60_000)
    queue = SiteQueue(SitePolicy(on_demand=rule), 1, 1.0 * MS, guessed=True)
    offered(queue, "on_demand", "first", 10, 0)
    crowd = ["hog"] * 10 + ["poor"] * has + [f"t{number}" for number in range(others)]
    tickets = [offered(queue, "on_demand", tenant, 10, 0) for tenant in crowd]
    answer = queue.offer("on_demand", "poor", 10, most_tokens=10, now_ns=0)
    if makes_room:
        assert isinstance(answer, Ticket)
        (away,) = drained(queue)
        assert isinstance(away, TurnAway)
        assert (away.ticket, away.refused.reason) == (tickets[9], "queue_full")
    else:
        assert isinstance(answer, Refused)
        assert (answer.reason, drained(queue)) == ("queue_full", [])


@pytest.mark.parametrize(
    ("wanted", "allowed", "got"),
    [
        ("reserved", ("reserved", "on_demand", "batch"), "reserved"),
        ("reserved", ("on_demand", "batch"), "on_demand"),
        ("reserved", ("batch",), "batch"),
        ("batch", ("reserved", "on_demand"), "on_demand"),
        ("on_demand", ("reserved",), "reserved"),
        ("batch", (), "on_demand"),
    ],
)
def test_a_class_is_clamped_to_what_the_key_has(
    wanted: Class, allowed: tuple[Class, ...], got: Class
) -> None:
    assert clamp(wanted, allowed) == got


def test_the_policy_that_comes_with_the_product_is_usable() -> None:
    assert check_policy(SitePolicy()) == []


def test_what_was_sold_here_raises_the_floor_and_leaves_one_slot() -> None:
    assert [part.floor for part in divide(SitePolicy(), 8, sold_slots=3)] == [3, 0, 0]
    assert [part.floor for part in divide(SitePolicy(), 8, sold_slots=20)] == [7, 0, 0]


def test_without_engines_and_in_a_closed_class_nobody_waits() -> None:
    closed = SitePolicy(batch=ClassRule(ceiling=0.0))
    answer = SiteQueue(closed, 4, MS).offer("batch", "t", 1, most_tokens=1, now_ns=0)
    assert answer == Refused("class_closed", None)
    queue = SiteQueue(closed, 0, MS)
    answer = queue.offer("on_demand", "t", 1, most_tokens=1, now_ns=0)
    assert answer == Refused("no_capacity", None)
    assert queue.expected_wait_ns("on_demand", "t", 0) == 0, "nobody waits, and nobody ends"


def test_an_interactive_request_is_stopped_only_before_its_first_byte_and_only_once() -> None:
    policy = SitePolicy(reserved=ClassRule(floor=0.5))
    queue = SiteQueue(policy, 2, 1.0 * MS)
    begun, waiting = (offered(queue, "on_demand", "a", 100, 0) for _ in range(2))
    queue.first_byte(begun)
    reserved = offered(queue, "reserved", "r", 100, 0)
    assert drained(queue) == [Stop(waiting, FOR_RESERVED)]
    queue.stopped(waiting, 0, 10 * MS)
    assert drained(queue) == [Start(reserved, 10 * MS)]
    queue.finished(begun, 100, 100 * MS)
    assert drained(queue) == [Start(waiting)]
    queue.finished(reserved, 100, 110 * MS)
    batch = offered(queue, "batch", "b", 100, 110 * MS)
    queue.first_byte(batch)
    offered(queue, "reserved", "r", 100, 120 * MS)
    assert drained(queue) == [Stop(batch, FOR_RESERVED)], "it was stopped once, and is left alone"


def test_speed_is_measured_and_what_was_not_served_says_nothing_of_it() -> None:
    queue = SiteQueue(SitePolicy(), 1, 1.0 * MS)
    for number in range(400):
        now_ns = number * 1_000 * MS
        ticket = offered(queue, "on_demand", "t", 100, now_ns)
        queue.finished(ticket, 100 if number % 2 else 0, now_ns + 500 * MS)
    assert queue.slot_ns == pytest.approx(5 * MS, rel=0.01)


def test_output_counts_at_its_weight() -> None:
    assert weighted_tokens(100, 50, 2) == 200


def test_nobody_is_refused_by_a_speed_that_was_only_guessed() -> None:
    queue = SiteQueue(SitePolicy(), 1, 1_000.0 * MS, guessed=True)
    first = offered(queue, "on_demand", "a", 100, 0)
    offered(queue, "on_demand", "a", 100, 0)
    queue.finished(first, 100, 100_000 * MS)  # as slow as was guessed
    refused = queue.offer("on_demand", "a", 100, most_tokens=100, now_ns=100_000 * MS)
    assert isinstance(refused, Refused)
    assert refused.reason == "would_expire"


def test_where_answers_are_shorter_than_expected_so_are_waits() -> None:
    queue = SiteQueue(SitePolicy(), 1, 1.0 * MS, guessed=True)
    now_ns = 0
    for _ in range(60):
        ticket = offered(queue, "on_demand", "a", 520, now_ns)  # no limit was stated
        now_ns += 1_000 * MS
        queue.finished(ticket, 20, now_ns)
    assert queue.slot_ns == pytest.approx(50.0 * MS)  # what is sold goes by what is used
    offered(queue, "on_demand", "a", 520, now_ns)
    for ahead in range(1, 11):  # one second each, and ten are what a request may wait
        assert queue.expected_wait_ns("on_demand", "a", now_ns) == pytest.approx(ahead * SECOND_NS)
        offered(queue, "on_demand", "a", 520, now_ns)
    refused = queue.offer("on_demand", "a", 520, most_tokens=520, now_ns=now_ns)
    assert isinstance(refused, Refused)
    assert refused.reason == "would_expire"
    assert refused.retry_after_ns == pytest.approx(12 * SECOND_NS)  # eleven, and a turn of its own


def test_what_a_stopped_request_had_left_is_not_what_it_used() -> None:
    queue = SiteQueue(POLICY, 10, 10.0 * MS)
    batch = [offered(queue, "batch", "c", 9_000, 0) for _ in range(10)]
    offered(queue, "reserved", "a", 100, 0)
    (stopping,) = (ticket for ticket in batch if ticket.state == "stopping")
    queue.stopped(stopping, 100, 1_000 * MS)
    assert queue.asked_ns == pytest.approx(10.0 * MS)


def test_the_first_request_that_ends_says_more_than_the_guess() -> None:
    queue = SiteQueue(SitePolicy(), 1, 1_000.0 * MS, guessed=True)
    first = offered(queue, "on_demand", "a", 100, 0)
    offered(queue, "on_demand", "a", 100, 0)
    queue.finished(first, 100, 200 * MS)
    assert queue.slot_ns == 2.0 * MS
    assert queue.expected_wait_ns("on_demand", "a", 200 * MS) == 200 * MS
    offered(queue, "on_demand", "a", 100, 200 * MS)


def test_what_cannot_be_stopped_after_all_keeps_its_slot_and_another_one_stops() -> None:
    queue = SiteQueue(SitePolicy(reserved=ClassRule(floor=0.5)), 2, 1.0 * MS)
    first, last = (offered(queue, "batch", "a", 100_000, 0) for _ in range(2))
    reserved = offered(queue, "reserved", "r", 100, 0)
    assert drained(queue) == [Stop(last, FOR_RESERVED)]
    queue.unstoppable(last)
    assert last.state == "running"
    assert last.firm, "it may run for longer than a reclaim takes"
    assert drained(queue) == [Stop(first, FOR_RESERVED)]
    queue.stopped(first, 10, 20 * MS)
    assert drained(queue) == [Start(reserved, 20 * MS)]
    # Neither goes on beside it: the slot that is nobody's floor is taken for long.
    queue.finished(reserved, 100, 120 * MS)
    assert drained(queue) == [Start(first)]
    queue.finished(last, 100_000, 130 * MS)
    queue.finished(first, 10, 130 * MS)
    assert (queue.running, queue.line("batch").firm) == (0, 0)


@pytest.mark.parametrize("how", ["expires", "leaves", "engines go"])
def test_a_class_is_not_short_of_its_floor_while_nobody_waits(how: str) -> None:
    queue = SiteQueue(SitePolicy(reserved=ClassRule(floor=0.5), reclaim_ms=10_000.0), 2, 1.0 * MS)
    busy = [offered(queue, "on_demand", tenant, 100, 0) for tenant in "ab"]
    for each in busy:
        queue.first_byte(each)
    first = queue.offer("reserved", "r", 10, most_tokens=10, now_ns=10 * MS, wait_ns=20 * MS)
    assert isinstance(first, Ticket)
    if how == "expires":
        queue.tick(40 * MS)
    elif how == "leaves":
        queue.withdrawn(first, 40 * MS)
    else:
        queue.resize(0, 40 * MS)
        queue.resize(2, 41 * MS)
    drained(queue)
    later = offered(queue, "reserved", "r", 10, 60 * MS)
    queue.finished(busy[0], 100, 80 * MS)
    assert drained(queue) == [Start(later, 20 * MS)]


def test_batch_that_is_not_resumable_is_stopped_as_an_interactive_request_is() -> None:
    queue = SiteQueue(SitePolicy(reserved=ClassRule(floor=0.5)), 2, 1.0 * MS)
    begun, waiting = (
        queue.offer("batch", "a", 100, most_tokens=100, now_ns=0, resumable=False)
        for _ in range(2)
    )
    assert isinstance(begun, Ticket)
    assert isinstance(waiting, Ticket)
    queue.first_byte(begun)
    offered(queue, "reserved", "r", 100, 0)
    assert drained(queue) == [Stop(waiting, FOR_RESERVED)]


def test_batch_that_turns_out_not_to_be_resumable_is_not_stopped_in_its_answer() -> None:
    queue = SiteQueue(SitePolicy(reserved=ClassRule(floor=0.5)), 2, 1.0 * MS)
    tickets = [offered(queue, "batch", "a", 100, 0) for _ in range(2)]
    for ticket in tickets:
        queue.first_byte(ticket, resumable=False)
    offered(queue, "reserved", "r", 100, 0)
    assert drained(queue) == []


def test_with_the_last_engine_gone_those_who_wait_are_turned_away() -> None:
    queue = SiteQueue(SitePolicy(), 1, 1.0 * MS)
    offered(queue, "on_demand", "a", 100, 0)
    waiting = [offered(queue, class_, "a", 100, 0) for class_ in CLASSES]
    queue.resize(0, MS)
    assert drained(queue) == [TurnAway(each, Refused("no_capacity", None)) for each in waiting]
    assert queue.queued == 0


def test_another_policy_holds_from_when_it_is_adopted() -> None:
    queue = SiteQueue(SitePolicy(), 2, 1.0 * MS)
    for _ in range(2):
        queue.first_byte(offered(queue, "batch", "a", 100, 0))
    offered(queue, "reserved", "r", 100, 0)
    assert drained(queue) == [], "nothing is its floor"
    queue.adopt(SitePolicy(reserved=ClassRule(floor=0.5, queue_most=1)))
    queue.resize(2, MS)
    assert [type(each) for each in drained(queue)] == [Stop]
    refused = queue.offer("reserved", "r", 100, most_tokens=100, now_ns=MS)
    assert isinstance(refused, Refused)
    assert refused.reason == "queue_full"


def test_what_was_sold_needs_so_many_slots() -> None:
    # A slot that takes 10 ms for a token makes a hundred a second.
    assert [sold_slots(tok_s, 10.0 * MS) for tok_s in (0, 1, 100, 101, 450)] == [0, 1, 1, 2, 5]


def test_what_is_paid_for_keeps_its_slot_or_waits_with_the_reserved() -> None:
    queue = SiteQueue(POLICY, 3, 10.0 * MS)
    running = [offered(queue, "on_demand", "a", 100, 0) for _ in range(3)]
    queue.paid(running[2], 0)
    queue.paid(running[1], 0)
    waiting = [offered(queue, "on_demand", tenant, 100, 0) for tenant in "ab"]
    queue.paid(waiting[1], 5 * MS)
    stop = Stop(running[0], FOR_RESERVED)
    assert drained(queue) == [stop], "the last that began would have been stopped"
    assert queue.line("reserved").order.queued == queue.line("on_demand").order.queued == 1
    queue.finished(running[1], 100, 10 * MS)
    assert [each.ticket for each in drained(queue)] == [waiting[1]]
    queue.paid(waiting[1], 10 * MS)
    assert (waiting[1].state, CLASSES[waiting[1].rank]) == ("running", "reserved")


def test_what_is_paid_for_and_was_to_stop_goes_on() -> None:
    queue = SiteQueue(POLICY, 3, 10.0 * MS)
    running = [offered(queue, "on_demand", "a", 100, 0) for _ in range(3)]
    offered(queue, "reserved", "r", 100, 0)
    assert drained(queue) == [Stop(running[2], FOR_RESERVED)]
    queue.paid(running[2], MS)
    assert running[2].state == "running"
    assert drained(queue) == [Stop(running[1], FOR_RESERVED)], "another one has to"


def test_what_is_paid_for_waits_no_longer_than_it_may_and_where_it_is_served_at_all() -> None:
    queue = SiteQueue(POLICY, 1, 10.0 * MS)
    offered(queue, "on_demand", "a", 100, 0)
    waiting = offered(queue, "on_demand", "b", 100, 0)
    queue.paid(waiting, 5 * MS, wait_ns=40 * MS)
    queue.tick(45 * MS)
    assert [type(each) for each in drained(queue)] == [TurnAway]
    closed = SitePolicy(reserved=ClassRule(ceiling=0.0))
    queue = SiteQueue(closed, 1, 10.0 * MS)
    running = offered(queue, "on_demand", "a", 100, 0)
    waiting = offered(queue, "on_demand", "b", 100, 0)
    queue.paid(waiting, 5 * MS)
    queue.finished(running, 100, 10 * MS)
    assert waiting.state == "running", "on demand, as nothing is taken in the other class"


def test_a_class_that_is_closed_while_some_of_it_wait_is_refused_and_breaks_nothing() -> None:
    queue = SiteQueue(POLICY, 1, 10.0 * MS)
    offered(queue, "on_demand", "a", 100, 0)
    waiting = offered(queue, "on_demand", "a", 100, 0)
    queue.adopt(SitePolicy(on_demand=ClassRule(ceiling=0.0, wait_ms=60_000)))
    queue.resize(1, MS)
    assert queue.expected_wait_ns("on_demand", "a", MS) > 0
    again = queue.offer("on_demand", "a", 100, most_tokens=100, now_ns=MS)
    assert again == Refused("class_closed", None)
    queue.tick(60 * SECOND_NS)
    assert drained(queue) == [TurnAway(waiting, Refused("class_closed", None))]


def test_room_to_read_that_has_just_come_is_for_those_who_wait_and_not_for_a_newcomer() -> None:
    """Of a class of which nobody waits, before anybody has looked at the queue again."""
    queue = SiteQueue(POLICY, 10, 1.0 * MS)
    queue.engines_read(["e"], 1_000.0)

    def comes(class_: Class) -> Ticket:
        ticket = queue.offer(class_, "a", 600, most_tokens=600, now_ns=0, prompt_tokens=600)
        assert isinstance(ticket, Ticket)
        return ticket

    first = comes("on_demand")
    queue.reads(first, 600, "e", 0)
    reserved = comes("reserved")
    assert reserved.state == "queued"
    queue.first_byte(first, now_ns=600 * MS)
    batch = comes("batch")
    assert (reserved.state, batch.state) == ("running", "queued")
    assert [each.ticket for each in drained(queue)] == [reserved]


def test_a_prompt_that_is_sent_elsewhere_is_still_to_be_read_there() -> None:
    """However long its first engine would have taken: a whole answer does not say when it was."""
    queue = SiteQueue(POLICY, 10, 1.0 * MS)
    queue.engines_read(["a", "b"], 1_000.0)

    def comes(tells: bool = True) -> Ticket:
        ticket = queue.offer(
            "on_demand", "t", 600, most_tokens=600, now_ns=0, prompt_tokens=600, tells=tells
        )
        assert isinstance(ticket, Ticket)
        return ticket

    queue.reads(comes(), 600, "b", 0)
    moved = comes(tells=False)
    queue.reads(moved, 600, "a", 0)
    queue.reads(moved, 600, "b", 10 * MS)  # it failed there
    for now_ns in (500 * MS, 900 * MS):  # what it would have taken at "a", and what it takes at "b"
        queue.tick(now_ns)
        queue.reading.pass_to(now_ns)
        assert queue.reading.tokens == 1_200
    at_a = comes()
    queue.reads(at_a, 600, "a", 900 * MS)
    queue.first_byte(at_a, now_ns=1_500 * MS)
    assert queue.reading.tokens == 1_200


def test_an_answer_that_was_stopped_does_not_make_room_in_a_full_queue() -> None:
    policy = SitePolicy(
        reserved=ClassRule(floor=0.7), batch=ClassRule(share=1, queue_most=2, wait_ms=600_000)
    )
    queue = SiteQueue(policy, 3, 1.0 * MS)
    batch = [offered(queue, "batch", "a", 100_000, 0) for _ in range(3)]
    for ticket in batch:
        queue.first_byte(ticket)
    for _ in range(2):
        offered(queue, "reserved", "r", 100, 0)
    for each in drained(queue):
        assert isinstance(each, Stop)
        queue.stopped(each.ticket, 10, 10 * MS)
    drained(queue)
    refused = queue.offer("batch", "b", 100, most_tokens=100, now_ns=20 * MS)
    assert isinstance(refused, Refused), "both that wait have begun to answer"
    assert refused.reason == "queue_full"
    assert drained(queue) == []


def test_what_is_late_is_taken_to_be_as_late_again() -> None:
    queue = SiteQueue(POLICY, 1, 10.0 * MS)
    offered(queue, "on_demand", "a", 1_000, 0)
    waits_s = [
        queue.expected_wait_ns("on_demand", "b", at * SECOND_NS) / SECOND_NS
        for at in (0, 4, 10, 11, 14)
    ]
    assert waits_s == pytest.approx([10.0, 6.0, 0.0, 1.0, 4.0])

"""How long a request may wait where it is sent: the example of docs/spill.md, and who has no bound.
"""

from math import inf

import pytest

from isochrone.core.admission.fair_order import Ticket
from isochrone.core.admission.sent_back import begins_in_ms, costs_others, leave
from isochrone.core.admission.site_queue import SiteQueue
from isochrone.core.ids import SiteName
from isochrone.core.routing.choice import Refused
from isochrone.core.routing.chosen import Choice
from isochrone.core.routing.loads import Loads
from isochrone.core.routing.patience import patience_ms
from isochrone.core.world.site_policy import ClassRule, SitePolicy
from isochrone.wire.peer_codes import proof, started
from tests.builders import a_choice, a_digest, a_load, a_site, a_table, a_view

MS = 1_000_000


def chosen(*, output_tokens: int = 0, tried: tuple[Refused, ...] = ()) -> Choice:
    """The own site, 50 ms of queue for 80 tokens, and an idle one 20 ms away; 100 ms of prompt."""
    view = a_view([a_site("here"), a_site("near")], rtt_ms={"near": 20.0})
    loads = Loads()
    loads.heard(a_digest("here", a_load(running=4, output_tokens=output_tokens)), 0)
    loads.heard(a_digest("near"), 0)
    return a_choice(a_table(view), loads, tried=tried)


def test_worked_example() -> None:
    choice = chosen(output_tokens=80)
    assert (choice.site, choice.cost_ms, choice.prefill_ms) == ("here", 150.0, 100.0)
    # Near it would be read 20 ms from now; a tenth more, and what being sent back costs.
    assert patience_ms(choice, "on_demand", 1) == pytest.approx(20.0 * 1.1 + 60.0)
    # Sent back once more, it would be kept wherever it comes.
    assert patience_ms(choice, "on_demand", 2) == pytest.approx(20.0 * 1.5 + 60.0)
    assert choice.costs.tolist() == [150.0, 120.0]  # as they were


def test_batch_and_a_request_with_nowhere_else_to_go_wait_as_long_as_it_takes() -> None:
    assert patience_ms(chosen(), "batch", 1) == inf
    left = Refused(site=SiteName("near"), rule="saturated", detail="busy")
    assert patience_ms(chosen(tried=(left,)), "on_demand", 2) == inf


def test_a_site_knows_when_a_request_would_begin() -> None:
    queue = SiteQueue(SitePolicy(on_demand=ClassRule(share=3)), 1, 10.0 * MS)
    assert begins_in_ms(queue, "on_demand", "acme", 40.0, 0) == 40.0  # a slot is free
    queue.offer("on_demand", "acme", 100, most_tokens=100, now_ns=0)
    # 100 tokens run and nothing waits: 10 ms each, one slot.
    full_ms = begins_in_ms(queue, "on_demand", "acme", 40.0, 0)
    assert full_ms == queue.expected_wait_ns("on_demand", "acme", 0) / MS
    assert full_ms >= 1000.0
    guessed = SiteQueue(queue.policy, 1, 10.0 * MS, guessed=True)
    guessed.offer("on_demand", "acme", 100, most_tokens=100, now_ns=0)
    assert begins_in_ms(guessed, "on_demand", "acme", 40.0, 0) == 40.0  # nobody knows yet


def test_what_is_below_its_floor_waits_for_no_more_than_a_stop() -> None:
    """Else a site that must serve it would send it back, and stop a stream for nothing."""
    rule = ClassRule(share=3)
    policy = SitePolicy(reserved=ClassRule(floor=0.5), on_demand=rule, batch=rule)
    queue = SiteQueue(policy, 4, 10.0 * MS)
    for _ in range(4):
        queue.offer("batch", "lab", 6_000, most_tokens=6_000, now_ns=0)
    assert begins_in_ms(queue, "on_demand", "acme", 40.0, 0) > 30_000.0
    for number in range(2):
        assert begins_in_ms(queue, "reserved", "acme", 40.0, 0) == 40.0
        queue.offer("reserved", "acme", 100, most_tokens=100, now_ns=0)
        assert len(queue.outbox) == number + 1  # a stop
    assert begins_in_ms(queue, "reserved", "acme", 40.0, 0) > 1_000.0  # it has its floor
    fixed = SiteQueue(policy, 4, 10.0 * MS)
    for _ in range(4):
        fixed.offer("on_demand", "lab", 100, most_tokens=100, now_ns=0)
    for ticket in fixed.line("on_demand").tickets:
        fixed.first_byte(ticket)
    assert begins_in_ms(fixed, "reserved", "acme", 40.0, 0) == 1_000.0  # nobody can stop for it


def test_who_goes_elsewhere_takes_nobodys_place() -> None:
    queue = SiteQueue(SitePolicy(on_demand=ClassRule(share=3, queue_most=2)), 1, 10.0 * MS)
    for _ in range(3):
        queue.offer("on_demand", "hog", 100, most_tokens=100, now_ns=0)
    assert costs_others(queue, "on_demand", "acme")  # the last of whoever has two more waiting
    assert not costs_others(queue, "on_demand", "hog")  # it would be refused
    assert not costs_others(queue, "batch", "acme")  # it would wait behind


def test_who_goes_elsewhere_has_nobody_stopped() -> None:
    rule = ClassRule(share=3)
    policy = SitePolicy(reserved=ClassRule(floor=0.5), on_demand=rule, batch=rule)
    queue = SiteQueue(policy, 2, 10.0 * MS)
    queue.offer("batch", "lab", 100, most_tokens=100, now_ns=0)
    assert not costs_others(queue, "reserved", "acme")  # a slot is free
    queue.offer("batch", "lab", 100, most_tokens=100, now_ns=0)
    assert costs_others(queue, "reserved", "acme")
    assert not costs_others(queue, "on_demand", "acme")  # which has no floor


def test_who_leaves_the_queue_at_once_leaves_nothing_behind() -> None:
    queue = SiteQueue(SitePolicy(on_demand=ClassRule(share=3)), 1, 10.0 * MS)
    found = [
        queue.offer("on_demand", "acme", 100, most_tokens=100, now_ns=0) for _ in range(2)
    ]
    first, second = [each for each in found if isinstance(each, Ticket)]
    assert (queue.running, queue.queued) == (1, 1)
    leave(queue, second, 1)
    assert (queue.running, queue.queued, queue.outbox) == (1, 0, [])
    leave(queue, first, 1)
    assert (queue.running, queue.queued, queue.slot_ns) == (0, 0, 10.0 * MS)


def test_a_hop_says_it_in_whole_milliseconds() -> None:
    assert proof(started(b"k"), "id", 7, b"", patience_ms=82.9).split()[1] == "7w82"
    assert proof(started(b"k"), "id", 7, b"", pushed=True, patience_ms=0.0).split()[1] == "7pw0"
    assert proof(started(b"k"), "id", 7, b"").split()[1] == "7"

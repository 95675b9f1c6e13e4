"""When a refused request is told to come back where it is room to read that is lacking: it is sent
on then, and was not told too late."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from isochrone.core.admission.classes import CLASSES
from isochrone.core.admission.queue_commands import Refused
from isochrone.core.admission.reading import AHEAD_S, GROWTH, LEAST_TOKENS
from isochrone.core.world.site_policy import ClassRule, SitePolicy
from isochrone.core.world.tenant import Class
from tests.fixtures.reading_site import SECOND_NS, ReadingSite

RATE = 10_000.0
SLOTS = 4_000  # far more than prompts can be read for
sizes = st.lists(st.integers(50, 3_000), min_size=1, max_size=5)


def a_site(
    queue_most: int, *, engines: int = 1, write_ms: float = 2_000.0, floor: float = 0.0
) -> ReadingSite:
    reserved, on_demand, batch = (
        ClassRule(share=share, queue_most=queue_most, wait_ms=1e7) for share in (6.0, 3.0, 1.0)
    )
    policy = SitePolicy(reserved=reserved, on_demand=replace(on_demand, floor=floor), batch=batch)
    return ReadingSite(policy, SLOTS, RATE, RATE, write_ms=write_ms, engines=engines)


def warm_up(site: ReadingSite, prompts: list[int], seconds: float) -> None:
    """Half of what can be read comes for a while, so that slots and engines have been measured."""
    due, number, began_ns = 0.0, 0, site.now_ns
    for step in range(int(seconds * 20)):
        due += RATE / 40
        while due > 0:
            prompt = prompts[number % len(prompts)]
            assert not isinstance(site.offer("on_demand", prompt), Refused)
            due, number = due - prompt, number + 1
        site.until(began_ns + (step + 1) * SECOND_NS // 20)


def crowd(
    site: ReadingSite, class_: Class, prompts: list[int], whole: tuple[bool, ...] = (False,)
) -> Refused:
    """Offer requests of these sizes in turn until one is refused; some answers come as a whole."""
    number = 0
    while True:
        answer = site.offer(
            class_, prompts[number % len(prompts)], tells=not whole[number % len(whole)]
        )
        number += 1
        if isinstance(answer, Refused):
            return answer


@given(
    prompts=sizes, engines=st.integers(1, 4), queue_most=st.integers(1, 60),
    write_ms=st.sampled_from((20.0, 2_000.0, 20_000.0)), warm_s=st.sampled_from((0.0, 1.0, 4.0)),
    whole=st.sampled_from(((False,), (True, False), (True,))),
)
@settings(max_examples=150)
def test_whoever_comes_back_when_told_is_sent_on_at_once_and_was_not_told_too_late(
    prompts: list[int], engines: int, queue_most: int, write_ms: float, warm_s: float,
    whole: tuple[bool, ...],
) -> None:
    """By three requests and what engines have room for, at most. Whole answers count as read by
    engines a quarter faster than they are: by that part of the time, too."""
    site = a_site(queue_most, engines=engines, write_ms=write_ms)
    warm_up(site, prompts, warm_s)
    answer = crowd(site, "on_demand", prompts, whole)
    assert (answer.reason, site.queue.reading.is_full()) == ("queue_full", True)
    assert answer.retry_after_ns is not None
    back_ns = site.now_ns + answer.retry_after_ns
    site.until(back_ns)
    last_ns = site.sent[-1][0]
    again = site.offer("on_demand", 10)
    assert not isinstance(again, Refused)
    assert again.state == "running"
    longest_s, room_s = max(prompts) * engines / RATE, max(AHEAD_S, LEAST_TOKENS * engines / RATE)
    sooner_s = (1 - 1 / GROWTH) * answer.retry_after_ns / 1e9 if any(whole) else 0.0
    assert (back_ns - last_ns) / 1e9 <= 3 * longest_s + room_s + sooner_s + 0.002


@given(prompts=sizes, queue_most=st.integers(1, 40), count=st.integers(2, 12))
def test_refused_requests_are_told_times_as_far_apart_as_they_take_to_read(
    prompts: list[int], queue_most: int, count: int
) -> None:
    site = a_site(queue_most)
    crowd(site, "on_demand", prompts)
    times = []
    for _ in range(count):
        answer = site.offer("on_demand", prompts[0])
        assert isinstance(answer, Refused)
        times.append(answer.retry_after_ns or 0)
    assert all(
        later - sooner >= int(prompts[0] / RATE * 1e9) - 1 for sooner, later in pairwise(times)
    )


@given(
    prompts=st.tuples(sizes, sizes, sizes), queue_most=st.integers(1, 40),
    asks=st.sampled_from(("reserved", "on_demand", "batch")), promised=st.booleans(),
    engines=st.integers(1, 3), floor=st.sampled_from((0.0, 0.5)),
)
@settings(max_examples=150)
def test_by_the_time_that_is_told_a_class_has_had_its_part_however_many_others_wait(
    prompts: tuple[list[int], list[int], list[int]], queue_most: int, asks: Class, promised: bool,
    engines: int, floor: float,
) -> None:
    """What waited of its class is sent on by then, but for one request of each class; and it is
    never told to wait for longer than it takes to read all that waits."""
    site = a_site(queue_most, engines=engines, floor=floor)
    if promised:
        site.queue.promises(3 * RATE, site.now_ns)
    for class_, each in zip(CLASSES, prompts, strict=True):
        crowd(site, class_, each)
    answer = site.offer(asks, 10)
    assert isinstance(answer, Refused)
    told_s = (answer.retry_after_ns or 0) / 1e9
    waiting = [site.queue.line(class_).order.prompt_tokens for class_ in CLASSES]
    longest = max(map(max, prompts))
    unread = site.queue.reading.tokens
    site.until(site.now_ns + int((told_s + 3 * longest * engines / RATE) * 1e9))
    assert site.queue.line(asks).order.queued == 0
    own_s = 10 * (longest + 10) / RATE  # its own, and what one was told before, at a tenth part
    assert told_s <= (sum(waiting) + unread) / RATE + own_s

"""The timeline gives events in order, whenever they were put."""

from heapq import heappop, heappush
from math import inf
from random import Random

from isochrone.twin.fast.timeline import Timeline


def test_events_come_in_order_and_those_of_one_instant_as_they_were_put() -> None:
    """Beside a heap: some are put for the present millisecond, some for the next ones, some for
    much later, and some for the very instant of the event before."""
    rng, due = Random(1), Timeline()
    expected: list[tuple[float, int]] = []
    now_s, number = 0.0, 0
    for _ in range(4000):
        for _ in range(rng.choice((0, 1, 1, 2))):
            at_s = now_s + rng.choice((0.0, 0.0002, 0.001, 0.05, 3.0)) * rng.random()
            due.put(at_s, 1, number, None)
            heappush(expected, (at_s, number))
            number += 1
        if expected:
            assert due.next_s() == expected[0][0]
            at_s, _, kind, put, _ = due.take()
            assert (at_s, put) == heappop(expected)
            assert kind == 1
            assert at_s >= now_s
            now_s = at_s
    while expected:
        assert due.take()[3] == heappop(expected)[1]
    assert due.next_s() == inf


def test_events_of_one_instant_far_away() -> None:
    due = Timeline()
    for number in range(5):
        due.put(7.0, 1, number, None)
    due.put(6.9999, 1, 9, None)
    assert [due.take()[3] for _ in range(6)] == [9, 0, 1, 2, 3, 4]
    due.put(7.0, 1, 5, None)  # of the present instant
    assert (due.next_s(), due.take()[3]) == (7.0, 5)

"""The breaker of a replica: when it opens, whom it lets through as probe, when it closes."""

import pytest

from isochrone.core.lifecycle.breaker import (
    CLOSED,
    OUTCOMES,
    TRANSITIONS,
    Breaker,
    BreakerRules,
    Sign,
    may_ask,
    step,
)
from isochrone.core.rng import stream
from tests.builders import SECOND_NS

RULES = BreakerRules(failures=3, failure_rate=0.5, first_hold_s=1.0, longest_hold_s=8.0)
RNG = stream(7, "breaker")


def after(breaker: Breaker, *signs: Sign, now_ns: int = 0) -> Breaker:
    for sign in signs:
        breaker = step(breaker, sign, now_ns, rng=RNG, rules=RULES)
    return breaker


def test_success_of_a_sound_replica_makes_nothing_new() -> None:
    assert after(CLOSED, "succeeded", "asked", "abandoned") is CLOSED


def test_failures_in_a_row_open_it() -> None:
    assert after(CLOSED, "failed", "failed").state == "closed"
    assert after(CLOSED, "failed", "failed", "succeeded", "failed", "failed").state == "closed"
    assert after(CLOSED, "failed", "failed", "failed").state == "open"


def test_a_rate_of_failures_opens_it() -> None:
    signs: list[Sign] = ["failed", "succeeded"] * (OUTCOMES // 2)
    assert after(CLOSED, *signs[:-2]).state == "closed"
    assert after(CLOSED, *signs).state == "open"


def test_failures_are_forgotten_after_the_last_outcomes() -> None:
    successes: list[Sign] = ["succeeded"] * OUTCOMES
    assert after(CLOSED, "failed", "failed", *successes) == CLOSED


def test_a_lost_connection_opens_it_at_once() -> None:
    breaker = after(CLOSED, "lost", now_ns=5)
    assert breaker.state == "open"
    assert not may_ask(breaker, breaker.until_ns - 1)
    assert may_ask(breaker, breaker.until_ns)


def test_one_probe_is_let_through() -> None:
    breaker = after(CLOSED, "lost")
    now_ns = breaker.until_ns
    probing = after(breaker, "asked", now_ns=now_ns)
    assert probing.state == "half_open"
    assert not may_ask(probing, now_ns)
    assert after(probing, "succeeded", now_ns=now_ns) is CLOSED


def test_a_probe_that_tells_nothing_leaves_room_for_the_next() -> None:
    probing = after(after(CLOSED, "lost"), "asked", now_ns=SECOND_NS)
    assert may_ask(after(probing, "abandoned", now_ns=SECOND_NS), SECOND_NS)
    assert may_ask(probing, SECOND_NS + int(RULES.probe_s * 1e9))


def test_the_hold_doubles_to_its_bound_and_chance_shortens_it() -> None:
    breaker, now_ns, holds_s = after(CLOSED, "lost"), 0, []
    for _ in range(6):
        holds_s.append(breaker.hold_s)
        assert 0.75 <= (breaker.until_ns - now_ns) / (breaker.hold_s * 1e9) <= 1
        now_ns = breaker.until_ns
        breaker = after(breaker, "asked", "failed", now_ns=now_ns)
    assert holds_s == [1, 2, 4, 8, 8, 8]


def test_what_older_requests_say_of_an_open_one_changes_nothing() -> None:
    breaker = after(CLOSED, "lost")
    assert after(breaker, "lost", "failed", "succeeded", "abandoned", now_ns=9) is breaker


def test_a_loss_after_the_hold_counts_whether_or_not_its_request_was_given_up_before() -> None:
    breaker = after(CLOSED, "lost")
    now_ns = breaker.until_ns
    assert after(breaker, "asked", "lost", "abandoned", now_ns=now_ns).hold_s == 2
    assert after(breaker, "asked", "abandoned", "lost", now_ns=now_ns).hold_s == 2


@pytest.mark.parametrize("state", ["closed", "open", "half_open"])
def test_every_state_is_left_by_some_sign(state: str) -> None:
    assert any(before == state != then for (before, _), then in TRANSITIONS.items())

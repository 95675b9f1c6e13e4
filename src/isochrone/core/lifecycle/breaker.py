"""Decides whether a replica is asked at all: a breaker opens when too much fails, and probes.

Closed lets everything through and remembers the last outcomes. Open lets nothing through until its
hold is over; the next request is then the probe, the only one until it is judged (half open).
Success closes, failure opens again for twice as long. A table of transitions; `step` applies one
sign.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from isochrone.core.rng import Random

BreakerState = Literal["closed", "open", "half_open"]

# asked: a request is sent now. lost: no connection, or it broke before a byte came. failed: an
# error or a time-out. abandoned: the request ended without saying anything about the replica.
Sign = Literal["asked", "succeeded", "failed", "lost", "abandoned"]

TRANSITIONS: Mapping[tuple[BreakerState, Sign], BreakerState] = {
    ("closed", "lost"): "open",
    ("closed", "failed"): "open",  # once the rules say that it is too much
    ("open", "asked"): "half_open",
    ("open", "lost"): "open",  # anew, once its hold is over: an earlier request tells of it
    ("half_open", "asked"): "half_open",  # the probe took too long: this is the next one
    ("half_open", "succeeded"): "closed",
    ("half_open", "failed"): "open",
    ("half_open", "lost"): "open",
    ("half_open", "abandoned"): "open",  # for no time: the next request is the probe
}

OUTCOMES = 20  # how many are remembered
_ALL = (1 << OUTCOMES) - 1
JITTER_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerRules:
    """`failures` in a row open it, and so does a share of `failure_rate` of the last 20 outcomes.

    A hold is shortened by up to a quarter, by chance, so that gateways do not probe in step.
    `probe_s`: a probe without an outcome stops to count as the only one after this time.
    """

    failures: int = 5
    failure_rate: float = 0.5
    first_hold_s: float = 1.0
    longest_hold_s: float = 30.0
    probe_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """`outcomes`: the last ones as bits, 1 a failure, the latest lowest. `until_ns` (monotonic):
    end of the hold, or of the time of the probe. `hold_s`: the present hold, before chance."""

    state: BreakerState = "closed"
    outcomes: int = 0
    hold_s: float = 0.0
    until_ns: int = 0


CLOSED = Breaker()


def may_ask(breaker: Breaker, now_ns: int) -> bool:
    """Whether a request may be sent to the replica now."""
    return breaker.state == "closed" or now_ns >= breaker.until_ns


def step(breaker: Breaker, sign: Sign, now_ns: int, *, rng: Random, rules: BreakerRules) -> Breaker:
    """Apply one sign; one that means nothing in this state changes nothing."""
    state = TRANSITIONS.get((breaker.state, sign))
    if breaker.state == "closed" and sign in ("succeeded", "failed"):
        breaker = _remember(breaker, failed=sign == "failed")
        if state == "open" and not _too_much(breaker.outcomes, rules):
            return breaker
    if state is None or (breaker.state == "open" and not may_ask(breaker, now_ns)):
        return breaker
    if state == "closed":
        return CLOSED
    if state == "half_open":
        return replace(breaker, state=state, until_ns=now_ns + int(rules.probe_s * 1e9))
    if sign == "abandoned":
        return replace(breaker, state=state, until_ns=now_ns)
    return _opened(breaker, now_ns, rng=rng, rules=rules)


def _remember(breaker: Breaker, *, failed: bool) -> Breaker:
    if not failed and breaker.outcomes == 0:
        return breaker  # nothing to forget: the usual case allocates nothing
    return replace(breaker, outcomes=(breaker.outcomes << 1 | failed) & _ALL)


def _too_much(outcomes: int, rules: BreakerRules) -> bool:
    in_a_row = (1 << min(rules.failures, OUTCOMES)) - 1
    if outcomes & in_a_row == in_a_row:
        return True
    return outcomes.bit_count() >= rules.failure_rate * OUTCOMES


def _opened(breaker: Breaker, now_ns: int, *, rng: Random, rules: BreakerRules) -> Breaker:
    hold_s = rules.first_hold_s
    if breaker.state != "closed":
        hold_s = min(2 * breaker.hold_s, rules.longest_hold_s)
    held_s = hold_s * (1 - JITTER_SHARE * rng.random())
    return Breaker(state="open", hold_s=hold_s, until_ns=now_ns + int(held_s * 1e9))

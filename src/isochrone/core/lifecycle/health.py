"""Decides how far a replica, or a model at a site, is trusted: by what came of its requests.

A table of transitions over the states healthy, suspect, ejected, probing and recovering. Whoever
asks keeps one `Health` for each subject, tells it what happened, and reads whether it may be asked
and how much of its usual work it gets. What others say of the subject (it drains, it is down) comes
on top, see `shown`. The rules, with a worked example, are in docs/health.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Final, Literal

from isochrone.core.rng import Random

HealthState = Literal["healthy", "suspect", "ejected", "probing", "recovering"]
ShownState = Literal[
    "healthy", "suspect", "ejected", "probing", "recovering", "draining", "down"
]
STATES: Final[tuple[HealthState, ...]] = (
    "healthy", "suspect", "ejected", "probing", "recovering"
)
SHOWN: Final[tuple[ShownState, ...]] = (  # the worst last
    "healthy", "recovering", "suspect", "probing", "ejected", "draining", "down"
)

# asked: a request is sent now. answered: the first byte of a good answer came. failed: an error of
# its own, a time-out, an answer far too late, or a connection lost under a request. lost: it could
# not be connected to. abandoned: the request ended without saying anything of the subject.
# convicted: what failed is too much, by the rules. cleared: nothing bad is remembered any more.
# returned: it was away and is there again. eased: it has its usual work again.
Sign = Literal[
    "asked", "answered", "failed", "lost", "abandoned", "convicted", "cleared", "returned", "eased"
]

TRANSITIONS: Final[Mapping[tuple[HealthState, Sign], HealthState]] = {
    ("healthy", "failed"): "suspect",
    ("healthy", "lost"): "ejected",
    ("healthy", "returned"): "recovering",
    ("suspect", "failed"): "suspect",
    ("suspect", "convicted"): "ejected",
    ("suspect", "lost"): "ejected",
    ("suspect", "cleared"): "healthy",
    ("suspect", "returned"): "recovering",
    ("ejected", "asked"): "probing",
    ("ejected", "lost"): "ejected",  # anew, once its hold is over: an earlier request tells of it
    ("ejected", "returned"): "recovering",
    ("probing", "asked"): "probing",  # the probe took too long: this is the next one
    ("probing", "answered"): "recovering",
    ("probing", "failed"): "ejected",
    ("probing", "lost"): "ejected",
    ("probing", "abandoned"): "ejected",  # for no time: the next request is the probe
    ("probing", "returned"): "recovering",
    ("recovering", "failed"): "recovering",
    ("recovering", "convicted"): "ejected",
    ("recovering", "lost"): "ejected",
    ("recovering", "returned"): "recovering",
    ("recovering", "eased"): "healthy",
}

OUTCOMES: Final = 20  # how many are remembered
_ALL: Final = (1 << OUTCOMES) - 1
JITTER_SHARE: Final = 0.25
USED_NS: Final = 10_000_000_000    # who was answered within this still uses it
FADED_NS: Final = 60_000_000_000   # after the last failure, who is suspected still is healthy
BARRED_NS: Final = 2_000_000_000   # for so long a failed probe leaves the next to others
NEVER_NS: Final = -(1 << 62)
LEAST_WEIGHT: Final = 0.1          # of its usual work, when a recovery begins
HELD_BACK_MS: Final = 4000.0       # what it costs more, for requests that it does not get yet
LATE_MS: Final = 5000.0            # beyond what was expected
LATE_FACTOR: Final = 8.0           # times what was expected
PACE_MEMORY: Final = 20.0          # about so many answers count
LEAST_PACES: Final = 5             # before they say anything


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRules:
    """`failures` in a row are too much, and so is a share of `failure_rate` of the last 20.

    A hold is shortened by up to a quarter, by chance, so that gateways do not probe in step.
    `probe_s`: a probe without an outcome stops to count as the only one after this time. At most
    `eject_share` of a group are ejected for what came of requests; who could not be connected to is
    out whatever its share. `recovery_s`: how long work grows back to its usual.
    """

    failures: int = 5
    failure_rate: float = 0.5
    first_hold_s: float = 1.0
    longest_hold_s: float = 30.0
    probe_s: float = 10.0
    eject_share: float = 0.5
    recovery_s: float = 10.0


class Health:
    """One subject, as one gateway (or one worker of it) sees it. Instants are monotonic.

    `ailing`: not healthy; nothing else has to be looked at while it is False. `why` is the last
    thing that was said against it. `until_ns`: the end of a hold, or of the time of a probe.
    `hold_s`: the present hold, before chance. `outright`: ejected because it could not be connected
    to. `silent`: somebody who asks it all the time gets no answer.

    `outcomes`: those since the first failure, the last 20, as bits: 1 a failure, the latest lowest.
    Whose they are is remembered, so that nobody's requests alone speak against what works for
    others.
    """

    __slots__ = (
        "_answered_ns", "_answered_other_ns", "_barred", "_barred_ns", "_failed_ns", "_judged_ns",
        "_of", "_organisation", "_pace", "ailing", "hold_s", "outcomes", "outright", "paces",
        "silent", "since_ns", "state", "until_ns", "why",
    )

    def __init__(self) -> None:
        self.state: HealthState = "healthy"
        self.ailing = False
        self.why = ""
        self.since_ns = 0
        self.until_ns = 0
        self.hold_s = 0.0
        self.outright = False
        self.silent = False
        self.outcomes = 0
        self.paces = 0
        self._pace = 0.0
        self._organisation = ""     # the last that was answered
        self._answered_ns = NEVER_NS
        self._answered_other_ns = NEVER_NS  # the last answer to another one
        self._failed_ns = NEVER_NS
        self._judged_ns = NEVER_NS  # what was sent before tells of what is known already, or over
        self._of: list[str] = []    # whose each outcome is, the latest last
        self._barred = ""           # whose probe failed though others were served
        self._barred_ns = 0

    # -- what is read ----------------------------------------------------------------------------

    @property
    def is_out(self) -> bool:
        """Whether it gets no work but probes."""
        return self.state == "ejected" or self.state == "probing"

    def may_ask(self, now_ns: int, organisation: str = "") -> bool:
        """Whether a request may be sent to it now; while it is out that request is the probe."""
        if self.state != "ejected" and self.state != "probing":
            return True
        if now_ns < self.until_ns or self.silent:
            return False
        barred = self._barred != "" and organisation == self._barred
        return not barred or now_ns - self._barred_ns >= BARRED_NS

    def weight(self, now_ns: int, rules: HealthRules) -> float:
        """The share of its usual work that it gets, in (0, 1]; below 1 while it recovers."""
        if self.state != "recovering":
            return 1.0
        grown = (now_ns - self.since_ns) / (rules.recovery_s * 1e9) if rules.recovery_s > 0 else 1.0
        return min(max(grown, LEAST_WEIGHT), 1.0)

    def pace(self) -> float | None:
        """How much longer than expected its answers take, as a logarithm; None for too few."""
        return self._pace if self.paces >= LEAST_PACES else None

    # -- what happens ----------------------------------------------------------------------------

    def asked(self, now_ns: int, rules: HealthRules) -> None:
        """A request is sent to it."""
        state = TRANSITIONS.get((self.state, "asked"))
        if state is not None:
            self._enter(state, now_ns)
            self.until_ns = now_ns + int(rules.probe_s * 1e9)

    def kept_pace(self, expected_ms: float, actual_ms: float) -> None:
        """A first byte came after `actual_ms`, where `expected_ms` had been reckoned with."""
        if expected_ms > 1.0 and actual_ms > 1.0:
            self.paces += 1
            share = 1.0 / self.paces if self.paces < PACE_MEMORY else 1.0 / PACE_MEMORY
            self._pace += share * (log(actual_ms / expected_ms) - self._pace)

    def answered(self, organisation: str, now_ns: int) -> None:
        """The first byte of a good answer to a request of `organisation` came."""
        if organisation != self._organisation:
            self._organisation = organisation
            self._answered_other_ns = self._answered_ns
        self._answered_ns = now_ns
        if self.ailing:
            self._answered_while_ailing(organisation, now_ns)

    def failed(
        self, why: str, organisation: str, now_ns: int, *, rng: Random, rules: HealthRules,
        alone: bool, room: bool, lost: bool = False, sent_ns: int = 0,
    ) -> None:
        """A request of `organisation` failed there. `alone`: its group has no other member. `room`:
        one more of the group may be ejected. `lost`: the connection was lost under the request,
        which is too much at once, if it says anything. `sent_ns`: when it was sent, 0 if nobody
        knows."""
        before = self.state
        if before == "ejected" or self._is_of_before(sent_ns):
            return
        self.why = why
        if before == "probing":
            self._probe_failed(organisation, now_ns, rng, rules, alone)
            return
        self._remember(organisation, 1)
        self._failed_ns = now_ns
        self._enter(TRANSITIONS[before, "failed"], now_ns)
        if (lost or self._is_too_much(rules)) and room and self._is_believed(now_ns, rules):
            self._eject(now_ns, rng, rules, outright=False, alone=alone)

    def lost(self, why: str, now_ns: int, *, rng: Random, rules: HealthRules) -> None:
        """It could not be connected to."""
        if self.state == "ejected" and now_ns < self.until_ns:
            return  # the same loss, seen again
        self.why = why
        self._eject(now_ns, rng, rules, outright=True, alone=False)

    def abandoned(self, now_ns: int, sent_ns: int = 0) -> None:
        """A request ended without saying anything of it; `sent_ns` as in `failed`."""
        if self.state == "probing" and not self._is_of_before(sent_ns):
            self._enter("ejected", now_ns)
            self.until_ns = now_ns

    def fell_silent(
        self, why: str, now_ns: int, *, rng: Random, rules: HealthRules, alone: bool, room: bool
    ) -> None:
        """Somebody who asks it all the time has had no answer for too long."""
        if self.silent or not (room or self.is_out):
            return
        self.silent, self.why = True, why
        if not self.is_out:
            self._eject(now_ns, rng, rules, outright=False, alone=alone)

    def spoke(self, now_ns: int) -> None:
        """It answers who asks it all the time: the next request may be the probe."""
        if self.silent:
            self.silent = False
            self.until_ns = min(self.until_ns, now_ns)

    def returned(self, why: str, now_ns: int) -> None:
        """It was away and is there again, or is out though too many are: it begins with little."""
        self.why, self.silent = why, False
        self._forget()
        self._enter(TRANSITIONS[self.state, "returned"], now_ns)
        self.since_ns = self._judged_ns = now_ns

    @property
    def has_served(self) -> bool:
        """Whether it has ever answered a request of this gateway."""
        return self._answered_ns != NEVER_NS

    def ease(self, now_ns: int, rules: HealthRules) -> bool:
        """Whether it is healthy, or suspect only, from now on: its recovery has ended, and its next
        hold is a first one, or what it is suspected for is too long ago."""
        if self.outcomes and now_ns - self._failed_ns >= FADED_NS:
            self._forget()
            if self.state == "suspect":
                self._enter(TRANSITIONS["suspect", "cleared"], now_ns)
                return True
        if self.state != "recovering" or self.weight(now_ns, rules) < 1.0:
            return False
        self.hold_s = 0.0
        self._enter("healthy" if self.outcomes == 0 else "suspect", now_ns)
        return True

    # -- inside ----------------------------------------------------------------------------------

    def _enter(self, state: HealthState, now_ns: int) -> None:
        if state != self.state:
            self.state = state
            self.since_ns = now_ns
            self.ailing = state != "healthy"

    def _is_of_before(self, sent_ns: int) -> bool:
        """Whether a request was sent before it was ejected or returned. Such ones may time out for
        minutes after: they are no probes, and say nothing of what serves now."""
        return 0 < sent_ns < self._judged_ns

    def _forget(self) -> None:
        self.outcomes, self._of, self._barred = 0, [], ""

    def _remember(self, organisation: str, failed: int) -> None:
        self.outcomes = (self.outcomes << 1 | failed) & _ALL
        self._of.append(organisation)
        if len(self._of) > OUTCOMES:
            del self._of[0]

    def _answered_while_ailing(self, organisation: str, now_ns: int) -> None:
        if self.state == "probing":
            self._forget()
            self._enter(TRANSITIONS["probing", "answered"], now_ns)
        elif self.outcomes:
            self._remember(organisation, 0)
            if self.outcomes == 0:
                self._forget()
                if self.state == "suspect":
                    self._enter(TRANSITIONS["suspect", "cleared"], now_ns)

    def _probe_failed(
        self, organisation: str, now_ns: int, rng: Random, rules: HealthRules, alone: bool
    ) -> None:
        """Who fails as the probe though others are served here leaves the next one to them, for a
        while; a second failure counts, whoever asked."""
        if self._barred == "" and self._others_since(organisation, now_ns - USED_NS):
            self._barred, self._barred_ns = organisation, now_ns
            self._enter(TRANSITIONS["probing", "failed"], now_ns)
            self.until_ns = now_ns
            return
        self._eject(now_ns, rng, rules, outright=self.outright, alone=alone)

    def _is_too_much(self, rules: HealthRules) -> bool:
        in_a_row = (1 << min(rules.failures, OUTCOMES)) - 1
        if self.outcomes & in_a_row == in_a_row:
            return True
        return self.outcomes.bit_count() >= rules.failure_rate * OUTCOMES

    def _is_believed(self, now_ns: int, rules: HealthRules) -> bool:
        """Whether what failed speaks against it, and not against the requests of one organisation:
        without those of whom most failed it would be too much, too, or nobody else uses it."""
        bad_of: dict[str, int] = {}
        newest = len(self._of) - 1
        for index, organisation in enumerate(self._of):
            bad = self.outcomes >> (newest - index) & 1
            bad_of[organisation] = bad_of.get(organisation, 0) + bad
        blamed = max(bad_of, key=lambda each: bad_of[each])
        others = newest + 1 - self._of.count(blamed)
        if others == 0:
            return not self._others_since(blamed, now_ns - USED_NS)
        others_bad = self.outcomes.bit_count() - bad_of[blamed]
        return others_bad > 0 and others_bad >= rules.failure_rate * others

    def _others_since(self, organisation: str, since_ns: int) -> bool:
        """Whether another organisation was answered since then."""
        if organisation != self._organisation:
            return self._answered_ns >= since_ns
        return self._answered_other_ns >= since_ns

    def _eject(
        self, now_ns: int, rng: Random, rules: HealthRules, *, outright: bool, alone: bool
    ) -> None:
        """Out for a hold: twice the last one, unless it has been healthy since, or is the only one
        of its group, so that nothing is served until it is asked again."""
        hold_s = rules.first_hold_s
        if self.hold_s > 0.0 and (outright or not alone):
            hold_s = min(2 * self.hold_s, rules.longest_hold_s)
        self.hold_s = hold_s
        self.outright = outright
        self._forget()
        self._enter("ejected", now_ns)
        self._judged_ns = now_ns
        held_s = hold_s * (1 - JITTER_SHARE * rng.random())
        self.until_ns = now_ns + int(held_s * 1e9)


def has_room(out: int, size: int, rules: HealthRules) -> bool:
    """Whether one more member of a group may be ejected for what came of requests, where `out` of
    its `size` members are: at most `eject_share` of them."""
    return out + 1 <= int(rules.eject_share * size)


def too_many(members: Sequence[Health], size: int, rules: HealthRules) -> Health | None:
    """The member to take back where more are ejected for what came of requests than may be, since
    the group has become smaller: who has been out for longest. None where all is well. `size`
    counts members that are not among these, because nothing is known against them."""
    out = 0
    longest: Health | None = None
    for each in members:
        if each.is_out and not each.outright:
            out += 1
            if longest is None or each.since_ns < longest.since_ns:
                longest = each
    return longest if out > int(rules.eject_share * size) else None


def is_late(waited_ms: float, expected_ms: float, usual: float) -> bool:
    """Whether no first byte after `waited_ms` says something against who is asked: far more than
    was expected, by the measure of its group, whose `usual` factor is 1 or more."""
    return waited_ms > LATE_MS + LATE_FACTOR * expected_ms * max(usual, 1.0)


def usual_pace(members: Iterable[Health]) -> float:
    """The factor by which answers of a group take longer than expected: the lower median of its
    members, so that one slow member of two is not the measure; 1.0 where too little is known."""
    paces = []
    for each in members:
        pace = each.pace()
        if pace is not None:
            paces.append(pace)
    if not paces:
        return 1.0
    paces.sort()
    return exp(paces[(len(paces) - 1) // 2])


def worse(one: str, other: str) -> bool:
    """Whether `one` is a state of less trust than `other`; unknown ones are of none."""
    ranks = {str(state): rank for rank, state in enumerate(SHOWN)}
    return ranks.get(one, len(ranks)) > ranks.get(other, len(ranks))


def known_state(state: str) -> HealthState | None:
    """A state that another process named; None for one of a newer release."""
    for each in STATES:
        if each == state:
            return each
    return None


def shown(said: str, trusted: HealthState | None) -> ShownState:
    """What to show of a replica: what its agent says (`said` is its lifecycle state), and where
    that is ready, how far it is trusted."""
    if said == "draining":
        return "draining"
    if said != "ready":
        return "down"
    return "healthy" if trusted is None else trusted

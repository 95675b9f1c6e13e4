"""Decides how far an engine's counts of a day may be from the book although nothing is wrong.

Most requests are computed by one engine, to their end, while it is heard: what it counted of them
is what is booked. The others are loose: cut off, worked on by several engines, or at work in a gap,
that is between what was heard of an engine last and what was heard of the replica next. Each opens
a range by what it can have cost; outside the sum of these ranges nothing is explained.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from isochrone.core.ids import ReplicaId, SiteName
from isochrone.core.metering.event import TokenSource
from isochrone.core.metering.tokens import BYTES_PER_TOKEN

S = 1_000_000_000
# Counters are read and told about once a second and noted every two; clocks of sites differ a bit.
EDGE_NS = 10 * S
GRACE_S = 2.0            # until an engine notices that nobody wants its answer any more
FASTER = 2.0             # than the fastest request of its replica, which was read and queued, too
UNKNOWN_TOK_S = 5000.0   # of one answer, where the day shows no speed
UNKNOWN_CONTEXT = 131_072
MARKERS = 256            # tokens of a chat template, which are not in a prompt's bytes

# ended: another life of the replica followed; silent: nothing was heard since; midnight: the same
# life went on, and what it counted may be another day's.
GapKind = Literal["ended", "silent", "midnight"]
Cause = Literal["ended", "silent", "midnight", "moved", "cut_off"]
CAUSES: tuple[Cause, ...] = ("ended", "silent", "midnight", "moved", "cut_off")
_WORDS: dict[Cause, str] = {
    "ended": "at work when its engine ended, of whose last counts nobody heard",
    "silent": "that ended after its engine was last heard",
    "midnight": "at work at midnight, whose tokens may be another day's",
    "moved": "worked on by several engines, each of which read the prompt",
    "cut_off": "cut off, or not counted by the engine to the end",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Tokens in disjoint classes; of a range's lower end and of differences they may be < 0."""

    input_uncached: int = 0
    input_cached: int = 0
    output: int = 0

    def plus(self, other: "Counts") -> "Counts":
        return Counts(
            input_uncached=self.input_uncached + other.input_uncached,
            input_cached=self.input_cached + other.input_cached,
            output=self.output + other.output,
        )

    def less(self, other: "Counts") -> "Counts":
        return self.plus(other.negative())

    def negative(self) -> "Counts":
        return Counts(
            input_uncached=-self.input_uncached, input_cached=-self.input_cached,
            output=-self.output,
        )

    def holds(self, other: "Counts") -> bool:
        """Whether `other` has no more than this in any class."""
        return (
            other.input_uncached <= self.input_uncached
            and other.input_cached <= self.input_cached
            and other.output <= self.output
        )

    @property
    def total(self) -> int:
        return self.input_uncached + self.input_cached + self.output


NO_TOKENS = Counts()


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """From when to when (control's wall ns) the engine of one life of a replica was heard on a day,
    by the row of its last reading. `run` grows where its counts began anew."""

    replica: ReplicaId
    generation: int
    run: int
    day_at: int
    begun_at: int
    heard_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A time in which what a replica's engine counted may have been heard by nobody, or on another
    day; wall ns, with the delay of readings at both ends."""

    replica: ReplicaId
    kind: GapKind
    since: int
    until: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loose:
    """A request that `replica` has, or may have, worked on, and how it is booked.

    `is_booked`: its tokens are among what is booked for the replica on the day. `moved`: more than
    one engine has, or may have, worked on it, in `runs` at most; `cut_off`: it was not booked from
    an engine's final count. `seconds`: from when it was sent to an engine until it ended.
    `prompt_tokens` is the gateway's estimate by bytes, `context_tokens` the model's.
    """

    replica: ReplicaId
    site: SiteName
    tokens: Counts
    source: TokenSource
    is_booked: bool
    gap: GapKind | None
    moved: bool
    cut_off: bool
    runs: int
    seconds: float
    prompt_tokens: int | None
    context_tokens: int | None

    @property
    def cause(self) -> Cause:
        if self.gap is not None:
            return self.gap
        return "moved" if self.moved else "cut_off"

    @property
    def prompt_most(self) -> int:
        """The most tokens that its prompt can have, for whichever engine read it."""
        if self.source in ("engine", "running"):
            return self.tokens.total  # what went on elsewhere was read as a prompt there
        if self.source == "counted":
            return BYTES_PER_TOKEN * self.tokens.total + MARKERS
        if self.prompt_tokens is not None:
            return BYTES_PER_TOKEN * (self.prompt_tokens + 1) + MARKERS
        return self.context_tokens or UNKNOWN_CONTEXT


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """By how much what an engine counted may lie below (`least`, no class > 0) and beyond (`most`)
    what is booked."""

    least: Counts = NO_TOKENS
    most: Counts = NO_TOKENS

    def plus(self, other: "Range") -> "Range":
        return Range(least=self.least.plus(other.least), most=self.most.plus(other.most))

    def holds(self, difference: Counts) -> bool:
        return difference.holds(self.least) and self.most.holds(difference)

    @property
    def width(self) -> int:
        """Tokens by which it may differ to either side, over all classes."""
        return max(-self.least.total, self.most.total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """So many requests of a replica are loose for this."""

    cause: Cause
    requests: int


def gaps_of(heard: Sequence[Heard], day_at: int) -> list[Gap]:
    """The gaps that touch the day, by what was heard of replicas on it, the day before and the one
    after."""
    day_ns = 86_400 * S
    rows = sorted(heard, key=lambda one: (one.replica, one.generation, one.run, one.day_at))
    gaps = []
    for row, after in itertools.zip_longest(rows, rows[1:]):
        until, kind = day_at + day_ns + EDGE_NS, _SILENT
        if after is not None and after.replica == row.replica:
            same = (after.generation, after.run) == (row.generation, row.run)
            until, kind = after.begun_at + EDGE_NS, "midnight" if same else "ended"
        since = row.heard_at - EDGE_NS
        if since < day_at + day_ns and until >= day_at and since < until:
            gaps.append(Gap(replica=row.replica, kind=kind, since=since, until=until))
    return gaps


_SILENT: GapKind = "silent"


def range_of(loose: Sequence[Loose], fastest_tok_s: float | None) -> Range:
    """What these requests of one replica open. `fastest_tok_s`: output tokens a second, queueing
    and reading included, of the fastest request of the replica that is not loose."""
    tok_s = UNKNOWN_TOK_S if fastest_tok_s is None else FASTER * fastest_tok_s
    found = Range()
    for each in loose:
        found = found.plus(Range(least=_least(each).negative(), most=_most(each, tok_s)))
    return found


def reasons_of(loose: Sequence[Loose]) -> tuple[Reason, ...]:
    """Why, each request under the first cause that it has."""
    counts = {cause: sum(each.cause == cause for each in loose) for cause in CAUSES}
    return tuple(Reason(cause=cause, requests=count) for cause, count in counts.items() if count)


def said(reasons: Sequence[Reason]) -> str:
    """The reasons as the end of a sentence, each with the number of its requests."""
    return "because of requests " + "; ".join(
        f"{_WORDS[each.cause]} ({each.requests})" for each in reasons
    )


def _least(each: Loose) -> Counts:
    """What is booked here, and this engine need not have been heard of it."""
    open_ = each.gap is not None or each.moved or each.source == "counted"
    return each.tokens if each.is_booked and open_ else NO_TOKENS


def _most(each: Loose, tok_s: float) -> Counts:
    """What this engine may have counted of it beyond what is booked here."""
    stray = NO_TOKENS if each.is_booked or each.gap is None else each.tokens
    unheeded = math.ceil(tok_s * GRACE_S)
    written = math.ceil(tok_s * max(each.seconds, 0.0)) + unheeded
    if each.moved:
        prompt = max(each.runs, 1) * each.prompt_most
        beyond = Counts(input_uncached=prompt, input_cached=prompt, output=written)
    elif each.cut_off:
        prompt = 0 if each.source in ("engine", "running") else each.prompt_most
        beyond = Counts(
            input_uncached=prompt, input_cached=prompt,
            output=max(written - each.tokens.output, unheeded),
        )
    else:
        beyond = NO_TOKENS
    return stray.plus(beyond)

"""Compares what engines counted with what was booked, and what was booked with what was charged.

Pure: sums of one day in, a report with its verdicts out. Engines count what they computed, by
replica; usage counts what was delivered; charges count what was priced. The first two are equal to
the token but for requests that are loose (see `loose`): these open a range, and outside it
something is wrong.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.metering.loose import (
    NO_TOKENS,
    Counts,
    Loose,
    Range,
    Reason,
    range_of,
    reasons_of,
    said,
)

Life = tuple[ReplicaId, int]  # a replica and its generation


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the engine of one life (`generation`) of a replica has counted since it was ready."""

    replica: ReplicaId
    generation: int
    site: SiteName
    model: ModelName
    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDay:
    """What a replica's engines counted in a day; `lives` are the engines that did."""

    replica: ReplicaId
    site: SiteName
    model: ModelName
    counts: Counts
    lives: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageDay:
    """What was booked for a replica in a day: `exact` from the engine's own final counts, `other`
    from running or counted ones, that is of `others` of the requests. `fastest_tok_s`: output
    tokens a second of the fastest exact one that one engine alone worked on, from when it was sent
    until it ended; None where there is none of some length."""

    replica: ReplicaId
    site: SiteName
    model: ModelName
    exact: Counts
    other: Counts
    requests: int
    others: int
    fastest_tok_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterDay:
    """One meter of all projects in the hours of a day. `waiting`: used, and of an hour that is not
    charged yet; `unpriced`: used, of an hour that is."""

    meter: str
    used: int
    charged: int
    waiting: int
    unpriced: int


Verdict = Literal["equal", "within", "differs", "unheard"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLine:
    """`difference` is what the engine counted beyond what was booked. Loose requests let it lie
    from `allowed.least` to `allowed.most` in each class, for `reasons`; `within`: it does.
    `unheard`: no counts of its engine came."""

    replica: ReplicaId
    site: SiteName
    model: ModelName
    engine: Counts
    exact: Counts
    other: Counts
    requests: int
    others: int
    lives: int
    difference: Counts
    allowed: Range
    reasons: tuple[Reason, ...]
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """The report of a day. `wrong_sums`: sums by hour that are not those of the requests and
    events; `parked`: messages that could not be booked; `unmetered`: events of no meter; `late`:
    better reports that came for days which are detached, and wait. `explained`: where engines and
    book differ by no more than is explained, by how much they may, and why."""

    day_at: int
    replicas: tuple[ReplicaLine, ...]
    meters: tuple[MeterDay, ...]
    wrong_sums: int
    parked: int
    unmetered: int
    late: int
    findings: tuple[str, ...]
    explained: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        return not self.findings


def reconcile(
    day_at: int,
    engines: Sequence[EngineDay],
    usage: Sequence[UsageDay],
    meters: Sequence[MeterDay],
    *,
    wrong_sums: int,
    parked: int,
    unmetered: int,
    late: int,
    loose: Sequence[Loose] = (),
) -> Reconciliation:
    """The report of the day that begins at `day_at` (wall ns)."""
    open_ = defaultdict[ReplicaId, list[Loose]](list)
    for each in loose:
        open_[each.replica].append(each)
    counted = {each.replica: each for each in engines}
    booked = {each.replica: each for each in usage}
    lines = tuple(
        _line(name, counted.get(name), booked.get(name), open_.get(name, []))
        for name in sorted({*counted, *booked})
    )
    findings = [*_of_lines(lines), *_of_meters(meters)]
    others: Mapping[str, int] = {
        "sums by hour are not those of what was booked: isochrone reconcile --mend": wrong_sums,
        "messages could not be booked and are parked": parked,
        "events are of no meter": unmetered,
        "better reports are of detached days: attach those to book them": late,
    }
    findings += [f"{count} {what}" for what, count in others.items() if count]
    return Reconciliation(
        day_at=day_at, replicas=lines, meters=tuple(meters), wrong_sums=wrong_sums, parked=parked,
        unmetered=unmetered, late=late, findings=tuple(findings),
        explained=tuple(_explained(line) for line in lines if line.verdict == "within"),
    )


def _line(
    name: ReplicaId, engine: EngineDay | None, usage: UsageDay | None, loose: Sequence[Loose]
) -> ReplicaLine:
    known = engine or usage
    assert known is not None, "a line is of something"
    counted = NO_TOKENS if engine is None else engine.counts
    exact = NO_TOKENS if usage is None else usage.exact
    other = NO_TOKENS if usage is None else usage.other
    difference = counted.less(exact).less(other)
    allowed = range_of(loose, None if usage is None else usage.fastest_tok_s)
    verdict: Verdict = "equal"
    if engine is None:
        verdict = "unheard"
    elif difference != NO_TOKENS:
        verdict = "within" if allowed.holds(difference) else "differs"
    return ReplicaLine(
        replica=name, site=known.site, model=known.model, engine=counted, exact=exact, other=other,
        requests=0 if usage is None else usage.requests,
        others=0 if usage is None else usage.others,
        lives=0 if engine is None else engine.lives, difference=difference, allowed=allowed,
        reasons=reasons_of(loose), verdict=verdict,
    )


def _of_lines(lines: Sequence[ReplicaLine]) -> list[str]:
    found = []
    for line in lines:
        if line.verdict == "unheard":
            found.append(f"{line.replica}: no counts of its engine were heard")
        elif line.verdict == "differs":
            explained = ""
            if line.reasons:
                explained = (
                    f"; explained is from {_words(line.allowed.least)} to"
                    f" {_words(line.allowed.most)}, {said(line.reasons)}"
                )
            found.append(
                f"{line.replica}: its engine counted {_words(line.difference)} tokens beyond what"
                f" was booked{explained}"
            )
    return found


def _explained(line: ReplicaLine) -> str:
    return (
        f"{line.replica}: agrees within {line.allowed.width} tokens, {said(line.reasons)};"
        f" its engine counted {_words(line.difference)} beyond what was booked"
    )


def _words(counts: Counts) -> str:
    return (
        f"{counts.input_uncached:+d} uncached, {counts.input_cached:+d} cached and"
        f" {counts.output:+d} output"
    )


def _of_meters(meters: Sequence[MeterDay]) -> list[str]:
    return [
        f"{each.meter}: {each.unpriced} of {each.used} have no price"
        for each in meters if each.unpriced
    ]

"""Compares what engines counted with what was booked, and what was booked with what was charged.

Pure: sums of one day in, a report with its verdicts out. Engines count what they computed, by
replica; usage counts what was delivered; charges count what was priced. Where every request of a
replica was booked from the engine's own final count, the first two are equal to the token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from isochrone.core.ids import ModelName, ReplicaId, SiteName


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Tokens in disjoint classes."""

    input_uncached: int = 0
    input_cached: int = 0
    output: int = 0

    def less(self, other: "Counts") -> "Counts":
        return Counts(
            input_uncached=self.input_uncached - other.input_uncached,
            input_cached=self.input_cached - other.input_cached,
            output=self.output - other.output,
        )


NO_TOKENS = Counts()


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
    from running or counted ones. `others` are the requests that were not booked exactly: of these
    the engine may have computed more than was delivered."""

    replica: ReplicaId
    site: SiteName
    model: ModelName
    exact: Counts
    other: Counts
    requests: int
    others: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterDay:
    """One meter of all projects in the hours of a day. `waiting`: used, and of an hour that is not
    charged yet; `unpriced`: used, of an hour that is."""

    meter: str
    used: int
    charged: int
    waiting: int
    unpriced: int


Verdict = Literal["equal", "estimated", "differs", "unheard"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLine:
    """`difference` is what the engine counted beyond what was booked. `estimated`: requests that
    were cut off may be the reason; `unheard`: no counts of its engine came."""

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
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """The report of a day. `wrong_sums`: sums by hour that are not those of the requests and
    events; `parked`: messages that could not be booked; `unmetered`: events of no meter; `late`:
    better reports that came for days which are detached, and wait."""

    day_at: int
    replicas: tuple[ReplicaLine, ...]
    meters: tuple[MeterDay, ...]
    wrong_sums: int
    parked: int
    unmetered: int
    late: int
    findings: tuple[str, ...]

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
) -> Reconciliation:
    """The report of the day that begins at `day_at` (wall ns)."""
    counted = {each.replica: each for each in engines}
    booked = {each.replica: each for each in usage}
    lines = tuple(
        _line(name, counted.get(name), booked.get(name)) for name in sorted({*counted, *booked})
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
    )


def _line(name: ReplicaId, engine: EngineDay | None, usage: UsageDay | None) -> ReplicaLine:
    known = engine or usage
    assert known is not None, "a line is of something"
    counted = NO_TOKENS if engine is None else engine.counts
    exact = NO_TOKENS if usage is None else usage.exact
    other = NO_TOKENS if usage is None else usage.other
    difference = counted.less(exact).less(other)
    others = 0 if usage is None else usage.others
    verdict: Verdict = "equal"
    if difference != NO_TOKENS:
        verdict = "estimated" if others else "differs"
    if engine is None:
        verdict = "unheard"
    return ReplicaLine(
        replica=name, site=known.site, model=known.model, engine=counted, exact=exact, other=other,
        requests=0 if usage is None else usage.requests, others=others,
        lives=0 if engine is None else engine.lives, difference=difference, verdict=verdict,
    )


def _of_lines(lines: Sequence[ReplicaLine]) -> list[str]:
    found = []
    for line in lines:
        beyond = line.difference
        if line.verdict == "unheard":
            found.append(f"{line.replica}: no counts of its engine were heard")
        elif line.verdict == "differs":
            found.append(
                f"{line.replica}: its engine counted {beyond.input_uncached:+d} uncached,"
                f" {beyond.input_cached:+d} cached and {beyond.output:+d} output tokens beyond"
                " what was booked"
            )
    return found


def _of_meters(meters: Sequence[MeterDay]) -> list[str]:
    return [
        f"{each.meter}: {each.unpriced} of {each.used} have no price"
        for each in meters if each.unpriced
    ]

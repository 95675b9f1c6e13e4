"""What follows from the results of an experiment, in plain words: whether targets are met, where
others win, what breaks even. Nothing here is anybody's opinion: each line is worked out anew."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from isochrone.core.percent import percent
from isochrone.twin.experiments.erlang import attainable_utilisation
from isochrone.twin.experiments.experiment import Outcome, Results
from isochrone.twin.fast.rows import Row

OURS, BOUND, CAMPUS, ALL_SEEING = "ours", "bound", "campus", "all_seeing"
NO_BASELINES = (OURS, BOUND, CAMPUS, ALL_SEEING)  # on the same fleet
TARGET_LOAD = 0.8
P99_TARGET = 0.8      # of the best baseline's
GPUS_TARGET = 0.8     # of the best baseline's
BOUND_TARGET = 1.25   # of the bound's mean
WORSE_TARGET = 1.03   # of any baseline's
WAITS = 0.05          # of the Erlang table
FEW_LATE = 10         # requests beyond a p99, of which fewer say little

Measure = Callable[[Row], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`good`: whether a target is met; None where nothing was aimed at."""

    text: str
    good: bool | None = None


def findings_of(results: Results) -> list[Finding]:
    """All that is worth saying, the most important first."""
    whole = [each for each in results.outcomes if not each.tenant]
    if results.view == "pooling":
        return _pooling(whole)
    if results.view == "campus":
        return _campus(whole, results.slo_share)
    if results.view == "cases":
        return _cases(whole)
    if results.view == "pairs":
        names = list(dict.fromkeys(each.point.case for each in whole))
        return [
            finding for first in range(0, len(names), 2)
            for finding in _cases([
                each for each in whole if each.point.case in names[first : first + 2]
            ])
        ]
    if results.view == "tenants":
        return _tenants(results.outcomes)
    return _targets(whole)


# -- policies side by side -------------------------------------------------------------------------


def groups_of(outcomes: Sequence[Outcome]) -> dict[tuple[str, str, float], dict[str, Outcome]]:
    """By point, workload and load: the outcome of each policy."""
    found: dict[tuple[str, str, float], dict[str, Outcome]] = {}
    for each in outcomes:
        key = each.point.name, each.row.workload, round(each.row.load, 6)
        found.setdefault(key, {})[each.row.policy] = each
    return found


def _targets(outcomes: Sequence[Outcome]) -> list[Finding]:
    found: list[Finding] = []
    for (_, _, load), by_policy in groups_of(outcomes).items():
        if OURS in by_policy and abs(load - TARGET_LOAD) < 0.001:
            found += _at_target_load(by_policy[OURS].subject, by_policy)
    return [*found, *_never_worse(outcomes)]


def _at_target_load(subject: str, by_policy: Mapping[str, Outcome]) -> list[Finding]:
    ours = by_policy[OURS].row
    found = []
    best = _best(by_policy, lambda row: row.ttft_ms_p99)
    gpus = _best(by_policy, lambda row: row.gpus_for_slo)
    if best is not None:
        share = _ratio(ours.ttft_ms_p99, best[1])
        fewer = _ratio(ours.gpus_for_slo, gpus[1]) if gpus else None
        good = (share is not None and share <= P99_TARGET) or (
            fewer is not None and fewer <= GPUS_TARGET
        )
        text = (
            f"{subject} at load {TARGET_LOAD:g}: p99 {_ms(ours.ttft_ms_p99)}, the best baseline "
            f"({best[0]}) {_ms(best[1])}: {_times(share)} (target {P99_TARGET:g} x)"
        )
        if gpus:
            text += (
                f"; GPUs for the objective {ours.gpus_for_slo or 'none found'}, the best "
                f"baseline's ({gpus[0]}) {gpus[1]:g} (target {GPUS_TARGET:g} x, or the p99)"
            )
        if not good:
            text += _why(by_policy, lambda row: row.ttft_ms_p99, best[1], P99_TARGET)
        found.append(Finding(text=text, good=good))
    if BOUND in by_policy:
        bound = by_policy[BOUND].row.ttft_ms_mean
        share = _ratio(ours.ttft_ms_mean, bound)
        good = share is not None and share <= BOUND_TARGET
        text = (
            f"{subject} at load {TARGET_LOAD:g}: mean {_ms(ours.ttft_ms_mean)}, what no "
            f"policy can beat {_ms(bound)}: {_times(share)} (target {BOUND_TARGET:g} x)"
        )
        if not good:
            text += _why(by_policy, lambda row: row.ttft_ms_mean, bound, BOUND_TARGET)
        found.append(Finding(text=text, good=good))
        found += _beside_light(subject, ours, by_policy[BOUND])
    return found


def _beside_light(subject: str, ours: Row, bound: Outcome) -> list[Finding]:
    light = bound.light
    if light is None:
        return []
    return [Finding(
        text=f"{subject} at load {TARGET_LOAD:g}: the way alone takes {_ms(light.mean_ms)} in the "
        f"mean and {_ms(light.p99_ms)} at p99 at the speed of light; ours is "
        f"{_times(_ratio(ours.ttft_ms_mean, light.mean_ms))} and "
        f"{_times(_ratio(ours.ttft_ms_p99, light.p99_ms))} of that",
    )]


def _why(
    by_policy: Mapping[str, Outcome], measure: Measure, beside: float | None, target: float
) -> str:
    """Why a target is missed, as far as what was played tells: whether anybody could reach it, and
    how much of what is missing is for want of news. `beside` is what the target is a part of."""
    shares = {
        name: _ratio(measure(each.row), beside) for name, each in by_policy.items()
    }
    bound, seeing, ours = shares.get(BOUND), shares.get(ALL_SEEING), shares.get(OURS)
    if bound is not None and bound > target:
        return f"; nobody can reach it: what no policy can beat is {_times(bound)}"
    if seeing is not None and seeing > target:
        return (
            f"; not even who sees every engine at every instant and takes the soonest reaches it "
            f"({_times(seeing)}): engines and ways take the rest"
        )
    if seeing is not None and (ours is None or ours > seeing):
        return (
            f"; who sees every engine at every instant has {_times(seeing)}: the difference to "
            f"ours is for want of news, or of a better use of it"
        )
    best = _best(by_policy, measure)
    shares_had = (ours, _ratio(best[1], beside) if best is not None else None)
    nearest = min((share for share in shares_had if share is not None), default=None)
    if bound is not None:
        return (
            f"; what no policy can beat is {_times(bound)}, the best that any reached "
            f"{_times(nearest)}"
        )
    return "; neither the bound nor the yardstick was played, which would say why"


def _never_worse(outcomes: Sequence[Outcome]) -> list[Finding]:
    worse: list[str] = []
    compared = 0
    for (_, _, load), by_policy in groups_of(outcomes).items():
        if OURS not in by_policy:
            continue
        ours, subject = by_policy[OURS].row, by_policy[OURS].subject
        for what, measure in MEASURES:
            best = _best(by_policy, measure)
            if best is None:
                continue
            compared += 1
            share = _ratio(measure(ours), best[1])
            if share is None or share > WORSE_TARGET:
                worse.append(
                    f"{subject} at {load:g} ({what}, {best[0]}, {_times(share)}"
                    f"{_doubt(what, by_policy[OURS])})"
                )
    if not compared:
        return []
    if not worse:
        return [Finding(
            text=f"Never worse than the best baseline by more than 3 %, in {compared} comparisons "
            "of mean and p99.", good=True,
        )]
    return [Finding(
        text=f"Worse than the best baseline by more than 3 % in {len(worse)} of {compared} "
        f"comparisons of mean and p99: {'; '.join(worse)}.", good=False,
    )]


def _doubt(what: str, outcome: Outcome) -> str:
    """How little a p99 of few requests says."""
    late = (outcome.requests or 0) // 100
    if what != "p99" or outcome.requests is None or late >= FEW_LATE:
        return ""
    return f", of {outcome.requests} requests {late} are later: chance has a part in it"


MEASURES: tuple[tuple[str, Measure], ...] = (
    ("mean", lambda row: row.ttft_ms_mean), ("p99", lambda row: row.ttft_ms_p99),
)


def _best(
    by_policy: Mapping[str, Outcome], measure: Measure
) -> tuple[str, float] | None:
    """The baseline on the same fleet with the least of it."""
    values = [
        (value, policy) for policy, each in by_policy.items()
        if policy not in NO_BASELINES and (value := measure(each.row)) is not None
    ]
    if not values:
        return None
    value, policy = min(values)
    return policy, value


# -- one campus ------------------------------------------------------------------------------------


def _campus(outcomes: Sequence[Outcome], slo_share: float | None) -> list[Finding]:
    found: list[Finding] = []
    lines: dict[str, list[tuple[float, Row, Row]]] = {}
    for (_, _, load), by_policy in groups_of(outcomes).items():
        if OURS in by_policy and CAMPUS in by_policy:
            lines.setdefault(by_policy[OURS].subject, []).append(
                (load, by_policy[OURS].row, by_policy[CAMPUS].row)
            )
    for name, points in lines.items():
        for what, measure in MEASURES:
            found.append(_break_even(name, what, measure, sorted(points, key=lambda at: at[0])))
        if slo_share is not None:
            found += [
                Finding(text=(
                    f"{name} at load {load:g}: GPUs for {slo_share:.0%} in time: distributed "
                    f"{ours.gpus_for_slo or 'none found'}, campus "
                    f"{campus.gpus_for_slo or 'none found'}"
                ))
                for load, ours, campus in sorted(points, key=lambda at: at[0])
            ]
    return found


def _break_even(
    name: str, what: str, measure: Measure, points: Sequence[tuple[float, Row, Row]]
) -> Finding:
    shares = [(load, _ratio(measure(ours), measure(campus))) for load, ours, campus in points]
    sooner = [(load, _is_sooner(measure(ours), measure(campus))) for load, ours, campus in points]
    wins = [load for load, is_sooner in sooner if is_sooner]
    loses = [load for load, is_sooner in sooner if is_sooner is False]
    told = ", ".join(f"{_times(share)} at {load:g}" for load, share in shares)
    crossing = _crossing(shares)
    if len(wins) == len(points):
        verdict = "distributed is sooner at every load that was played"
    elif len(loses) == len(points):
        verdict = "DISTRIBUTED LOSES at every load that was played"
    elif not loses:
        verdict = "none of the two is sooner at any load that was played"
        if wins:
            at = ", ".join(f"{load:g}" for load in wins)
            verdict = f"distributed is sooner at {at}, and none of the two at the others"
    elif crossing is not None:
        verdict = (
            f"they break even at a load of about {crossing:.2f}; distributed loses at "
            + ", ".join(f"{load:g}" for load in loses)
        )
    else:
        verdict = "distributed loses at " + ", ".join(f"{load:g}" for load in loses)
    return Finding(
        text=f"{name}, {what} of distributed to campus: {verdict} ({told})"
    )


def _is_sooner(ours: float | None, campus: float | None) -> bool | None:
    """Never is later than any time; None where none of the two is sooner."""
    if ours is None or campus is None:
        return None if ours == campus else campus is None
    return None if ours == campus else ours < campus


def _crossing(shares: Sequence[tuple[float, float | None]]) -> float | None:
    """Where the ratio passes 1, linear between two loads; the first such place."""
    for (load, share), (after, next_share) in pairwise(shares):
        if share is None or next_share is None or (share - 1.0) * (next_share - 1.0) > 0.0:
            continue
        if share != next_share:
            return load + (after - load) * (1.0 - share) / (next_share - share)
    return None


# -- cases side by side ----------------------------------------------------------------------------


def _cases(outcomes: Sequence[Outcome]) -> list[Finding]:
    """Each policy against what it did in the first case."""
    found: list[Finding] = []
    first: dict[tuple[str, str, float], Outcome] = {}
    for each in outcomes:
        key = each.row.policy, each.point.others, round(each.row.load, 6)
        before = first.setdefault(key, each)
        if before is each or each.row.policy == BOUND:
            continue
        row, usual = each.row, before.row
        text = (
            f"{each.point.name}, {row.policy}: in time {percent(row.slo_attainment)} "
            f"(without: {percent(usual.slo_attainment)}), mean {_ms(row.ttft_ms_mean)} "
            f"({_ms(usual.ttft_ms_mean)}), p99 {_ms(row.ttft_ms_p99)} ({_ms(usual.ttft_ms_p99)})"
        )
        if each.refused or each.broken:
            text += f"; {each.refused or 0} refused, {each.broken or 0} broken off of " + str(
                each.requests
            )
        if row.gpus_for_slo or usual.gpus_for_slo:
            text += (
                f"; GPUs for the objective {row.gpus_for_slo or 'none found'} "
                f"({usual.gpus_for_slo or 'none found'})"
            )
        found.append(Finding(text=text))
    return found


def _tenants(outcomes: Sequence[Outcome]) -> list[Finding]:
    found: list[Finding] = []
    for each in outcomes:
        if each.tenant and each.row.policy == OURS:
            row = each.row
            found.append(Finding(text=(
                f"{each.point.name or row.workload} at load {row.load:g}, {each.tenant}: "
                f"{percent(row.slo_attainment)} in time, p99 {_ms(row.ttft_ms_p99)}, "
                f"{each.refused or 0} of {each.requests} refused"
            )))
    return found


# -- pools -----------------------------------------------------------------------------------------


def _pooling(outcomes: Sequence[Outcome]) -> list[Finding]:
    lines: dict[tuple[str, str], list[tuple[float, float, int]]] = {}
    for each in outcomes:
        if each.gpus is not None:
            lines.setdefault((each.point.name, each.row.policy), []).append(
                (each.row.load, each.row.slo_attainment, each.gpus)
            )
    found: list[Finding] = []
    for (case, policy), points in lines.items():
        reached = load_for(
            [(load, share) for load, share, _ in sorted(points)], 1.0 - WAITS
        )
        gpus = points[0][2]
        theory = attainable_utilisation(gpus, WAITS)
        eight = attainable_utilisation(8, WAITS)
        told = f"{reached:.0%}" if reached is not None else "below the least load that was played"
        found.append(Finding(text=(
            f"{case}, {policy}: {told} utilisation with at most {WAITS:.0%} waiting; Erlang says "
            f"{theory:.0%} for one pool of {gpus} and {eight:.0%} for 8 alone"
        )))
    return found


def load_for(points: Sequence[tuple[float, float]], share: float) -> float | None:
    """The largest load at which so many are in time, linear between those that were played; None
    where that is below all of them. `points`: load and share in time, by load."""
    reached = None
    for place, (load, attained) in enumerate(points):
        if attained >= share:
            reached = load
        elif reached is not None and place:
            before, more = points[place - 1]
            return before + (load - before) * (more - share) / (more - attained)
    return reached


# -- words -----------------------------------------------------------------------------------------


def _ratio(value: float | None, other: float | None) -> float | None:
    return value / other if value is not None and other else None


def _ms(value: float | None) -> str:
    return "never" if value is None else f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms"


def _times(share: float | None) -> str:
    return "not to be said" if share is None else f"{share:.2f} x"

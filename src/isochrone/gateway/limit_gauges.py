"""Reads how limits over sites stand at this gateway, by kind, for the metrics in `metrics.py`.

No limit, key or tenant has a series of its own, so there are as many whatever is sold.
"""

from collections import Counter
from collections.abc import Iterator

from isochrone.core.limits.fleet_limits import FleetLimits
from isochrone.core.money import PICO
from isochrone.core.world.limit import LimitKind
from isochrone.gateway import metrics
from isochrone.gateway.shared_limits import SharedLimits, whose
from isochrone.ports.telemetry import Family, Metric, Sample

_BY_KIND: dict[LimitKind, Metric] = {
    "requests_per_min": metrics.LIMITED_REQUESTS, "tokens_per_min": metrics.LIMITED_TOKENS,
    "concurrent": metrics.LIMITED_STREAMS, "budget": metrics.LIMITED_MONEY,
}
_Counts = Counter[tuple[str, ...]]


def limit_families(limits: SharedLimits, now_ns: int) -> Iterator[Family]:
    """Everything, as it stands now."""
    fleet = limits.fleet
    yield from _standing(fleet, now_ns)
    grants: _Counts = Counter()
    for kind in _BY_KIND:
        grants[kind, "taken"] = fleet.taken[kind]
        grants[kind, "left"] = fleet.left[kind]
    yield _family(metrics.LIMIT_GRANTS, grants)
    yield _family(metrics.LIMIT_REFUSALS, Counter(limits.refusals))
    kept: _Counts = Counter()
    for keeper in fleet.keepers().values():
        if keeper.has_lines:
            kept[keeper.limit.kind, "decides" if keeper.leads else "copies"] += 1
    yield _family(metrics.KEPT_LIMITS, kept)


def _standing(fleet: FleetLimits, now_ns: int) -> Iterator[Family]:
    in_use: _Counts = Counter()
    stands: dict[LimitKind, _Counts] = {kind: Counter() for kind in _BY_KIND}
    for part in fleet.parts().values():
        limit, of = part.limit, whose(part.limit)
        in_use[limit.kind, of] += 1
        labels = (of,) if limit.currency is None else (limit.currency, of)
        counts = stands[limit.kind]
        counts[*labels, "usable"] += part.ceiling(now_ns)
        if limit.kind != "concurrent":  # what runs is held
            counts[*labels, "used"] += part.used(now_ns)
        if limit.kind != "requests_per_min":  # what was admitted is used
            counts[*labels, "held"] += part.held
        counts[*labels, "waiting"] += part.waiting
    yield _family(metrics.LIMITS, in_use)
    for kind, metric in _BY_KIND.items():
        yield _family(metric, stands[kind], PICO if kind == "budget" else 1)


def _family(metric: Metric, counts: _Counts, divisor: int = 1) -> Family:
    return Family(
        metric, [Sample(labels, count / divisor) for labels, count in counts.items()]
    )

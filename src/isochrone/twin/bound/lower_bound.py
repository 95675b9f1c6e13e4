"""The clairvoyant bound and the speed of light: what mean and tails of TTFT no policy can beat.

For a fleet, its rules and a trace. What holds for every schedule of the fast twin:

- the way: a request cannot begin to answer before it was at an allowed site and back, without
  jitter and without the time that its body takes;
- its own reading: fresh tokens (see `fresh.py`) at the full rate of the fastest replica of its
  model at that site, as if that were idle: `floor`;
- the pool: all replicas of the model together read no faster than the sum of their rates (see
  `pool.py`).

What is relaxed, so that the bound lies below what can be had: the future is known; caches never
forget, and all sites share them at no cost; engines can leave and resume requests and split one
over all of them (pool); writing answers takes no time and no memory, though real engines slow down
reading by it; no failures, no cold starts, no classes. Requests that a policy refuses are its own
affair: the bound counts all.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from isochrone.core.estimate.round_trip import Position, great_circle_km
from isochrone.core.world.site import Site
from isochrone.twin.bound.fresh import fresh_tokens
from isochrone.twin.bound.pool import Floats, Pool, least_flow_s, least_late
from isochrone.twin.fast.arrivals import Arrivals
from isochrone.twin.fast.fleet import Fleet
from isochrone.twin.fast.policy import Rules

FIBRE_KM_MS = 100.0  # km of distance for each ms of round trip: light in fibre, 200 km/ms
QUANTILES = (0.5, 0.9, 0.99)
STEPS = 24  # of the search for a quantile


@dataclass(frozen=True, slots=True, kw_only=True)
class Least:
    """Lower bounds in ms. A quantile q is the smallest value that at least q of the requests do
    not exceed."""

    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Of `requests` that have an allowed site; `unservable` have none. `light`: the great circle
    to the nearest allowed site and back in fibre, and no work. `floor_ms`: of each request by
    itself, in the order of the trace. `in_time`: at most so many have their first token within
    their objective. `fresh_tokens`: of all `prompt_tokens`, what somebody must read."""

    requests: int
    unservable: int
    in_time: int
    prompt_tokens: int
    fresh_tokens: int
    clairvoyant: Least
    light: Least
    floor_ms: Floats


class _Choices:
    """For what enters at a place: the nearest site of each reading rate, and of all."""

    def __init__(self, fleet: Fleet, rules: Rules, key: tuple[int, int, int]) -> None:
        ingress, tenant, model = key
        nearest: dict[float, float] = {}
        self.light_ms = self.nearest_ms = np.inf
        for site in rules.allowed(ingress, tenant, model):
            rates = [fleet.replicas[each].physics.prefill_tok_s for each in fleet.at[site][model]]
            if not rates:
                continue
            rtt_ms = 0.0 if fleet.home[ingress] == site else float(fleet.rtt_ms[ingress, site])
            nearest[max(rates)] = min(nearest.get(max(rates), np.inf), rtt_ms)
            light_ms = _km(fleet.ingresses[ingress], fleet.sites[site]) / FIBRE_KM_MS
            self.light_ms = min(self.light_ms, light_ms, rtt_ms)
            self.nearest_ms = min(self.nearest_ms, rtt_ms)
        self._options = [(rtt_ms, rate) for rate, rtt_ms in nearest.items()]

    def floor_ms(self, tokens: int) -> float:
        return min(rtt_ms + 1000.0 * tokens / rate for rtt_ms, rate in self._options)

    def __bool__(self) -> bool:
        return bool(self._options)


def lower_bounds(
    fleet: Fleet, rules: Rules, chunks: Iterable[Arrivals], *, from_s: float = 0.0
) -> Bounds:
    """Bounds for the requests that come at `from_s` or later. Those before only leave their blocks:
    that they take engines' time, too, is one thing more that is relaxed. Memory grows with the
    number of requests (some 50 bytes each) and with that of their different blocks."""
    known: dict[tuple[int, int, int], _Choices] = {}
    rows: list[tuple[int, float, float, float, float, int]] = []
    unservable = in_time = prompt_tokens = 0
    longest_s = float(fleet.rtt_ms.max(initial=0.0)) / 2000.0
    for row, tokens in fresh_tokens(chunks, longest_s):
        if row.at_s < from_s:
            continue
        key = (row.ingress, row.tenant, row.model)
        choices = known.get(key)
        if choices is None:
            choices = known[key] = _Choices(fleet, rules, key)
        if not choices:
            unservable += 1
            continue
        least_ms = choices.floor_ms(tokens)
        in_time += least_ms <= row.slo_ms
        prompt_tokens += row.prompt_tokens
        rows.append((
            row.model, row.at_s, least_ms, choices.nearest_ms / 2000.0, choices.light_ms, tokens,
        ))
    columns = np.array(rows, dtype=np.float64).reshape(len(rows), 6)
    model, at_s, floor_ms, half_s, light_ms, tokens_ = columns.T
    pools = [
        (model == number, Pool(
            rate=sum(
                each.physics.prefill_tok_s for each in fleet.replicas if each.model == number
            ),
            at_s=at_s[model == number],
            release_s=(at_s + half_s)[model == number],
            tokens=tokens_[model == number],
            back_s=half_s[model == number],
        ))
        for number in sorted({int(each) for each in model})
    ]
    return Bounds(
        requests=len(rows), unservable=unservable, in_time=in_time, prompt_tokens=prompt_tokens,
        fresh_tokens=int(tokens_.sum()), floor_ms=floor_ms,
        clairvoyant=_clairvoyant(floor_ms, half_s, pools), light=_least(light_ms),
    )


def _clairvoyant(
    floor_ms: Floats, half_s: Floats, pools: list[tuple[Floats, Pool]]
) -> Least:
    plain = _least(floor_ms)
    if not len(floor_ms):
        return plain
    flow_s = sum(least_flow_s(pool) for _, pool in pools)
    pooled_ms = 1000.0 * (2.0 * float(half_s.sum()) + flow_s) / len(floor_ms)

    def late(within_ms: float) -> int:
        """At least so many exceed it."""
        over = floor_ms > within_ms
        return int(over.sum()) + sum(
            least_late(pool, within_ms / 1000.0, ~over[of]) for of, pool in pools
        )

    def quantile(share: float, least_ms: float) -> float:
        """The largest value found that too many must exceed."""
        exceed = len(floor_ms) - _rank(share, len(floor_ms))
        low, high = least_ms, max(2.0 * least_ms, 1.0)
        while late(high) > exceed:
            low, high = high, 2.0 * high
        for _ in range(STEPS):
            middle = (low + high) / 2.0
            low, high = (middle, high) if late(middle) > exceed else (low, middle)
        return low

    return Least(
        mean_ms=max(plain.mean_ms, pooled_ms),
        p50_ms=quantile(QUANTILES[0], plain.p50_ms),
        p90_ms=quantile(QUANTILES[1], plain.p90_ms),
        p99_ms=quantile(QUANTILES[2], plain.p99_ms),
    )


def _least(values: Floats) -> Least:
    if not len(values):
        return Least(mean_ms=0.0, p50_ms=0.0, p90_ms=0.0, p99_ms=0.0)
    ordered = np.sort(values)
    p50, p90, p99 = (float(ordered[_rank(each, len(ordered)) - 1]) for each in QUANTILES)
    return Least(mean_ms=float(values.mean()), p50_ms=p50, p90_ms=p90, p99_ms=p99)


def _rank(share: float, count: int) -> int:
    """The place, from 1, of the smallest value that at least `share` of them do not exceed."""
    return max(1, int(np.ceil(share * count - 1e-9)))


def _km(one: Site, other: Site) -> float:
    return great_circle_km(
        Position(latitude_deg=one.latitude_deg, longitude_deg=one.longitude_deg),
        Position(latitude_deg=other.latitude_deg, longitude_deg=other.longitude_deg),
    )

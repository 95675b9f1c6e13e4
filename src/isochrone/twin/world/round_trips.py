"""Round trips between any two places, from those that were measured between cloud regions.

A pair of places near two regions (`REACH_KM`) has theirs. For every other pair: how good the
network is around both ends is read off the measured pairs nearby, as the *level* at which their
round trip stands among all pairs of the internet at their distance (0: light in fibre, 0.5: the
median, 0.99: the worst); the pair is given the round trip of that level at its own distance. Where
nothing was measured nearby, the level is the median of all that was. `left_out` says how far that
is off for pairs that were measured, when their own regions are taken out of the table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Floats = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]

EARTH_RADIUS_KM = 6371.0
FIBRE_KM_MS = 100.0  # light in fibre, of the great circle, a ms of round trip
REACH_KM = 100.0     # a region's figures stand for places this near
FAR_KM = 3000.0      # regions farther away say nothing of a place
NEAR_KM = 50.0       # differences of distance below this do not matter
POWER = 3.0          # a region at half the distance counts eight times as much
ADJACENT_MS = 0.5    # two sites in one place
LEVELS = np.array([0.0, 0.1, 0.5, 0.9, 0.99])


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Degrees, WGS 84; one item a place."""

    latitude_deg: Floats
    longitude_deg: Floats

    def __len__(self) -> int:
        return len(self.latitude_deg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Round trips of the internet at a distance: `rtt_ms[:, level]` at `km`, ascending. Levels as
    in `LEVELS`."""

    km: Floats
    rtt_ms: Floats

    def at(self, km: Floats, level: Floats) -> Floats:
        """The round trip of a level at a distance; any shape, the same for both."""
        rows = np.stack([_along(km, self.km, each) for each in self.rtt_ms.T], axis=-1)
        rows = np.maximum.accumulate(rows, axis=-1)
        place = np.interp(level, LEVELS, np.arange(len(LEVELS)))
        low = np.minimum(place.astype(np.int64), len(LEVELS) - 2)
        part = place - low
        below = np.take_along_axis(rows, low[..., None], -1)[..., 0]
        above = np.take_along_axis(rows, low[..., None] + 1, -1)[..., 0]
        result: Floats = below + part * (above - below)
        return result

    def level(self, km: Floats, rtt_ms: Floats) -> Floats:
        """At which level a round trip stands at its distance."""
        low, high = np.zeros_like(km), np.full_like(km, LEVELS[-1])
        for _ in range(30):
            middle = (low + high) / 2
            under = self.at(km, middle) < rtt_ms
            low, high = np.where(under, middle, low), np.where(under, high, middle)
        result: Floats = (low + high) / 2
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """`rtt_ms[region, region]`: the mean of both directions, NaN where none was measured."""

    names: tuple[str, ...]
    places: Places
    rtt_ms: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Of estimates against measurements: relative errors without their sign at two quantiles, and
    the median of estimate / measured - 1."""

    pairs: int
    median: float
    p90: float
    bias: float


def spread_of(km: Sequence[float], percentiles_ms: Sequence[Sequence[float]]) -> Spread:
    """`percentiles_ms[row]`: p10, p50, p90, p99 at that mean distance; ascending in km."""
    distance = np.array([0.0, *km])
    rows = np.array([[ADJACENT_MS] * 4, *percentiles_ms])
    light = distance / FIBRE_KM_MS
    return Spread(km=distance, rtt_ms=np.maximum(np.column_stack([light, rows]), light[:, None]))


def measured_of(
    rtt_ms: Mapping[tuple[str, str], float], positions: Mapping[str, tuple[float, float]]
) -> Measured:
    """Of (from, to) pairs between regions with a position (latitude, longitude in degrees)."""
    names = tuple(sorted({name for pair in rtt_ms for name in pair if name in positions}))
    place = {name: number for number, name in enumerate(names)}
    sums, counts = np.zeros((len(names),) * 2), np.zeros((len(names),) * 2)
    for (one, other), each in rtt_ms.items():
        if one in place and other in place and one != other:
            here, there = place[one], place[other]
            sums[[here, there], [there, here]] += each
            counts[[here, there], [there, here]] += 1
    with np.errstate(invalid="ignore"):
        return Measured(
            names=names, rtt_ms=sums / counts,
            places=Places(
                latitude_deg=np.array([positions[name][0] for name in names]),
                longitude_deg=np.array([positions[name][1] for name in names]),
            ),
        )


def joined(tables: Sequence[Measured]) -> Measured:
    """Several measurements as one; nothing is measured between them."""
    size = sum(len(table.names) for table in tables)
    rtt_ms = np.full((size, size), np.nan)
    start = 0
    for table in tables:
        end = start + len(table.names)
        rtt_ms[start:end, start:end] = table.rtt_ms
        start = end
    return Measured(
        names=tuple(name for table in tables for name in table.names), rtt_ms=rtt_ms,
        places=Places(
            latitude_deg=np.concatenate([table.places.latitude_deg for table in tables]),
            longitude_deg=np.concatenate([table.places.longitude_deg for table in tables]),
        ),
    )


def round_trips(here: Places, there: Places, measured: Measured, spread: Spread) -> Floats:
    """`rtt_ms[here, there]`; 0 for two places that are the same to the metre."""
    km = distances_km(here, there)
    levels, usual = _levels(measured, spread)
    near_here = distances_km(here, measured.places)
    near_there = distances_km(there, measured.places)
    found = spread.at(km, _around(near_here, near_there, levels, usual))
    if len(measured.names):
        one, other = near_here.argmin(axis=1), near_there.argmin(axis=1)
        close = (near_here.min(axis=1) <= REACH_KM)[:, None] & (near_there.min(axis=1) <= REACH_KM)
        known = measured.rtt_ms[np.ix_(one, other)]
        found = np.where(close & np.isfinite(known), known, found)
    result: Floats = np.where(km < 0.001, 0.0, np.maximum(found, km / FIBRE_KM_MS))
    return result


def left_out(measured: Measured, spread: Spread, *, by_distance_alone: bool = False) -> Errors:
    """How far estimates are off for each measured pair when all regions within `REACH_KM` of its
    two ends are taken out; with `by_distance_alone`, those of the median at the distance."""
    km = distances_km(measured.places, measured.places)
    levels, _ = _levels(measured, spread)
    ratios = []
    for one, other in zip(*np.nonzero(np.triu(np.isfinite(measured.rtt_ms), 1)), strict=True):
        kept = (km[one] > REACH_KM) & (km[other] > REACH_KM)
        inner = levels[np.ix_(kept, kept)]
        usual = float(np.nanmedian(inner)) if np.isfinite(inner).any() else 0.5
        level = np.array([[0.5]]) if by_distance_alone else _around(
            km[[one]][:, kept], km[[other]][:, kept], inner, usual
        )
        estimate = spread.at(km[[one]][:, [other]], level)[0, 0]
        ratios.append(estimate / measured.rtt_ms[one, other])
    off = np.array(ratios) - 1.0
    return Errors(
        pairs=len(ratios), median=float(np.median(abs(off))),
        p90=float(np.quantile(abs(off), 0.9)), bias=float(np.median(off)),
    )


def distances_km(here: Places, there: Places) -> Floats:
    """Great-circle distances by the haversine formula on a sphere."""
    lat_one, lat_other = np.radians(here.latitude_deg), np.radians(there.latitude_deg)
    half_lat = (lat_other[None, :] - lat_one[:, None]) / 2
    half_lon = np.radians(there.longitude_deg[None, :] - here.longitude_deg[:, None]) / 2
    cosines = np.cos(lat_one)[:, None] * np.cos(lat_other)[None, :]
    chord = np.sin(half_lat) ** 2 + cosines * np.sin(half_lon) ** 2
    result: Floats = 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.minimum(chord, 1.0)))
    return result


def _levels(measured: Measured, spread: Spread) -> tuple[Floats, float]:
    """The level of each measured pair, NaN for none and for pairs in one place; their median."""
    km = distances_km(measured.places, measured.places)
    known = np.isfinite(measured.rtt_ms) & (km > REACH_KM)
    levels = np.full(km.shape, np.nan)
    levels[known] = spread.level(km[known], measured.rtt_ms[known])
    return levels, float(np.median(levels[known])) if known.any() else 0.5


def _around(near_here: Floats, near_there: Floats, levels: Floats, usual: float) -> Floats:
    """The level for each pair of places, from those of the regions around both ends; the usual one
    counts as much as a region at `FAR_KM` from both."""
    here, there = _weights(near_here), _weights(near_there)
    known = np.isfinite(levels)
    total = here @ known @ there.T
    sums = here @ np.where(known, levels, 0.0) @ there.T
    least = ((FAR_KM + NEAR_KM) ** -POWER) ** 2
    result: Floats = (sums + least * usual) / (total + least)
    return result


def _weights(km: Floats) -> Floats:
    result: Floats = np.where(km <= FAR_KM, (km + NEAR_KM) ** -POWER, 0.0)
    return result


def _along(km: Floats, rows_km: Floats, rows: Floats) -> Floats:
    """Linear between the rows, and beyond the last one in proportion to the distance."""
    inside: Floats = np.interp(km, rows_km, rows)
    return np.where(km > rows_km[-1], rows[-1] * km / rows_km[-1], inside)

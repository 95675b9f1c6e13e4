"""Where requests come from, at which hour: people, and whether they are at work.

An assumption, not a measurement: a place asks in proportion to the people of its city, shared by
the sites there, and to `ACTIVITY` at the local solar hour, with less on Saturday and Sunday. Which
countries use such services more is not in it. docs/twin-world.md says how far that is from the one
public figure.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from isochrone.twin.world.sites_table import PlacedSite

Floats = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]
Ints = np.ndarray[tuple[Any, ...], np.dtype[np.int64]]

# Of the busiest hour, at the beginning of each local hour; linear between.
ACTIVITY = (
    0.16, 0.12, 0.10, 0.09, 0.10, 0.14, 0.24, 0.42, 0.70, 0.92, 1.00, 0.99,
    0.92, 0.95, 1.00, 0.98, 0.93, 0.82, 0.66, 0.56, 0.50, 0.44, 0.34, 0.24,
)
WEEKEND = 0.45
LEAST_PEOPLE = 50_000.0  # of a place for which the table has none
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """`share[ingress]`: its part of the requests if all were equally busy, in sum 1; `ahead_s`: how
    far its clock is before UTC. `start_s`: seconds since Monday 00:00 UTC at virtual time 0.
    `flat`: the hour does not matter."""

    share: Floats
    ahead_s: Floats
    start_s: float
    flat: bool = False

    def activity(self, at_s: Floats, ingress: Ints) -> Floats:
        """Of the busiest hour, from 0 to 1, for each instant and ingress."""
        if self.flat:
            return np.ones_like(at_s)
        local_s: Floats = self.ahead_s[ingress] + at_s + self.start_s
        return activity(local_s)

    def mean_activity(self) -> float:
        """Over a week, all places by their share: it is the same everywhere."""
        if self.flat:
            return 1.0
        quarters_s: Floats = np.arange(0.0, 7 * DAY_S, 900.0)
        return float(activity(quarters_s).mean())


def demand_of(
    sites: Sequence[PlacedSite], *, start_s: float = 0.0, flat: bool = False
) -> Demand:
    """The demand at each of these ingresses."""
    crowd = Counter(site.metro for site in sites)
    people = np.array([
        max(site.metro_people, LEAST_PEOPLE) / crowd[site.metro] for site in sites
    ])
    return Demand(
        share=people / people.sum(),
        ahead_s=np.array([site.longitude_deg * 240.0 for site in sites]),
        start_s=start_s, flat=flat,
    )


def of_countries(
    demand: Demand, sites: Sequence[PlacedSite], weights: Mapping[str, float]
) -> Demand:
    """The same with these parts for countries, within each as people are; nobody asks elsewhere.
    Raises ValueError where no site is in any of them."""
    share = np.zeros_like(demand.share)
    for country, weight in weights.items():
        there = np.array([float(site.country == country) for site in sites]) * demand.share
        if there.sum() > 0.0:
            share += weight * there / there.sum()
    if not share.sum() > 0.0:
        raise ValueError("no site is in a country that asks for anything")
    return replace(demand, share=share / share.sum())


def activity(local_s: Floats) -> Floats:
    """At seconds since Monday 00:00 by the place's own clock; before that, of the week before."""
    week_s = np.mod(local_s, 7 * DAY_S)
    level = np.interp(np.mod(week_s, DAY_S) / 3600.0, np.arange(25), (*ACTIVITY, ACTIVITY[0]))
    result: Floats = np.where(week_s >= 5 * DAY_S, level * WEEKEND, level)
    return result

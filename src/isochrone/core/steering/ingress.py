"""The ingresses of a fleet and the round trips that clients anywhere have to them, as an array."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isochrone.core.estimate.round_trip import (
    ADJACENT_RTT_MS,
    EARTH_RADIUS_KM,
    DistanceRtt,
    Position,
)
from isochrone.core.ids import SiteName
from isochrone.core.steering.place import AtSite, Family, Place

Milliseconds = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]

MOST_KEPT_PLACES = 1024  # 9 KB each at 1,100 sites


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingress:
    """A site as clients enter it. `ipv4` and `ipv6` are addresses of 4 and 16 bytes."""

    site: SiteName
    country: str | None
    position: Position
    joined: bool
    draining: bool
    ipv4: tuple[bytes, ...]
    ipv6: tuple[bytes, ...]
    operator: str | None = None
    parent: str | None = None

    @property
    def name(self) -> SiteName:
        """As rules of residency ask for it."""
        return self.site

    def addresses(self, family: Family) -> tuple[bytes, ...]:
        return self.ipv4 if family == 4 else self.ipv6


class IngressMap:
    """All ingresses by name, and how far they are. Made anew when the estate changes.

    `links`: site -> peer -> round trip in ms, as probed or stated. `by_distance`: medians for what
    no link says, ascending in km, at least one.
    """

    def __init__(
        self,
        ingresses: Sequence[Ingress],
        links: Mapping[SiteName, Mapping[SiteName, float]],
        by_distance: Sequence[DistanceRtt],
    ) -> None:
        self.ingresses = tuple(sorted(ingresses, key=lambda each: each.site))
        self.index = {each.site: number for number, each in enumerate(self.ingresses)}
        self._links = links
        positions = [each.position for each in self.ingresses]
        self._latitude = np.radians([each.latitude_deg for each in positions])
        self._longitude = np.radians([each.longitude_deg for each in positions])
        self._band_km = np.array([0.0, *(band.km for band in by_distance)])
        self._band_ms = np.array([ADJACENT_RTT_MS, *(band.rtt_ms for band in by_distance)])
        self._kept: dict[Place, Milliseconds] = {}

    def rtt_ms(self, place: Place) -> Milliseconds:
        """Estimated round trip from a place to each ingress, in their order; not to be changed."""
        rtt_ms = self._kept.get(place)
        if rtt_ms is None:
            if len(self._kept) >= MOST_KEPT_PLACES:
                self._kept.clear()
            rtt_ms = self._kept[place] = self._from(place)
        return rtt_ms

    def _from(self, place: Place) -> Milliseconds:
        if isinstance(place, Position):
            return self._by_distance(place)
        own = self.index.get(place.site) if isinstance(place, AtSite) else None
        if own is None:
            return np.zeros(len(self.ingresses))
        ingress = self.ingresses[own]
        rtt_ms = self._by_distance(ingress.position)
        for peer, link_ms in self._links.get(ingress.site, {}).items():
            if peer in self.index:
                rtt_ms[self.index[peer]] = link_ms
        rtt_ms[own] = 0.0
        return rtt_ms

    def _by_distance(self, position: Position) -> Milliseconds:
        """`distance_rtt_ms` of `great_circle_km` for all ingresses at once."""
        latitude, longitude = np.radians(position.latitude_deg), np.radians(position.longitude_deg)
        chord = (
            np.sin((self._latitude - latitude) / 2) ** 2
            + np.cos(self._latitude) * np.cos(latitude)
            * np.sin((self._longitude - longitude) / 2) ** 2
        )
        km = 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.minimum(1.0, chord)))
        last_km, last_ms = self._band_km[-1], self._band_ms[-1]
        within: Milliseconds = np.interp(km, self._band_km, self._band_ms)
        return np.where(km > last_km, last_ms * km / last_km, within)

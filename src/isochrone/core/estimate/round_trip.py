"""Round trips between places: stated, else measured between nearby cloud regions, else by distance.

The measured tables are data (`isochrone/data/network`). A live probe replaces all of this; it is
what a site knows before the first probe, and what emulated distance is made from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import asin, cos, radians, sin, sqrt

from isochrone.core.ids import SiteName
from isochrone.core.world.site import Link, RttSource, SiteLinks
from isochrone.core.world.world import World, WorldLink

EARTH_RADIUS_KM = 6371.0
REGION_REACH_KM = 100.0  # a region's figures stand for places this near
ADJACENT_RTT_MS = 0.5    # two sites in one place: the distance table starts at tens of km


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A point on the globe, degrees, WGS 84."""

    latitude_deg: float
    longitude_deg: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A cloud region between which round trips were measured."""

    name: str
    position: Position


@dataclass(frozen=True, slots=True, kw_only=True)
class DistanceRtt:
    """Median round trip of the measured pairs whose mean great-circle distance is `km`."""

    km: float
    rtt_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTripTable:
    """`rtt_ms[from, to]` between regions; `by_distance` ascending in km, at least one entry."""

    regions: tuple[Region, ...]
    rtt_ms: Mapping[tuple[str, str], float]
    by_distance: tuple[DistanceRtt, ...]


def great_circle_km(one: Position, other: Position) -> float:
    """Great-circle distance by the haversine formula on a sphere."""
    lat_one, lat_other = radians(one.latitude_deg), radians(other.latitude_deg)
    half_lat = (lat_other - lat_one) / 2
    half_lon = radians(other.longitude_deg - one.longitude_deg) / 2
    chord = sin(half_lat) ** 2 + cos(lat_one) * cos(lat_other) * sin(half_lon) ** 2
    return 2 * EARTH_RADIUS_KM * asin(sqrt(min(1.0, chord)))


def estimate_rtt(one: Position, other: Position, table: RoundTripTable) -> tuple[float, RttSource]:
    """Round trip between two places and where the figure comes from: `table` or `distance`.

    The measured pair is used when both ends have a region within 100 km and the regions differ;
    both directions are averaged, because the two are routed differently.
    """
    near_one, near_other = _nearest(one, table), _nearest(other, table)
    if near_one is not None and near_other is not None and near_one != near_other:
        there = table.rtt_ms.get((near_one.name, near_other.name))
        back = table.rtt_ms.get((near_other.name, near_one.name))
        measured = [rtt for rtt in (there, back) if rtt is not None]
        if measured:
            return sum(measured) / len(measured), "table"
    return distance_rtt_ms(great_circle_km(one, other), table.by_distance), "distance"


def distance_rtt_ms(km: float, by_distance: tuple[DistanceRtt, ...]) -> float:
    """Median round trip at a distance, linear between the measured bands."""
    below = DistanceRtt(km=0.0, rtt_ms=ADJACENT_RTT_MS)
    for above in by_distance:
        if km <= above.km:
            share = (km - below.km) / (above.km - below.km)
            return below.rtt_ms + share * (above.rtt_ms - below.rtt_ms)
        below = above
    return below.rtt_ms * km / below.km


def links_of_world(world: World, table: RoundTripTable) -> tuple[SiteLinks, ...]:
    """Links of every site to every other, stated ones first; source `emulated` where the peer hop
    adds them. Order: sites as in the world. Cost O(sites^2)."""
    stated: dict[tuple[SiteName, SiteName], WorldLink] = {}
    for each in world.links:
        one, other = each.between
        stated[one, other] = stated[other, one] = each
    positions = {
        site.name: Position(latitude_deg=site.latitude_deg, longitude_deg=site.longitude_deg)
        for site in world.sites
    }

    elsewhere = {site.name for site in world.sites if site.elsewhere}

    def link(site: SiteName, peer: SiteName) -> Link:
        source: RttSource = "stated"
        known = stated.get((site, peer))
        if known is None:
            rtt_ms, source = estimate_rtt(positions[site], positions[peer], table)
        else:
            rtt_ms = known.rtt_ms
        if world.emulate_distance and site not in elsewhere and peer not in elsewhere:
            source = "emulated"
        via = None if known is None else known.via
        return Link(peer=peer, rtt_ms=rtt_ms, source=source, via=via)

    return tuple(
        SiteLinks(site=site, links=tuple(link(site, peer) for peer in positions if peer != site))
        for site in positions
    )


def _nearest(place: Position, table: RoundTripTable) -> Region | None:
    """The region nearest to `place` if it is within reach; of equally near ones the first."""
    distance_km, region = min(
        ((great_circle_km(place, region.position), region) for region in table.regions),
        key=lambda pair: pair[0],
        default=(REGION_REACH_KM + 1, None),
    )
    return region if distance_km <= REGION_REACH_KM else None

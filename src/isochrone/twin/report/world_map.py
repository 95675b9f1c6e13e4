"""The world as SVG text: countries, where clients enter, and sites with engines."""

from collections.abc import Sequence
from html import escape
from math import sqrt

from isochrone.twin.experiments.experiment import Client, Place

WIDTH, HEIGHT = 960, 430
NORTH, SOUTH = 80.0, -58.0  # degrees that are shown; plain latitude and longitude

Ring = Sequence[float]  # longitude and latitude by turns, in degrees


def world_map(
    rings: Sequence[Ring], places: Sequence[Place], clients: Sequence[Client],
    served: Sequence[int] = (),
) -> str:
    """`served[place]`: requests that were served there, for the size of its circle; by replicas
    where it is empty."""
    land = "".join(
        "M" + "L".join(
            f"{_x(longitude):.1f} {_y(latitude):.1f}"
            for longitude, latitude in zip(ring[::2], ring[1::2], strict=False)
        ) + "Z"
        for ring in rings
    )
    most = max((each.share for each in clients), default=0.0) or 1.0
    dots = "".join(
        f'<circle cx="{_x(each.longitude_deg):.1f}" cy="{_y(each.latitude_deg):.1f}" '
        f'r="{0.7 + 3.0 * sqrt(each.share / most):.1f}" class=c />'
        for each in clients
    )
    sizes = [float(each) for each in served] or [float(each.replicas) for each in places]
    largest = max(sizes, default=0.0) or 1.0
    whole = sum(sizes) or 1.0
    sites = "".join(
        f'<circle cx="{_x(each.longitude_deg):.1f}" cy="{_y(each.latitude_deg):.1f}" '
        f'r="{4.0 + 12.0 * sqrt(size / largest):.1f}" class=s>'
        f"<title>{escape(_told(each, size / whole if served else None))}</title></circle>"
        for each, size in zip(places, sizes, strict=True)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" class=map role="img" '
        f'aria-label="A map of clients and sites with engines"><path d="{land}" class=l />'
        f"{dots}{sites}</svg>"
    )


def _told(place: Place, share: float | None) -> str:
    told = f"{place.name} ({place.country}): {place.replicas} replicas"
    return told if share is None else f"{told}, {share:.1%} of the requests"


def _x(longitude: float) -> float:
    return (longitude + 180.0) / 360.0 * WIDTH


def _y(latitude: float) -> float:
    return (NORTH - min(max(latitude, SOUTH), NORTH)) / (NORTH - SOUTH) * HEIGHT

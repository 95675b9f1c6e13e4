"""Makes data/maps/world-110m.json from Natural Earth's countries: closed rings that stay within
-180..180 degrees, rounded, without Antarctica.

    python tools/worldmap/build.py countries_110m.geojson src/isochrone/data/maps/world-110m.json

Three rings of the source cross the antimeridian; drawn as they are they become bands across the
whole map. Each is unrolled, cut at the antimeridian, and its parts put back in their places.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

Point = tuple[float, float]
Ring = list[Point]

DIGITS = 2  # a hundredth of a degree is about a kilometre, finer than the source
LEFT_OUT = ("AQ",)
WORLD_DEG = 360.0
EDGE_DEG = 180.0


def unrolled(ring: Sequence[Point]) -> Ring:
    """The ring with longitudes that never jump: they go on beyond 180 instead."""
    found: Ring = [ring[0]]
    for longitude, latitude in ring[1:]:
        before = found[-1][0]
        turns = round((before - longitude) / WORLD_DEG)
        found.append((longitude + turns * WORLD_DEG, latitude))
    return found


def cut(ring: Ring, at: float, *, keep_west: bool) -> Ring:
    """The part of a closed ring on one side of a meridian (Sutherland and Hodgman)."""
    def inside(point: Point) -> bool:
        return point[0] <= at if keep_west else point[0] >= at

    found: Ring = []
    for before, here in zip([*ring[-1:], *ring[:-1]], ring, strict=True):
        if inside(before) != inside(here):
            share = (at - before[0]) / (here[0] - before[0])
            found.append((at, before[1] + share * (here[1] - before[1])))
        if inside(here):
            found.append(here)
    return found


def within_the_world(ring: Sequence[Point]) -> Iterator[Ring]:
    """The parts of a ring, each within -180..180."""
    whole = unrolled(ring)
    for turn in (-1, 0, 1):
        west, east = turn * WORLD_DEG - EDGE_DEG, turn * WORLD_DEG + EDGE_DEG
        part = cut(cut(whole, east, keep_west=True), west, keep_west=False)
        # What only touches the cut is left as a line there.
        if len({longitude for longitude, _ in part}) > 1:
            yield [(longitude - turn * WORLD_DEG, latitude) for longitude, latitude in part]


def rounded(ring: Ring) -> list[float]:
    """Longitude and latitude by turns; points that fell together are left out."""
    points: Ring = []
    for longitude, latitude in ring:
        point = (round(longitude, DIGITS), round(latitude, DIGITS))
        if not points or points[-1] != point:
            points.append(point)
    if len(points) > 1 and points[0] == points[-1]:
        points.pop()
    return [value for point in points for value in point]


def build(source: dict[str, object]) -> dict[str, object]:
    """The map's file from the source's GeoJSON."""
    countries = []
    features = source["features"]
    assert isinstance(features, list)
    for feature in features:
        properties, geometry = feature["properties"], feature["geometry"]
        code = str(properties.get("iso2") or "")
        if code in LEFT_OUT:
            continue
        polygons = geometry["coordinates"]
        if geometry["type"] == "Polygon":
            polygons = [polygons]
        rings = [
            flat
            for polygon in polygons for ring in polygon for part in within_the_world(
                [(float(longitude), float(latitude)) for longitude, latitude in ring]
            )
            if len(flat := rounded(part)) >= 6
        ]
        countries.append({"iso2": code, "name": properties["name"], "rings": rings})
    countries.sort(key=lambda each: (each["iso2"], each["name"]))
    return {"attribution": "Made with Natural Earth", "countries": countries}


def main(read: Callable[[str], str], arguments: Sequence[str]) -> str:
    """The text of the map's file."""
    return json.dumps(build(json.loads(read(arguments[0]))), separators=(",", ":")) + "\n"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(
        main(lambda name: Path(name).read_text(encoding="utf-8"), sys.argv[1:]), encoding="utf-8"
    )

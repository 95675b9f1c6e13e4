"""The land of the console's map: nothing of it lies across the antimeridian."""

import json
from itertools import pairwise

import pytest
from tools.worldmap.build import Point, build, within_the_world

from isochrone.adapters.packaged import WORLD_MAP


def area(ring: list[Point]) -> float:
    """In square degrees."""
    around = [*ring, ring[0]]
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(around))) / 2


EAST_AND_WEST: list[Point] = [(170, 60), (-170, 60), (-170, 70), (170, 70)]


def test_a_ring_across_the_antimeridian_becomes_two() -> None:
    parts = list(within_the_world(EAST_AND_WEST))
    assert sorted((min(x for x, _ in part), max(x for x, _ in part)) for part in parts) == [
        (-180, -170), (170, 180),
    ]
    assert sum(area(part) for part in parts) == pytest.approx(20 * 10)


@pytest.mark.parametrize("ring", [
    [(0.0, 0.0), (10.0, 0.0), (10.0, 10.0)], [(-180.0, 0.0), (-170.0, 5.0), (-180.0, 10.0)],
])
def test_other_rings_stay_as_they_are(ring: list[Point]) -> None:
    (part,) = within_the_world(ring)
    assert area(part) == pytest.approx(area(ring))


def test_the_source_is_told_and_antarctica_left_out() -> None:
    def a_feature(code: str) -> dict[str, object]:
        return {
            "properties": {"iso2": code, "name": code},
            "geometry": {"type": "Polygon", "coordinates": [EAST_AND_WEST]},
        }

    built = build({"features": [a_feature("AQ"), a_feature("RU")]})
    assert built["attribution"] == "Made with Natural Earth"
    countries = built["countries"]
    assert isinstance(countries, list)
    (country,) = countries
    assert (country["iso2"], len(country["rings"])) == ("RU", 2)


def test_what_is_packaged_has_no_bands_across_the_world() -> None:
    world = json.loads(WORLD_MAP.read_text(encoding="utf-8"))
    codes = {country["iso2"] for country in world["countries"]}
    assert {"AU", "DE", "FJ", "RU", "US"} <= codes
    assert "AQ" not in codes
    for country in world["countries"]:
        for ring in country["rings"]:
            longitudes = ring[0::2]
            assert -180 <= min(longitudes) <= max(longitudes) <= 180
            assert max(abs(a - b) for a, b in pairwise([*longitudes, longitudes[0]])) < 60

"""The packaged tables hold what the code and the policies rely on."""

import pytest

from isochrone.adapters.packaged import (
    bundled_model,
    default_world,
    load_blocs,
    load_hardware,
    load_power,
    load_round_trips,
)
from isochrone.core.errors import NotFound
from isochrone.core.estimate.power import estimated_power
from isochrone.core.estimate.round_trip import links_of_world
from isochrone.core.world.site import Hardware
from isochrone.wiring.world_file import parse_world


def test_blocs_are_those_of_the_law() -> None:
    blocs = load_blocs()
    eu, eea = blocs.members["EU"], blocs.members["EEA"]
    assert len(eu) == 27
    assert eea - eu == {"IS", "LI", "NO"}
    assert blocs.members["GDPR"] == eea
    assert {"GB", "CH", "US"}.isdisjoint(eea)
    assert {"US", "CA", "JP", "GB"}.isdisjoint(blocs.members["ADEQUATE"])


def test_namibia_is_a_country() -> None:
    assert "NA" in load_blocs().countries
    assert all(len(code) == 2 and code.isupper() for code in load_blocs().countries)


def test_round_trips_cover_every_pair_of_regions() -> None:
    table = load_round_trips()
    names = [region.name for region in table.regions]
    pairs = {(one, other) for one in names for other in names if one != other}
    assert pairs == set(table.rtt_ms)
    assert all(0 < rtt_ms < 1000 for rtt_ms in table.rtt_ms.values())
    kilometres = [band.km for band in table.by_distance]
    assert kilometres == sorted(kilometres)


def test_the_default_world_is_three_sites_at_real_distances() -> None:
    world = parse_world(default_world(), source="default world")
    assert [(site.name, site.country) for site in world.sites] == [
        ("sydney", "AU"), ("frankfurt", "DE"), ("ashburn", "US"),
    ]
    rtt_ms: dict[tuple[str, str], float] = {
        (links.site, link.peer): link.rtt_ms
        for links in links_of_world(world, load_round_trips())
        for link in links.links
        if link.source == "emulated"
    }
    assert rtt_ms["sydney", "frankfurt"] == rtt_ms["frankfurt", "sydney"] == 290.5
    assert rtt_ms["sydney", "ashburn"] == 206.5
    assert rtt_ms["frankfurt", "ashburn"] == 97.0
    assert len(rtt_ms) == 6


def test_power_is_estimated_from_idle_to_the_most_and_said_of_known_hardware_only() -> None:
    table = load_power()
    assert table.keys() == load_hardware().keys()
    eight = (Hardware(kind="H100-SXM5-80GB", count=8),)
    idle, half, full = (
        estimated_power(eight, table, running=running, slots=16) for running in (0, 8, 99)
    )
    assert idle is not None
    assert half is not None
    assert full is not None
    assert (idle.watts, half.watts, full.watts) == pytest.approx((840.0, 3220.0, 5600.0))
    assert {each.most_w for each in (idle, half, full)} == {5600.0}
    assert estimated_power(eight, table, running=0, slots=0) == idle
    for unknown in ((), (*eight, Hardware(kind="abacus"))):
        assert estimated_power(unknown, table, running=1, slots=2) is None


def test_every_kind_of_hardware_has_rates() -> None:
    hardware = load_hardware()
    assert "cpu" in hardware
    assert all(
        rates.prefill_tok_s > rates.decode_tok_s > 0 for rates in hardware.values()
    )


def test_the_bundled_model_is_a_gguf_file_and_others_do_not_exist() -> None:
    assert bundled_model("tiny-fable-q8_0.gguf").read_bytes()[:4] == b"GGUF"
    for name in ("nope.gguf", "../models/tiny-fable-q8_0.gguf", ""):
        with pytest.raises(NotFound, match="tiny-fable"):
            bundled_model(name)

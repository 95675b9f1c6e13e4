"""Sites, round trips, people's hours and the fleet that is planned from them."""

from pathlib import Path

import numpy as np
import pytest

from isochrone.adapters.packaged import DATA, load_region_positions, load_spread
from isochrone.core.errors import InvalidInput
from isochrone.twin.world.demand import Demand, activity, demand_of, of_countries
from isochrone.twin.world.fleet_plan import capacity_rps
from isochrone.twin.world.round_trips import (
    FIBRE_KM_MS,
    Measured,
    Places,
    Spread,
    distances_km,
    left_out,
    measured_of,
    round_trips,
    spread_of,
)
from isochrone.twin.world.sites_table import PlacedSite, parse_sites
from isochrone.wiring.twin_places import entries_of, parse_round_trips, sites_of, ways_of
from isochrone.wiring.twin_scenario import parse_scenario
from isochrone.wiring.twin_world import twin_world

SITES = (DATA / "sites" / "fleet_1100.csv").read_text(encoding="utf-8")
HEAD = "site_id,country_iso2,lat,lon\n"


@pytest.fixture(scope="module")
def measured() -> Measured:
    text = (DATA / "network" / "azure_region_rtt.csv").read_text(encoding="utf-8")
    return measured_of(parse_round_trips(text, "azure"), load_region_positions())


@pytest.fixture(scope="module")
def spread() -> Spread:
    bands = load_spread()
    return spread_of([each[0] for each in bands], [each[1] for each in bands])


def test_the_packaged_fleet_is_1100_sites_in_31_countries() -> None:
    sites = parse_sites(SITES, "packaged")
    assert len(sites) == 1100
    assert len({site.country for site in sites}) == 31
    assert len({site.name for site in sites}) == 1100


def test_every_bad_line_of_a_table_of_sites_is_told() -> None:
    text = HEAD + "a,DE,50,8\nb,Germany,50,8\nc,DE,95,8\n,DE,50,8\na,DE,1,1\nd,DE,x,8\n"
    with pytest.raises(InvalidInput) as raised:
        parse_sites(text, "sites.csv")
    told = raised.value.problems
    assert [problem.split(":")[0] for problem in told] == [
        f"sites.csv, line {line}" for line in (3, 4, 5, 6, 7)
    ]
    assert "two capital letters" in told[0]
    assert "in line 2 already" in told[3]
    with pytest.raises(InvalidInput, match="metro_city_pop is"):
        parse_sites(HEAD.replace("\n", ",metro_city_pop\n") + "a,DE,50,8,1e308\n", "sites.csv")
    with pytest.raises(InvalidInput, match="no column lat"):
        parse_sites("site_id,country_iso2,lon\n", "sites.csv")


def test_sites_outside_of_the_fleet_are_left_out_and_namibia_is_read() -> None:
    text = "site_id,country_iso2,lat,lon,in_1100\na,NA,-22.5,17,1\nb,DE,50,8,0\n"
    assert [(site.name, site.country) for site in parse_sites(text, "x")] == [("a", "NA")]


def test_round_trips_left_out_are_found_again_within_the_stated_error(
    measured: Measured, spread: Spread
) -> None:
    """The figures of docs/twin-world.md."""
    found = left_out(measured, spread)
    alone = left_out(measured, spread, by_distance_alone=True)
    assert found.pairs == alone.pairs == 1431
    assert found.median < 0.07
    assert found.p90 < 0.21
    assert abs(found.bias) < 0.01
    assert found.median < 0.5 * alone.median


def test_measured_pairs_stand_for_places_nearby_and_nothing_outruns_light(
    measured: Measured, spread: Spread
) -> None:
    rng = np.random.default_rng(1)
    anywhere = Places(
        latitude_deg=rng.uniform(-60, 70, 40), longitude_deg=rng.uniform(-180, 180, 40)
    )
    rtt_ms = round_trips(anywhere, anywhere, measured, spread)
    km = distances_km(anywhere, anywhere)
    assert (rtt_ms >= km / FIBRE_KM_MS - 1e-9).all()
    assert (np.diag(rtt_ms) == 0).all()
    assert np.allclose(rtt_ms, rtt_ms.T)
    one, other = (measured.names.index(name) for name in ("Australia East", "West Europe"))
    pair = Places(
        latitude_deg=measured.places.latitude_deg[[one, other]] + 0.05,
        longitude_deg=measured.places.longitude_deg[[one, other]],
    )
    assert round_trips(pair, pair, measured, spread)[0, 1] == measured.rtt_ms[one, other]


def test_a_level_is_read_back_from_its_round_trip(spread: Spread) -> None:
    km = np.array([50.0, 700.0, 5_000.0, 16_000.0, 19_900.0])
    for level in (0.05, 0.3, 0.5, 0.8, 0.95):
        levels = np.full(len(km), level)
        assert spread.level(km, spread.at(km, levels)) == pytest.approx(levels, abs=1e-6)


def test_people_ask_by_day_at_their_own_place() -> None:
    def site(name: str, lon: float, metro: str, people: float) -> PlacedSite:
        return PlacedSite(
            name=name, country="DE", operator=None, latitude_deg=0.0, longitude_deg=lon,
            metro=metro, metro_people=people,
        )

    sites = (site("a", 0.0, "x", 3e6), site("b", 0.1, "x", 3e6), site("c", 150.0, "y", 1e6))
    demand = demand_of(sites)
    assert demand.share == pytest.approx([0.375, 0.375, 0.25])
    noon, night = np.full(3, 12 * 3600.0), np.full(3, 2 * 3600.0)
    places = np.arange(3)
    assert demand.activity(noon, places)[0] > 5 * demand.activity(night, places)[0]
    assert demand.activity(night, places)[2] > 0.8  # it is noon there
    assert activity(np.array([5.5 * 86_400.0]))[0] < 0.5
    assert demand_of(sites, flat=True).mean_activity() == 1.0


def test_the_default_scenario_is_a_fleet_of_all_ingresses() -> None:
    text = "length_s = 2\nwarm_s = 0\n[fleet]\n[workload]\nrate_rps = 300\n"
    world = twin_world(parse_scenario(text, source="x"))
    fleet = world.fleet
    assert fleet.problems() == []
    assert (len(fleet.ingresses), len(fleet.sites), len(fleet.replicas)) == (1100, 60, 240)
    assert sum(home >= 0 for home in fleet.home) == 60
    assert all(fleet.at[site][0] for site in range(60))
    first, again = (
        [
            (row.at_s, row.ingress, row.tenant, row.class_, row.model, row.prompt_tokens,
             row.output_tokens, row.session, row.slo_ms, row.body_bytes, tuple(row.blocks))
            for chunk in world.arrivals() for row in chunk.rows()
        ]
        for _ in range(2)
    )
    assert first == again
    assert first


def test_capacity_is_what_engines_do_with_nothing_cached() -> None:
    text = "[fleet]\nreplicas = 60\n[workload]\n"
    one = twin_world(parse_scenario(text, source="x"))
    two = twin_world(parse_scenario(text.replace("60", "120"), source="x"))
    assert two.rate_rps == pytest.approx(2 * one.rate_rps)
    assert one.rate_rps == pytest.approx(0.8 * capacity_rps(one.fleet, 13_122, 344), rel=0.2)


def test_files_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"src, dst and one of"):
        parse_round_trips("a,b\n1,2\n", "rtt.csv")
    with pytest.raises(InvalidInput, match="line 3"):
        parse_round_trips("src,dst,rtt_ms\na,b,1\na,c,-4\n", "rtt.csv")
    text = f'sites = "{tmp_path / "none.csv"}"\n[fleet]\n[workload]\n'
    with pytest.raises(InvalidInput, match="cannot be read"):
        twin_world(parse_scenario(text, source="x"))


def test_demand_by_people_is_checked_against_the_one_public_mix_of_entries() -> None:
    """What docs/twin-world.md says of both; and that a scenario can be played with either."""
    entries = entries_of("m365_entry_regions.csv")
    total = sum(entries.values())
    mix = {country: requests / total for country, requests in entries.items()}
    assert round(mix["US"], 2) == 0.80
    assert round(mix["JP"], 2) == 0.10
    assert round(mix["AU"], 2) == 0.05
    assert not {"DE", "FR", "GB", "NL", "SE", "CH"} & set(mix)
    sites = sites_of(None)
    people = demand_of(sites, flat=True)

    def by_country(demand: Demand) -> dict[str, float]:
        found: dict[str, float] = {}
        for site, share in zip(sites, demand.share.tolist(), strict=True):
            found[site.country] = found.get(site.country, 0.0) + share
        return found

    usual = by_country(people)
    assert max(usual, key=lambda country: usual[country]) == "US"
    # Half of the difference is what one would have to move to make one of the other.
    moved = sum(abs(usual.get(each, 0.0) - mix.get(each, 0.0)) for each in {*usual, *mix}) / 2
    assert 0.65 < moved < 0.70
    known = {country: share for country, share in mix.items() if country in usual}
    entered = by_country(of_countries(people, sites, known))
    for country, share in known.items():
        assert entered[country] == pytest.approx(share / sum(known.values()))
    assert {country for country, share in entered.items() if share > 0.0} == set(known)


def test_entries_can_be_read_as_published_and_all_that_is_wrong_is_told(tmp_path: Path) -> None:
    table = tmp_path / "entries.csv"
    table.write_text(
        "model_family,day_nov2024,tenant,region,env,sampled_requests\n"
        "A,5,prod-x,westus,prod,30\nA,5,prod-x,japaneast,prod,10\nA,5,sdf-x,westus,dev,99\n",
        encoding="utf-8",
    )
    assert entries_of(str(table)) == {"US": 30.0, "JP": 10.0}
    table.write_text("region,sampled_requests\nmoonbase,1\nwestus,-2\n", encoding="utf-8")
    with pytest.raises(InvalidInput) as raised:
        entries_of(str(table))
    assert ["moonbase" in raised.value.problems[0], "-2" in raised.value.problems[1]] == [True] * 2


def test_round_trips_of_which_none_can_be_placed_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "rtt.csv"
    table.write_text("src,dst,rtt_ms\nWest Europ,UK South,9\nUK Sout,West Europe,9\n")
    with pytest.raises(InvalidInput, match="unknown are UK Sout, West Europ"):
        ways_of(str(table))
    table.write_text("src,dst,rtt_ms\n")
    with pytest.raises(InvalidInput, match="has no round trip"):
        ways_of(str(table))


def test_edge_cities_are_sites_and_distances_alone_are_ways(tmp_path: Path) -> None:
    cities = (
        "colo,name,region,city,country,cca2,lat,lon\n"
        'AMS,"Amsterdam, NL",Europe,Amsterdam,Netherlands,NL,52.3,4.8\n'
        "QQQ,Nowhere,Europe,Nowhere,Netherlands,NL,,\n"
    )
    [site] = parse_sites(cities, "colos.csv")
    assert (site.name, site.country, site.metro) == ("AMS", "NL", "Amsterdam, NL")
    table = tmp_path / "km.csv"
    table.write_text(
        'bin,n,p10,p50,p90,p99,mdev_p50,km_mean,inflation_p50\n"(0, 50]",4,1,2,8,20,0,30,8\n'
        '"(900, 1100]",4,14,20,30,60,0,1000,2\n', encoding="utf-8",
    )
    measured, spread = ways_of(str(table))
    assert measured.names == ()
    assert spread.at(np.array([1000.0]), np.array([0.5]))[0] == pytest.approx(20.0)
    for good, bad in (("1000,2", "1e308,2"), ("60,0", "1e20,0"), ("60,0", "nan,0")):
        table.with_name("bad.csv").write_text(table.read_text().replace(good, bad))
        with pytest.raises(InvalidInput, match="line 3: expected km from 0 to"):
            ways_of(str(table.with_name("bad.csv")))
    table.write_bytes(b"PAR1....")
    with pytest.raises(InvalidInput, match="is Parquet"):
        ways_of(str(table))

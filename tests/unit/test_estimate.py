"""Estimates of round trips and of time in an engine, on cases worked by hand."""

import pytest

from isochrone.core.estimate.hardware import SLOW, seed_rates
from isochrone.core.estimate.round_trip import (
    ADJACENT_RTT_MS,
    DistanceRtt,
    Position,
    Region,
    RoundTripTable,
    distance_rtt_ms,
    estimate_rtt,
    great_circle_km,
    links_of_world,
)
from isochrone.core.estimate.service import (
    Rates,
    Servers,
    Work,
    decode_ms,
    opening_ms,
    prefill_ms,
    queue_ms,
)
from isochrone.core.ids import SiteName
from isochrone.core.world.site import Hardware, Link
from isochrone.core.world.world import World, WorldLink, WorldSite

SYDNEY = Position(latitude_deg=-33.86, longitude_deg=151.21)
FRANKFURT = Position(latitude_deg=50.11, longitude_deg=8.68)
OFFENBACH = Position(latitude_deg=50.10, longitude_deg=8.77)
NUUK = Position(latitude_deg=64.18, longitude_deg=-51.72)
BANDS = (DistanceRtt(km=100, rtt_ms=4.5), DistanceRtt(km=200, rtt_ms=6.5))
TABLE = RoundTripTable(
    regions=(
        Region(name="au", position=SYDNEY),
        Region(name="de", position=FRANKFURT),
    ),
    rtt_ms={("au", "de"): 291.0, ("de", "au"): 290.0},
    by_distance=BANDS,
)
RATES = Rates(prefill_tok_s=1000.0, decode_tok_s=100.0)


def test_great_circle_distance() -> None:
    assert great_circle_km(SYDNEY, FRANKFURT) == pytest.approx(16_480, rel=0.01)
    assert great_circle_km(SYDNEY, SYDNEY) == 0
    poles = [Position(latitude_deg=lat, longitude_deg=0) for lat in (90, -90)]
    assert great_circle_km(*poles) == pytest.approx(20_015, rel=0.001)


def test_a_measured_pair_is_used_near_two_regions_both_directions_averaged() -> None:
    assert estimate_rtt(SYDNEY, OFFENBACH, TABLE) == (290.5, "table")
    assert estimate_rtt(OFFENBACH, SYDNEY, TABLE) == (290.5, "table")


def test_far_from_any_region_or_within_one_distance_decides() -> None:
    assert estimate_rtt(NUUK, SYDNEY, TABLE)[1] == "distance"
    rtt_ms, source = estimate_rtt(FRANKFURT, OFFENBACH, TABLE)
    assert source == "distance"
    assert ADJACENT_RTT_MS < rtt_ms < 1


def test_distance_is_interpolated_and_continues_beyond_the_table() -> None:
    assert distance_rtt_ms(0, BANDS) == ADJACENT_RTT_MS
    assert distance_rtt_ms(50, BANDS) == 2.5
    assert distance_rtt_ms(150, BANDS) == 5.5
    assert distance_rtt_ms(400, BANDS) == 13.0


def _world(*, emulate: bool) -> World:
    def site(name: str, place: Position) -> WorldSite:
        return WorldSite(
            name=SiteName(name), country=None, operator=None, parent=None,
            latitude_deg=place.latitude_deg, longitude_deg=place.longitude_deg,
            hardware=(), deployments=(),
        )

    return World(
        emulate_distance=emulate,
        models=(),
        sites=(site("a", SYDNEY), site("b", FRANKFURT), site("c", OFFENBACH)),
        links=(WorldLink(between=(SiteName("c"), SiteName("b")), rtt_ms=7.0),),
    )


def test_stated_links_win_and_missing_ones_are_filled_in_both_directions() -> None:
    links = {each.site: each.links for each in links_of_world(_world(emulate=False), TABLE)}
    assert links[SiteName("b")] == (
        Link(peer=SiteName("a"), rtt_ms=290.5, source="table"),
        Link(peer=SiteName("c"), rtt_ms=7.0, source="stated"),
    )
    assert links[SiteName("c")][1] == Link(peer=SiteName("b"), rtt_ms=7.0, source="stated")


def test_emulated_distance_is_called_so_everywhere() -> None:
    links = [link for each in links_of_world(_world(emulate=True), TABLE) for link in each.links]
    assert len(links) == 6
    assert {link.source for link in links} == {"emulated"}


def test_prefill_and_decode() -> None:
    assert prefill_ms(250, RATES) == 250.0
    assert decode_ms(250, RATES) == 2500.0


@pytest.mark.parametrize(
    ("ready", "slots", "ahead", "expected_ms"),
    [
        (1, 4, Work(), 0.0),
        (1, 1, Work(), 0.0),
        # Prompts ahead are read first, spread over the replicas.
        (1, 4, Work(requests=1, prompt_tokens=500), 500.0),
        (2, 8, Work(requests=1, prompt_tokens=500), 250.0),
        # A free slot: what others still write does not keep a newcomer waiting.
        (1, 4, Work(requests=3, output_tokens=900), 0.0),
        # All four slots taken: one of four has to end, a quarter of 400 / (4 * 100) s.
        (1, 4, Work(requests=4, output_tokens=400), 250.0),
        # Four taken and four waiting: five of eight have to end.
        (1, 4, Work(requests=8, output_tokens=800), 1250.0),
        # One slot: everything ahead has to end.
        (1, 1, Work(requests=2, output_tokens=100), 1000.0),
    ],
)
def test_queue_drain(ready: int, slots: int, ahead: Work, expected_ms: float) -> None:
    assert queue_ms(Servers(ready=ready, slots=slots, rates=RATES), ahead) == expected_ms


@pytest.mark.parametrize(
    ("openings", "soonest_ms", "sent", "expected_ms"),
    [
        # Three replicas, one of which reads 3,000 tokens: the others take a newcomer at once.
        (2, 0, 0, 0.0),
        (2, 0, 1, 0.0),
        # Two came since: one of them has to be read before a newcomer, spread over the replicas.
        (2, 0, 2, 200 * (1 / 2) / 3),
        (0, 400, 0, 400.0),
        (0, 400, 2, 400.0 + 200 / 3),
    ],
)
def test_a_newcomer_waits_for_the_replica_that_is_soonest_done(
    openings: int, soonest_ms: int, sent: int, expected_ms: float
) -> None:
    servers = Servers(ready=3, slots=12, rates=Rates(prefill_tok_s=1000, decode_tok_s=100))
    ahead = Work(requests=3 + sent, prompt_tokens=3000 + 100 * sent, output_tokens=90)
    found = opening_ms(servers, ahead, openings, soonest_ms, sent, 100 * sent)
    assert found == pytest.approx(expected_ms)
    # Without a free slot it waits for one besides.
    full = Servers(ready=3, slots=3, rates=servers.rates)
    wait_ms = 1000 * 90 / (3 * 100) * (1 + sent) / (3 + sent)
    assert opening_ms(full, ahead, openings, soonest_ms, sent, 100 * sent) == pytest.approx(
        expected_ms + wait_ms
    )


def test_seeds_take_the_slowest_stated_kind() -> None:
    fast = Rates(prefill_tok_s=20_000, decode_tok_s=120)
    table = {"fast": fast, "slow": RATES}
    assert seed_rates((Hardware(kind="fast"),), table) == fast
    assert seed_rates((Hardware(kind="fast"), Hardware(kind="slow")), table) == RATES
    assert seed_rates((Hardware(kind="unheard"),), table) == SLOW
    assert seed_rates((), table) == SLOW

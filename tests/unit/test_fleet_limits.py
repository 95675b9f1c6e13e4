"""Limits over sites in a simulated fleet: a budget of ten at eight gateways with control away, who
decides about a limit, and the worked example of docs/limits.md."""

from dataclasses import replace

import pytest

from isochrone.core.billing.period import month_of
from isochrone.core.ids import LimitId, SiteName
from isochrone.core.limits.terms import (
    BOOTSTRAP_PART,
    HOUR_NS,
    bootstrap_of,
    custodians_of,
    mark_of,
    most_headroom,
    most_overspent,
)
from isochrone.core.money import PICO
from isochrone.core.rng import stream
from tests.fixtures.limited_fleet import SECOND_NS, SITES, WALL, LimitedFleet, a_limit

CENT = PICO // 100
TEN = 10 * PICO


def play(
    fleet: LimitedFleet, *, streams: int, seconds: int, longest_ms: int = 4_000, over: int = 0
) -> None:
    """Clients keep `streams` requests open or waiting, of a cent each at most and `over` hundredths
    of it beyond; one that is refused comes again two seconds later, as it is told to."""
    rng = stream(fleet.seed, "clients")
    pausing = 0
    refused = len(fleet.refusals)
    back: list[int] = []
    for _ in range(seconds * 10):
        back = [each for each in back if each > fleet.now_ns]
        pausing = len(back)
        for _ in range(streams - fleet.open_requests() - pausing):
            uses = CENT * rng.randint(30, 100 + over) // 100
            fleet.request(rng.choice(SITES), CENT, uses, rng.randint(200, longest_ms))
        fleet.pass_ms(100)
        back += [fleet.now_ns + 2 * SECOND_NS] * (len(fleet.refusals) - refused)
        refused = len(fleet.refusals)


@pytest.mark.parametrize(
    ("loss", "doubled", "delay_ms"), [(0, 0, 40), (10, 20, 150)], ids=["fair", "foul"]
)
def test_ten_dollars_at_eight_gateways_are_neither_overspent_nor_left(
    loss: int, doubled: int, delay_ms: int
) -> None:
    """Control is not there: nothing here asks it."""
    fleet = LimitedFleet(a_limit("budget", TEN), 7, loss=loss, doubled=doubled, delay_ms=delay_ms)

    play(fleet, streams=200, seconds=60, over=20)

    assert fleet.error > 0
    assert fleet.spent() <= TEN + most_overspent(TEN, len(SITES)) + fleet.error
    assert fleet.spent() + fleet.held() > TEN - CENT, "what was left was refused"
    assert len(fleet.refusals) > 100
    # Less is left than is wanted, but for what was given back a moment ago.
    assert all(each.left < each.wanted + 5 * CENT for each in fleet.refusals)


def test_a_budget_that_suffices_refuses_nobody() -> None:
    fleet = LimitedFleet(a_limit("budget", TEN), 8)

    play(fleet, streams=200, seconds=8)

    assert fleet.spent() + fleet.held() < TEN
    assert not fleet.refusals


def test_the_home_and_another_gateway_die_and_the_rest_is_spent() -> None:
    """What the dead had been granted counts as used, so that much may be left."""
    fleet = LimitedFleet(a_limit("budget", TEN), 9)
    home, *successors = custodians_of(LimitId("limit"), SITES)
    other = next(site for site in SITES if site not in (home, *successors))
    play(fleet, streams=200, seconds=5)
    lost = 0
    for dead in (home, other):
        limits = fleet.places[dead].limits
        assert limits is not None
        lost += sum(part.granted - part.used(0) for part in limits.parts().values())
        fleet.crash(dead)

    play(fleet, streams=200, seconds=60)

    assert fleet.spent() <= TEN + most_overspent(TEN, len(SITES)) + fleet.error
    assert fleet.spent() + fleet.held() > TEN - CENT - lost - 2 * bootstrap_of(TEN, len(SITES))


def test_a_small_limit_lives_at_its_home() -> None:
    """Ten requests a minute: whoever comes first has them, wherever."""
    fleet = LimitedFleet(a_limit("requests_per_min", 10), 3)
    assert most_headroom(10, len(SITES)) == bootstrap_of(10, len(SITES)) == 0

    for number in range(14):
        fleet.request(SITES[number % len(SITES)], 1, 1, 10)
        fleet.pass_ms(700)

    assert len(fleet.admitted) == 10
    assert len(fleet.refusals) == 4
    fleet.pass_ms(70_000)
    fleet.request(SITES[3], 1, 1, 10)
    fleet.pass_ms(2_000)
    assert len(fleet.admitted) == 11


def test_a_gateway_that_reaches_nobody_has_its_bootstrap_and_no_more() -> None:
    fleet = LimitedFleet(a_limit("tokens_per_min", 16_000), 3)
    alone = next(s for s in SITES if s not in custodians_of(LimitId("limit"), SITES))
    fleet.cut.add(alone)

    for _ in range(20):
        fleet.request(alone, 10, 10, 10)
        fleet.pass_ms(4_000 // 20)

    assert fleet.spent() == bootstrap_of(16_000, len(SITES)) == 100


def test_a_lower_amount_holds_within_a_term() -> None:
    fleet = LimitedFleet(a_limit("requests_per_min", 10_000), 3)
    for _ in range(200):
        fleet.request(SITES[0], 1, 1, 10)
        fleet.pass_ms(10)
    lower = a_limit("requests_per_min", 50)
    fleet.limit = lower
    for site in SITES:
        fleet.tell(site, lower)
    fleet.pass_ms(8_000)

    before = len(fleet.admitted)
    fleet.request(SITES[0], 1, 1, 10)
    fleet.request(SITES[1], 1, 1, 10)
    fleet.pass_ms(4_000)
    assert len(fleet.admitted) == before


def test_a_new_month_begins_without_control() -> None:
    wall = month_of(WALL).end - 20 * SECOND_NS
    fleet = LimitedFleet(a_limit("budget", 3 * CENT, created_at=wall), 3, wall=wall)
    for _ in range(4):
        fleet.request(SITES[0], CENT, CENT, 10)
        fleet.pass_ms(1_000)
    assert len(fleet.admitted) == 3

    fleet.pass_ms(17_000)
    fleet.request(SITES[1], CENT, CENT, 10)
    fleet.pass_ms(3_000)
    assert len(fleet.admitted) == 4


def test_what_was_spent_before_it_was_set_counts() -> None:
    limit = a_limit("budget", 3 * CENT)
    hour = WALL - WALL % (3_600 * SECOND_NS)
    assert mark_of(limit, 5) == (5, 0)
    fleet = LimitedFleet(limit.__class__(**{
        **{name: getattr(limit, name) for name in limit.__slots__},
        "spent_before": hour, "spent_pico": 2 * CENT,
    }), 3)

    for _ in range(2):
        fleet.request(SITES[0], CENT, CENT, 10)
        fleet.pass_ms(1_000)

    assert len(fleet.admitted) == 1


def test_most_homes_stay_when_a_site_comes() -> None:
    ids = [LimitId(f"limit {number}") for number in range(400)]
    more = (*SITES, SiteName("zurich"))
    moved = sum(custodians_of(id_, SITES)[0] != custodians_of(id_, more)[0] for id_ in ids)
    homes = {custodians_of(id_, SITES)[0] for id_ in ids}

    assert homes == set(SITES)
    assert 400 // 18 < moved < 400 // 4
    assert len(custodians_of(ids[0], SITES[:2])) == 1
    assert len(set(custodians_of(ids[0], SITES))) == 3


def test_worked_example() -> None:
    """Of docs/limits.md: a budget of 10 at eight gateways."""
    assert bootstrap_of(TEN, 8) == 625 * PICO // 10_000       # 0.0625
    assert most_overspent(TEN, 8) == PICO // 2                # 0.50
    assert most_overspent(TEN, 8) * BOOTSTRAP_PART == TEN
    assert most_headroom(TEN, 8) == 3_125 * PICO // 10_000    # 0.3125


def test_what_a_site_could_not_tell_the_book_counts_until_it_could() -> None:
    """Its bus is away, its peers are not. Each hour that the book had summed without it was free
    again, for all."""
    limit = replace(a_limit("budget", 1_000), period="day")
    fleet = LimitedFleet(limit, 3, SITES[:4])
    away = next(
        site for site in fleet.sites if site not in custodians_of(limit.id, fleet.sites)
    )
    limits = fleet.places[away].limits
    assert limits is not None
    limits.told_before = fleet.wall
    hour = fleet.wall - fleet.wall % HOUR_NS

    def pass_to(at: int, site: SiteName) -> None:
        """Until the wall instant, with a request every ten minutes."""
        while fleet.wall + fleet.now_ns < at:
            fleet.request(site, 100, 100, 10)
            fleet.pass_ms(min(600_000, (at - fleet.wall - fleet.now_ns) // 1_000_000))

    def sum_up(number: int, spent: int) -> None:
        """What is booked of the hours before, told to all whom control reaches."""
        fleet.limit = replace(limit, spent_before=hour + number * HOUR_NS, spent_pico=spent)
        for site in fleet.sites:
            if site != away or spent:
                fleet.tell(site, fleet.limit)

    for number in range(1, 5):
        pass_to(hour + number * HOUR_NS + 301 * SECOND_NS, away)
        sum_up(number, 0)
    pass_to(hour + 4 * HOUR_NS + 400 * SECOND_NS, SITES[1])
    assert fleet.spent() == 1_000

    limits.told_before = hour + 5 * HOUR_NS  # it could, and it is booked
    pass_to(hour + 5 * HOUR_NS + 301 * SECOND_NS, SITES[1])
    sum_up(5, 1_000)
    pass_to(hour + 6 * HOUR_NS, away)
    assert fleet.spent() == 1_000
    part = limits.parts()[limit.id]
    assert part.used(fleet.places[away].clock_ns(fleet.now_ns)) == 0, "the book has it"

    fleet.wall += (24 - WALL // HOUR_NS % 24) * HOUR_NS
    fleet.pass_ms(15_000)
    fleet.request(away, 1_000, 1_000, 10)
    fleet.pass_ms(4_000)
    assert fleet.spent() == 2_000, "another day"

"""Limits over sites as sites leave, hours pass, and after the last request: what ends and what does
not."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from isochrone.core.ids import LimitId, SiteName
from isochrone.core.limits.fleet_limits import FleetLimits
from isochrone.core.limits.messages import LimitLetter, Message
from isochrone.core.limits.terms import AMNESIA_NS, DAY_NS, HOUR_NS, custodians_of, most_overspent
from isochrone.core.world.limit import LimitKind
from tests.fixtures.limited_fleet import MS, SECOND_NS, SITES, WALL, LimitedFleet, a_limit

ID = LimitId("limit")


def leave(fleet: LimitedFleet, *gone: str) -> None:
    """These sites are no more, and every view says so."""
    for each in gone:
        fleet.crash(each)
    fleet.sites = tuple(site for site in fleet.sites if site not in gone)
    for site in fleet.sites:
        fleet.tell(site, fleet.limit)


@pytest.mark.parametrize("remaining", [2, 1])
def test_the_home_goes_on_alone_when_its_successors_leave(remaining: int) -> None:
    fleet = LimitedFleet(a_limit("requests_per_min", 10), 3, SITES[:3])
    home, *successors = custodians_of(ID, fleet.sites)
    for _ in range(4):
        fleet.request(home, 1, 1, 10)
    fleet.pass_ms(3_000)
    assert len(fleet.admitted) == 4

    leave(fleet, *successors[remaining - 1 :])
    assert len(fleet.sites) == remaining
    for number in range(10):
        fleet.request(fleet.sites[number % remaining], 1, 1, 10)
        fleet.pass_ms(500)

    assert len(fleet.admitted) == 10, "what was granted before counts, and nothing else does"
    fleet.pass_ms(70_000)
    fleet.request(fleet.sites[0], 1, 1, 10)
    fleet.pass_ms(4_000)
    assert len(fleet.admitted) == 11


def test_one_that_did_not_decide_waits_before_it_decides_alone() -> None:
    """It may never have been told of the last grants."""
    fleet = LimitedFleet(a_limit("requests_per_min", 10), 3, SITES[:3])
    home, heir, last = custodians_of(ID, fleet.sites)
    fleet.severed.add(frozenset((home, heir)))
    for _ in range(10):
        fleet.request(home, 1, 1, 10)
    fleet.pass_ms(1_000)
    assert len(fleet.admitted) == 10

    leave(fleet, home)
    alone = custodians_of(ID, fleet.sites)[0]
    for _ in range(14):
        fleet.request(alone, 1, 1, 10)
        fleet.pass_ms(3_900)
        assert fleet.admitted_within(54 * SECOND_NS) <= 10
    fleet.pass_ms(AMNESIA_NS // MS)
    for _ in range(12):
        fleet.request(last, 1, 1, 10)
        fleet.pass_ms(500)
    assert len(fleet.admitted) == 20


def hour_is_summed(fleet: LimitedFleet, spent: int, *, but_at: Iterable[str] = ()) -> None:
    """Five minutes after the end of the hour the views say what was spent before it."""
    end = fleet.limit.spent_before + HOUR_NS if fleet.limit.spent_before else next_hour(WALL)
    pass_until(fleet, end + 301 * SECOND_NS)
    fleet.limit = replace(fleet.limit, spent_before=end, spent_pico=spent)
    for site in fleet.sites:
        if site not in but_at:
            fleet.tell(site, fleet.limit)


def next_hour(at: int) -> int:
    return at - at % HOUR_NS + HOUR_NS


def pass_until(fleet: LimitedFleet, at: int) -> None:
    fleet.pass_ms((at - fleet.wall - fleet.now_ns) // MS)


def test_a_request_that_ends_after_its_hour_was_summed_counts() -> None:
    fleet = LimitedFleet(a_limit("budget", 1_000), 3, SITES[:4])
    pass_until(fleet, next_hour(WALL) - 10 * SECOND_NS)
    fleet.request(SITES[0], 1_000, 1_000, 580_000)

    hour_is_summed(fleet, 0)  # it still runs
    fleet.pass_ms(280_000)
    assert fleet.spent() == 1_000
    for site in fleet.sites:
        fleet.request(site, 250, 250, 10)
        fleet.pass_ms(4_000)
    assert fleet.spent() == 1_000

    hour_is_summed(fleet, 1_000)
    fleet.pass_ms(10_000)
    counted = [
        part.used(place.clock_ns(fleet.now_ns))
        for place in fleet.places.values() if place.limits
        for part in place.limits.parts().values()
    ]
    assert counted == [0] * 4, "the book has it now"


def test_a_home_whose_view_is_older_goes_on_granting() -> None:
    fleet = LimitedFleet(a_limit("budget", 1_000), 3, SITES[:4])
    custodians = custodians_of(ID, fleet.sites)
    other = next(site for site in fleet.sites if site not in custodians)
    fleet.request(other, 400, 400, 10)
    fleet.pass_ms(5_000)
    hour_is_summed(fleet, 400, but_at=custodians[:1])

    for _ in range(62):
        fleet.request(other, 10, 10, 10)
        fleet.pass_ms(10_000)
    assert fleet.spent() == 1_000
    assert len(fleet.refusals) == 2

    fleet.tell(custodians[0], fleet.limit)
    fleet.pass_ms(20_000)
    fleet.request(other, 10, 10, 10)
    fleet.pass_ms(5_000)
    assert fleet.spent() == 1_000


class Ahead:
    """The limits of a gateway whose wall clock is ahead."""

    def __init__(self, inner: FleetLimits, ahead_ns: int) -> None:
        self._inner = inner
        self._ahead_ns = ahead_ns

    def tick(self, now_ns: int, now: int) -> list[LimitLetter]:
        return self._inner.tick(now_ns, now + self._ahead_ns)

    def hear(
        self, sender: SiteName, message: Message, now_ns: int, now: int
    ) -> list[LimitLetter]:
        return self._inner.hear(sender, message, now_ns, now + self._ahead_ns)


def test_a_home_whose_clock_is_ahead_grants_a_day_once() -> None:
    midnight = WALL - WALL % DAY_NS + DAY_NS
    wall = midnight - 100 * SECOND_NS
    limit = replace(a_limit("budget", 1_000, created_at=wall - HOUR_NS), period="day")
    fleet = LimitedFleet(limit, 3, SITES[:4], wall=wall)
    custodians = custodians_of(ID, fleet.sites)
    home = fleet.places[custodians[0]]
    fleet.pass_ms(74_900)  # until everybody remembers
    assert home.limits is not None
    home.limits = Ahead(home.limits, 10 * SECOND_NS)  # type: ignore[assignment]
    other = next(site for site in fleet.sites if site not in custodians)

    spent: list[int] = []
    while fleet.wall + fleet.now_ns < midnight + 30 * SECOND_NS:
        fleet.request(other, 50, 50, 200)
        fleet.pass_ms(100)
        if len(spent) == 0 and fleet.wall + fleet.now_ns >= midnight:
            spent.append(fleet.spent() + fleet.held())

    assert spent[0] > 1_000, "the new day has begun for the home"
    assert fleet.spent() + fleet.held() <= 2 * (1_000 + most_overspent(1_000, 4))


@pytest.mark.parametrize("loss", [0, 10])
@pytest.mark.parametrize("kind", ["requests_per_min", "tokens_per_min", "concurrent"])
def test_letters_end_after_the_last_request(kind: LimitKind, loss: int) -> None:
    fleet = LimitedFleet(a_limit(kind, 40), 3, SITES[:4], loss=loss)
    for site in fleet.sites:
        fleet.request(site, 3, 3, 10)
    fleet.pass_ms(100_000)
    assert fleet.admitted

    before = fleet.letters
    fleet.pass_ms(600_000)
    assert fleet.letters == before
    for place in fleet.places.values():
        assert place.limits is not None
        for keeper in place.limits.keepers().values():
            if keeper.leads:
                assert keeper.left() == 40, "nothing is kept for anybody"


def test_letters_about_a_budget_that_is_not_used_are_few() -> None:
    fleet = LimitedFleet(a_limit("budget", 40), 3, SITES[:4])
    fleet.request(SITES[0], 3, 3, 10)
    fleet.pass_ms(20_000)

    before = fleet.letters
    fleet.pass_ms(600_000)
    assert fleet.letters - before <= 6 * 600 // 20, "an ask each 20 s, with what it causes"

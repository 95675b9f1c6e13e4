"""Limits over sites as sites leave, hours pass, and after the last request: what ends and what does
not."""

import pytest

from isochrone.core.ids import LimitId
from isochrone.core.limits.terms import AMNESIA_NS, custodians_of
from tests.fixtures.limited_fleet import MS, SECOND_NS, SITES, LimitedFleet, a_limit

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

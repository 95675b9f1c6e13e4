"""Sites that take nothing of a class: who else is chosen, and what is said where nobody is left."""

from isochrone.core.ids import ModelName, SiteName
from isochrone.core.routing.choice import Refused
from isochrone.core.routing.loads import Loads
from isochrone.core.routing.table import RoutingTable
from isochrone.core.world.site_policy import ClassRule, SitePolicy
from isochrone.gateway.deployed import Deployed, closed_sites
from tests.builders import a_choice, a_digest, a_load, a_site, a_table, a_view

NAMES = ("near", "mid", "far")


def _heard() -> tuple[RoutingTable, Loads]:
    """Of three sites, each farther than the one before, after a digest of each at 0."""
    view = a_view(
        [a_site("own"), *map(a_site, NAMES)], own_site="own", serving=NAMES,
        rtt_ms={"near": 10.0, "mid": 30.0, "far": 300.0},
    )
    loads = Loads()
    for name in NAMES:
        loads.heard(a_digest(name, a_load()), 0)
    return a_table(view), loads


def test_who_takes_nothing_of_the_class_is_left_out_while_another_is_left() -> None:
    table, loads = _heard()
    shut = tuple(
        Refused(site=SiteName(name), rule="saturated", detail="class_closed: batch is not taken")
        for name in NAMES
    )
    choice = a_choice(table, loads, class_="batch", closed=shut[:2])
    assert (choice.site, choice.eligible, choice.refused) == ("far", 1, shut[:2])
    # Where all are closed the nearest says so, and then nobody else has to.
    choice = a_choice(table, loads, class_="batch", closed=shut)
    assert (choice.site, choice.eligible, choice.refused) == ("near", 3, ())
    for full in shut:  # one says that it is closed, or one that is open that it is full
        choice = a_choice(table, loads, class_="batch", closed=shut, tried=(full,))
        assert (choice.site, choice.eligible) == (None, 0)
    lost = Refused(site=SiteName("far"), rule="unreachable", detail="lost")
    choice = a_choice(table, loads, class_="batch", closed=shut[:2], tried=(lost,))
    assert choice.site == "near"


def test_who_falls_silent_is_no_longer_one_who_takes_nothing_of_the_class() -> None:
    table, loads = _heard()
    closed = tuple(
        Refused(site=SiteName(name), rule="saturated", detail="class_closed") for name in NAMES[:2]
    )

    def rules(now_ns: int) -> tuple[str | None, dict[str, str]]:
        choice = a_choice(table, loads, class_="batch", closed=closed, now_ns=now_ns)
        return choice.site, {each.site: each.rule for each in choice.refused}

    assert rules(0) == ("far", {"near": "saturated", "mid": "saturated"})
    for name in ("mid", "far"):
        loads.heard(a_digest(name, a_load(), sequence=2), 6_000_000_000)
    assert rules(6_000_000_000) == ("far", {"near": "digest_stale", "mid": "saturated"})
    loads.lost(SiteName("far"), 6_000_000_000)
    # Who is left takes nothing of the class, and may say so himself.
    assert rules(6_000_000_000) == ("mid", {"near": "digest_stale", "far": "unreachable"})


def test_a_class_is_closed_where_its_ceiling_is_nothing() -> None:
    shut = SitePolicy(batch=ClassRule(ceiling=0.0))
    found = closed_sites([
        Deployed(site="near", model="tiny", admission=shut),
        Deployed(site="near", model="big", admission=SitePolicy()),
        Deployed(site="mid", model="tiny"),
        Deployed(site="far", model="tiny", admission=shut),
    ])
    assert [*found] == [("batch", ModelName("tiny"))]
    (sites,) = found.values()
    assert [each.site for each in sites] == ["near", "far"]

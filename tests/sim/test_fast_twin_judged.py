"""Gear 1 before the judges of gear 2: our policy on an event heap, under failures."""

from dataclasses import replace

import pytest

from isochrone.twin.checks.fast import Recorder
from isochrone.twin.checks.judge import judge
from isochrone.twin.fast.ours import Ours
from isochrone.twin.fast.plan import Chance, Outage, Plan
from isochrone.twin.fast.simulation import run
from tests.fixtures.small_fleet import a_fleet, a_tenant, some_arrivals

HARSH = Plan(
    outages=(
        Outage(what="site", number=0, from_s=3.0, until_s=8.0),
        Outage(what="link", number=2, ingress=3, from_s=4.0, until_s=10.0),
    ),
    chances=(Chance(what="replica", between_s=15.0, repair_s=3.0),),
)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_fleet_that_fails_is_found_right(seed: int) -> None:
    fleet = a_fleet(tenants=(a_tenant("free"), a_tenant("german", ("DE",)),
                             a_tenant("european", ("EU",))))
    watched = Recorder(Ours(), fleet)
    arrivals = some_arrivals(fleet, rate_s=60, seconds=15, seed=seed)
    found = run(fleet, arrivals, watched, replace(HARSH, seed=seed))
    record = watched.record(refused=found.refused)
    assert judge(record) == []
    assert len(record.asked) == found.requests > 100
    assert sum(one.whole for one in record.asked) == found.answered
    # The judges look: one work elsewhere, and one answer forgotten, are found.
    german = next(one for one in record.asked if one.key_id == "german" and one.whole)
    wrong = tuple(
        replace(work, country="US") if work.reference == german.reference else work
        for work in record.worked or ()
    )
    assert any("residency" in each for each in judge(replace(record, worked=wrong)))
    assert judge(watched.record(refused=found.refused - 1)) != []

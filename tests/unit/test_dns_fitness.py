"""Who is fit to get clients: digests that come, stop, or cannot come, and probes."""

import pytest

from isochrone.core.ids import SiteName
from isochrone.core.steering.fitness import Fitness
from isochrone.core.steering.reach import Reach
from tests.builders import SECOND_NS, a_digest

SYDNEY, OSLO, PARIS = SiteName("sydney"), SiteName("oslo"), SiteName("paris")
REPORTING = frozenset((SYDNEY, OSLO))


@pytest.fixture
def fitness() -> Fitness:
    return Fitness(5.0, 0)


def out(fitness: Fitness, now_s: float, **reaches: bool) -> dict[str, str]:
    found = fitness.unfit(
        REPORTING, {SiteName(name): Reach(answers=answers) for name, answers in reaches.items()},
        int(now_s * SECOND_NS),
    )
    return {site: unfit.rule for site, unfit in found.items()}


def test_a_site_with_engines_owes_digests_and_one_without_does_not(fitness: Fitness) -> None:
    assert out(fitness, 5.0) == {}, "there was no time yet"
    fitness.loads.heard(a_digest("sydney"), 4 * SECOND_NS)
    assert out(fitness, 5.1) == {"oslo": "digest_stale"}
    assert out(fitness, 9.1) == {"oslo": "digest_stale", "sydney": "digest_stale"}
    fitness.loads.heard(a_digest("oslo"), 9 * SECOND_NS)
    assert out(fitness, 9.2) == {"sydney": "digest_stale"}


def test_while_the_bus_is_away_nobody_grows_stale(fitness: Fitness) -> None:
    fitness.loads.heard(a_digest("sydney"), 1 * SECOND_NS)
    fitness.deaf(2 * SECOND_NS)
    assert out(fitness, 1000.0) == {}
    fitness.hearing(1001 * SECOND_NS)
    assert out(fitness, 1004.0) == {}, "they may take their time to be heard again"
    assert out(fitness, 1006.5) == {"oslo": "digest_stale", "sydney": "digest_stale"}


def test_a_site_that_was_out_stays_out_while_the_bus_is_away(fitness: Fitness) -> None:
    fitness.loads.heard(a_digest("sydney"), 1 * SECOND_NS)
    fitness.loads.heard(a_digest("oslo"), 8 * SECOND_NS)
    assert out(fitness, 8.5) == {"sydney": "digest_stale"}
    fitness.deaf(9 * SECOND_NS)
    assert out(fitness, 100.0) == {"sydney": "digest_stale"}


def test_a_gateway_that_does_not_answer_is_out_whatever_its_agent_says(fitness: Fitness) -> None:
    for name in REPORTING:
        fitness.loads.heard(a_digest(name), SECOND_NS)
    assert out(fitness, 2.0, sydney=False, oslo=True, paris=True) == {"sydney": "unreachable"}
    assert out(fitness, 2.0, sydney=True, oslo=True, paris=False) == {"paris": "unreachable"}
    assert out(fitness, 2.0, sydney=False, oslo=False, paris=False) == {}, "we are cut off"
    assert out(fitness, 2.0, sydney=False, oslo=False) == {
        "sydney": "unreachable", "oslo": "unreachable"
    }, "of two, both may be dead"

"""Entitlements in the file of a gateway that runs alone."""

import pytest

from isochrone.core.ids import SiteName
from isochrone.core.world.entitlement import Entitlement, Slice, Voters
from isochrone.wire import subjects
from isochrone.wiring.alone_entries import told_by
from tests.fixtures.alone_files import SMALL
from tests.unit.test_alone_file import PEER, parse, problems

GOLD = SMALL.replace('name = "here"', 'name = "here"\ncountry = "DE"').replace(
    "[[key]]", '[[key]]\nclasses = ["reserved"]'
) + """
[[entitlement]]
name = "gold"
tok_s = 500
residency = ["EU"]
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOLD.replace("500", "0"), 'entitlement "gold": tok_s is 0; expected a whole number'),
        (GOLD.replace('"EU"', '"EUR"'), "residency: 'EUR' is neither"),
        (GOLD + 'model = "big"', 'entitlement "gold": model names "big", which is not described'),
        (GOLD + "until = 2027-01-01", "until is 2027-01-01; expected a date and time with its"),
        (
            GOLD + "from = 2027-01-01T00:00:00Z\nuntil = 2026-01-01T00:00:00Z",
            "until is not after from",
        ),
        (GOLD + 'clas = "reserved"', 'unknown key "clas"'),
        (
            GOLD + 'organisation = "acme"',
            'entitlement of acme: no [[key]] of it has the class "reserved"',
        ),
        (GOLD.replace('"DE"', '"US"'), 'no site that its residency allows serves "tiny"'),
    ],
)
def test_a_problem_says_where_and_what(text: str, said: str) -> None:
    found = problems(text)
    assert any(said in problem for problem in found), found


def sold_by(text: str, **worker: int) -> list[Entitlement]:
    view = told_by(parse(text), PEER, **worker).view
    return [each for each in view.values() if isinstance(each, Entitlement)]


def test_what_is_sold_is_at_home_here() -> None:
    (gold,) = sold_by(GOLD + 'project = "default"\nuntil = 2030-01-01T01:00:00+01:00')
    assert (gold.org_id, gold.project_id, gold.model) == ("default", "default", "tiny")
    assert (gold.class_, gold.tok_s, gold.residency) == ("reserved", 500, ("EU",))
    assert gold.slices == (Slice(site=SiteName("here"), tok_s=500),)
    assert (gold.starts_at, gold.ends_at) == (0, 1_893_456_000 * 10**9)
    view = told_by(parse(GOLD), PEER).view
    assert view[subjects.VOTERS_KEY] == Voters(sites=(SiteName("here"),))
    assert subjects.VOTERS_KEY not in told_by(parse(SMALL), PEER).view


def test_workers_part_what_is_sold() -> None:
    parts = [sold_by(GOLD, worker=worker, workers=3) for worker in range(3)]
    assert [part[0].tok_s for part in parts] == [167, 167, 166]
    assert sold_by(GOLD.replace("500", "1"), worker=1, workers=2) == []


def test_a_changed_entitlement_is_another_one() -> None:
    (gold,), (more,) = sold_by(GOLD), sold_by(GOLD.replace("500", "600"))
    assert gold.id != more.id
    assert sold_by(GOLD) == [gold]

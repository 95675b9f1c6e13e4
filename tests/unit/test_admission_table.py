"""How a site shares its slots, as a file says it; and whether the slots are stated at all."""

from dataclasses import replace
from pathlib import Path

import pytest

from isochrone.core.errors import InvalidInput
from isochrone.core.world.model import Deployment
from isochrone.core.world.site_policy import SitePolicy
from isochrone.wire import subjects
from isochrone.wiring.alone_entries import told_by
from isochrone.wiring.alone_file import AloneFile, parse_alone
from tests.fixtures.alone_files import SMALL

PEER = "ab" * 32
ADMISSION = """
[site.admission]
reclaim_ms = 8000
[site.admission.reserved]
floor = 0.25
[site.admission.batch]
ceiling = 0.5
queue_most = 100
wait_ms = 60000
"""


def parse(text: str) -> AloneFile:
    return parse_alone(text, source="gateway.toml", path=Path("/etc/isochrone/gateway.toml"))


def test_how_a_site_shares_its_slots() -> None:
    file = parse(SMALL.replace("[[key]]", f"{ADMISSION}[[key]]"))
    (site,) = file.sites
    usual = SitePolicy()
    assert site.admission == replace(
        usual, reclaim_ms=8000.0, reserved=replace(usual.reserved, floor=0.25),
        batch=replace(usual.batch, ceiling=0.5, queue_most=100, wait_ms=60_000.0),
    )
    view = told_by(file, PEER).view
    told = view[subjects.deployment_key("here", "tiny")]
    assert isinstance(told, Deployment)
    assert told.admission == site.admission


def test_slots_are_stated_or_a_guess() -> None:
    stated = SMALL.replace('/v1"', '/v1"\nslots = 16')
    for text, is_stated in ((SMALL, False), (stated, True)):
        (replica,) = told_by(parse(text), PEER).replicas.values()
        assert (replica.slots, replica.slots_stated) == (16, is_stated)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("floor = 0.25", "floor = 1.5", "floor is 1.5; expected a number from 0 to 1"),
        ("floor = 0.25", "floor = 0.97", "the floors are 0.97 together; at most 0.95 can be kept"),
        ("ceiling = 0.5", "floor = 0.6\nceiling = 0.5",
         "batch: expected 0 <= floor <= ceiling <= 1, not floor 0.6 and ceiling 0.5"),
        ("reclaim_ms", "reclaim_s",
         'unknown key "reclaim_s"; did you mean "reclaim_ms"?'),
        ("[site.admission.batch]", "[site.admission.bulk]", 'unknown key "bulk"'),
        ("queue_most = 100", "queue_most = -1", "queue_most is -1; expected a whole number from 0"),
    ],
)
def test_bad_sharing(old: str, new: str, expected: str) -> None:
    text = SMALL.replace("[[key]]", f"{ADMISSION}[[key]]").replace(old, new)
    with pytest.raises(InvalidInput) as caught:
        parse(text)
    found = [each for each in caught.value.problems if expected in each]
    assert found, caught.value.problems
    assert 'site "here", admission' in found[0]

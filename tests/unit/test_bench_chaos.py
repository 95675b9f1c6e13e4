"""What the measurement of the swarm breaks is still there to be broken."""

import pytest
from benchmarks.chaos.run import BREAKAGES, Breakage
from benchmarks.gateway.machine import ROOT


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda each: each.name)
def test_a_breakage_has_one_place_in_the_sources(breakage: Breakage) -> None:
    text = (ROOT / "src" / "isochrone" / breakage.at).read_text(encoding="utf-8")
    assert text.count(breakage.old) == 1
    compile(text.replace(breakage.old, breakage.new), breakage.at, "exec")

"""Long answers fill the memory of engines long before their slots: who keeps requests from them."""

from collections import Counter
from dataclasses import replace

import pytest

from isochrone.core.world.digest import SiteDigest
from isochrone.twin.fast.fleet import Fleet
from isochrone.twin.fast.ours import Ours
from isochrone.twin.fast.plan import Plan
from isochrone.twin.fast.simulation import run
from isochrone.twin.fast.summary import Summary
from tests.fixtures.small_fleet import PHYSICS, a_fleet, some_arrivals

SLOTS, KV_TOKENS = 256, 60_000  # memory for forty requests of usual size


class Watching(Ours):
    """Ours, with a note of how many requests engines let wait, by the digests of their sites."""

    def __init__(self) -> None:
        super().__init__()
        self.let_wait: Counter[bool] = Counter()

    def told(self, site: int, digest: SiteDigest, now_s: float) -> None:
        for each in digest.replicas:
            self.let_wait[each.waiting > 0] += 1
        super().told(site, digest, now_s)


def played(fleet: Fleet, rate_s: float, seed: int) -> tuple[Summary, float]:
    """And in what part of all digests a replica let requests wait."""
    arrivals = some_arrivals(
        fleet, rate_s=rate_s, seconds=90.0, seed=seed, prompt_tokens=300, output_tokens=1_200
    )
    watching = Watching()
    found = run(fleet, arrivals, watching, Plan(seed=seed, warm_s=30.0))
    return found, watching.let_wait[True] / watching.let_wait.total()


@pytest.mark.parametrize("seed", [1, 2])
def test_long_answers_seldom_wait_in_engines_whose_memory_is_full(seed: int) -> None:
    """Memory for all that comes, and half again; of four sites one has half of the demand."""
    long = replace(PHYSICS, slots=SLOTS, kv_tokens=KV_TOKENS)
    fleet = a_fleet(physics=long)
    uneven = replace(fleet, rtt_ms=fleet.rtt_ms[[0, 1, 2, 3, 0, 0, 0, 3, 0, 1, 0, 3]] + 1.0)
    found, waited = played(uneven, 9.0, seed)
    assert found.refused == found.broken == 0
    assert found.ttft_ms_mean is not None
    assert found.ttft_ms_mean < 150.0  # 307 and 182 where slots alone count
    assert waited < 0.03               # 0.069 and 0.061

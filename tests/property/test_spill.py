"""Spill without cascades: what is offered beyond capacity never costs what capacity can serve."""

from dataclasses import replace

import pytest

from tests.fixtures.overload import Overload, Plan

PLAN = Plan()


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("load", [1.0, 3.0])
def test_overload_never_takes_goodput_below_nine_tenths(load: float, seed: int) -> None:
    cloud = Overload(replace(PLAN, load=load, seed=seed))
    seen = cloud.run()
    able = cloud.capacity * (PLAN.seconds - PLAN.warm_s)
    assert seen.good > 0.9 * min(able, seen.requests)
    assert seen.too_late < 0.02 * able
    if load > 1:
        assert seen.refused > seen.requests / 2


@pytest.mark.parametrize("seed", [1, 2])
def test_refused_requests_do_not_circle(seed: int) -> None:
    """Attempts stay within a tenth of the requests, and ten a second of all ten gateways."""
    seen = Overload(replace(PLAN, seed=seed)).run()
    seconds = PLAN.seconds - PLAN.warm_s
    assert seen.attempts < 1.1 * seen.requests + PLAN.ingresses * (seconds + 10) * 1.2
    assert seen.tried_twice == 0
    circling = Overload(replace(PLAN, seed=seed, budgeted=False)).run()
    assert circling.attempts > 1.8 * circling.requests


def test_without_bounds_on_waiting_the_same_overload_serves_nobody_in_time() -> None:
    cloud = Overload(replace(PLAN, wait_s=600.0, seconds=18, warm_s=8))
    seen = cloud.run()
    able = cloud.capacity * 10
    assert seen.good < 0.5 * able
    assert seen.too_late > 0.5 * able

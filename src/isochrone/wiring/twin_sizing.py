"""The smallest fleet that keeps the objective: the same requests on more or fewer engines."""

from collections.abc import Callable
from functools import lru_cache

MOST_TIMES = 8       # as many replicas as the scenario has: larger fleets are not looked at
CLOSE_ENOUGH = 0.03  # of the answer, or one replica


def least_replicas(keeps: Callable[[int], bool], begin: int) -> int | None:
    """The least number that keeps it, up to `CLOSE_ENOUGH`, searched from `begin`; None where eight
    times as many do not. It is taken that more are not worse, which chance can make untrue: every
    number that is given has been played and kept it."""
    known = lru_cache(maxsize=None)(keeps)
    low, high = 0, begin
    while not known(high):
        if high >= MOST_TIMES * begin:
            return None
        low, high = high, min(2 * high, MOST_TIMES * begin)
    while high - low > max(1.0, CLOSE_ENOUGH * high):
        middle = (low + high) // 2
        if known(middle):
            high = middle
        else:
            low = middle
    return high

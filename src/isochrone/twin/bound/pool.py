"""One pool of all engines: how long requests must wait even if all engines were one fast server.

Work is prompt tokens; the server reads `rate` of them a second, leaves any request at any moment
and goes on with it later. Whatever real engines do, this one can do too, and sooner.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import numpy as np

Floats = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]

SHORTEST_WINDOW_S = 0.25
LONGER = 1.5  # each window than the one before
OFFSETS = (0.0, 0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Requests of one model, one item of each array a request: `release_s` when it can be at its
    nearest site, `tokens` to read, `back_s` the way from there to the client."""

    rate: float
    at_s: Floats
    release_s: Floats
    tokens: Floats
    back_s: Floats


def least_flow_s(pool: Pool) -> float:
    """The least possible sum, over all requests, of the time from release to being read: serving
    what has the least left is optimal on one server that can leave requests (Schrage 1968)."""
    order = np.argsort(pool.release_s, kind="stable")
    releases = pool.release_s[order].tolist()
    sizes = (pool.tokens[order] / pool.rate).tolist()
    waiting: list[tuple[float, float]] = []  # what is left, when it was released
    now = total = 0.0
    for release, size in zip(releases, sizes, strict=True):
        while waiting and now + waiting[0][0] <= release:
            left, came = heappop(waiting)
            now += left
            total += now - came
        if waiting:
            left, came = heappop(waiting)
            heappush(waiting, (left - (release - now), came))
        now = release
        heappush(waiting, (size, release))
    while waiting:
        left, came = heappop(waiting)
        now += left
        total += now - came
    return total


def least_late(pool: Pool, within_s: float, counted: Sequence[bool] | None = None) -> int:
    """At least so many requests begin to answer more than `within_s` after they came, whatever is
    done. `counted`: those to look at; the others are known to be late.

    In a window that is shorter than the work that must begin and end within it, something is left
    out, and least is left out if the largest are. Windows that do not overlap add up; the best of
    several lengths is taken.
    """
    due_s = pool.at_s + within_s - pool.back_s
    keep = np.ones(len(due_s), dtype=bool) if counted is None else np.asarray(counted, dtype=bool)
    keep &= due_s > pool.release_s
    if not keep.any():
        return 0
    release, due, tokens = pool.release_s[keep], due_s[keep], pool.tokens[keep]
    start, span = float(release.min()), float(due.max() - release.min())
    length, best = max(SHORTEST_WINDOW_S, within_s), 0
    while True:
        for offset in OFFSETS:
            place = np.floor((release - start) / length + offset)
            # What is due when the window ends can still be met.
            inside = place == np.ceil((due - start) / length + offset - 1e-9) - 1
            best = max(best, _left_out(place[inside], tokens[inside], pool.rate * length))
        if length > span:
            return best
        length *= LONGER


def _left_out(place: Floats, tokens: Floats, room: float) -> int:
    """How many must be left out in all windows together, each with room for so many tokens."""
    if not len(place):
        return 0
    order = np.lexsort((-tokens, place))
    place, tokens = place[order], tokens[order]
    starts = np.flatnonzero(np.r_[True, place[1:] != place[:-1]])
    sums = np.add.reduceat(tokens, starts)
    ends = np.r_[starts[1:], len(place)]
    found = 0
    for window in np.flatnonzero(sums > room * (1 + 1e-9)):
        largest = np.cumsum(tokens[starts[window]:ends[window]])
        excess = sums[window] - room
        found += int(np.searchsorted(largest, excess * (1 - 1e-9))) + 1
    return found

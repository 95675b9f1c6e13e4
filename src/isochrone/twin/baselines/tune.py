"""Finds a baseline's best parameters on the development windows, and keeps all that was tried."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from math import exp, inf
from typing import Any, Generic, TypeVar

from isochrone.core.rng import Random
from isochrone.twin.baselines.catalogue import Baseline

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Tuned(Generic[P]):
    """`tried` are all parameters with their cost, in the order in which they were tried."""

    best: P
    cost: float
    tried: tuple[tuple[P, float], ...]


def tune(
    baseline: Baseline[P], cost: Callable[[P], float], rng: Random, *, generations: int = 4,
    children: int = 8,
) -> Tuned[P]:
    """The parameters with the least cost, of the whole space, the default, and, where the baseline
    is to be refined, of the evolution strategy. `cost` plays the development windows: lower is
    better; NaN counts as infinite."""
    tried: list[tuple[P, float]] = []

    def judged(parameters: P) -> float:
        for known, before in tried:
            if known == parameters:
                return before
        found = cost(parameters)
        found = inf if found != found else found
        tried.append((parameters, found))
        return found

    for each in dict.fromkeys((baseline.default, *baseline.space)):
        judged(each)
    if baseline.refine:
        _evolve(tried, judged, rng, generations=generations, children=children)
    best, least = min(tried, key=lambda each: each[1])
    return Tuned(best=best, cost=least, tried=tuple(tried))


def _evolve(
    tried: Sequence[tuple[P, float]], judged: Callable[[P], float], rng: Random, *,
    generations: int, children: int,
) -> None:
    """A (1 + n) evolution strategy: children of the best so far, numbers moved by a factor; the
    step grows with a generation that found something better and shrinks with one that did not."""
    step = 0.5
    for _ in range(generations):
        parent, least = min(tried, key=lambda each: each[1])
        found = min(judged(_child(parent, rng, step)) for _ in range(children))
        step *= 1.5 if found < least else 0.6


def _child(parent: P, rng: Random, step: float) -> P:
    """The same with every fraction moved by a random factor; whole numbers and words stay."""
    record: Any = parent
    moved = {
        each.name: getattr(record, each.name) * exp(step * rng.gauss(0.0, 1.0))
        for each in fields(record)
        if isinstance(getattr(record, each.name), float)
    }
    child: P = replace(record, **moved)
    return child

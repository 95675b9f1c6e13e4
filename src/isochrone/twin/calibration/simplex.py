"""Finds the least value of a function of a few numbers by calls of it alone (Nelder, Mead 1965)."""

from collections.abc import Callable

Point = tuple[float, ...]
Valued = tuple[float, Point]


def least(
    of: Callable[[Point], float], first: Point, *, reach: float, rounds: int
) -> tuple[Point, float]:
    """The best point that it meets in `rounds` calls or a few more, and its value. The first
    simplex has `first` as one corner, and the others `reach` from it, along each axis."""
    corners = [first, *(
        tuple(value + (reach if place == axis else 0.0) for place, value in enumerate(first))
        for axis in range(len(first))
    )]
    known = sorted((of(corner), corner) for corner in corners)
    used = len(known)
    while used < rounds:
        better, calls = _instead_of_worst(of, known)
        used += calls
        if better is not None:
            known[-1] = better
        else:
            best = known[0][1]
            known = [known[0], *((of(point), point) for point in [
                _between(best, corner, 0.5) for _, corner in known[1:]
            ])]
            used += len(known) - 1
        known.sort()
    return known[0][1], known[0][0]


def _instead_of_worst(
    of: Callable[[Point], float], known: list[Valued]
) -> tuple[Valued | None, int]:
    """A point on the line from the worst corner through the middle of the others; None: there is no
    better one there. And how many calls that took."""
    rest, (worst, corner) = [each for _, each in known[:-1]], known[-1]
    middle = tuple(sum(values) / len(rest) for values in zip(*rest, strict=True))

    def along(share: float) -> Valued:
        point = _between(middle, corner, -share)
        return of(point), point

    reflected = along(1.0)
    if reflected[0] < known[0][0]:
        return min(along(2.0), reflected), 2
    if reflected[0] < known[-2][0]:
        return reflected, 1
    contracted = along(0.5 if reflected[0] < worst else -0.5)
    return (contracted, 2) if contracted[0] < min(reflected[0], worst) else (None, 2)


def _between(one: Point, other: Point, share: float) -> Point:
    return tuple(a + share * (b - a) for a, b in zip(one, other, strict=True))

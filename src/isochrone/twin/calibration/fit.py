"""Fits an engine's physics, and what gateways add, to one recorded run: the parameters with which
the twin's times are nearest to the recorded ones.
"""

from collections.abc import Sequence
from math import exp, log
from typing import Final

from isochrone.twin.calibration.play import Fitted, Times, live_times, quantile, twin_times
from isochrone.twin.calibration.recording import Recording
from isochrone.twin.calibration.simplex import Point, least

FIRST: Final = Fitted(
    step_s=1e-3, stream_s=2e-4, context_token_s=3e-7, prefill_tok_s=8_000.0,
    prefill_context_s=1e-7, gateway_ms=3.0, hop_ms=1.5,
)
REACH: Final = 0.4  # of the first simplex, in logarithms
ROUNDS: Final = 500
SHARES: Final = (0.5, 0.9, 0.99)


def fit(
    recording: Recording, *, first: Fitted = FIRST, rounds: int = ROUNDS
) -> tuple[Fitted, float]:
    """The parameters, each above 0, and the `distance` that is left; about `rounds` simulations,
    half of them from where the first half has come to."""
    live = live_times(recording)

    def away(point: Point) -> float:
        return distance(twin_times(recording, _fitted(point), before=0), live)

    point = _point(first)
    for _ in range(2):
        point, left = least(away, point, reach=REACH, rounds=rounds // 2)
    return _fitted(point), left


def distance(twin: Sequence[Times], live: Sequence[Times]) -> float:
    """The mean of |log(twin / live)| over requests, of first tokens and of whole answers, and as
    much again for the quantiles of both, as those are what is asked of the twin."""
    firsts = _apart([one.ttft_ms for one in twin], [one.ttft_ms for one in live])
    return firsts + _apart([one.total_ms for one in twin], [one.total_ms for one in live])


def _apart(twin_ms: Sequence[float], live_ms: Sequence[float]) -> float:
    if len(twin_ms) != len(live_ms):
        return float("inf")  # this engine is so slow that requests are refused
    each = sum(abs(log(a / b)) for a, b in zip(twin_ms, live_ms, strict=True)) / len(live_ms)
    whole = sum(
        abs(log(quantile(twin_ms, share) / quantile(live_ms, share))) for share in SHARES
    )
    return each + whole / len(SHARES)


def _point(fitted: Fitted) -> Point:
    return tuple(log(getattr(fitted, name)) for name in Fitted.__slots__)


def _fitted(point: Point) -> Fitted:
    return Fitted(**dict(zip(Fitted.__slots__, map(exp, point), strict=True)))

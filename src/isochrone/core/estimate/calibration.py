"""How far predictions are off: by what factor, on average, and to which side.

Both are kept as logarithms: twice too long and half as long are equally wrong.
"""

from math import exp, inf, log
from typing import Final

MEMORY: Final = 200.0     # about so many predictions count
MOST_FACTOR: Final = 100.0
_MOST: Final = log(MOST_FACTOR)


class Calibration:
    """Of one model's predicted times. `error` is the typical factor beyond 1 by which they miss:
    0.25 is a quarter too long or too short; `bias` likewise with its sign: above 0 things take
    longer than predicted. Both 0 before the first outcome."""

    __slots__ = ("_bias", "_error", "count")

    def __init__(self) -> None:
        self.count = 0
        self._error = 0.0
        self._bias = 0.0

    def saw(self, predicted_ms: float, actual_ms: float) -> None:
        """An outcome; times that are not above 0 and finite say nothing."""
        if not (0.0 < predicted_ms < inf and 0.0 < actual_ms < inf):
            return
        self.count += 1
        share = 1.0 / min(self.count, MEMORY)
        off = min(max(log(actual_ms / predicted_ms), -_MOST), _MOST)
        self._error += share * (abs(off) - self._error)
        self._bias += share * (off - self._bias)

    @property
    def error(self) -> float:
        return exp(self._error) - 1.0

    @property
    def bias(self) -> float:
        return exp(self._bias) - 1.0

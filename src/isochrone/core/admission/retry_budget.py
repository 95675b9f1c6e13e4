"""Decides whether a request may be tried once more, so that retries never become a storm.

Each request brings a share of one retry and each second brings a few; credit is spent once, the
oldest first, and what nobody spent within ten seconds is lost. So while much fails, attempts grow
by that share and no more, and a quiet hour saves nothing up.
"""

from typing import Final

WINDOW_S: Final = 10
_WHOLE: Final = 1000  # credit is counted in thousandths of a retry, so that no rounding adds up
_SECOND_NS: Final = 1_000_000_000


class RetryBudget:
    """Mutable, of one gateway process. `ratio`: retries a request; `min_per_s`: on top of them."""

    __slots__ = ("_credit", "_per_request", "_per_second", "_second", "refused", "spent")

    def __init__(self, ratio: float, min_per_s: float) -> None:
        self._per_request = round(ratio * _WHOLE)
        self._per_second = round(min_per_s * _WHOLE)
        self._credit = [0] * WINDOW_S  # by second, at the second's number modulo the window
        self._second = -WINDOW_S
        self.spent = 0
        self.refused = 0

    def deposit(self, now_ns: int) -> None:
        """A request began (not a retry)."""
        second = now_ns // _SECOND_NS
        if second != self._second:
            self._turn(second)
        self._credit[self._second % WINDOW_S] += self._per_request

    def try_spend(self, now_ns: int) -> bool:
        """Take one retry; False when there is none left."""
        second = now_ns // _SECOND_NS
        if second != self._second:
            self._turn(second)
        credit = self._credit
        if sum(credit) < _WHOLE:
            self.refused += 1
            return False
        due = _WHOLE
        for age in range(WINDOW_S - 1, -1, -1):
            at = (self._second - age) % WINDOW_S
            taken = min(credit[at], due)
            credit[at] -= taken
            due -= taken
        self.spent += 1
        return True

    def left(self, now_ns: int) -> float:
        """How many retries would be granted now."""
        second = now_ns // _SECOND_NS
        if second != self._second:
            self._turn(second)
        return sum(self._credit) / _WHOLE

    def _turn(self, second: int) -> None:
        """Forget the seconds that left the window, and begin those that came. A second that is over
        never comes back: it would bring its credit again, and with it the seconds after it."""
        if second < self._second:
            return
        for each in range(max(self._second + 1, second - WINDOW_S + 1), second + 1):
            self._credit[each % WINDOW_S] = self._per_second
        self._second = second

"""What was sold and is in force at a site: how much of it goes before everything else there.

A promise is a rate in tokens, not a number of slots: how many slots it takes depends on what else
runs. So what begins is taken from a bucket that fills at that rate, and while there is something in
it the promised class goes first. The rate is what the site itself may honour (its slices, less what
it lends, and what it has borrowed), or what comes to it, if that is more: requests of the promised
class were paid for by the site where they came in, and all those together have no more than was
sold.
"""

from isochrone.core.admission.allowance import BURST_S

HEADROOM = 1.2   # what comes may grow by so much before the bucket is empty
_ASKED_S = 5.0   # what came is forgotten in about so long
_IDLE_TOK_S = 0.5


class Promise:
    """Of one class, for one model at one site. Tokens are weighted, instants monotonic. Until
    `renew` is called nothing is promised. Mutable, owned by its queue."""

    __slots__ = ("_asked", "_at_ns", "_coming_tok_s", "_level", "_renewed_ns", "tok_s")

    def __init__(self) -> None:
        self.tok_s = 0.0
        self._level = 0.0
        self._at_ns = 0
        self._asked = 0
        self._coming_tok_s = 0.0
        self._renewed_ns = 0

    def ask(self, tokens: int) -> None:
        """A request has come, of so many tokens as expected."""
        self._asked += tokens

    def begin(self, tokens: int, now_ns: int) -> None:
        """It runs. What the bucket lacks is a debt, which what comes in pays off."""
        self._fill(now_ns)
        self._level -= tokens

    def settle(self, expected: int, used: int) -> None:
        """It has used more, or less, than was expected."""
        self._level = min(self._level + expected - used, self.tok_s * BURST_S)

    def goes_first(self, now_ns: int) -> bool:
        """Whether what waits has been promised to begin now."""
        if self.tok_s <= 0.0:
            return False
        self._fill(now_ns)
        return self._level > 0.0

    def renew(self, in_force_tok_s: float, now_ns: int) -> None:
        """About once a second: what the site itself may honour now."""
        self._fill(now_ns)
        passed_s = (now_ns - self._renewed_ns) / 1e9
        if passed_s > 0.0:
            rate = self._asked / passed_s
            if rate < self._coming_tok_s:  # it is forgotten slowly, and known at once
                rate += (self._coming_tok_s - rate) * max(1.0 - passed_s / _ASKED_S, 0.0)
            self._coming_tok_s = rate
            if self._coming_tok_s < _IDLE_TOK_S:
                self._coming_tok_s = 0.0
            self._asked, self._renewed_ns = 0, now_ns
        before, self.tok_s = self.tok_s, max(in_force_tok_s, self._coming_tok_s * HEADROOM)
        if before <= 0.0 < self.tok_s:
            self._level = self.tok_s * BURST_S  # nothing of it was used yet
        self._level = min(self._level, self.tok_s * BURST_S)

    def _fill(self, now_ns: int) -> None:
        if now_ns > self._at_ns:
            level = self._level + (now_ns - self._at_ns) / 1e9 * self.tok_s
            self._level = min(level, self.tok_s * BURST_S)
            self._at_ns = now_ns

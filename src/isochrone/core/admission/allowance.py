"""Allowance: the tokens of an entitlement that one site may spend now without asking anybody.

A bucket that fills at the rate of the site's slice and holds `BURST_S` of it. All buckets of an
entitlement together never gave more than what was sold for the time that passed and the burst,
because the slices never add up to more. Exact: levels are integers of 10^-9 tokens.
"""

BURST_S = 5
_SECOND_NS = 1_000_000_000
_DEMAND_S = 5.0  # demand is an average over about so long
_IDLE_TOK_S = 0.5
_THIN_S = 20.0
_DENSE_PER_S = 2.0


class Allowance:
    """Mutable, owned by one event loop; instants are monotonic. `tok_s`: the slice, which holds
    before `until_ns`; from then on nothing is given until it is set anew."""

    __slots__ = (
        "_asked", "_at_ns", "_away", "_away_sum", "_level", "_looked_ns", "_until_ns",
        "demand_tok_s", "refused", "tok_s",
    )

    def __init__(self, now_ns: int) -> None:
        self.tok_s = 0
        self.demand_tok_s = 0.0
        self.refused = 0
        self._level = 0
        self._at_ns = now_ns
        self._until_ns = now_ns
        self._asked = 0
        self._looked_ns = now_ns
        self._away: dict[int, int] = {}  # what was spent for other sites and may come back
        self._away_sum = 0

    def set_slice(self, tok_s: int, until_ns: int, now_ns: int) -> None:
        """From now until before `until_ns` the slice is this. What fits no more is lost: it may
        be filled up elsewhere already."""
        self._fill(now_ns)
        self.tok_s, self._until_ns = tok_s, until_ns
        self._level = min(self._level, tok_s * BURST_S * _SECOND_NS)
        if self._away:
            self._clip()

    def rate_tok_s(self, now_ns: int) -> int:
        """At what rate it fills now."""
        return self.tok_s if now_ns < self._until_ns else 0

    def spend(
        self, tokens: int, now_ns: int, *, another_may: bool = False, counts: bool = True
    ) -> bool:
        """Take what a request is expected to use; False when it is not there. Then it is demand
        here all the same, unless `another_may` pay for it, where it is demand instead. Where it
        does not count, it is no demand here, paid or not."""
        self._fill(now_ns)
        if now_ns >= self._until_ns or self._level < tokens * _SECOND_NS:
            if counts and not another_may:
                self._asked += tokens
                self.refused += 1
            return False
        if counts:
            self._asked += tokens
        self._level -= tokens * _SECOND_NS
        return True

    def spend_for_another(self, number: int, tokens: int, now_ns: int, *, counts: bool) -> bool:
        """The same for a request at another site, which may `give_back` by this number what it did
        not honour after all."""
        if not self.spend(tokens, now_ns, counts=counts):
            return False
        self._away[number] = tokens * _SECOND_NS
        self._away_sum += tokens * _SECOND_NS
        return True

    def give_back(self, number: int, now_ns: int) -> None:
        """It was not honoured: as if it had never been spent. What would have been full meanwhile
        stays full and no fuller, or late answers would let twice the burst in."""
        self._fill(now_ns)
        self._level += self._forget(number)

    def settle_for_another(
        self, number: int, unused_tokens: int, now_ns: int, *, counts: bool
    ) -> None:
        """It was honoured, and used so much less than was spent for it."""
        self._forget(number)
        self.settle(unused_tokens, 0, now_ns, counts=counts)

    def settle(
        self, expected_tokens: int, used_tokens: int, now_ns: int, *, counts: bool = True
    ) -> None:
        """A request that was let in used more or less than expected. A debt is paid off by what
        comes in; what comes back is kept as far as the bucket holds it."""
        if counts:
            self._asked += used_tokens - expected_tokens
        self._fill(now_ns)
        level = self._level + (expected_tokens - used_tokens) * _SECOND_NS
        self._level = min(level, self.tok_s * BURST_S * _SECOND_NS)

    def left(self, now_ns: int) -> int:
        """Whole tokens that could be spent now; never negative."""
        self._fill(now_ns)
        return max(self._level // _SECOND_NS, 0) if now_ns < self._until_ns else 0

    def wait_ns(self, tokens: int, now_ns: int) -> int | None:
        """When so many could be spent, if the slice stays and nobody spends; None if never."""
        self._fill(now_ns)
        lacking = tokens * _SECOND_NS - self._level
        if lacking <= 0:
            return 0
        if tokens > self.tok_s * BURST_S:
            return None
        return -(-lacking // self.tok_s)

    @property
    def is_idle(self) -> bool:
        """Whether nothing was asked for since it was measured, and nearly nothing before."""
        return not self._asked and self.demand_tok_s < _IDLE_TOK_S

    def measure(self, now_ns: int) -> None:
        """About once a second: renew `demand_tok_s`, what was asked for, given or not."""
        passed_s = (now_ns - self._looked_ns) / 1e9
        if passed_s <= 0:
            return
        newest = min(passed_s / _DEMAND_S, 1.0)
        rate = max(self._asked, 0) / passed_s
        self.demand_tok_s += (rate - self.demand_tok_s) * newest
        self._asked, self._looked_ns = 0, now_ns

    def _fill(self, now_ns: int) -> None:
        """What came in since the last look, for as long as the slice held."""
        end_ns = min(now_ns, self._until_ns)
        if end_ns > self._at_ns:
            level = self._level + (end_ns - self._at_ns) * self.tok_s
            self._level = min(level, self.tok_s * BURST_S * _SECOND_NS)
        if now_ns > self._at_ns:
            self._at_ns = now_ns
        if self._away:
            self._clip()

    def _clip(self) -> None:
        """What may come back, the oldest first, is no more than what the bucket lacks."""
        over = self._away_sum + self._level - self.tok_s * BURST_S * _SECOND_NS
        while over > 0 and self._away:
            number = next(iter(self._away))
            part = self._away[number]
            if part > over:
                self._away[number] = part - over
                self._away_sum -= over
                return
            self._forget(number)
            over -= part

    def _forget(self, number: int) -> int:
        part = self._away.pop(number, 0)
        self._away_sum -= part
        return part


class Coming:
    """What is asked for at this site, whoever pays for it: an average over about `_THIN_S`."""

    __slots__ = ("_at_ns", "tok_s")

    def __init__(self) -> None:
        self.tok_s = 0.0
        self._at_ns = 0

    def is_thin(self, tokens: int, now_ns: int) -> bool:
        """A request has come, of so many tokens; whether so few come that a bucket of this site's
        own, filled at the rate of what comes, would often lack what one of them needs: less than
        about two of its size a second."""
        left = 1.0 - (now_ns - self._at_ns) / 1e9 / _THIN_S  # forgotten linearly, close enough
        self._at_ns = now_ns
        before = self.tok_s * left if left > 0.0 else 0.0
        self.tok_s = before + tokens / _THIN_S
        return before < tokens * _DENSE_PER_S

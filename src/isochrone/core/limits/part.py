"""What one gateway uses of one limit: counted and held here, under a grant.

Before a request is admitted it must fit: what was used and what is held, with its estimate, is at
most what was granted, and the bootstrap where no grant holds. What follows from that is the bound
of docs/limits.md. Requests count when they are admitted, tokens and money are held and count when
the request ends, streams are held only.

Mutable, owned by one event loop. `now_ns` is monotonic, `at` the wall instant at which a request
came.
"""

from typing import Final

from isochrone.core.admission.limits import BUCKET_NS, BUCKETS, RUNNING_WAIT_S, wait_s
from isochrone.core.ids import SiteName
from isochrone.core.limits.messages import AskGrant, Grant
from isochrone.core.limits.periods import period_begin
from isochrone.core.limits.terms import (
    ASK_NS,
    HORIZON_S,
    HOUR_NS,
    IDLE_ASK_NS,
    LONGEST_NS,
    RETRY_NS,
    SECOND_NS,
    SILENT_NS,
    TERM_NS,
)
from isochrone.core.world.limit import Limit

DRIFT: Final = 500  # clocks differ by less than one part in this
_EVERYTHING: Final = 1 << 66  # beyond all sums of amounts
_KEPT_ASKS: Final = 8
_KEPT_HOURS: Final = 48
_KEPT_MARKS: Final = 4
# Whoever decides counts a grant until it hears of the one after. That takes an answer more, and two
# where somebody else decides since, who knows only the larger of both.
_STEADY: Final = 2
FRESH_NS: Final = 250_000_000


class Part:
    """`bootstrap` is what may be used without a grant, `headroom` what is asked for beforehand at
    most; both may be set anew, as `limit` may."""

    __slots__ = (
        "_asked", "_bucket", "_first_ask_ns", "_first_hours", "_hours", "_is_hours", "_is_minute",
        "_last_ask_ns", "_measured_ns", "_redirected_ns", "_ring", "_steady", "_sum", "_sum_mark",
        "_sum_since", "_taken", "_total", "asks_since", "bootstrap", "demand", "free", "frees_ns",
        "granted", "headroom", "heard", "heard_ns", "held", "insists", "least", "limit", "mark",
        "newest_mark", "spare", "told_before", "turn", "until_ns", "unused", "waiting",
    )

    def __init__(self, limit: Limit, mark: int) -> None:
        self.limit = limit
        self.bootstrap = 0
        self.headroom = 0
        self.granted = 0
        self.until_ns = 0      # of the grant
        self.mark = mark       # since when a budget counts, as who granted it has it
        self.asks_since = mark # and as who was asked last has it, or the view
        self.newest_mark = mark  # that anybody has
        self.heard = 0         # number of the grant
        self.heard_ns = -TERM_NS  # when the last answer came
        self.free = 0          # as of the grant, like the next three
        self.spare = 0
        self.unused = 0
        self.frees_ns = 0
        self.held = 0
        self.waiting = 0       # what requests that wait for a grant need
        self.least = 0         # and what the smallest of them needs, or one that waited before
        self.demand = 0.0      # what requests need, a second
        self.turn = 0          # which custodian is asked
        self.insists = False
        self.told_before = 1 << 62  # what requests before it used is where it will be booked
        self._is_minute = limit.kind in ("requests_per_min", "tokens_per_min")
        self._is_hours = limit.kind == "budget"
        self._ring: list[int] = [0] * BUCKETS
        self._bucket = 0
        self._total = 0
        self._hours: dict[int, int] = {}
        self._sum = 0           # of the hours since the first that counts with a mark
        self._sum_mark = self._sum_since = mark
        self._first_hours: dict[int, int] = {mark: mark}
        self._taken = 0
        self._measured_ns = 0
        self._asked: dict[int, int] = {}
        self._first_ask_ns = 0  # of those without an answer
        self._last_ask_ns = 0
        self._redirected_ns = 0
        self._steady = _STEADY  # how many answers in a row changed nothing

    # -- requests --------------------------------------------------------------------------------

    def fits(self, amount: int, now_ns: int) -> bool:
        """Whether so much more may be used now."""
        return self.used(now_ns) + self.held + amount <= self.ceiling(now_ns)

    def ceiling(self, now_ns: int) -> int:
        """What may be used in all, now."""
        return self.granted if now_ns < self.until_ns else self.bootstrap

    def take(self, amount: int, now_ns: int) -> None:
        """A request that fits was admitted."""
        self._taken += amount
        if self.limit.kind == "requests_per_min":
            self._count(amount, now_ns)
        else:
            self.held += amount

    def settle(self, held: int, used: int, at: int, now_ns: int) -> None:
        """A request that took `held` has ended."""
        kind = self.limit.kind
        if kind == "requests_per_min":
            return
        self.held -= held
        if kind == "tokens_per_min":
            self._count(used, now_ns)
        elif kind == "budget":
            hour = at - at % HOUR_NS
            # No sum has what ends after it, though it came before: it counts from the mark on.
            if hour < self.newest_mark:
                hour = self.newest_mark
            self._hours[hour] = self._hours.get(hour, 0) + used
            self._sum += used

    def used(self, now_ns: int) -> int:
        """What counts: of the last minute, or since the mark."""
        if self._is_minute:
            if now_ns // BUCKET_NS != self._bucket:
                self._turn_ring(now_ns // BUCKET_NS)
            return self._total
        if not self._is_hours:
            return 0
        return self._since(self.mark if now_ns < self.until_ns else self.asks_since)

    def wait_s(self, amount: int, now_ns: int) -> float | None:
        """In how long a refused request may fit; None where that depends on a period's end."""
        if self._is_hours:
            # What is held may be given back, what was used is gone until the next period.
            return RUNNING_WAIT_S if amount <= self.unused else None
        if not self._is_minute:
            return RUNNING_WAIT_S
        over = self.used(now_ns) + self.held + amount - self.ceiling(now_ns)
        own = wait_s(self._oldest_first(), over, now_ns)
        others = self.frees_ns / 1e9 if self.frees_ns else None
        if own is None and others is None:
            return RUNNING_WAIT_S if self.held else 60.0
        return min(each for each in (own, others) if each is not None)

    def lift(self) -> None:
        """Its limit is no more, so whatever waits for it fits."""
        self.bootstrap, self.until_ns = _EVERYTHING, 0

    def wait(self, amount: int) -> None:
        """A request that needs so much waits for a grant."""
        self.least = min(self.least, amount) if self.waiting else amount
        self.waiting += amount

    # -- asking ----------------------------------------------------------------------------------

    def is_idle(self, now_ns: int) -> bool:
        """Whether nothing is used and nothing is asked for, so that nobody need know of it."""
        return (
            not self.held and not self.waiting and not self._total and not self._hours
            and not self.granted and self.demand < 1e-9 and self._is_said(now_ns)
        )

    def _is_said(self, now_ns: int) -> bool:
        """Whether who decides knows what is granted here, or has forgotten all of it."""
        return self._steady >= _STEADY or now_ns >= self.until_ns + LONGEST_NS

    def measure(self, now_ns: int) -> None:
        """A few times a second: renew `demand`, over about five seconds."""
        passed_s = (now_ns - self._measured_ns) / 1e9
        if passed_s <= 0.0:
            return
        newest = min(passed_s / HORIZON_S, 1.0)
        self.demand += (self._taken / passed_s - self.demand) * newest
        if self.demand < 1e-6:
            self.demand = 0.0
        self._taken, self._measured_ns = 0, now_ns

    def is_due(self, now_ns: int) -> bool:
        """Whether it is time to ask."""
        if self.is_idle(now_ns):
            return False
        since_ns = now_ns - self._last_ask_ns
        if not self._last_ask_ns or (self._first_ask_ns and since_ns >= RETRY_NS):
            return True
        if self._first_ask_ns:
            return False
        if since_ns >= ASK_NS // 4 and self._is_low(now_ns):
            return True
        active = bool(
            self.held or self.waiting or self.granted > self.used(now_ns) or self.demand
            or not self._is_said(now_ns)
        )
        return since_ns >= (ASK_NS if active else IDLE_ASK_NS)

    def ask(
        self, site: SiteName, life: int, number: int, custodians: int, now_ns: int
    ) -> AskGrant:
        """Ask the custodian whose turn it is; the next one where that one does not answer."""
        if not self._first_ask_ns:
            self._first_ask_ns = now_ns
        elif now_ns - self._first_ask_ns >= SILENT_NS:
            self.turn, self.insists = (self.turn + 1) % max(custodians, 1), True
            self._first_ask_ns = now_ns
        self._last_ask_ns = now_ns
        self._asked[number] = now_ns
        if len(self._asked) > _KEPT_ASKS:
            del self._asked[min(self._asked)]
        used = self._since(self.asks_since) if self._is_hours else self.used(now_ns)
        # More than there is cannot be had, and numbers on the wire have an end.
        most = self.limit.amount + 1
        need = min(used + self.held + self.waiting, most)
        headroom = min(int(self.demand * HORIZON_S), self.headroom)
        return AskGrant(
            limit=self.limit.id, site=site, life=life, number=number, heard=self.heard,
            mark=self.asks_since, used=used, held=self.held, need=need,
            want=min(need + headroom, most), least=self.least if self.waiting else 0,
            frees_ns=self._frees_ns(now_ns), insists=self.insists,
        )

    def hear(self, grant: Grant, now_ns: int) -> bool:
        """Take a grant that was asked for, unless a later one was taken or more is used already;
        whether it was taken."""
        asked_ns = self._asked.get(grant.number)
        if asked_ns is None or grant.number <= self.heard:
            return False
        self._first_ask_ns, self.insists = 0, False
        self.heard_ns = now_ns
        self.free, self.spare, self.frees_ns = grant.free, grant.spare, grant.frees_ns
        self.unused = grant.unused
        self.asks_since = grant.mark
        self.newest_mark = max(self.newest_mark, grant.mark)
        used = self._since(grant.mark) if self._is_hours else self.used(now_ns)
        if used + self.held > grant.amount:
            # Who granted it did not know of all that is used: it counts the grant before, too.
            self._last_ask_ns = now_ns - ASK_NS
            return False
        answered = [each for each in self._asked if each <= grant.number]
        # What another ask was granted, whose answer was lost, counts until it is said, too.
        same = grant.amount == self.granted and len(answered) == 1
        self._steady = self._steady + 1 if same else 0
        self.heard, self.mark, self.granted = grant.number, grant.mark, grant.amount
        self.until_ns = asked_ns + grant.for_ns - grant.for_ns // DRIFT
        for number in answered:
            del self._asked[number]
        return True

    def is_asking(self) -> bool:
        """Whether there is an ask without an answer."""
        return self._first_ask_ns != 0

    def redirect(self, turn: int, now_ns: int) -> bool:
        """Who was asked says who decides: ask there, at once. False for a word that comes too soon
        after another: two that name each other would be asked for ever."""
        if self._redirected_ns and now_ns - self._redirected_ns < SILENT_NS:
            return False
        self._redirected_ns = now_ns
        self.turn, self.insists = turn, False
        self._first_ask_ns = 0
        self._last_ask_ns = 0
        return True

    def lacks(self, amount: int, now_ns: int) -> bool:
        """Whether so much can surely not be had now, as the home said a moment ago."""
        if now_ns - self.heard_ns > FRESH_NS or now_ns >= self.until_ns:
            return False
        left = self.granted - self.used(now_ns) - self.held
        return amount > max(left, 0) + self.free + self.spare

    def note_mark(self, mark: int, period_begin: int, now_ns: int) -> None:
        """Since when the budget counts, as the view has it. Whoever decides may have it later, and
        grants in its own terms: what it says goes, unless it is silent or a new period begins."""
        if mark > self.newest_mark:
            self.newest_mark = mark
            self.forget_before(mark)
        if mark > self.asks_since and (
            self.asks_since < period_begin or now_ns - self.heard_ns >= TERM_NS
        ):
            self.asks_since = mark

    def forget_before(self, at: int) -> None:
        """What was used in hours before counts for nobody any more."""
        if len(self._hours) > 1 or (self._hours and min(self._hours) < at):
            for hour in [each for each in self._hours if each < at - _KEPT_HOURS * HOUR_NS]:
                del self._hours[hour]

    # -- inside ----------------------------------------------------------------------------------

    def _is_low(self, now_ns: int) -> bool:
        """Whether most of the grant is used, while more would be used soon."""
        if self.waiting:
            return True
        ahead = int(self.demand)
        return ahead > 0 and self.used(now_ns) + self.held + ahead > self.granted

    def _since(self, mark: int) -> int:
        if mark != self._sum_mark:
            since = self._sum_since = self._first_hour(mark)
            self._sum_mark = mark
            self._sum = sum([amount for hour, amount in self._hours.items() if hour >= since])
        return self._sum

    def _first_hour(self, mark: int) -> int:
        """From when on hours count with a mark: before it, where the book could not know of them
        when the mark came. That stays so until the next one: only with it they may be summed."""
        since = self._first_hours.get(mark)
        if since is None:
            since = min(mark, self.told_before - self.told_before % HOUR_NS)
            if self.limit.period is not None:
                since = max(since, period_begin(self.limit.period, mark))
            self._first_hours[mark] = since
            if len(self._first_hours) > _KEPT_MARKS:
                del self._first_hours[min(self._first_hours)]
        return since

    def _count(self, amount: int, now_ns: int) -> None:
        bucket = now_ns // BUCKET_NS
        if bucket != self._bucket:
            self._turn_ring(bucket)
        self._ring[self._bucket % BUCKETS] += amount
        self._total += amount

    def _turn_ring(self, bucket: int) -> None:
        if bucket < self._bucket:
            return  # a time that is past counts as now: going back would forget what came since
        passed = min(bucket - self._bucket, BUCKETS)
        for each in range(bucket - passed + 1, bucket + 1):
            self._total -= self._ring[each % BUCKETS]
            self._ring[each % BUCKETS] = 0
        self._bucket = bucket

    def _oldest_first(self) -> list[int]:
        ring, newest = self._ring, self._bucket
        return [ring[(newest + 1 + each) % BUCKETS] for each in range(BUCKETS)]

    def _frees_ns(self, now_ns: int) -> int:
        """In how long the oldest bucket that counted something is forgotten; 0 for never."""
        if not self._is_minute or not self._total:
            return 0
        for age, count in enumerate(self._oldest_first()):
            if count:
                bucket = self._bucket - BUCKETS + 1 + age
                return max((bucket + BUCKETS) * BUCKET_NS - now_ns, SECOND_NS // 10)
        return 0

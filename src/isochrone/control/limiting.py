"""Follows budgets: hour by hour what they have spent, told to gateways, and their leases in the
ledger. Gateways ask for none of it and go on without it.

An hour is summed some minutes after its end, when what was used in it is booked, as it is charged.
Several copies may do it at once: sums are the same, and a lease is opened and settled once.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import structlog

from isochrone.control.offload import Offload
from isochrone.core.billing.hold import Settle
from isochrone.core.billing.period import DAY_NS, day_of, hour_of
from isochrone.core.errors import NotFound, TooMuchMoney, Unavailable
from isochrone.core.ids import LimitId
from isochrone.core.limits.lease import lease_id, lease_of
from isochrone.core.limits.periods import period_begin
from isochrone.core.world.limit import Limit
from isochrone.ports.clock import Clock
from isochrone.ports.ledger import Ledger
from isochrone.ports.limits import DueBudget, Limits

INTERVAL_S = 5.0
DAYS_MOST = 31  # that an outage may have lasted
WAIT_S = 300.0  # how long after its end an hour is summed
_NS_PER_S = 1_000_000_000

log = structlog.get_logger()


def with_spent(limits: Limits, limit: Limit, now: int) -> Limit:
    """A budget that is to be set, with what was spent already: until it is summed for the first
    time gateways would take it for unspent."""
    assert limit.period is not None, "a budget has a period"
    before = hour_of(now - int(WAIT_S * _NS_PER_S))
    try:
        spent = limits.spent(limit, since=period_begin(limit.period, before), before=before)
    except TooMuchMoney as error:
        # A limit without its sum is better than none.
        log.error("budget_not_summed", limit_id=limit.id, reason=error.message)
        return limit
    return replace(limit, spent_before=before, spent_pico=spent) if spent > 0 else limit


class Limiting:
    """The loop of one copy of control. `changed` tells gateways; `wait_s`: how long after its end
    an hour is summed."""

    def __init__(
        self, limits: Limits, ledger: Ledger, *, clock: Clock, offload: Offload,
        changed: Callable[[], None], wait_s: float = WAIT_S,
    ) -> None:
        self._limits = limits
        self._ledger = ledger
        self._clock = clock
        self._offload = offload
        self._changed = changed
        self._wait_ns = int(wait_s * _NS_PER_S)
        self._failed: LimitId | None = None  # at which the last round ended

    async def run(self) -> None:
        """Follow them until cancelled; a book that is away is waited out."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                await self.follow()
            except Unavailable as error:
                log.warning("limiting_waits", reason=error.message)

    async def follow(self) -> int:
        """Sum what is due; return how many budgets that was."""
        now = self._clock.wall_ns()
        before = hour_of(now - self._wait_ns)
        due = list(await self._offload(partial(self._limits.unsummed, before=before)))
        ids = [each.limit.id for each in due]
        if self._failed in ids:
            # One whose sum fails each time keeps no other from its own: those after it come first.
            after = ids.index(self._failed) + 1
            due = [*due[after:], *due[:after]]
        for budget in due:
            self._failed = budget.limit.id
            try:
                await self._offload(partial(self._follow_one, budget, before=before, now=now))
            except TooMuchMoney as error:
                # Its sum stays as it was, the others' are made.
                log.error("budget_not_summed", limit_id=budget.limit.id, reason=error.message)
        self._failed = None
        if due:
            self._changed()
            log.info("budgets_summed", budgets=len(due))
        return len(due)

    def _follow_one(self, budget: DueBudget, *, before: int, now: int) -> None:
        limit = budget.limit
        assert limit.period is not None, "a budget has a period"
        begin = period_begin(limit.period, before)
        spent = self._limits.spent(limit, since=begin, before=before)
        is_of_project = limit.project_id is not None and limit.key_id is None
        if is_of_project:
            # Before the sum says that they are: whoever ends in between does it again.
            for day in _days_over(limit.spent_before or before, before):
                self._settle(limit, day, now)
        self._limits.note_spent(limit, before=before, spent_pico=spent, now=now)
        if not is_of_project or not budget.is_open:
            return
        of_now = spent if period_begin(limit.period, now) == begin else 0
        lease = lease_of(limit, of_now, now)
        if lease is not None:
            self._ledger.open_hold(lease, now=now)

    def _settle(self, limit: Limit, day: int, now: int) -> None:
        """The lease of a day that is over and summed, if there was one."""
        try:
            spent = self._limits.spent(limit, since=day, before=day + DAY_NS)
            self._ledger.step_hold(
                limit.org_id, lease_id(limit, day), Settle(used_pico=max(spent, 0)), now=now
            )
        except NotFound:
            return
        except TooMuchMoney as error:
            # Of another month perhaps: today's sum is made all the same.
            log.error("lease_not_settled", limit_id=limit.id, reason=error.message)


def _days_over(summed_before: int, before: int) -> range:
    """The days whose leases are to be settled, from when the budget was summed last; yesterday's
    is among them."""
    today = day_of(before)
    first = min(max(day_of(summed_before), today - DAYS_MOST * DAY_NS), today - DAY_NS)
    return range(first, today, DAY_NS)

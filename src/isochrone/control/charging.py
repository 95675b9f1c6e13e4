"""Charges usage: every few seconds what is due of the hours that are over, and holds that expired.

An hour is charged some minutes after its end, when most of what was used in it is known; what comes
later is charged by a correction. Several copies may do it at once: each charge is recorded once.
"""

import asyncio
from functools import partial

import structlog

from isochrone.control.offload import Offload
from isochrone.core.billing.period import hour_of
from isochrone.core.billing.sheet import HOUR_NS
from isochrone.core.errors import TooMuchMoney, Unavailable
from isochrone.ports.clock import Clock
from isochrone.ports.ledger import Due, Ledger

INTERVAL_S = 10.0
HOLDS_MOST = 500
_NS_PER_S = 1_000_000_000

log = structlog.get_logger()


class Charging:
    """The charging loop of one copy of control. `wait_s`: how long after its end an hour is
    charged."""

    def __init__(
        self, ledger: Ledger, *, clock: Clock, offload: Offload, wait_s: float = 300.0
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._offload = offload
        self._wait_ns = int(wait_s * _NS_PER_S)
        self._failed: Due | None = None  # at which the last round ended

    async def run(self) -> None:
        """Charge until cancelled; a book that is away is waited out."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                await self.charge_due()
                await self.expire_holds()
            except Unavailable as error:
                log.warning("charging_waits", reason=error.message)

    async def charge_due(self) -> int:
        """Charge the hours that were over long enough ago; return how many charges were made."""
        now = self._clock.wall_ns()
        before = hour_of(now - self._wait_ns)
        due = list(await self._offload(partial(self._ledger.due, before=before, now=now)))
        if self._failed in due:
            # One that fails each time keeps no other from it: those after it come first.
            after = due.index(self._failed) + 1
            due = [*due[after:], *due[:after]]
        made = 0
        for each in due:
            self._failed = each
            charge = partial(self._ledger.charge, each, before=before, now=now)
            try:
                made += await self._offload(charge)
            except TooMuchMoney as error:
                # The others are charged, and so is this one once its usage or prices are mended.
                log.error("project_not_charged", reason=error.message)
        self._failed = None
        if made:
            log.info("usage_charged", charges=made, projects=len(due))
        return made

    async def expire_holds(self) -> int:
        """Give back what was set aside for too long; return how many holds that were."""
        expired = 0
        while True:
            now = self._clock.wall_ns()
            done = await self._offload(
                partial(self._ledger.expire_holds, now=now, most=HOLDS_MOST)
            )
            expired += done
            if done < HOLDS_MOST:
                break
        if expired:
            log.warning("holds_expired", holds=expired)
        return expired


def charge_now(ledger: Ledger, *, now: int) -> int:
    """Charge all usage so far, of the present hour too; return how many charges were made. Raises
    TooMuchMoney for a project that cannot be charged, after the others were."""
    before = hour_of(now) + HOUR_NS
    due: list[Due] = list(ledger.due(before=before, now=now))
    made = 0
    beyond: TooMuchMoney | None = None
    for each in due:
        try:
            made += ledger.charge(each, before=before, now=now)
        except TooMuchMoney as error:
            beyond = error
    if beyond is not None:
        raise beyond
    return made

"""Keeps days of usage: makes partitions ahead, and detaches days that are older than is retained.

Every few minutes. Several copies of control may do this at once: a day is detached by one of them,
and the other finds that it was.
"""

import asyncio
from functools import partial

import structlog

from isochrone.control.offload import Offload
from isochrone.core.billing.period import day_name
from isochrone.core.errors import Conflict, InvalidInput, Unavailable
from isochrone.core.metering.detached import DAY_NS
from isochrone.core.world.tenant import EVERY_TENANT
from isochrone.ports.clock import Clock
from isochrone.ports.usage_days import UsageDays

INTERVAL_S = 300.0
AHEAD_NS = 3 * DAY_NS

log = structlog.get_logger()


class UsageDaysLoop:
    """The loop of one copy of control. `retain_days`: how long after a day it is detached; None
    leaves every day in the book."""

    def __init__(
        self, days: UsageDays, *, clock: Clock, offload: Offload, retain_days: int | None
    ) -> None:
        self._days = days
        self._clock = clock
        self._offload = offload
        self._retain_days = retain_days

    async def run(self) -> None:
        """At the start and every few minutes until cancelled."""
        while True:
            try:
                await self.keep()
                await self.detach_overdue()
            except (Unavailable, Conflict) as error:
                log.warning("usage_days_wait", reason=error.message)
            except InvalidInput as error:  # the archive: it may come back, and bookings go on
                log.error("usage_days_not_detached", problems=list(error.problems))
            await asyncio.sleep(INTERVAL_S)

    async def keep(self) -> None:
        """Make partitions for yesterday and the next days, and book what came too late for a day
        that is attached by now."""
        now = self._clock.wall_ns()
        today = now - now % DAY_NS
        made = await self._offload(
            partial(self._days.keep, since=max(today - DAY_NS, 0), until=today + AHEAD_NS)
        )
        if made:
            log.info("usage_days_made", days=made)
        booked = await self._offload(partial(self._days.book_late, now=now))
        if booked:
            log.info("late_reports_booked", reports=booked)

    async def detach_overdue(self) -> int:
        """Detach what is older than is retained; return how many days."""
        if self._retain_days is None:
            return 0
        now = self._clock.wall_ns()
        before = now - self._retain_days * DAY_NS
        detached = 0
        for day_at in await self._offload(partial(self._days.overdue, before=before, now=now)):
            now = self._clock.wall_ns()
            file = await self._offload(
                partial(self._days.detach, EVERY_TENANT, day_at, now=now)
            )
            if file is not None:
                detached += 1
                log.info(
                    "usage_day_detached", day=day_name(day_at), file=file.file, rows=file.rows
                )
        return detached

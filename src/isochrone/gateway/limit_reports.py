"""Tells control how the limits stand that this gateway decides about, so that people see it."""

import contextlib
from typing import Final

from isochrone.core.errors import BusUnavailable
from isochrone.core.world.limit_use import LimitReport, LimitUse, SiteUse
from isochrone.gateway.context import Context
from isochrone.ports.bus import Bus
from isochrone.wire import fleet, subjects

EVERY_NS: Final = 2_000_000_000
MOST: Final = 500  # limits in one report


class LimitReports:
    """Call `sweep` about once a second. Nothing is said of limits that nobody uses."""

    def __init__(self, context: Context, bus: Bus) -> None:
        self._context = context
        self._bus = bus
        self._said_ns = 0

    def sweep(self, now_ns: int) -> None:
        if not self._context.shared_limits.is_on or now_ns - self._said_ns < EVERY_NS:
            return
        self._said_ns = now_ns
        uses = [
            LimitUse(
                limit=id_, mark=keeper.mark, left=max(keeper.left(), 0),
                sites=tuple(
                    SiteUse(
                        site=line.site, granted=line.amount, used=line.used, held=line.held
                    )
                    for line in keeper.lines(now_ns)
                ),
            )
            for id_, keeper in self._context.shared_limits.fleet.keepers().items()
            if keeper.leads and keeper.has_lines
        ]
        for at in range(0, len(uses), MOST):
            report = LimitReport(site=self._context.site, limits=tuple(uses[at : at + MOST]))
            self._context.spawn(self._say(report))

    async def _say(self, report: LimitReport) -> None:
        with contextlib.suppress(BusUnavailable):
            await self._bus.publish(subjects.limits_subject(report.site), fleet.encode(report))

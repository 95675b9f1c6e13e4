"""Tells control what this gateway does not trust, so that people see it; nobody decides by it.

While everything is healthy nothing is said.
"""

import contextlib
from typing import Final

from isochrone.core.errors import BusUnavailable
from isochrone.core.world.health import HealthReport, SeenReplica, SeenSite
from isochrone.gateway.context import Context
from isochrone.gateway.health_gauges import site_states
from isochrone.ports.bus import Bus
from isochrone.wire import fleet, subjects

EVERY_NS: Final = 2_000_000_000  # again, while something is not healthy
MOST: Final = 200  # of each kind; more cannot be looked at
MOST_WHY: Final = 200


class HealthReports:
    """Call `sweep` about once a second."""

    def __init__(self, context: Context, bus: Bus) -> None:
        self._context = context
        self._bus = bus
        self._last = self._of(())
        self._said_ns = 0

    def sweep(self, now_ns: int) -> None:
        """Say what is not healthy: at once when that changes, and now and then while it lasts."""
        context = self._context
        replicas = [
            SeenReplica(
                id=replica.id, model=replica.model, generation=replica.generation, state=state,
                why=health.why[:MOST_WHY],
            )
            for replica, state, health in context.view.replicas.states()
            if health.ailing and replica.site == context.site
        ]
        sites = [
            SeenSite(site=site, state=state, why=why[:MOST_WHY])
            for site, (state, why) in site_states(context, now_ns).items()
            if state not in ("healthy", "draining") and site != context.site
        ]
        report = self._of(tuple(replicas[:MOST]), tuple(sites[:MOST]))
        is_due = bool(replicas or sites) and now_ns - self._said_ns >= EVERY_NS
        if is_due or report != self._last:
            self._last, self._said_ns = report, now_ns
            context.spawn(self._say(report))

    def _of(
        self, replicas: tuple[SeenReplica, ...], sites: tuple[SeenSite, ...] = ()
    ) -> HealthReport:
        return HealthReport(
            site=self._context.site, worker=self._context.settings.worker, replicas=replicas,
            sites=sites,
        )

    async def _say(self, report: HealthReport) -> None:
        with contextlib.suppress(BusUnavailable):
            await self._bus.publish(
                subjects.health_subject(report.site), fleet.encode(report)
            )

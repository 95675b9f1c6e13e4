"""Reconciles usage with the engines' own counters: notes what they count, and reports each day.

Agents tell the counters of their engines in every digest, from when an engine is ready on. Their
latest readings are kept every few seconds. An hour after a day is over its report is made and kept,
later where nobody was there to make it; what does not agree is logged as an error.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

import msgspec
import structlog

from isochrone.control.fleet_state import FleetState
from isochrone.control.offload import Offload
from isochrone.core.billing.period import DAY_NS, day_of
from isochrone.core.errors import Unavailable
from isochrone.core.ids import ReplicaId
from isochrone.core.metering.loose import Counts
from isochrone.core.metering.reconcile import Life, Reading, Reconciliation, reconcile
from isochrone.core.world.digest import SiteDigest
from isochrone.ports.clock import Clock
from isochrone.ports.reconciling import KeptReport, Reconciling

INTERVAL_S = 2.0
FRESH_MS = 4_000.0  # older digests say nothing of now
MOST_SILENT_S = 3.0
AGAIN_NS = 30_000_000_000  # how often an engine that counts nothing new is noted to be heard
REPORT_AFTER_NS = 3_600_000_000_000
MOST_MISSED = 31  # days: requests of earlier ones may have left the book

log = structlog.get_logger()


def readings_of(digests: Sequence[SiteDigest]) -> list[Reading]:
    """What the engines of these sites have counted. Left out are those that do not count, those
    that do not answer their agents, which tell what they last heard of them for a while, and those
    that are another site's by their names."""
    return [
        Reading(
            replica=ReplicaId(each.id), generation=each.generation, site=digest.site,
            model=each.model,
            counts=Counts(
                input_uncached=each.prompt_tokens_total,
                input_cached=each.cached_tokens_total or 0,
                output=each.output_tokens_total or 0,
            ),
        )
        for digest in digests for each in digest.replicas
        if each.prompt_tokens_total is not None
        and each.state in ("ready", "draining") and each.silent_s <= MOST_SILENT_S
        and each.id.startswith(f"{digest.site}/")
    ]


def report_of(store: Reconciling, day_at: int) -> Reconciliation:
    """The report of a day, as the book is now."""
    sums = store.day_sums(day_at)
    return reconcile(
        day_at, sums.engines, sums.usage, sums.meters, wrong_sums=sums.wrong_sums,
        parked=sums.parked, unmetered=sums.unmetered, late=sums.late,
        loose=sums.loose,
    )


class Reconciler:
    """The reconciling loop of one copy of control; several copies keep the same."""

    def __init__(
        self, store: Reconciling, fleet: FleetState, *, clock: Clock, offload: Offload
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._clock = clock
        self._offload = offload
        self._noted: dict[Life, tuple[int, Reading]] = {}
        self._again_at = 0
        self._reported_at = 0

    async def run(self) -> None:
        """Note and report until cancelled; a book that is away is waited out."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                await self.note()
                await self.report()
            except Unavailable as error:
                log.warning("reconciling_waits", reason=error.message)

    async def note(self) -> int:
        """Keep what engines have counted since the last time; return how many did."""
        now = self._clock.wall_ns()
        day_at = day_of(now)
        found = {
            (each.replica, each.generation): (day_at, each)
            for each in readings_of(self._fleet.digests(within_ms=FRESH_MS))
        }
        news = [
            each for place, (day, each) in found.items() if self._noted.get(place) != (day, each)
        ]
        if news:
            await self._offload(
                partial(self._store.note_counts, news, day_at=day_at, now=now)
            )
        self._noted |= found
        if now >= self._again_at:
            await self._offload(
                partial(self._store.still_heard, list(found), day_at=day_at, now=now)
            )
            self._again_at = now + AGAIN_NS
            self._noted = found
        return len(news)

    async def report(self) -> bool:
        """Make the report of yesterday once that has been over for an hour, and of the days before
        it that ended while nobody made any. Whether there is a new one."""
        now = self._clock.wall_ns()
        last = day_of(now - REPORT_AFTER_NS) - DAY_NS
        if last <= self._reported_at:
            return False
        made = False
        for day_at in range(await self._offload(partial(self._first, last)), last + 1, DAY_NS):
            made = await self._offload(partial(self._keep, day_at, now)) or made
        self._reported_at = last
        return made

    def _first(self, last: int) -> int:
        """The first day without a report, of those until `last` that are not too long ago."""
        kept = self._store.reports(most=1)
        if not kept:
            return last
        return max(kept[0].day_at + DAY_NS, last - (MOST_MISSED - 1) * DAY_NS)

    def _keep(self, day_at: int, now: int) -> bool:
        report = report_of(self._store, day_at)
        kept = self._store.keep_report(
            KeptReport(
                day_at=day_at, agrees=report.agrees, made_at=now,
                report=msgspec.json.encode(report).decode(),
            )
        )
        if kept and not report.agrees:
            log.error("reconciliation_differs", day_at=day_at, findings=list(report.findings))
        return kept

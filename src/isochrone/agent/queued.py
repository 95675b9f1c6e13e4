"""What waits at the site's gateways and was pushed there, as they tell it a few times a second."""

from typing import Final

import structlog

from isochrone.core.errors import Untrusted
from isochrone.core.estimate.engine_rates import came_lately
from isochrone.core.estimate.service import Work
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.world.queued import QueueReport
from isochrone.ports.clock import Clock
from isochrone.wire import fleet, subjects

FORGOTTEN_NS: Final = 3_000_000_000  # of who says nothing for so long nothing waits, or it is gone
MOST_WORKERS: Final = 1024           # of one gateway
LEAST_NS: Final = 500_000_000        # over which it can be said how many come in a second

log = structlog.get_logger()


class Queued:
    def __init__(self, site: SiteName, clock: Clock) -> None:
        self._site = site
        self._clock = clock
        self._reports: dict[int, tuple[int, QueueReport]] = {}
        self._came: dict[ModelName, int] = {}
        self._since: dict[ModelName, tuple[int, float]] = {}

    def on_report(self, subject: str, payload: bytes) -> None:
        """A report of one worker has come."""
        try:
            report = fleet.decode(payload, QueueReport)
        except Untrusted as error:
            log.warning("queue_report_refused", subject=subject, why=error.message)
            return
        # The subject, too: what a server is made to deliver elsewhere keeps that of its sender.
        own = subject == subjects.queued_subject(report.site) and report.site == self._site
        if not own or not 0 <= report.worker < MOST_WORKERS:
            return
        _, before = self._reports.get(report.worker, (0, None))
        for each in report.queues:
            counted = 0 if before is None else _pushed(before, each.model)
            more = each.pushed - (counted if each.pushed >= counted else 0)  # it began anew
            self._came[each.model] = self._came.get(each.model, 0) + more
        self._reports[report.worker] = self._clock.monotonic_ns(), report

    def of(self, model: ModelName) -> Work:
        """What waits for a model, over all workers; counts that nothing can have are 0."""
        work, now_ns = Work(), self._clock.monotonic_ns()
        for heard_ns, report in self._reports.values():
            if now_ns - heard_ns > FORGOTTEN_NS:
                continue
            for each in report.queues:
                if each.model == model:
                    work.requests += max(each.requests, 0)
                    work.prompt_tokens += max(each.prompt_tokens, 0)
                    work.output_tokens += max(each.output_tokens, 0)
        return work

    def pushed(self, model: ModelName) -> float:
        """Requests a second that came past a nearer site lately. To be asked once a digest."""
        now_ns, (since_ns, lately) = self._clock.monotonic_ns(), self._since.get(model, (0, 0.0))
        if now_ns - since_ns < LEAST_NS:
            return lately
        came = self._came.pop(model, 0)
        lately = came_lately(lately, came, (now_ns - since_ns) / 1e9) if since_ns else 0.0
        self._since[model] = now_ns, lately
        return lately


def _pushed(report: QueueReport, model: ModelName) -> int:
    for each in report.queues:
        if each.model == model:
            return each.pushed
    return 0

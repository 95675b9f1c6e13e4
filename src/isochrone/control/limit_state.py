"""What gateways say of the limits that they decide about: the latest of each, in memory only."""

from dataclasses import dataclass

import structlog

from isochrone.core.errors import Untrusted
from isochrone.core.ids import LimitId, SiteName
from isochrone.core.world.limit_use import LimitReport, LimitUse
from isochrone.ports.clock import Clock
from isochrone.wire import fleet, subjects

STALE_NS = 60_000_000_000

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenUse:
    """Who said it, and how long ago in seconds."""

    by: SiteName
    use: LimitUse
    age_s: float


class LimitState:
    """Mutable, owned by one event loop; reading is safe from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[LimitId, tuple[SiteName, LimitUse, int]] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def of(self, limit_id: LimitId) -> SeenUse | None:
        """None where nobody used it lately."""
        seen = self._seen.get(limit_id)
        if seen is None:
            return None
        age_ns = self._clock.monotonic_ns() - seen[2]
        if age_ns > STALE_NS:
            return None
        return SeenUse(by=seen[0], use=seen[1], age_s=age_ns / 1e9)

    def on_report(self, subject: str, payload: bytes) -> None:
        """Take what a gateway says; only its own site may say it."""
        try:
            report = fleet.decode(payload, LimitReport)
        except Untrusted as error:
            log.warning("limit_report_refused", subject=subject, reason=str(error))
            return
        if subject != subjects.limits_subject(report.site):
            log.warning("limit_report_refused", subject=subject, reason="it speaks for another")
            return
        now_ns = self._clock.monotonic_ns()
        for use in report.limits:
            self._seen.pop(use.limit, None)  # what was said last stays last
            self._seen[use.limit] = (report.site, use, now_ns)
        self._forget(now_ns)

    def _forget(self, now_ns: int) -> None:
        """Drop what is too old to be told: limits are removed, too."""
        while self._seen:
            oldest = next(iter(self._seen))
            if now_ns - self._seen[oldest][2] <= STALE_NS:
                return
            del self._seen[oldest]

"""Watches the own wall clock: compares it with the stamps of other sites and says when it is off.

Message codes of hops are refused when the clocks of two sites differ by much, and usage is booked
by the wall clock; so a clock that is a second off is worth an alarm long before anything breaks.
"""

from collections import deque

import structlog

from isochrone.core.estimate.skew import ClockOffset, clock_offset, sample_ms
from isochrone.core.ids import SiteName
from isochrone.ports.clock import Clock

SAMPLES = 15
EVERY_NS = 1_000_000_000        # at most one sample a site in this time
FORGET_NS = 120_000_000_000     # a site that says nothing for this long has no voice
JUDGE_EVERY_NS = 5_000_000_000
ALARM_MS = 1000.0
CALM_MS = 500.0                 # the alarm ends below this, so that it does not flutter

log = structlog.get_logger()


class _Heard:
    """Recent samples of one site."""

    __slots__ = ("at_ns", "samples")

    def __init__(self) -> None:
        self.at_ns = -EVERY_NS
        self.samples: deque[float] = deque(maxlen=SAMPLES)


class Skew:
    """Call `heard` with stamps, as many as there are, and `sweep` about once a second."""

    def __init__(self, own_site: SiteName, clock: Clock) -> None:
        self._own_site = own_site
        self._clock = clock
        self._sites: dict[SiteName, _Heard] = {}
        self._offset: ClockOffset | None = None
        self._judged_ns: int | None = None
        self.alarmed = False

    def heard(
        self, site: SiteName, sent_at: int, rtt_ms: float = 0.0, began_ns: int | None = None
    ) -> None:
        """A message arrived that `site` stamped with its wall clock; 0 is no stamp. One that took
        its time to come in began to at `began_ns`."""
        now_ns = self._clock.monotonic_ns()
        heard = self._sites.get(site)
        if heard is None:
            if site == self._own_site or sent_at <= 0:
                return  # the own site's processes share one clock
            heard = self._sites[site] = _Heard()
        elif now_ns - heard.at_ns < EVERY_NS or sent_at <= 0:
            return
        heard.at_ns = now_ns
        arrived_at = self._clock.wall_ns()
        if began_ns is not None:
            arrived_at -= now_ns - began_ns
        heard.samples.append(sample_ms(sent_at, arrived_at, rtt_ms))

    def offset_ms(self) -> float | None:
        """How far the own clock is ahead of the others, as last judged; None while unknown."""
        return None if self._offset is None else self._offset.offset_ms

    def sweep(self) -> None:
        """Judge anew every few seconds; a change for the worse or the better is logged once."""
        now_ns = self._clock.monotonic_ns()
        if self._judged_ns is not None and now_ns - self._judged_ns < JUDGE_EVERY_NS:
            return
        self._judged_ns = now_ns
        for site in [s for s, heard in self._sites.items() if now_ns - heard.at_ns > FORGET_NS]:
            del self._sites[site]
        self._offset = clock_offset({site: heard.samples for site, heard in self._sites.items()})
        if self._offset is None:
            return
        off_ms = abs(self._offset.offset_ms)
        if not self.alarmed and off_ms > ALARM_MS:
            self.alarmed = True
            log.warning(
                "clock_is_off", site=self._own_site, offset_ms=round(self._offset.offset_ms),
                sites_heard=self._offset.senders,
            )
        elif self.alarmed and off_ms < CALM_MS:
            self.alarmed = False
            log.info(
                "clock_is_right_again", site=self._own_site,
                offset_ms=round(self._offset.offset_ms),
            )

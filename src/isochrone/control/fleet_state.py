"""What sites say about themselves: the latest digest of each, and links learnt from their probes.

Kept in memory only: a digest is replaced a second later, and `status` shows its age.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from isochrone.control.offload import Offload
from isochrone.core.errors import Unavailable, Untrusted
from isochrone.core.ids import SiteName
from isochrone.core.world.digest import SiteDigest
from isochrone.core.world.site import Link, SiteLinks
from isochrone.ports.bus import Bus, Subscription
from isochrone.ports.clock import Clock
from isochrone.ports.estate import Estate
from isochrone.wire import fleet, subjects

LEARN_INTERVAL_S = 10.0
RETRY_S = 1.0
# Smaller changes of a round trip than both of these are noise and not worth a new view.
LEARN_RATIO = 0.1
LEARN_MS = 0.5

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A digest and the monotonic instant at which it arrived."""

    digest: SiteDigest
    at_ns: int


class FleetState:
    """The latest digest of every site that this copy of control hears."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heard: dict[SiteName, Heard] = {}

    def heard(self, site: SiteName) -> Heard | None:
        return self._heard.get(site)

    def age_ms(self, heard: Heard) -> float:
        """Milliseconds since the digest arrived."""
        return (self._clock.monotonic_ns() - heard.at_ns) / 1e6

    def digests(self) -> Sequence[SiteDigest]:
        return [heard.digest for heard in self._heard.values()]

    def on_message(self, subject: str, payload: bytes) -> None:
        """Take a digest, unless a newer one of the same agent was heard."""
        try:
            digest = fleet.decode(payload, SiteDigest)
        except Untrusted as error:
            log.warning("digest_refused", subject=subject, reason=str(error))
            return
        # The bus lets a site publish under its own subject only, so the subject says who it is.
        if subject != subjects.digest_subject(digest.site):
            log.warning("digest_refused", subject=subject, reason=f"it speaks for {digest.site}")
            return
        last = self._heard.get(digest.site)
        if (
            last is not None
            and last.digest.epoch == digest.epoch
            and last.digest.sequence >= digest.sequence
        ):
            return
        self._heard[digest.site] = Heard(digest=digest, at_ns=self._clock.monotonic_ns())


async def listen(state: FleetState, bus: Bus) -> Subscription:
    """Feed `state` from the bus, waiting for the bus to come up first."""
    while True:
        try:
            return await bus.subscribe(subjects.DIGESTS, state.on_message)
        except Unavailable as error:
            log.warning("digests_wait", reason=str(error))
            await asyncio.sleep(RETRY_S)


async def learn_links(state: FleetState, estate: Estate, offload: Offload) -> None:
    """Every few seconds, write round trips that agents measured into the book; for ever."""
    while True:
        await asyncio.sleep(LEARN_INTERVAL_S)
        try:
            await offload(partial(_learn, estate, state.digests()))
        except Unavailable as error:
            log.warning("links_wait", reason=str(error))


def _learn(estate: Estate, digests: Sequence[SiteDigest]) -> None:
    probing = [digest for digest in digests if digest.probes]
    news = worth_writing(probing, {digest.site: estate.links(digest.site) for digest in probing})
    if news:
        estate.set_links(news)


def worth_writing(
    digests: Sequence[SiteDigest], known: dict[SiteName, Sequence[Link]]
) -> list[SiteLinks]:
    """Probed round trips that differ enough from what is known; emulated links are never one."""
    news = []
    for digest in digests:
        before = {link.peer: link for link in known[digest.site]}
        links = [
            Link(peer=probe.peer, rtt_ms=probe.rtt_ms, source="probed")
            for probe in digest.probes
            if _differs(before.get(probe.peer), probe.rtt_ms)
        ]
        if links:
            news.append(SiteLinks(site=digest.site, links=tuple(links)))
    return news


def _differs(known: Link | None, rtt_ms: float) -> bool:
    if known is None:
        return True
    if known.source == "emulated":
        return False
    change_ms = abs(rtt_ms - known.rtt_ms)
    return known.source != "probed" or change_ms > max(LEARN_MS, LEARN_RATIO * known.rtt_ms)

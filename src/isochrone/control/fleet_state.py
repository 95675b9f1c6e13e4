"""What sites say about themselves: the latest digest of each, and links learnt from their probes.

Kept in memory only: a digest is replaced a second later, and `status` shows its age.
"""

import asyncio
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from unicodedata import category

import structlog

from isochrone.control.limit_state import LimitState
from isochrone.control.offload import Offload
from isochrone.core.errors import Unavailable, Untrusted
from isochrone.core.ids import SiteName
from isochrone.core.lifecycle.health import worse
from isochrone.core.world.digest import SiteDigest
from isochrone.core.world.health import HealthReport, SeenReplica, SeenSite
from isochrone.core.world.host import is_host_name
from isochrone.core.world.site import Link, SiteLinks
from isochrone.ports.bus import Bus, Subscription
from isochrone.ports.clock import Clock
from isochrone.ports.estate import Estate
from isochrone.wire import fleet, subjects

LEARN_INTERVAL_S = 10.0
REPORT_NS = 7_000_000_000  # gateways repeat theirs every two seconds while something is wrong
RETRY_S = 1.0
MOST_WORKERS = 1024  # of one gateway
COUNTS_END = 1 << 63  # of whole numbers in the book
CONTROL_CHARACTERS = "it has control characters where people read"
# Smaller changes of a round trip than both of these are noise and not worth a new view.
LEARN_RATIO = 0.1
LEARN_MS = 0.5

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A digest and the monotonic instant at which it arrived."""

    digest: SiteDigest
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What a worker of a gateway does not trust, and the monotonic instant at which it said so."""

    report: HealthReport
    at_ns: int


class FleetState:
    """The latest digest of every site that this copy of control hears, what gateways say that they
    do not trust, and, in `limits`, what they say of limits."""

    def __init__(self, clock: Clock) -> None:
        self.limits = LimitState(clock)
        self._clock = clock
        self._heard: dict[SiteName, Heard] = {}
        self._reported: dict[tuple[SiteName, int], Reported] = {}

    def heard(self, site: SiteName) -> Heard | None:
        return self._heard.get(site)

    def age_ms(self, heard: Heard) -> float:
        """Milliseconds since the digest arrived."""
        return (self._clock.monotonic_ns() - heard.at_ns) / 1e6

    def digests(self, *, within_ms: float = math.inf) -> Sequence[SiteDigest]:
        """The latest of each site, as far as they arrived within so many milliseconds."""
        return [
            heard.digest for heard in self._heard.values() if self.age_ms(heard) <= within_ms
        ]

    def replicas_seen(self, site: SiteName) -> dict[str, SeenReplica]:
        """What the workers of a site's gateway say of its replicas; of each the worst."""
        seen: dict[str, SeenReplica] = {}
        for report in self._reports():
            if report.site != site:
                continue
            for each in report.replicas:
                known = seen.get(each.id)
                if known is None or worse(each.state, known.state):
                    seen[each.id] = each
        return seen

    def seen_by(self, site: SiteName) -> dict[SiteName, SeenSite]:
        """What the gateways of other sites say of this one: only those that do not trust it."""
        seen: dict[SiteName, SeenSite] = {}
        for report in self._reports():
            for each in report.sites:
                known = seen.get(report.site)
                if each.site == site and (known is None or worse(each.state, known.state)):
                    seen[report.site] = each
        return seen

    def _reports(self) -> Iterator[HealthReport]:
        """Those that hold still."""
        oldest_ns = self._clock.monotonic_ns() - REPORT_NS
        for reported in self._reported.values():
            if reported.at_ns >= oldest_ns:
                yield reported.report

    def on_report(self, subject: str, payload: bytes) -> None:
        """Take what a gateway does not trust."""
        try:
            report = fleet.decode(payload, HealthReport)
        except Untrusted as error:
            log.warning("health_report_refused", subject=subject, reason=str(error))
            return
        if subject != subjects.health_subject(report.site) or not 0 <= report.worker < MOST_WORKERS:
            log.warning("health_report_refused", subject=subject, reason="it speaks for another")
            return
        seen: list[SeenReplica | SeenSite] = [*report.replicas, *report.sites]
        if any(_commands(text) for each in seen for text in (each.state, each.why)):
            log.warning("health_report_refused", subject=subject, reason=CONTROL_CHARACTERS)
            return
        self._reported[report.site, report.worker] = Reported(
            report=report, at_ns=self._clock.monotonic_ns()
        )

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
        wrong = _wrong_hosts(digest) or _wrong_counts(digest)
        if wrong is not None:
            log.warning("digest_refused", subject=subject, reason=wrong)
            return
        last = self._heard.get(digest.site)
        if (
            last is not None
            and last.digest.epoch == digest.epoch
            and last.digest.sequence >= digest.sequence
        ):
            return
        self._heard[digest.site] = Heard(digest=digest, at_ns=self._clock.monotonic_ns())


def _wrong_hosts(digest: SiteDigest) -> str | None:
    """What is wrong with the hosts of a digest, which people will be shown."""
    names = [each.host.name for each in digest.hosts]
    if len(set(names)) < len(names) or not all(map(is_host_name, names)):
        return "its hosts have no names, or one name twice"
    if not {each.host for each in digest.replicas} <= {None, *names}:
        return "a replica runs on a host that it does not tell"
    if any(_commands(gpu.kind) for each in digest.hosts for gpu in each.host.gpus):
        return CONTROL_CHARACTERS
    return None


def _wrong_counts(digest: SiteDigest) -> str | None:
    """What is wrong with what the book is to keep of a digest: no site can say what it holds, and
    one must not keep it from the others."""
    counts = [
        count for each in digest.replicas for count in (
            each.generation, each.prompt_tokens_total, each.cached_tokens_total,
            each.output_tokens_total,
        ) if count is not None
    ]
    if not all(0 <= count < COUNTS_END for count in counts):
        return "it counts what nothing counts"
    if not all(0.0 <= each.rtt_ms < math.inf for each in digest.probes):
        return "its round trips are none"
    names = [name for each in digest.replicas for name in (each.id, each.model, each.state)]
    names += [each.peer for each in digest.probes] + [each.model for each in digest.loads]
    return CONTROL_CHARACTERS if any(map(_commands, names)) else None


def _commands(text: str) -> bool:
    """Whether a terminal would obey a part of it; the book holds no NUL either."""
    return not text.isprintable() and any(category(each) == "Cc" for each in text)


async def listen(state: FleetState, bus: Bus) -> Sequence[Subscription]:
    """Feed `state` from the bus, waiting for the bus to come up first."""
    heard: list[Subscription] = []
    while True:
        try:
            if not heard:
                heard.append(await bus.subscribe(subjects.DIGESTS, state.on_message))
            if len(heard) < 2:
                heard.append(await bus.subscribe(subjects.HEALTH, state.on_report))
            heard.append(await bus.subscribe(subjects.LIMITS, state.limits.on_report))
            return heard
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

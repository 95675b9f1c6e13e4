"""Asks the gateways of sites that are not trusted whether they are there; nobody else's.

No mesh: a site is asked while this gateway has lost it, near the end of each hold, or while what
came of its requests makes it suspect or ejected. So no request has to find out that a site is still
away, and one that hangs is out before its requests have timed out.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

import structlog

from isochrone.core.ids import SiteName
from isochrone.gateway.context import Context
from isochrone.gateway.target import Target
from isochrone.gateway.upstream import without_address

TIMEOUT_S: Final = 2.0
AHEAD_NS: Final = 2_500_000_000  # of the end of a hold: a probe that begins then has failed by it
EVERY_NS: Final = 1_000_000_000
FAILED: Final = 2  # in a row, of a site that is not lost yet

log = structlog.get_logger()


class SiteProbes:
    """Call `sweep` a few times a second."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._next_ns: dict[SiteName, int] = {}
        self._failed: dict[SiteName, int] = {}

    def sweep(self, now_ns: int) -> None:
        """Begin the probes that are due."""
        doubtful = self._doubtful(now_ns)
        for gone in [site for site in self._next_ns if site not in doubtful]:
            del self._next_ns[gone]
            self._failed.pop(gone, None)
        for site in doubtful:
            if now_ns >= self._next_ns.get(site, 0):
                target = self._target(site)
                if target is not None:
                    self._next_ns[site] = now_ns + EVERY_NS + int(TIMEOUT_S * 1e9)
                    self._context.spawn(self._probe(site, target, self._is_lost(site)))

    def _doubtful(self, now_ns: int) -> list[SiteName]:
        context = self._context
        found: dict[SiteName, None] = {}
        for site, _, health in context.loads.health.doubtful():
            if health.state != "recovering":
                found[site] = None
        for name in context.view.table.view.sites:
            load = context.loads.of(name)
            if load is not None and load.unreachable and load.lost_ns is not None:
                if now_ns + AHEAD_NS >= load.lost_ns + load.hold_ns:
                    found[name] = None
                else:
                    found.pop(name, None)
        found.pop(context.site, None)
        return list(found)

    def _is_lost(self, site: SiteName) -> bool:
        load = self._context.loads.of(site)
        return load is not None and load.unreachable

    def _target(self, site: SiteName) -> Target | None:
        context = self._context
        noun = context.view.site(site)
        key = None if noun is None else context.peers.key_for(noun)
        if noun is None or key is None or not noun.port:
            return None
        return context.targets.peer(
            noun, key, context.view.emulated_rtt_ms(site), context.view.rtt_ms(site)
        )

    async def _probe(self, site: SiteName, target: Target, was_lost: bool) -> None:
        context = self._context
        why = ""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await _ask(context, target)
        except TimeoutError:
            why = f"no answer to a probe within {TIMEOUT_S:g} s"
        except OSError as error:
            why = f"a probe failed: {without_address(error)}"
        now_ns = context.clock.monotonic_ns()
        self._next_ns[site] = now_ns + EVERY_NS
        context.site_probes["failed" if why else "answered"] += 1
        if not why:
            self._failed.pop(site, None)
            context.loads.found(site, now_ns)
            return
        # A digest may have ended the loss while the probe waited: that the agent lives says nothing
        # of the gateway, which has not answered since.
        if was_lost or self._is_lost(site):
            context.loads.still_lost(site, now_ns)
            return
        failed = self._failed[site] = self._failed.get(site, 0) + 1
        if failed >= FAILED:
            log.warning("site_lost", site=site, why=why)
            context.loads.lost(site, now_ns)


async def _ask(context: Context, target: Target) -> None:
    """GET /health of a gateway, on a connection of its own. Raises OSError."""
    connection = await context.pool.connect(target.address, timeout_s=TIMEOUT_S)
    answer = _Answer()
    try:
        head = f"GET /health HTTP/1.1\r\nhost: {target.host}\r\nconnection: close\r\n\r\n"
        connection.send(head.encode("latin-1"), answer)
        await answer.whole
    finally:
        connection.abort()


class _Answer:
    """Whatever is answered shows that somebody is there."""

    def __init__(self) -> None:
        self.whole: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def answered(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        pass

    def received(self, data: bytes) -> None:
        pass

    def ended(self) -> None:
        if not self.whole.done():
            self.whole.set_result(None)

    def lost(self, why: str) -> None:
        if not self.whole.done():
            self.whole.set_exception(ConnectionResetError(why))

"""Asks every gateway whether it takes requests, so that a dead ingress leaves the answers.

Digests say that an agent lives; only the gateway itself can say that it does. A gateway that is
asked over a kept connection costs two packets a time. One that stops closes its port, so it is
missed within a few probes.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import structlog

from isochrone.core.ids import SiteName
from isochrone.core.steering.reach import Reach
from isochrone.core.world.site import Site
from isochrone.ports.network import Address, Network
from isochrone.wire.hop_tls import hop_tls_name

MOST_ANSWER_BYTES = 16 * 1024
MOST_AT_ONCE = 64

Kind = Literal["ready", "connect"]

log = structlog.get_logger()


class ReadyProbe(asyncio.Protocol):
    """One connection to a gateway, which is asked one thing at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._answer: asyncio.Future[bool] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._answer is None or self._answer.done():
            self.close()  # nothing was asked
        elif self._complete():
            self._answer.set_result(self._received.partition(b"\r\n")[0].split()[1:2] == [b"200"])
        elif len(self._received) > MOST_ANSWER_BYTES:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("the gateway closed the connection"))

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, host: str) -> bool:
        """Whether GET /ready is answered with 200. Raises OSError when the gateway goes."""
        if self._transport is None:
            raise ConnectionResetError("the gateway closed the connection")
        self._received = b""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(f"GET /ready HTTP/1.1\r\nhost: {host}\r\n\r\n".encode("latin-1"))
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _complete(self) -> bool:
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return False
        for line in head.lower().split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.strip() == b"content-length" and value.strip().isdigit():
                return len(body) >= int(value)
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    site: Site
    probe: ReadyProbe


class Probes:
    """Probes of all `sites`, which may be replaced; `reaches` is what they say by now. `began`:
    every site was probed once."""

    def __init__(
        self, network: Network, *, kind: Kind, interval_s: float, timeout_s: float
    ) -> None:
        self.sites: Mapping[SiteName, Site] = {}
        self.reaches: dict[SiteName, Reach] = {}
        self.began = asyncio.Event()
        self._network = network
        self._kind = kind
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._kept: dict[SiteName, _Kept] = {}

    async def run(self) -> None:
        try:
            while True:
                await self.probe_all()
                self.began.set()
                await asyncio.sleep(self._interval_s)
        finally:
            for name in list(self._kept):
                self._drop(name)

    async def probe_all(self) -> None:
        """One probe of every site that may have clients; never raises for one that is away."""
        sites = {name: site for name, site in self.sites.items() if site.host and site.port}
        for gone in self.reaches.keys() - sites.keys():
            del self.reaches[gone]
            self._drop(gone)
        turn = asyncio.Semaphore(MOST_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for name, site in sites.items():
                tasks.create_task(self._probe(name, site, turn), name=f"probe {name}")

    async def _probe(self, name: SiteName, site: Site, turn: asyncio.Semaphore) -> None:
        async with turn:
            try:
                async with asyncio.timeout(self._timeout_s):
                    answered = await self._ask(name, site)
            except (OSError, TimeoutError):
                answered = False
                self._drop(name)
        before = self.reaches.get(name, Reach())
        after = self.reaches[name] = before.probed(answered)
        if before.answers != after.answers:
            log.warning("ingress_answers" if after.answers else "ingress_silent", site=name)

    async def _ask(self, name: SiteName, site: Site) -> bool:
        kept = self._kept.get(name)
        if kept is not None and (kept.site != site or not kept.probe.open):
            self._drop(name)
            kept = None
        if kept is None:
            tls_name = hop_tls_name(site.public_url, site.port)
            address = Address(
                host=site.host, port=site.port, tls=tls_name is not None, tls_name=tls_name or ""
            )
            probe = await self._network.connect(ReadyProbe, address, timeout_s=self._timeout_s)
            kept = self._kept[name] = _Kept(site=site, probe=probe)
        # Without a URL the name that is in its certificate is not known.
        if self._kind == "ready" and site.public_url:
            return await kept.probe.ask(site.host)
        self._drop(name)  # the next probe connects anew
        return True

    def _drop(self, name: SiteName) -> None:
        kept = self._kept.pop(name, None)
        if kept is not None:
            kept.probe.close()

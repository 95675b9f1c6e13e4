"""Measures the round trip to every peer gateway over a kept connection, as requests will see it.

The first sample of a connection is its handshake where that is one round trip, without TLS; the
others are a GET /health each. What is reported is the median of the last five. A peer that does not
answer loses its figure.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import cast

from isochrone.core.ids import SiteName
from isochrone.core.world.site import Site
from isochrone.ports.clock import Clock
from isochrone.ports.network import Address, Network
from isochrone.wire.hop_tls import hop_tls_name

SAMPLES = 5
TIMEOUT_S = 2.0
MOST_ANSWER_BYTES = 16 * 1024


class HealthProbe(asyncio.Protocol):
    """One kept connection to a gateway, asking one thing at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._answer: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._complete() and self._answer is not None and not self._answer.done():
            self._answer.set_result(None)
        elif len(self._received) > MOST_ANSWER_BYTES:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("the peer closed the connection"))

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, host: str) -> None:
        """GET /health; returns at the end of the answer. Raises OSError when the peer goes."""
        if self._transport is None:
            raise ConnectionResetError("the peer closed the connection")
        self._received = b""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(f"GET /health HTTP/1.1\r\nhost: {host}\r\n\r\n".encode("latin-1"))
        await self._answer

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


class Prober:
    """Round trips to the peers of `sites`, which the agent keeps up to date."""

    def __init__(
        self, own_site: SiteName, network: Network, clock: Clock, *,
        sites: Mapping[SiteName, Site], interval_s: float,
    ) -> None:
        self._own_site = own_site
        self._network = network
        self._clock = clock
        self._sites = sites
        self._interval_s = interval_s
        self._samples: dict[SiteName, deque[float]] = {}
        self._kept: dict[SiteName, tuple[Site, HealthProbe]] = {}
        self.round_trips: dict[SiteName, float] = {}

    async def run(self) -> None:
        try:
            while True:
                await self.probe_all()
                await asyncio.sleep(self._interval_s)
        finally:
            for _, probe in self._kept.values():
                probe.close()

    async def probe_all(self) -> None:
        """One sample of every peer, in parallel; never raises for a peer that is away."""
        peers = {name: site for name, site in self._sites.items() if name != self._own_site}
        for gone in self._samples.keys() - peers.keys():
            self._lose(gone)
        async with asyncio.TaskGroup() as tasks:
            for name, site in peers.items():
                if site.peer_key is not None and site.port:
                    tasks.create_task(self._probe(name, site), name=f"probe {name}")

    async def _probe(self, name: SiteName, site: Site) -> None:
        try:
            rtt_ms = await self._sample(name, site)
        except (OSError, TimeoutError):
            self._lose(name)
            return
        samples = self._samples.setdefault(name, deque(maxlen=SAMPLES))
        samples.append(rtt_ms)
        self.round_trips[name] = median(samples)

    async def _sample(self, name: SiteName, site: Site) -> float:
        kept = self._kept.get(name)
        if kept is not None and (kept[0] != site or not kept[1].open):
            kept[1].close()
            kept = None
        tls_name = hop_tls_name(site.public_url, site.port)
        async with asyncio.timeout(TIMEOUT_S):
            started_ns = self._clock.monotonic_ns()
            if kept is None:
                address = Address(
                    host=site.host, port=site.port, tls=tls_name is not None,
                    tls_name=tls_name or "",
                )
                probe = await self._network.connect(HealthProbe, address, timeout_s=TIMEOUT_S)
                self._kept[name] = kept = (site, probe)
                if tls_name is None:
                    return (self._clock.monotonic_ns() - started_ns) / 1e6
                started_ns = self._clock.monotonic_ns()
            await kept[1].ask(site.host)
            return (self._clock.monotonic_ns() - started_ns) / 1e6

    def _lose(self, name: SiteName) -> None:
        self._samples.pop(name, None)
        self.round_trips.pop(name, None)
        kept = self._kept.pop(name, None)
        if kept is not None:
            kept[1].close()

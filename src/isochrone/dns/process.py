"""One name server process: follows the fleet, watches its health, answers, stops in good order."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from isochrone.core.errors import BusUnavailable, Untrusted
from isochrone.core.estimate.round_trip import DistanceRtt
from isochrone.core.ids import SiteName
from isochrone.core.residency.blocs import Blocs
from isochrone.core.rng import Random
from isochrone.core.steering.fitness import Fitness
from isochrone.core.steering.steer import Ties
from isochrone.core.world.digest import SiteDigest
from isochrone.dns.director import Director
from isochrone.dns.estate import Estate
from isochrone.dns.fleet import FleetView
from isochrone.dns.probes import Probes
from isochrone.dns.server import Service, TcpServer, UdpServer
from isochrone.dns.settings import DnsSettings
from isochrone.dns.view_store import ViewStore
from isochrone.dns.zone import Answerer, AnswerRules, Zone
from isochrone.ports.bus import Bus
from isochrone.ports.clock import Clock
from isochrone.ports.disk import Disk
from isochrone.ports.network import Listener, Network
from isochrone.wire import fleet, subjects

TICK_S = 0.25
RETRY_S = 0.5
SILENCE_S = 2.5     # the bus sends a heartbeat a second
FIRST_VIEW_S = 5.0  # a name server that knows nothing can only fail, so it does not listen at once
FIRST_PROBES_S = 5.0
SAVE_S = 2.0
COUNT_S = 60.0
PORT_TRIES = 20

log = structlog.get_logger()

ListenUdp = Callable[[Callable[[], asyncio.DatagramProtocol], str, int], Awaitable[Listener]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What a name server needs of the world. Without a `bus` the sites are those that it is told
    of; with one, the view is kept on `disk`. `listen_udp` raises OSError when the port is taken."""

    clock: Clock
    network: Network
    rng: Random
    bus: Bus | None
    disk: Disk | None
    listen_udp: ListenUdp


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the file says: the zone, the sites that clients are said to be at (for their links),
    and, without a bus, the sites."""

    zone: Zone
    places_at: frozenset[SiteName]
    estate: Estate | None


class Dns:
    """Construct, then `run`; `tell` it what a changed file says."""

    def __init__(
        self, settings: DnsSettings, told: Told, ports: Ports, *, control_key: str | None,
        blocs: Blocs, by_distance: Sequence[DistanceRtt],
    ) -> None:
        self._settings = settings
        self._ports = ports
        self._told = told
        self.director = Director(blocs, by_distance)
        rules = AnswerRules(
            ttl_s=settings.ttl_s, negative_ttl_s=settings.negative_ttl_s,
            most_addresses=settings.most_addresses,
            ties=Ties(ms=settings.tie_ms, share=settings.tie_share), explain=settings.explain,
        )
        self._answerer = Answerer(told.zone, self.director, rules, ports.rng)
        self.service = Service(
            self._answerer, ports.clock, responses_per_s=settings.responses_per_s,
            udp_bytes=settings.udp_bytes,
        )
        self.tcp = TcpServer(
            self.service, max_connections=settings.max_connections,
            idle_timeout_s=settings.idle_timeout_s,
        )
        self._fitness = Fitness(settings.digest_stale_s, ports.clock.monotonic_ns())
        self._probes: Probes | None = None
        if settings.probe != "none":
            self._probes = Probes(
                ports.network, kind=settings.probe, interval_s=settings.probe_interval_s,
                timeout_s=settings.probe_timeout_s,
            )
        self._view = None if control_key is None else FleetView(control_key)
        self._store: ViewStore | None = None
        if self._view is not None and ports.disk is not None:
            self._store = ViewStore(ports.disk, self._view, ports.clock)
        self._serves_stored = False
        self._began_ns = ports.clock.monotonic_ns()
        self._version = -1  # of the view that the director knows
        self._viewing = asyncio.Event()
        self._refollow = asyncio.Event()
        self._learn()

    def tell(self, told: Told) -> None:
        """Take in a changed file; settings of the process stay as they are."""
        self._told = told
        self._answerer.zone = told.zone
        self._refollow.set()
        self._learn()

    async def run(
        self, stop: asyncio.Event, on_listening: Callable[[int], None] | None = None
    ) -> None:
        """Answer until `stop` is set. Raises OSError when a port is taken."""
        tasks: list[asyncio.Task[None]] = []
        listeners: list[Listener] = []
        if self._store is not None:
            self._store.load()
        async with asyncio.TaskGroup() as group:
            tasks.append(group.create_task(self._tick()))
            if self._view is not None and self._ports.bus is not None:
                tasks.append(group.create_task(self._follow(self._view, self._ports.bus)))
                await self._first_view(self._view, stop)
            if self._store is not None:
                tasks.append(group.create_task(self._store.run()))
            if self._probes is not None:
                tasks.append(group.create_task(self._probes.run()))
                await _either(self._probes.began, stop, FIRST_PROBES_S)
                self._learn()
            try:
                if not stop.is_set():
                    port = await self._listen(listeners)
                    if on_listening is not None:
                        on_listening(port)
                await stop.wait()
                log.info("dns_stopping", open=len(self.tcp.connections))
            finally:
                for listener in listeners:
                    await listener.close()
                self.tcp.close()
                self._count()
                await self._keep_view()
                for task in tasks:
                    task.cancel()
                if self._view is not None:
                    await self._view.close()

    async def _first_view(self, view: FleetView, stop: asyncio.Event) -> None:
        """Wait for the view; when it does not come, answer from the one that was kept."""
        await _either(self._viewing, stop, FIRST_VIEW_S)
        if not self._viewing.is_set() and not stop.is_set():
            self._serves_stored = view.knows_sites
            event = "view_from_disk" if self._serves_stored else "dns_without_view"
            log.warning(event, waited_s=FIRST_VIEW_S)
            self._learn()

    async def _keep_view(self) -> None:
        if self._store is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SAVE_S):
                    await self._store.flush()

    async def _listen(self, listeners: list[Listener]) -> int:
        """Listen at every host on UDP and TCP, on one port; returns the port."""
        port = self._settings.port
        for host in self._settings.hosts:
            tcp, udp = await self._pair(host, port)
            listeners += (tcp, udp)
            port = tcp.port
            log.info("dns_listening", host=host, port=port)
        return port

    async def _pair(self, host: str, port: int) -> tuple[Listener, Listener]:
        """TCP and UDP on one port. When any will do, the one that TCP got may be taken on UDP."""
        for tries_left in range(PORT_TRIES, -1, -1):
            tcp = await self._ports.network.listen(self.tcp.accept, host, port)
            try:
                udp = await self._ports.listen_udp(
                    lambda: UdpServer(self.service), host, tcp.port
                )
            except OSError:
                await tcp.close()
                if port or not tries_left:
                    raise
            else:
                return tcp, udp
        raise AssertionError("the last try returns or raises")

    async def _follow(self, view: FleetView, bus: Bus) -> None:
        """Follow view and digests; while the bus is away at the start, try again."""
        subscribed = False
        while True:
            self._refollow.clear()
            try:
                if not subscribed:
                    await bus.subscribe(subjects.DIGESTS, self._on_digest)
                    subscribed = True
                await view.follow(bus, self._told.places_at)
            except BusUnavailable as error:
                log.warning("bus_unavailable", why=error.message)
                await asyncio.sleep(RETRY_S)
                continue
            if not self._viewing.is_set():
                log.info("view_synced")
                self._learn()
                self._viewing.set()
            await self._refollow.wait()

    def _on_digest(self, subject: str, payload: bytes) -> None:
        try:
            digest = fleet.decode(payload, SiteDigest)
        except Untrusted as error:
            log.warning("digest_refused", subject=subject, why=error.message)
            return
        # The bus lets each site publish under its own subject only.
        if subject == subjects.digest_subject(digest.site):
            self._fitness.loads.heard(digest, self._ports.clock.monotonic_ns())

    async def _tick(self) -> None:
        """Take in news and judge health a few times a second; count once a minute."""
        loop = asyncio.get_running_loop()
        counted_s = loop.time()
        while True:
            await asyncio.sleep(TICK_S)
            self._learn()
            if loop.time() - counted_s >= COUNT_S:
                counted_s = loop.time()
                self._count()

    def _learn(self) -> None:
        """Hand the director what is known by now."""
        now_ns = self._ports.clock.monotonic_ns()
        view, age_s = self._view, 0.0
        if view is None:
            if self._told.estate is not None:
                self.director.learn(self._told.estate, self._told.zone.addresses)
        elif view.synced or self._serves_stored:
            self._listen_for_silence(view, now_ns)
            age_s = view.age_s(now_ns)
            if view.version != self._version:
                self._version = view.version
                self.director.learn(view.estate(), self._told.zone.addresses)
            elif self.director.estate is not None:
                self.director.learn(self.director.estate, self._told.zone.addresses)
        self._judge(now_ns, age_s)

    def _judge(self, now_ns: int, age_s: float) -> None:
        estate = self.director.estate
        if estate is None:
            return
        reaches = {}
        if self._probes is not None:
            self._probes.sites = {
                name: site for name, site in estate.sites.items()
                if name in estate.joined and not site.draining
            }
            reaches = self._probes.reaches
        unfit = self._fitness.unfit(estate.reporting, reaches, now_ns)
        before = self.director.unfit
        for site in unfit.keys() - before.keys():
            log.warning("ingress_left_out", site=site, rule=unfit[site].rule)
        for site in before.keys() - unfit.keys():
            log.info("ingress_back", site=site)
        self.director.judge(unfit, age_s)

    def _listen_for_silence(self, view: FleetView, now_ns: int) -> None:
        """Tell silence of the bus from silence of the sites."""
        heard_ns, bus = view.heard_ns, self._ports.bus
        if heard_ns is None:
            self._fitness.deaf(self._began_ns)
        elif bus is None or not bus.connected or now_ns - heard_ns > SILENCE_S * 1e9:
            self._fitness.deaf(heard_ns)
        else:
            self._fitness.hearing(now_ns)

    def _count(self) -> None:
        log.info("dns_counted", **self.service.counts, outcomes=self._answerer.outcomes)


async def _either(event: asyncio.Event, other: asyncio.Event, limit_s: float) -> None:
    """Return when one of them is set, or after `limit_s`."""
    waits = [asyncio.ensure_future(each.wait()) for each in (event, other)]
    try:
        await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waits:
            each.cancel()

"""One gateway process: assembles its parts, runs their loops, drains when it is told to stop."""

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from isochrone.core.admission.retry_budget import RetryBudget
from isochrone.core.errors import BusUnavailable, Untrusted
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.lifecycle.health import HealthRules
from isochrone.core.rng import Random
from isochrone.core.routing.loads import Loads
from isochrone.core.routing.replicas_said import ReplicasSaid
from isochrone.core.world.digest import SiteDigest
from isochrone.gateway.context import Context
from isochrone.gateway.detail import Detail
from isochrone.gateway.gauges import Gauges
from isochrone.gateway.health_reports import HealthReports
from isochrone.gateway.incoming import Fault
from isochrone.gateway.journal import Journal
from isochrone.gateway.known_endpoints import KnownEndpoints
from isochrone.gateway.letters import Letters
from isochrone.gateway.limit_reports import LimitReports
from isochrone.gateway.limits import KeyLimits
from isochrone.gateway.measured import Measured
from isochrone.gateway.metrics_route import MetricsServer
from isochrone.gateway.outbox import Outbox
from isochrone.gateway.outcomes import Outcomes
from isochrone.gateway.peer_hop import PeerHops
from isochrone.gateway.replies import Refusal
from isochrone.gateway.request_log import RequestLog
from isochrone.gateway.routes import Routes
from isochrone.gateway.salts import Salts
from isochrone.gateway.server import Server
from isochrone.gateway.settings import GatewaySettings
from isochrone.gateway.shipping import Shipper
from isochrone.gateway.site_probes import SiteProbes
from isochrone.gateway.skew import Skew
from isochrone.gateway.spans import Spans
from isochrone.gateway.target import Targets
from isochrone.gateway.timeouts import deadlines_of
from isochrone.gateway.upstream import UpstreamPool
from isochrone.gateway.view_cache import Data, ViewCache
from isochrone.gateway.view_store import ViewStore
from isochrone.gateway.waiting import QueueReports
from isochrone.gateway.waking import Waking
from isochrone.ports.bus import Bus
from isochrone.ports.clock import Clock
from isochrone.ports.counters import Counters
from isochrone.ports.disk import Disk
from isochrone.ports.network import Certificate, Network
from isochrone.ports.telemetry import ProcessUse, SpanSink
from isochrone.wire import fleet, subjects
from isochrone.wire.identity import SiteIdentity

TICK_S = 0.25
TICKS_PER_SWEEP = 4
RETRY_S = 0.5
SILENCE_S = 2.5  # the bus sends a heartbeat a second
FIRST_VIEW_S = 5.0  # a gateway without a view can only refuse, so it does not listen at once
FLUSH_S = 1.0
_STOPPING = Refusal(
    status=504, reason="gateway_stopping", message="This gateway is stopping."
)
_TOO_LATE = Fault(
    status=503, reason=_STOPPING.reason,
    message="This gateway is stopping, and the request has not come in whole; try another one.",
)
TAKEN_S = 0.05  # between looks whether clients have taken their answers

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What a gateway needs of the world. `read_credential` finds the key of an upstream from
    `file:PATH` or `env:NAME`; `write_lines` takes the request log, whole lines at a time. With a
    `certificate` clients and peers are served TLS; with `spans` requests are traced."""

    clock: Clock
    network: Network
    bus: Bus
    disk: Disk
    counters: Counters
    rng: Random
    read_credential: Callable[[str | None], str | None]
    write_lines: Callable[[bytes], None]
    process_use: Callable[[], ProcessUse]
    certificate: Certificate | None = None
    spans: SpanSink | None = None


def _spans(settings: GatewaySettings, site: SiteName, sink: SpanSink | None) -> Spans | None:
    if sink is None:
        return None
    return Spans(
        sink, site=site, host=settings.host, port=settings.port,
        ratio=settings.otlp_sample_ratio,
    )


def _is_compiled() -> bool:
    """Whether what is on a request's path runs in its compiled form."""
    return not (sys.modules[Server.__module__].__file__ or "").endswith(".py")


class Gateway:
    """Construct, then `run`."""

    def __init__(
        self, settings: GatewaySettings, identity: SiteIdentity, ports: Ports, data: Data
    ) -> None:
        site = SiteName(identity.site)
        self._settings = settings
        self._ports = ports
        self._tasks: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._viewing = asyncio.Event()
        journal = Journal(ports.disk, ports.clock, identity.site)
        view = ViewCache(site, identity.control_key, data, direct=settings.alone)
        outbox = self._outbox = Outbox(journal.flush, Waking(ports.clock, settings.awake_us))
        loads = Loads(stale_after_ms=settings.digest_stale_s * 1000)
        self.context = Context(
            settings=settings,
            site=site,
            joined_country=identity.country,
            clock=ports.clock,
            rng=ports.rng,
            view=view,
            endpoints=KnownEndpoints(),
            loads=loads, limits=KeyLimits(ports.counters),
            retries=RetryBudget(settings.retry_ratio, settings.retry_min_per_s),
            deadlines=deadlines_of(settings),
            salts=Salts(bytes.fromhex(identity.peer_secret)),
            pool=UpstreamPool(
                ports.network, ports.clock, outbox, max_answer_bytes=settings.max_answer_bytes
            ),
            targets=Targets(ports.read_credential),
            peers=PeerHops(identity, ports.clock),
            skew=Skew(site, ports.clock),
            journal=journal,
            detail=Detail(settings.explain_sample),
            log=RequestLog(ports.write_lines, worker=settings.worker),
            metrics=Measured(lambda model: view.table.is_served(ModelName(model))),
            spans=_spans(settings, site, ports.spans),
            outcomes=Outcomes(loads.learned, view), outbox=outbox, spawn=self._spawn,
        )
        if settings.alone:
            # Nobody says a digest twice: none grows stale, and a lost site is tried after its hold.
            self.context.loads.deaf(0)
        self.context.view.replicas.rules = loads.health.rules = HealthRules(
            failures=settings.breaker_failures,
            failure_rate=settings.breaker_failure_rate,
            first_hold_s=settings.breaker_first_hold_s,
            longest_hold_s=settings.breaker_longest_hold_s,
            eject_share=settings.eject_share,
            recovery_s=settings.recovery_s,
        )
        self.letters = Letters(self.context)
        self._site_probes = SiteProbes(self.context)
        self._health_reports = HealthReports(self.context, ports.bus)
        self._queue_reports = QueueReports(self.context, ports.bus)
        self.server = Server(Routes(self.context, self.letters), settings, ports.clock, outbox)
        self._shipper = Shipper(journal, ports.bus, identity.site, ports.clock)
        self.metrics = None if settings.metrics_port is None else self._metrics_server()
        # Alone, the view is made anew at every start, under a key that nobody else has.
        self._views: ViewStore | None = None
        if not settings.alone:
            self._views = ViewStore(ports.disk, self.context.view, ports.clock)

    def _metrics_server(self) -> MetricsServer:
        gauges = Gauges(
            self.context, self.server, self._shipper, self.letters, self._ports.process_use
        )
        return MetricsServer(
            self._settings, self._ports.clock, measured=self.context.metrics, gauges=gauges,
        )

    async def run(
        self, stop: asyncio.Event, on_listening: Callable[[int], None] | None = None
    ) -> None:
        """Serve until `stop` is set, then drain. Raises OSError when the port is taken or the
        journal cannot be opened."""
        context, settings = self.context, self._settings
        context.journal.recover()
        context.journal.defer(self._outbox.due)
        if self._views is not None:
            self._views.load()
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._spawn(context.journal.run())
            self._spawn(self._shipper.run())
            self._spawn(self._sweep())
            self._spawn(self._follow())
            if self._views is not None:
                self._spawn(self._views.run())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_VIEW_S):
                    await self._viewing.wait()
            self._start_from_disk()
            try:
                if self.metrics is not None:
                    await self.metrics.open(self._ports.network)
                    log.info("metrics_listening", site=context.site, port=self.metrics.port)
                # The first request finds the limits of the view; the loop above still sleeps.
                context.shared_limits.sweep(self._ports.clock.monotonic_ns())
                listener = await self._ports.network.listen(
                    self.server.accept, settings.host, settings.port, tls=self._ports.certificate
                )
                log.info(
                    "gateway_listening", site=context.site, port=listener.port,
                    compiled=_is_compiled(),
                )
                if on_listening is not None:
                    on_listening(listener.port)
                self._spawn(self.letters.run())
                await stop.wait()
                self.letters.stop()
                log.info("gateway_draining", open=len(context.exchanges))
                await listener.close()
                await self._drain()
                await self.letters.leave(FLUSH_S)
                await self._shipper.flush(timeout_s=FLUSH_S)
                await self._store_view()
            finally:
                await self._close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._group is not None, "the gateway runs"
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self) -> None:
        """Follow view and digests; while the bus is away at the start, try again."""
        bus = self._ports.bus
        subscribed = False
        while True:
            try:
                if not subscribed:
                    await bus.subscribe(subjects.DIGESTS, self._on_digest)
                    subscribed = True
                await self.context.view.follow(bus)
            except BusUnavailable as error:
                log.warning("bus_unavailable", why=error.message)
                await asyncio.sleep(RETRY_S)
            else:
                log.info("view_synced", site=self.context.site)
                self.context.shared_limits.sweep(self._ports.clock.monotonic_ns())
                self._viewing.set()
                return

    def _on_digest(self, subject: str, payload: bytes) -> None:
        try:
            digest = fleet.decode(payload, SiteDigest)
        except Untrusted as error:
            log.warning("digest_refused", subject=subject, why=error.message)
            return
        # The bus lets each site publish under its own subject only.
        if subject == subjects.digest_subject(digest.site):
            if self.context.loads.heard(digest, self._ports.clock.monotonic_ns()):
                self.context.prefixes.heard(ReplicasSaid(digest))
            self.context.endpoints.heard(digest)
            if self.context.view.replicas.reaches(digest.site):
                now_ns = self._ports.clock.monotonic_ns()
                self.context.view.replicas.heard(digest, now_ns, self._ports.rng)
            self.context.skew.heard(digest.site, digest.at)
            if self._views is not None:
                self._views.heard(digest.site, payload)

    async def _sweep(self) -> None:
        """Deadlines and progress of open requests, idle connections, the request log."""
        context, ticks = self.context, 0
        limit_reports = LimitReports(context, self._ports.bus)
        while True:
            await asyncio.sleep(TICK_S)
            now_ns = self._ports.clock.monotonic_ns()
            self._listen_for_silence(now_ns)
            for exchange in list(context.exchanges):
                exchange.tick(now_ns)
            self._tell()
            context.judge_crowd()
            context.view.replicas.sweep(now_ns)
            context.loads.health.sweep(now_ns)
            self._site_probes.sweep(now_ns)
            if not self._settings.alone:
                self._queue_reports.sweep(now_ns)
            told_before = self._shipper.told_before(self._ports.clock.wall_ns())
            context.shared_limits.fleet.told_before = told_before
            context.shared_limits.sweep(now_ns)
            ticks += 1
            if ticks % TICKS_PER_SWEEP == 0:
                self.server.sweep()
                if self.metrics is not None:
                    self.metrics.sweep()
                context.pool.sweep()
                dead = context.limits.sweep(now_ns)
                if dead:
                    log.warning("workers_dead", count=dead)
                context.view.judge_age(now_ns, self._settings.view_warn_s)
                context.skew.sweep()
                context.queues.sweep(now_ns)
                context.outcomes.learn(now_ns)
                sites = context.view.table.view.sites
                drained = {each.name for each in sites.values() if each.draining}
                context.loads.health.keep(sites, drained)
                if not self._settings.alone:
                    self._health_reports.sweep(now_ns)
                    limit_reports.sweep(now_ns)

    def _listen_for_silence(self, now_ns: int) -> None:
        """Tell silence of the bus from silence of the sites."""
        heard_ns = self.context.view.heard_ns
        if heard_ns is None or self._settings.alone:
            return
        if not self._ports.bus.connected or now_ns - heard_ns > SILENCE_S * 1e9:
            self.context.loads.deaf(heard_ns)
        else:
            self.context.loads.hearing(now_ns)

    async def _drain(self) -> None:
        """Let what was let in come in, open requests end and clients take their answers, up to the
        limit; then end them."""
        self.context.stopping = True
        self.server.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout_s):
                while True:
                    if self.context.exchanges:
                        quiet = self.context.quiet = asyncio.Event()
                        await quiet.wait()
                    if not self.server.is_waited_for:
                        break
                    await asyncio.sleep(TAKEN_S)
        self.server.turn_away(_TOO_LATE)
        for exchange in list(self.context.exchanges):
            exchange.stop(_STOPPING)
        await asyncio.sleep(0)

    def _start_from_disk(self) -> None:
        """The bus has not answered in time: serve from the last good view, if there is one."""
        context = self.context
        if self._views is None or not (context.view.synced or context.view.serve_stored()):
            return
        now_ns = self._ports.clock.monotonic_ns()
        for digest in self._views.digests():
            if context.loads.of(digest.site) is None:
                context.loads.heard(digest, now_ns)

    def _tell(self) -> None:
        """Write the request log, and hand over spans."""
        self.context.log.flush()
        if self.context.spans is not None:
            self.context.spans.flush()

    async def _store_view(self) -> None:
        if self._views is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_S):
                    await self._views.flush()

    async def _close(self) -> None:
        """Close connections and end the loops; what the journal holds is shipped next time."""
        self.server.close()
        self.context.pool.close()
        self._tell()
        if self.metrics is not None:
            await self.metrics.close()
        self.context.queues.close()
        await self.context.view.close()
        for task in list(self._tasks):
            task.cancel()

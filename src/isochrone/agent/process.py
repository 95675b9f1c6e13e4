"""Assembles the agent of one site and keeps it running until it is cancelled.

Engines depend on nothing but this process: while control or the bus is away they go on running and
are restarted as last desired. Cancelling the agent stops them.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from isochrone.agent.probe import Prober
from isochrone.agent.queued import Queued
from isochrone.agent.report import Digests, Records, record_of
from isochrone.agent.supervise import Supervisor, SupervisorPlan
from isochrone.core.errors import BusUnavailable, Untrusted
from isochrone.core.estimate.hardware import HardwareTable, seed_rates
from isochrone.core.estimate.service import Rates
from isochrone.core.ids import SiteName
from isochrone.core.world.host import Host
from isochrone.core.world.model import Desired, EngineKind, Replica
from isochrone.core.world.site import Hardware, Site
from isochrone.ports.bus import Bus, Entry
from isochrone.ports.clock import Clock
from isochrone.ports.engine import EngineDriver
from isochrone.ports.network import Network
from isochrone.wire import fleet, subjects

T = TypeVar("T")

WATCH_RETRY_S = 1.0
FAREWELL_S = 1.0
CPU_ONLY = (Hardware(kind="cpu"),)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPlan:
    """Who this agent is and on which host, whom it believes, and its intervals in seconds."""

    site: SiteName
    host: Host
    control_key: Ed25519PublicKey
    hardware: HardwareTable
    digest_interval_s: float = 1.0
    probe_interval_s: float = 5.0
    start_deadline_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPorts:
    """What the agent touches the world with."""

    bus: Bus
    network: Network
    clock: Clock
    drivers: Mapping[EngineKind, EngineDriver]


class Agent:
    def __init__(self, plan: AgentPlan, ports: AgentPorts) -> None:
        self._plan = plan
        self._bus = ports.bus
        self._bucket = subjects.site_bucket(plan.site)
        self._sites: dict[SiteName, Site] = {}
        self._serials: dict[tuple[str, str], int] = {}
        self._desired: Desired | None = None
        self._listed = False
        self._records = Records(ports.bus, self._bucket)
        self._supervisor = Supervisor(
            ports.drivers,
            ports.clock,
            SupervisorPlan(
                load_interval_s=plan.digest_interval_s, start_deadline_s=plan.start_deadline_s
            ),
            seed=self._seed,
            on_change=self._changed,
        )
        self._prober = Prober(
            plan.site, ports.network, ports.clock,
            sites=self._sites, interval_s=plan.probe_interval_s,
        )
        self._queued = Queued(plan.site, ports.clock)
        self._digests = Digests(
            plan.site, ports.bus, ports.clock, supervisor=self._supervisor,
            probes=self._prober.round_trips, interval_s=plan.digest_interval_s,
            queued=self._queued, host=plan.host,
        )

    async def run(self) -> None:
        """Work until cancelled; on the way out engines are stopped and their records removed."""
        host = self._plan.host
        log.info("agent_starts", site=self._plan.site, host=host.name, cores=host.cores,
                 memory_bytes=host.memory_bytes, gpus=[each.kind for each in host.gpus])
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow(self._bucket, "", self._on_own), name="own bucket")
                tasks.create_task(
                    self._follow(subjects.VIEW_BUCKET, "site", self._on_view), name="view"
                )
                waiting = subjects.queued_subject(self._plan.site)
                tasks.create_task(self._listen(waiting, self._queued.on_report), name="queues")
                told = subjects.digest_subject(self._plan.site)
                tasks.create_task(self._listen(told, self._digests.heard), name="others")
                tasks.create_task(self._supervisor.run(), name="supervisor")
                tasks.create_task(self._records.run(), name="records")
                tasks.create_task(self._digests.run(), name="digests")
                tasks.create_task(self._prober.run(), name="prober")
        finally:
            await self._farewell()

    async def _farewell(self) -> None:
        """Say that nothing runs here any more, if the bus hears us at once."""
        try:
            async with asyncio.timeout(FAREWELL_S):
                await self._digests.publish()
                self._records.want(())
                await self._records.settle()
        except (TimeoutError, BusUnavailable):
            log.info("agent_left_without_farewell", site=self._plan.site)

    async def _listen(
        self, subject: str, on_message: Callable[[str, bytes], None]
    ) -> None:
        """Hear all messages of a subject."""
        while True:
            try:
                await self._bus.subscribe(subject, on_message)
                return
            except BusUnavailable as error:
                log.info("agent_waits_for_bus", subject=subject, detail=error.message)
                await asyncio.sleep(WATCH_RETRY_S)

    async def _follow(self, bucket: str, prefix: str, on_entry: Callable[[Entry], None]) -> None:
        """Watch for ever; a bucket or bus that is not there yet is tried again."""
        while True:
            try:
                watch = await self._bus.watch(bucket, prefix, on_entry)
            except BusUnavailable as error:
                log.info("agent_waits_for_bucket", bucket=bucket, detail=error.message)
                await asyncio.sleep(WATCH_RETRY_S)
                continue
            try:
                await watch.synced()
                log.info("agent_follows_bucket", bucket=bucket)
                if bucket == self._bucket:
                    self._listed = True
                    self._pursue()
                await asyncio.Event().wait()
            finally:
                await watch.close()

    def _on_own(self, entry: Entry) -> None:
        """An entry of our own bucket: what is desired, or a record of a replica."""
        if entry.key == subjects.DESIRED_KEY:
            self._on_desired(entry)
        elif entry.key.startswith("replica."):
            self._records.heard(entry)
            if entry.value is not None and not self._listed:
                self._note_generation(entry)

    def _note_generation(self, entry: Entry) -> None:
        assert entry.value is not None
        try:
            generation = fleet.decode(entry.value, Replica).generation
        except Untrusted:
            return  # a record that nobody can read is replaced or deleted
        self._supervisor.start_generations_above(generation)

    def _on_desired(self, entry: Entry) -> None:
        if entry.value is None:
            return  # a lost bucket is no wish to stop anything
        desired = self._open(self._bucket, entry.key, entry.value, Desired)
        if desired is None or desired.site != self._plan.site:
            return
        self._desired = desired
        self._pursue()

    def _pursue(self) -> None:
        """Wait for the first listing: only then all earlier generations are known."""
        if self._listed and self._desired is not None:
            self._supervisor.want(self._desired)

    def _on_view(self, entry: Entry) -> None:
        if not entry.key.startswith("site.") or entry.value is None:
            return  # an address that vanished with the bucket is still the best we know
        site = self._open(subjects.VIEW_BUCKET, entry.key, entry.value, Site)
        if site is not None and entry.key == subjects.site_key(site.name):
            self._sites[site.name] = site

    def _open(self, bucket: str, key: str, value: bytes, kind: type[T]) -> T | None:
        """Verify a signed entry; None when it is not control's or older than what we have."""
        try:
            noun, serial = fleet.open_signed(
                value, kind, bucket=bucket, key=key, verifier=self._plan.control_key
            )
        except Untrusted as error:
            log.warning("entry_refused", bucket=bucket, key=key, detail=error.message)
            return None
        if serial < self._serials.get((bucket, key), -1):
            log.warning("entry_refused", bucket=bucket, key=key, detail="older than the last one")
            return None
        self._serials[bucket, key] = serial
        return noun

    def _changed(self) -> None:
        self._records.want(record_of(live) for live in self._supervisor.replicas.values())
        self._digests.soon()

    def _seed(self) -> Rates:
        own = self._sites.get(self._plan.site)
        hardware: Sequence[Hardware] = own.hardware if own and own.hardware else CPU_ONLY
        return seed_rates(hardware, self._plan.hardware)

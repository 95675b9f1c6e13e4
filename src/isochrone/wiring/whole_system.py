"""Composition root of the whole system on virtual time: one seed, one run, one trace.

Control's loops, gateways and agents are the real ones; NATS, disks, sockets and engines are the
twin's, the book is a real PostgreSQL called synchronously (virtual time stands still meanwhile).
A process that is killed here loses its connections, its listeners and its open files at once and
runs no clean-up that anybody could see, as after kill -9.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from isochrone.adapters.packaged import load_blocs, load_hardware, load_round_trips
from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.registry import open_registry
from isochrone.agent.process import Agent, AgentPlan, AgentPorts
from isochrone.control.joining import Hub, hash_of, invite, join
from isochrone.control.loops import ControlLoops, ControlPlan, ControlPorts
from isochrone.control.world import Weights, intent_of, seed_of
from isochrone.core.admission.entitlement import choose_voters
from isochrone.core.ids import (
    EntitlementId,
    HostName,
    KeyId,
    ModelName,
    OrgId,
    PolicyId,
    ProjectId,
    SiteName,
)
from isochrone.core.rng import stream
from isochrone.core.world.entitlement import Entitlement, Slice, Voters
from isochrone.core.world.host import Host
from isochrone.core.world.tenant import (
    EVERY_TENANT,
    ApiKey,
    Class,
    Organisation,
    Policy,
    Project,
)
from isochrone.core.world.world import World
from isochrone.gateway.key_counts import ROW_CELLS
from isochrone.gateway.outbox import Outbox
from isochrone.gateway.process import Gateway, Ports
from isochrone.gateway.settings import GatewaySettings
from isochrone.gateway.upstream import UpstreamPool
from isochrone.gateway.view_cache import Data
from isochrone.ports.entitlements import StoredEntitlement
from isochrone.ports.network import Address
from isochrone.ports.tenants import StoredKey, StoredPolicy
from isochrone.twin.clock import VirtualClock
from isochrone.twin.fakes.bus import FakeBus, FakeHub
from isochrone.twin.fakes.counters import SharedRows
from isochrone.twin.fakes.disk import MemoryDisk
from isochrone.twin.fakes.engine import FakeEngine, FakeEngineDriver
from isochrone.twin.fakes.telemetry import no_process_use
from isochrone.twin.loop import VirtualLoop
from isochrone.twin.network import Wire
from isochrone.wire.identity import JoinRequest, SiteIdentity

T = TypeVar("T")

FIRST_PORT = 4100
BUS_LATENCY_MS = 1.0
SYNC_S = 0.002
EVIDENCE_WAIT_S = 5.0
LEFT = "the client left"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a client saw: `status` 0 means no answer, `broken` an answer without its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    broken: str | None

    @property
    def request_id(self) -> str | None:
        return self.headers.get("x-isochrone-request")


class _Call:
    """Receives one answer; `done` is set when there is nothing more to come."""

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.broken: str | None = None

    def answered(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        self.status = status
        self.headers = {name.decode(): value.decode() for name, value in headers.items()}

    def received(self, data: bytes) -> None:
        self.body += data

    def ended(self) -> None:
        self.done.set()

    def lost(self, why: str) -> None:
        self.broken = why
        self.done.set()


@dataclass(slots=True, kw_only=True)
class _Process:
    """A running process: its task, its login to the bus, and how to stop it politely."""

    task: asyncio.Task[None]
    bus: FakeBus
    stop: asyncio.Event = field(default_factory=asyncio.Event)


class WholeSystem:
    """Make it inside a running VirtualLoop. `trace` collects what happened, line by line."""

    def __init__(self, pool: Pool, world: World, *, seed: int) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop), "the whole system runs on virtual time"
        self.loop = loop
        self.clock = VirtualClock(loop)
        self.world = world
        self.seed = seed
        self.trace: list[str] = []
        self.hub = FakeHub(self.clock, latency_ms=BUS_LATENCY_MS)
        self.wire = Wire(loop)
        self.clocks: dict[str, VirtualClock] = {}  # of each process: they may disagree
        self.registry = open_registry(pool)
        self.book = PostgresBook(pool)
        self.engines: dict[SiteName, FakeEngineDriver] = {}
        self.gateways: dict[SiteName, Gateway] = {}  # those that run
        self.disks = {site.name: MemoryDisk(sync_s=SYNC_S) for site in world.sites}
        self._ports = {site.name: FIRST_PORT + i for i, site in enumerate(world.sites)}
        self._former: list[tuple[SiteName, FakeEngine]] = []  # of agents that died
        self.failed: list[str] = []  # processes that ended by themselves
        self._signer = Ed25519PrivateKey.from_private_bytes(self.chance("signer").randbytes(32))
        self._identities: dict[SiteName, SiteIdentity] = {}
        self._processes: dict[str, _Process] = {}
        self._lives: dict[str, int] = {}
        self._clients = UpstreamPool(self.wire.process("client"), self.clock, Outbox(lambda: None))
        self._control: ControlLoops | None = None

    # -- processes -------------------------------------------------------------------------------

    def chance(self, name: str) -> Random:
        """The random stream of this name."""
        return stream(self.seed, name)

    def note(self, line: str) -> None:
        """Add a line with the virtual time to the trace."""
        self.trace.append(f"{self.loop.ticks} {line}")

    def digest(self) -> str:
        """Hash of the trace: equal for equal seeds."""
        return sha256("\n".join(self.trace).encode()).hexdigest()

    def prepare(self) -> None:
        """Fill the book with the world, and let every site join."""
        now = self.clock.wall_ns()
        self.registry.tenants.seed(seed_of("0" * 64, now=now), now=now)
        weights = {
            model.name: Weights(path=f"/{model.name}.gguf", revision=f"revision of {model.name}")
            for model in self.world.models
        }
        intent = intent_of(self.world, weights, load_round_trips(), now=now)
        self.registry.estate.reconcile(intent, now=now)
        for name in self._ports:
            self._identities[name] = self._join(name)

    async def start(self) -> None:
        """Start every process; they find each other by themselves."""
        self.start_control()
        for name in self._ports:
            self.start_agent(name)
            self.start_gateway(name)

    def start_control(self, name: str = "control") -> None:
        """Several copies may run, each under its own name."""
        bus = self.hub.bus()
        ports = ControlPorts(
            registry=self.registry, book=self.book, bus=bus, clock=self.clock_of(name),
            offload=_directly,
        )
        plan = ControlPlan(
            holder=f"{name} {self._life(name)}", signer=self._signer,
            evidence_wait_s=EVIDENCE_WAIT_S,
        )
        control = ControlLoops(plan, ports)
        if name == "control" or self._control is None:
            self._control = control
        self._run(name, control.run(), bus)

    def start_gateway(self, site: SiteName) -> None:
        name, identity, bus = f"gateway {site}", self._identities[site], self.hub.bus()
        settings = GatewaySettings(
            identity=Path("identity.json"), port=identity.port, journal=Path("journal"),
            awake_us=0,  # virtual time stands still for as long as anything is awake
        )
        ports = Ports(
            counters=SharedRows(workers=1, cells=ROW_CELLS).open(0),
            clock=self.clock_of(name), network=self.wire.process(name), bus=bus,
            disk=self.disks[site].mount(),
            rng=self.chance(f"{name} {self._life(name)}"), read_credential=lambda _: None,
            write_lines=lambda lines: self._log(name, lines), process_use=no_process_use,
        )
        data = Data(blocs=load_blocs(), hardware=load_hardware())
        stop = asyncio.Event()
        gateway = self.gateways[site] = Gateway(settings, identity, ports, data)
        self._run(name, gateway.run(stop), bus, stop)

    def start_agent(self, site: SiteName) -> None:
        name, bus = f"agent {site}", self.hub.bus()
        if site in self.engines:
            self._former += [(site, engine) for engine in self.engines[site].all]
        plan = AgentPlan(
            site=site, host=Host(name=HostName(f"{site}-1"), cores=1, memory_bytes=None),
            control_key=self._signer.public_key(), hardware=load_hardware(),
        )
        driver = FakeEngineDriver(self.wire.process(name))
        self.engines[site] = driver
        ports = AgentPorts(
            bus=bus, network=self.wire.process(name), clock=self.clock_of(name),
            drivers={"llamacpp": driver, "openai": driver},
        )
        self._run(name, Agent(plan, ports).run(), bus)

    def clock_of(self, name: str) -> VirtualClock:
        """The clock that every life of this process reads."""
        return self.clocks.setdefault(name, VirtualClock(self.loop))

    def every_engine(self) -> list[tuple[SiteName, FakeEngine]]:
        """All engines that ever ran, with their sites."""
        return self._former + [
            (site, engine) for site, driver in self.engines.items() for engine in driver.all
        ]

    def running(self) -> list[str]:
        """The names of the processes that run, in a fixed order."""
        return sorted(self._processes)

    def bus_of(self, name: str) -> FakeBus:
        """The login of a process that runs."""
        return self._processes[name].bus

    async def kill(self, name: str, *, power_cut: bool = False) -> None:
        """Kill -9: nothing that the process does from now on reaches anybody. With `power_cut` its
        host loses what the disk had not synced, too."""
        process = self._processes.pop(name)
        self.note(f"kill {name}{' by a power cut' if power_cut else ''}")
        process.bus.down()
        self.wire.kill(name)
        site = name.partition(" ")[2]
        if name.startswith("gateway"):
            del self.gateways[SiteName(site)]
            if power_cut:
                self.disks[SiteName(site)].power_cut(self.chance(f"cut {name} {self._life(name)}"))
            else:
                self.disks[SiteName(site)].process_died()
        elif name.startswith("agent"):
            await self.engines[SiteName(site)].die()
        process.task.cancel()
        await asyncio.wait([process.task])

    async def drain(self, name: str) -> None:
        """Stop one gateway in good order."""
        process = self._processes[name]
        self.note(f"drain {name}")
        process.stop.set()
        await asyncio.wait([process.task])
        if self._processes.get(name) is process:  # nobody killed it meanwhile
            del self._processes[name]
            del self.gateways[SiteName(name.partition(" ")[2])]
            process.bus.down()
            self.wire.kill(name)

    def cut_off(self, name: str) -> None:
        """From now on the process does not reach the bus."""
        self.note(f"cut off {name}")
        self._processes[name].bus.down()

    def reconnect(self, name: str) -> None:
        """The process reaches the bus again."""
        self.note(f"reconnect {name}")
        self._processes[name].bus.up()

    async def stop(self) -> None:
        """Stop everything politely."""
        for process in self._processes.values():
            process.stop.set()
        for name in sorted(self._processes):
            if not name.startswith("gateway"):
                self._processes[name].task.cancel()
        await asyncio.wait([process.task for process in self._processes.values()])

    # -- tenants and clients ---------------------------------------------------------------------

    def add_key(
        self, name: str, *, residency: tuple[str, ...], transit: tuple[str, ...],
        classes: tuple[Class, ...] = ("on_demand", "batch"), org: str = "default",
    ) -> str:
        """Put a key of an organisation and its project of the same name into the book; control
        publishes it. Returns the secret."""
        now, secret = self.clock.wall_ns(), f"iso_{name}"
        policy = Policy(
            id=PolicyId(f"policy-{name}"), org_id=OrgId(org), residency=residency,
            transit=transit,
        )
        key = ApiKey(
            id=KeyId(name), secret_sha256=hash_of(secret), org_id=OrgId(org),
            project_id=ProjectId(org), policy_id=policy.id, classes=classes,
        )
        self.registry.tenants.add_key(
            EVERY_TENANT, StoredKey(key=key, name=name, created_at=now),
            StoredPolicy(policy=policy, name=name, created_at=now), once=None,
        )
        return secret

    def add_organisation(self, name: str) -> None:
        """Put an organisation with a project of the same name into the book."""
        now, tenants = self.clock.wall_ns(), self.registry.tenants
        tenants.add_organisation(
            EVERY_TENANT, Organisation(id=OrgId(name), name=name, created_at=now), once=None
        )
        tenants.add_project(
            EVERY_TENANT,
            Project(id=ProjectId(name), org_id=OrgId(name), name=name, created_at=now), once=None,
        )

    def revoke_key(self, name: str) -> None:
        """Revoke a key in the book and tell control, as the Control API does."""
        self.registry.tenants.revoke_key(EVERY_TENANT, KeyId(name), now=self.clock.wall_ns())
        if self._control is not None:
            self._control.publisher.wake()

    def sell(self, name: str, tok_s: Mapping[SiteName, int]) -> Entitlement:
        """Sell the default organisation tokens/s, at home at these sites; control publishes it."""
        now = self.clock.wall_ns()
        sold = Entitlement(
            id=EntitlementId(name), org_id=OrgId("default"), project_id=None,
            model=model_of(self.world), class_="reserved", tok_s=sum(tok_s.values()),
            residency=("any",), starts_at=now, ends_at=1 << 62,
            slices=tuple(Slice(site=site, tok_s=each) for site, each in tok_s.items()),
        )
        self.registry.entitlements.add(
            EVERY_TENANT, StoredEntitlement(entitlement=sold, name=name, created_at=now),
            Voters(sites=choose_voters(list(self._ports))), once=None,
        )
        if self._control is not None:
            self._control.publisher.wake()
        return sold

    async def ask(
        self, site: str, secret: str, body: Mapping[str, Any], *, reference: str | None = None,
        patience_s: float | None = None, pause_s: float | None = None,
    ) -> Answer:
        """One chat request at the gateway of `site`, to the end of its answer, or for `patience_s`;
        `reference` is the client's own id of it. `pause_s`: from its start, nothing is read for so
        long."""
        data = json.dumps(body).encode()
        own = "" if reference is None else f"\r\nx-request-id: {reference}"
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {site}\r\nauthorization: Bearer {secret}"
            f"{own}\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        address = Address(host="127.0.0.1", port=self._ports[SiteName(site)])
        call = _Call()
        try:
            connection = await self._clients.connect(address, timeout_s=5)
        except OSError as error:
            return Answer(status=0, headers={}, body=b"", broken=str(error))
        connection.send(head.encode() + data, call)
        if pause_s is not None:
            connection.set_reading(False)
            self.loop.call_later(pause_s, connection.set_reading, True)
        try:
            async with asyncio.timeout(patience_s):
                await call.done.wait()
        except TimeoutError:
            connection.abort()
            call.broken = LEFT
        return Answer(
            status=call.status, headers=call.headers, body=call.body, broken=call.broken
        )

    async def until(self, holds: Callable[[], bool], what: str, *, limit_s: float = 60.0) -> None:
        """Let virtual time pass until `holds()`; AssertionError after `limit_s`."""
        until = self.loop.time() + limit_s
        while not holds():
            assert self.loop.time() < until, f"not within {limit_s} virtual seconds: {what}"
            await asyncio.sleep(0.1)

    # -- inside ----------------------------------------------------------------------------------

    def _life(self, name: str) -> int:
        return self._lives.get(name, 0)

    def _run(
        self, name: str, work: Any, bus: FakeBus, stop: asyncio.Event | None = None
    ) -> None:
        assert name not in self._processes, f"{name} runs already"
        self._lives[name] = self._life(name) + 1
        self.note(f"start {name}")
        task = self.loop.create_task(work, name=f"{name} {self._lives[name]}")
        self._processes[name] = _Process(task=task, bus=bus, stop=stop or asyncio.Event())
        task.add_done_callback(lambda ended: self._ended(name, ended))

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        """A process that was neither killed nor asked to stop has ended: live, its supervisor would
        start it again; here it is a finding."""
        process = self._processes.get(name)
        if process is not None and process.task is task and not process.stop.is_set():
            error = None if task.cancelled() else task.exception()
            self.failed.append(f"{name} ended by itself: {error!r}")

    def _join(self, name: SiteName) -> SiteIdentity:
        secret = X25519PrivateKey.from_private_bytes(self.chance(f"peer {name}").randbytes(32))
        public = secret.public_key().public_bytes_raw().hex()
        now, port, token = self.clock.wall_ns(), self._ports[name], f"token-{name}"
        control_key = self._signer.public_key().public_bytes_raw().hex()
        invite(self.registry.estate, EVERY_TENANT, name, token, now=now, once=None)
        reply = join(
            self.registry.estate,
            JoinRequest(
                token=token, peer_key=public, nats_key=f"U{name}", host="127.0.0.1", port=port,
                public_url=f"http://127.0.0.1:{port}/v1",
            ),
            Hub(nats_urls=(), control_key=control_key, control_url=""),
            lambda site, key, _: f"{site} {key}",
            now=now,
        )
        return SiteIdentity(
            site=reply.site, country=reply.country, nats_urls=(), nats_jwt=reply.nats_jwt,
            nats_seed="", peer_key=public, peer_secret=secret.private_bytes_raw().hex(),
            control_key=reply.control_key, control_url="", host="127.0.0.1", port=port,
        )

    def _log(self, name: str, lines: bytes) -> None:
        for line in lines.decode().splitlines():
            self.note(f"{name} {line}")


async def _directly(call: Callable[[], T], /) -> T:
    return call()


def model_of(world: World) -> ModelName:
    """The first model of a world."""
    return world.models[0].name

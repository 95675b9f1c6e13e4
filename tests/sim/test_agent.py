"""An agent on virtual time: crashes, lost buckets, an absent bus, forged wishes, farewell."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from isochrone.agent.process import Agent, AgentPlan, AgentPorts
from isochrone.core.estimate.service import Rates
from isochrone.core.ids import HostName, ModelName, ReplicaId, SiteName
from isochrone.core.world.digest import HostLoad, SiteDigest
from isochrone.core.world.host import Host
from isochrone.core.world.model import Deployment, Desired, EngineSpec, Replica
from isochrone.ports.network import Address
from isochrone.twin.clock import VirtualClock
from isochrone.twin.fakes.bus import FakeBus, FakeHub
from isochrone.twin.fakes.engine import FakeEngineDriver
from isochrone.twin.loop import VirtualLoop, run
from isochrone.twin.network import Wire
from isochrone.wire import fleet, subjects
from tests.builders import a_site

T = TypeVar("T")
SITE, TINY = SiteName("sydney"), ModelName("tiny")
BUCKET = subjects.site_bucket(SITE)
FIRST = ReplicaId("sydney/tiny/0")
SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(32))
HOST = Host(name=HostName("rack3-gpu07"), cores=8, memory_bytes=None, machine="ab" * 8)
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\x01")
HARDWARE = {"cpu": Rates(prefill_tok_s=500.0, decode_tok_s=50.0)}


class Stage:
    """One site with its agent, a hub, and what others hear of it."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop, self.clock = loop, VirtualClock(loop)
        self.hub = FakeHub(self.clock, latency_ms=1.0)
        self.wire = Wire(loop, lambda one, other: 0.0 if one == other else 30.0)
        self.network = self.wire.process("agent")
        self.driver = FakeEngineDriver(self.network)
        self.control = self.hub.bus()
        self.agent_bus: FakeBus = self.hub.bus()
        self.digest: SiteDigest | None = None
        self.heard_at = 0.0

    async def prepare(self) -> None:
        for bucket in (subjects.VIEW_BUCKET, BUCKET):
            await self.control.ensure_bucket(bucket)
        await self.control.subscribe(subjects.DIGESTS, self._hear)

    def _hear(self, subject: str, payload: bytes) -> None:
        self.digest, self.heard_at = fleet.decode(payload, SiteDigest), self.loop.time()

    async def want(
        self, replicas: int, *, serial: int = 1, slots: int = 4,
        signer: Ed25519PrivateKey = SIGNER, restart_up_to: int = 0, at_once: bool = False,
        upstream: str | None = None,
    ) -> None:
        """So many replicas of the model, and one of another model at the URL `upstream`."""
        spec = EngineSpec(kind="llamacpp", source="tiny.gguf", slots=slots)
        deployment = Deployment(
            site=SITE, model=TINY, replicas=replicas, engine=spec, context_tokens=2048,
            restart_up_to=(restart_up_to,), at_once=at_once,
        )
        deployments = (deployment,) if upstream is None else (deployment, Deployment(
            site=SITE, model=ModelName("far"), replicas=1, context_tokens=2048,
            engine=EngineSpec(kind="openai", source=upstream),
        ))
        desired = Desired(site=SITE, serial=serial, deployments=deployments)
        key = subjects.DESIRED_KEY
        await self.control.put(
            BUCKET, key,
            fleet.sign(desired, bucket=BUCKET, key=key, serial=serial, signer=signer),
        )

    async def begin(self, tokens: int) -> None:
        """The first replica works on an answer of so many tokens."""
        engine = self.driver.engines[FIRST]
        address = Address(host="127.0.0.1", port=engine.server.port)
        client = await self.network.connect(Caller, address, timeout_s=1)
        body = b'{"prompt": "a", "max_tokens": %d}' % tokens
        client.transport.write(
            b"POST /v1/completions HTTP/1.1\r\nauthorization: Bearer %b\r\n"
            b"content-length: %d\r\n\r\n%b" % ((engine.key or "").encode(), len(body), body)
        )
        await self.until(lambda: engine.server.running == 1)

    async def records(self) -> dict[str, Replica]:
        found: dict[str, Replica] = {}

        def on_entry(entry: Any) -> None:
            if entry.value is not None:
                record = fleet.decode(entry.value, Replica)
                found[record.id] = record

        watch = await self.control.watch(BUCKET, "replica", on_entry)
        await watch.synced()
        await watch.close()
        return found

    def ready(self) -> int:
        return sum(load.ready for load in self.digest.loads) if self.digest else 0

    async def until(self, holds: Callable[[], bool], *, limit_s: float = 60.0) -> None:
        async with asyncio.timeout(limit_s):
            while not holds():
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def agent(self) -> AsyncIterator["asyncio.Task[None]"]:
        plan = AgentPlan(
            site=SITE, host=HOST, control_key=SIGNER.public_key(), hardware=HARDWARE
        )
        drivers = {"llamacpp": self.driver, "openai": self.driver}
        self.agent_bus = self.hub.bus()
        ports = AgentPorts(
            bus=self.agent_bus, network=self.network, clock=self.clock,
            drivers=drivers,  # type: ignore[arg-type]
        )
        working = asyncio.create_task(Agent(plan, ports).run())
        try:
            yield working
        finally:
            working.cancel()
            await asyncio.wait([working])


def on_stage(body: Callable[[Stage], Coroutine[Any, Any, T]]) -> T:
    async def main() -> T:
        stage = Stage()
        await stage.prepare()
        return await body(stage)

    return run(main())


def test_desired_replicas_become_ready_and_are_reported() -> None:
    async def body(stage: Stage) -> None:
        async with stage.agent():
            await stage.want(2)
            await stage.until(lambda: stage.ready() == 2)
            records = await stage.records()
            assert set(records) == {"sydney/tiny/0", "sydney/tiny/1"}
            record = records[FIRST]
            engine = stage.driver.engines[FIRST]
            assert (record.state, record.base_url, record.engine_key, record.pid) == (
                "ready", engine.base_url, engine.key, engine.pid,
            )
            assert record.running_counts == "timings"
            assert record.usage_counts_one_choice
            assert record.revision is not None
            assert stage.digest is not None
            (load,) = stage.digest.loads
            assert (load.slots, load.prefill_tok_s, load.decode_tok_s) == (8, 500.0, 50.0)
            await stage.until(lambda: stage.digest is not None and bool(
                stage.digest.loads and stage.digest.loads[0].spare
            ))
            (load,) = stage.digest.loads
            assert load.arrived == 0
            assert load.spare is not None
            assert load.spare > 1  # idle

    on_stage(body)


def test_the_host_is_told_with_what_should_run_there_and_does() -> None:
    async def body(stage: Stage) -> None:
        async with stage.agent():
            await stage.until(lambda: stage.digest is not None)
            assert stage.digest is not None
            assert stage.digest.hosts == (HostLoad(host=HOST, replicas_wanted=0),)
            await stage.want(2, upstream="http://10.0.0.7:8000/v1")
            await stage.until(lambda: stage.ready() == 3)
            hosts = {each.id: each.host for each in stage.digest.replicas}
            assert hosts == {
                "sydney/tiny/0": HOST.name, "sydney/tiny/1": HOST.name, "sydney/far/0": None,
            }
            assert stage.digest.hosts == (HostLoad(host=HOST, replicas_wanted=2),)
            stage.driver.failing_starts = 5
            await stage.driver.crash(FIRST)
            await stage.until(lambda: stage.ready() == 2)
            assert {each.id: each.host for each in stage.digest.replicas} == hosts
            assert stage.digest.hosts[0].replicas_wanted == 2, "one of them fails"

    on_stage(body)


def test_a_crashed_replica_is_reported_and_started_again_with_a_higher_generation() -> None:
    async def body(stage: Stage) -> None:
        async with stage.agent():
            await stage.want(1)
            await stage.until(lambda: stage.ready() == 1)
            before = (await stage.records())[FIRST]
            crashed_at = stage.loop.time()
            await stage.driver.crash(FIRST)
            await stage.until(lambda: stage.ready() == 0)
            assert stage.loop.time() - crashed_at < 0.3, "routing hears of it before a second ends"
            await stage.until(lambda: stage.ready() == 1, limit_s=5)
            after = (await stage.records())[FIRST]
            assert after.generation > before.generation
            assert after.restarts == 1
            assert after.base_url != before.base_url

    on_stage(body)


def test_an_engine_that_does_not_start_is_tried_ever_more_rarely() -> None:
    async def body(stage: Stage) -> None:
        async with stage.agent():
            stage.driver.failing_starts = 5
            began_at = stage.loop.time()
            await stage.want(1)
            await stage.until(lambda: len(stage.driver.starts) == 2)
            failed = (await stage.records())[FIRST]
            assert "told to fail" in (failed.detail or "")
            await stage.until(lambda: stage.ready() == 1)
            assert 15.5 < stage.loop.time() - began_at < 20, "0.5 + 1 + 2 + 4 + 8 s, and the starts"

    on_stage(body)


def test_a_silent_engine_is_replaced() -> None:
    async def body(stage: Stage) -> None:
        async with stage.agent():
            await stage.want(1)
            await stage.until(lambda: stage.ready() == 1)
            first = stage.driver.engines[FIRST]
            first.silent = True
            await stage.until(lambda: len(stage.driver.starts) == 2)
            await stage.until(lambda: stage.ready() == 1)
            assert not first.running

    on_stage(body)


def test_an_engine_that_cannot_be_killed_costs_no_other_and_nothing_starts_beside_it() -> None:
    async def body(stage: Stage) -> None:
        async with stage.agent() as working:
            await stage.want(2)
            await stage.until(lambda: stage.ready() == 2)
            stuck = stage.driver.engines[FIRST]
            stuck.unkillable = True  # its process waits for a disk or a driver that is gone
            stuck.silent = True
            await asyncio.sleep(120)
            assert not working.done()
            assert stage.ready() == 1
            assert len(stage.driver.starts) == 2
            assert (await stage.records())[FIRST].state == "draining"
            stuck.unkillable = False
            await stage.until(lambda: stage.ready() == 2)
            assert not stuck.running

    on_stage(body)


def test_a_removed_replica_finishes_its_work_first() -> None:
    async def body(stage: Stage) -> None:
        async with stage.agent():
            await stage.want(1)
            await stage.until(lambda: stage.ready() == 1)
            engine = stage.driver.engines[FIRST]
            await stage.begin(500)
            await stage.want(0, serial=2)
            await stage.until(lambda: stage.ready() == 0)
            assert (await stage.records())[FIRST].state == "draining"
            await asyncio.sleep(3)
            assert engine.running
            await stage.until(lambda: not engine.running)
            assert engine.server.counters.output_tokens == 500
            await asyncio.sleep(1)
            assert await stage.records() == {}

    on_stage(body)


def test_a_replica_that_was_asked_to_restart_finishes_its_work_and_starts_once() -> None:
    async def body(stage: Stage) -> None:
        async with stage.agent():
            await stage.want(2)
            await stage.until(lambda: stage.ready() == 2)
            before, engine = await stage.records(), stage.driver.engines[FIRST]
            await stage.begin(300)
            generation = before[FIRST].generation
            await stage.want(2, serial=2, restart_up_to=generation)
            await stage.until(lambda: len(stage.driver.starts) == 3)
            assert engine.server.counters.output_tokens == 300
            await stage.until(lambda: stage.ready() == 2)
            after = await stage.records()
            assert after[FIRST].generation > generation
            other = ReplicaId("sydney/tiny/1")
            assert after[other] == before[other]
            await stage.want(2, serial=3, restart_up_to=generation)
            await asyncio.sleep(30)
            assert len(stage.driver.starts) == 3, "the same again changes nothing"

    on_stage(body)


def test_a_restart_ends_although_the_clock_was_set_back() -> None:
    async def body(stage: Stage) -> None:
        async with stage.agent():
            await stage.want(1)
            await stage.until(lambda: stage.ready() == 1)
            generation = (await stage.records())[FIRST].generation
            stage.clock.offset_ns = -3600 * 10**9
        stage.hub.lose_bucket(BUCKET)
        await stage.control.ensure_bucket(BUCKET)
        async with stage.agent():
            await stage.want(1, serial=2, restart_up_to=generation)
            await stage.until(lambda: stage.ready() == 1)
            await asyncio.sleep(30)
            assert len(stage.driver.starts) == 2, "the new agent's own is above what was asked"

    on_stage(body)


def test_replicas_of_a_site_that_is_stopped_at_once_do_not_finish() -> None:
    async def body(stage: Stage) -> None:
        async with stage.agent():
            await stage.want(1)
            await stage.until(lambda: stage.ready() == 1)
            await stage.begin(500)
            engine, asked_at = stage.driver.engines[FIRST], stage.loop.time()
            await stage.want(0, serial=2, at_once=True)
            await stage.until(lambda: not engine.running)
            assert stage.loop.time() - asked_at < 0.1
            assert engine.server.counters.output_tokens < 500
            await stage.want(1, serial=3)
            await stage.until(lambda: stage.ready() == 1)

    on_stage(body)


def test_wishes_that_are_forged_old_or_lost_are_ignored() -> None:
    async def body(stage: Stage) -> None:
        async with stage.agent():
            await stage.want(2, serial=7)
            await stage.until(lambda: stage.ready() == 2)
            await stage.want(0, serial=8, signer=STRANGER)
            await asyncio.sleep(5)
            await stage.want(0, serial=6)
            await asyncio.sleep(5)
            await stage.control.put(BUCKET, subjects.DESIRED_KEY, b"nonsense")
            await stage.control.delete(BUCKET, subjects.DESIRED_KEY)
            await asyncio.sleep(5)
            assert stage.ready() == 2

    on_stage(body)


def test_engines_outlive_the_bus_and_records_outlive_the_bucket() -> None:
    async def body(stage: Stage) -> None:
        async with stage.agent():
            await stage.want(1)
            await stage.until(lambda: stage.ready() == 1)
            engine = stage.driver.engines[FIRST]
            stage.hub.down()
            await asyncio.sleep(30)
            await stage.driver.crash(FIRST)
            await asyncio.sleep(10)
            assert len(stage.driver.starts) == 2, "restarted although nobody could be told"
            stage.hub.lose_bucket(BUCKET)
            stage.hub.up()
            await stage.control.ensure_bucket(BUCKET)
            await asyncio.sleep(10)
            record = (await stage.records())[FIRST]
            assert (record.state, record.restarts) == ("ready", 1)
            assert record.base_url != engine.base_url
            assert stage.digest is not None
            assert stage.loop.time() - stage.heard_at < 1.1

    on_stage(body)


def test_an_agent_that_leaves_stops_its_engines_and_says_so() -> None:
    async def body(stage: Stage) -> None:
        async with stage.agent():
            await stage.want(2)
            await stage.until(lambda: stage.ready() == 2)
            left_at = stage.loop.time()
        assert stage.loop.time() - left_at < 5
        assert not any(engine.running for engine in stage.driver.engines.values())
        assert await stage.records() == {}
        await asyncio.sleep(0.1)
        assert stage.ready() == 0

    on_stage(body)


def test_a_new_agent_removes_what_a_killed_one_left_and_uses_higher_generations() -> None:
    async def body(stage: Stage) -> None:
        async with stage.agent():
            await stage.want(2)
            await stage.until(lambda: stage.ready() == 2)
            stage.agent_bus.down()  # so that its farewell is heard by nobody
        left = await stage.records()
        assert set(left) == {"sydney/tiny/0", "sydney/tiny/1"}
        stage.clock.offset_ns = -3600 * 10**9  # its wall clock has gone back meanwhile
        await stage.want(1, serial=2)
        async with stage.agent():
            await stage.until(lambda: len(stage.driver.starts) == 3)
            await asyncio.sleep(5)
            records = await stage.records()
            assert set(records) == {FIRST}
            assert records[FIRST].generation > max(each.generation for each in left.values())

    on_stage(body)


def test_round_trips_are_measured_and_forgotten_with_the_peer() -> None:
    async def body(stage: Stage) -> None:
        peer = stage.wire.process("gateway frankfurt")
        listener = await peer.listen(Healthy, "127.0.0.1", 8001)
        site = a_site("frankfurt", "DE")
        key = subjects.site_key(site.name)
        await stage.control.put(
            subjects.VIEW_BUCKET, key,
            fleet.sign(site, bucket=subjects.VIEW_BUCKET, key=key, serial=1, signer=SIGNER),
        )
        async with stage.agent():
            await stage.until(lambda: bool(stage.digest and stage.digest.probes))
            await asyncio.sleep(30)
            assert stage.digest is not None
            (probe,) = stage.digest.probes
            assert (probe.peer, probe.rtt_ms) == ("frankfurt", 30.0)
            assert listener.port == 8001
            stage.wire.kill("gateway frankfurt")
            await stage.until(lambda: bool(stage.digest and not stage.digest.probes))

    on_stage(body)


class Caller(asyncio.Protocol):
    """Keeps its transport."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport


class Healthy(Caller):
    """Answers each read with 200, as a gateway's /health does."""

    def data_received(self, data: bytes) -> None:
        assert data.startswith(b"GET /health HTTP/1.1\r\n")
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

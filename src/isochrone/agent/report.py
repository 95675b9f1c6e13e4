"""Tells the rest of the cloud what runs here: replica records in the site's bucket, and digests.

Records are kept by comparing what the bucket holds (heard from its watch) with what it should
hold, so a lost bucket, a second writer and a restart of the agent all heal in the same way.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import structlog

from isochrone.agent.hosting import host_of
from isochrone.agent.queued import Queued
from isochrone.agent.supervise import Live, Supervisor
from isochrone.core.errors import BusUnavailable, Untrusted
from isochrone.core.estimate.engine_rates import Learned
from isochrone.core.ids import HostName, ModelName, SiteName
from isochrone.core.routing.site_load import Reading, load_of
from isochrone.core.world.digest import (
    DeploymentLoad,
    HostLoad,
    ProbedRtt,
    ReplicaLoad,
    SiteDigest,
)
from isochrone.core.world.host import Host
from isochrone.core.world.model import ALL_ENDPOINTS, COMMON_ENDPOINTS, Replica
from isochrone.ports.bus import Bus, Entry
from isochrone.ports.clock import Clock
from isochrone.wire import fleet, subjects

RETRY_S = 1.0
ECHO_S = 10.0  # a watch has listed its bucket anew by then
WARN_AGAIN_NS = 60_000_000_000
QUICKEST_S = 0.1  # from one digest, or round of records, to the next

log = structlog.get_logger()


def record_of(live: Live) -> Replica:
    """The record of one replica as gateways and control read it."""
    status, goal, engine = live.status, live.status.goal, live.engine
    return Replica(
        id=goal.id,
        site=goal.site,
        model=goal.model,
        revision=live.revision,
        generation=status.generation,
        state=status.state,
        engine=goal.engine.kind,
        base_url="" if engine is None else engine.base_url,
        engine_key=None if engine is None else engine.key,
        credential=goal.engine.credential,
        upstream_model=goal.engine.upstream_model or goal.model,
        slots=goal.engine.slots,
        slots_stated=goal.engine.slots_stated,
        shares_cache=goal.engine.shares_cache,
        pid=None if engine is None else engine.pid,
        started_at=live.started_at,
        restarts=status.restarts,
        running_counts=None if engine is None else engine.traits.running_counts,
        usage_counts_one_choice=engine is not None and engine.traits.usage_counts_one_choice,
        detail=status.detail,
        endpoints=COMMON_ENDPOINTS if engine is None else engine.traits.endpoints,
        cache_salt=engine is not None and engine.traits.cache_salt,
    )


class Records:
    """Makes the `replica.*` entries of the bucket equal to what is wanted."""

    def __init__(self, bus: Bus, bucket: str) -> None:
        self._bus = bus
        self._bucket = bucket
        self._wanted: dict[str, bytes] = {}
        self._stored: dict[str, bytes] = {}
        self._unheard: set[str] = set()  # written, and not seen in the bucket yet
        self._contested = False  # another writer answers each of our writes with one
        self._wake = asyncio.Event()

    def want(self, replicas: Iterable[Replica]) -> None:
        self._wanted = {subjects.replica_key(each.id): fleet.encode(each) for each in replicas}
        self._wake.set()

    def heard(self, entry: Entry) -> None:
        """Take in what the bucket's watch says about one key of ours."""
        self._unheard.discard(entry.key)
        if entry.value is None:
            self._stored.pop(entry.key, None)
        else:
            ours = (None, entry.value)
            if self._stored.get(entry.key) not in ours and self._wanted.get(entry.key) not in ours:
                self._contested = True
            self._stored[entry.key] = entry.value
        self._wake.set()

    async def run(self) -> None:
        """Write and delete until cancelled; a bus that is away is tried again."""
        while True:
            try:
                async with asyncio.timeout(ECHO_S if self._unheard else None):
                    await self._wake.wait()
            except TimeoutError:  # the bucket was lost before its watch had listed them
                self._stored = {
                    key: value for key, value in self._stored.items() if key not in self._unheard
                }
                self._unheard.clear()
            self._wake.clear()
            try:
                await self.settle()
            except BusUnavailable as error:
                log.warning("replica_records_waiting", bucket=self._bucket, detail=error.message)
                self._wake.set()
                await asyncio.sleep(RETRY_S)
            if self._contested:
                self._contested = False
                await asyncio.sleep(QUICKEST_S)

    async def settle(self) -> None:
        """Close the gap once. Raises BusUnavailable."""
        for key, value in list(self._wanted.items()):
            if self._stored.get(key) != value:
                self._unheard.add(key)
                await self._bus.put(self._bucket, key, value)
                self._stored[key] = value
        for key in [key for key in self._stored if key not in self._wanted]:
            await self._bus.delete(self._bucket, key)
            self._stored.pop(key, None)


def replica_load(live: Live, own_host: HostName) -> ReplicaLoad:
    status, load, before = live.status, live.load, live.at_ready
    return ReplicaLoad(
        id=status.goal.id,
        model=status.goal.model,
        generation=status.generation,
        state=status.state,
        pid=None if live.engine is None else live.engine.pid,
        running=load.running or 0,
        waiting=load.waiting or 0,
        restarts=status.restarts,
        prompt_tokens_total=_since(before.prompt_tokens_total, load.prompt_tokens_total),
        cached_tokens_total=_since(before.cached_tokens_total, load.cached_tokens_total),
        output_tokens_total=_since(before.output_tokens_total, load.output_tokens_total),
        kept_tokens=load.kept_tokens,
        held_tokens=load.held_tokens,
        silent_s=round(live.silent_s, 1) if status.state == "ready" else 0.0,
        host=host_of(status.goal.engine, own_host),
    )


def _since(before: int | None, now: int | None) -> int | None:
    """A counter without what was counted before the replica was ready; one that fell began anew."""
    if now is None or before is None or now < before:
        return now
    return now - before


def deployment_load(
    model: ModelName, group: Sequence[Live], known: Learned, queued: Queued
) -> DeploymentLoad:
    """What is said of a model's replicas here; see `load_of`."""
    ready = [live for live in group if live.status.state == "ready"]
    revisions = {live.revision for live in ready}
    had = {endpoint for live in ready if live.engine for endpoint in live.engine.traits.endpoints}
    return load_of(
        model,
        [Reading(live.status.goal.engine.slots, live.load, live.arrived) for live in ready],
        known,
        revision=revisions.pop() if len(revisions) == 1 else None,
        endpoints=tuple(endpoint for endpoint in ALL_ENDPOINTS if endpoint in had),
        queued=queued.of(model),
        pushed=queued.pushed(model),
    )


class Digests:
    """Publishes the digest of `site`, whose replicas run on `host`, every `interval_s` and soon
    after a replica changed."""

    def __init__(
        self, site: SiteName, bus: Bus, clock: Clock, *, supervisor: Supervisor,
        probes: Mapping[SiteName, float], interval_s: float, queued: Queued, host: Host,
    ) -> None:
        self._site = site
        self._host = host
        self._queued = queued
        self._bus = bus
        self._clock = clock
        self._supervisor = supervisor
        self._probes = probes
        self._interval_s = interval_s
        self._epoch = clock.wall_ns() // 1_000_000
        self._sequence = 0
        self._warned_ns: int | None = None
        self._soon = asyncio.Event()

    def soon(self) -> None:
        """Something changed that routing should know before the next second."""
        self._soon.set()

    def heard(self, subject: str, payload: bytes) -> None:
        """A digest of this site: where it is not ours, another agent plays the same site. What
        they tell of its replicas takes turns, so somebody has to hear of it."""
        try:
            digest = fleet.decode(payload, SiteDigest)
        except Untrusted:
            return
        now_ns = self._clock.monotonic_ns()
        is_told = self._warned_ns is not None and now_ns - self._warned_ns < WARN_AGAIN_NS
        if digest.epoch != self._epoch and not is_told:
            self._warned_ns = now_ns
            hosts = [each.host.name for each in digest.hosts]
            log.error("another_agent_of_this_site", site=self._site, its_hosts=hosts)

    def digest(self) -> SiteDigest:
        """The next digest; its sequence number grows with every call."""
        self._sequence += 1
        groups: dict[ModelName, list[Live]] = defaultdict(list)
        for live in self._supervisor.replicas.values():
            groups[live.status.goal.model].append(live)
        return SiteDigest(
            site=self._site,
            epoch=self._epoch,
            sequence=self._sequence,
            at=self._clock.wall_ns(),
            loads=tuple(
                deployment_load(model, group, self._supervisor.learned(model), self._queued)
                for model, group in groups.items()
            ),
            replicas=tuple(
                replica_load(live, self._host.name) for live in self._supervisor.replicas.values()
            ),
            probes=tuple(
                ProbedRtt(peer=peer, rtt_ms=rtt_ms) for peer, rtt_ms in self._probes.items()
            ),
            hosts=(HostLoad(host=self._host, replicas_wanted=self._wanted_here()),),
        )

    def _wanted_here(self) -> int:
        own = self._host.name
        return sum(host_of(goal.engine, own) == own for goal in self._supervisor.wanted)

    async def publish(self) -> None:
        digest = fleet.encode(self.digest())
        await self._bus.publish(subjects.digest_subject(self._site), digest)

    async def run(self) -> None:
        while True:
            self._soon.clear()
            await self.publish()
            await asyncio.sleep(QUICKEST_S)
            try:
                async with asyncio.timeout(max(0.0, self._interval_s - QUICKEST_S)):
                    await self._soon.wait()
            except TimeoutError:
                continue

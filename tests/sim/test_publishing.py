"""Publishing on virtual time with the real database: leases, lost buckets, outages, revocation."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, TypeVar

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from isochrone.adapters.packaged import default_world, load_round_trips
from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.registry import open_registry
from isochrone.control.loops import ControlLoops, ControlPlan, ControlPorts
from isochrone.control.publish import LEASE
from isochrone.control.world import Weights, intent_of, seed_of
from isochrone.core.errors import Conflict, StoreUnavailable
from isochrone.core.ids import KeyId, LimitId, ModelName, OrgId, PolicyId, ProjectId, SiteName
from isochrone.core.world.digest import ProbedRtt, SiteDigest
from isochrone.core.world.limit import Limit, LimitKind
from isochrone.core.world.tenant import ApiKey, Policy, Scope
from isochrone.ports.tenants import StoredKey, StoredPolicy
from isochrone.twin.clock import VirtualClock
from isochrone.twin.fakes.bus import FakeBus, FakeHub
from isochrone.twin.loop import VirtualLoop, run
from isochrone.wire import fleet, subjects
from isochrone.wiring.world_file import parse_world

T = TypeVar("T")
ALL = Scope(org_id=None)
NOW = 1_760_000_000_000_000_000
SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(32))


@dataclass
class Stage:
    """Copies of control over one database and one hub."""

    pool: Pool

    def __post_init__(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.clock = VirtualClock(loop)
        self.hub = FakeHub(self.clock)
        self.registry = open_registry(self.pool)
        self.store_is_away = False
        self.registry.tenants.seed(seed_of("0" * 64, now=NOW), now=NOW)
        self.reconcile(emulated=True)

    def reconcile(self, *, emulated: bool, sites: int = 3) -> None:
        world = parse_world(default_world(), source="default")
        world = replace(world, emulate_distance=emulated, sites=world.sites[:sites], links=())
        weights = {ModelName("tiny-fable"): Weights(path="/m.gguf", revision="abc")}
        self.registry.estate.reconcile(
            intent_of(world, weights, load_round_trips(), now=NOW), now=NOW
        )

    def control(self, holder: str) -> tuple[ControlLoops, FakeBus]:
        bus = self.hub.bus()

        async def offload(call: Callable[[], T], /) -> T:
            if self.store_is_away:
                raise StoreUnavailable("away")
            return call()

        ports = ControlPorts(
            registry=self.registry, book=PostgresBook(self.pool), bus=bus, clock=self.clock,
            offload=offload,
        )
        return ControlLoops(ControlPlan(holder=holder, signer=SIGNER), ports), bus

    @asynccontextmanager
    async def running(self, holder: str = "one") -> AsyncIterator[ControlLoops]:
        loops, _ = self.control(holder)
        task = asyncio.create_task(loops.run())
        try:
            yield loops
        finally:
            task.cancel()
            await asyncio.wait([task])

    def view(self) -> dict[str, bytes]:
        bucket = self.hub.buckets.get(subjects.VIEW_BUCKET)
        return {} if bucket is None else {key: value for key, (value, _) in bucket.values.items()}

    def serials(self) -> dict[str, int]:
        return {key: fleet.decode(value, fleet.Signed).serial for key, value in self.view().items()}

    async def until(self, holds: Callable[[], bool], *, within_s: float = 30.0) -> None:
        async with asyncio.timeout(within_s):
            while not holds():
                await asyncio.sleep(0.01)

    def add_key(self, key_id: str) -> str:
        """Add a key; the name of its shard's entry."""
        key = ApiKey(
            id=KeyId(key_id), secret_sha256=key_id * 32, org_id=OrgId("default"),
            project_id=ProjectId("default"), policy_id=PolicyId("any"),
        )
        policy = Policy(
            id=PolicyId("x"), org_id=OrgId("default"), residency=("any",), transit=("any",)
        )
        self.registry.tenants.add_key(
            ALL, StoredKey(key=key, name="k", created_at=NOW),
            StoredPolicy(policy=policy, name="x", created_at=NOW), once=None,
        )
        return subjects.keys_key(key_id)


def on_stage(pool: Pool, scene: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        await scene(Stage(pool))

    run(main())


def full(stage: Stage) -> bool:
    return {"site.sydney", "links.ashburn", "policy.any"} <= stage.view().keys()


def test_what_has_not_changed_is_not_published_again(pool: Pool) -> None:
    async def scene(stage: Stage) -> None:
        async with stage.running():
            await stage.until(lambda: full(stage))
            before = stage.serials()
            await asyncio.sleep(20)
            assert stage.serials() == before
        async with stage.running():
            await asyncio.sleep(20)
            assert stage.serials() == before

    on_stage(pool, scene)


def test_an_entry_that_is_too_long_keeps_no_other_back(pool: Pool) -> None:
    """One tenant with very many limits: keys of the others are made and revoked all the same."""
    async def scene(stage: Stage) -> None:
        async with stage.running() as loops:
            await stage.until(lambda: full(stage))
            stage.hub.message_bytes_most = 2 * max(map(len, stage.view().values()))
            kinds: tuple[LimitKind, ...] = ("concurrent", "requests_per_min", "tokens_per_min")
            for number, kind in product(range(99), kinds):
                if kind == kinds[0]:
                    stage.add_key(f"{number:02d}")
                stage.registry.limits.set_limit(
                    ALL, Limit(
                        id=LimitId(f"{number}/{kind}"), org_id=OrgId("default"), amount=1,
                        project_id=ProjectId("default"), key_id=KeyId(f"{number:02d}"), kind=kind,
                        created_at=NOW,
                    ),
                )
            shard = stage.add_key("ab")
            loops.publisher.wake()
            await stage.until(lambda: shard in stage.view())
            assert subjects.limits_key(OrgId("default")) not in stage.view()

    on_stage(pool, scene)


def test_revoking_reaches_the_bucket_at_once(pool: Pool) -> None:
    async def scene(stage: Stage) -> None:
        async with stage.running() as loops:
            shard = stage.add_key("ab")
            loops.publisher.wake()
            await stage.until(lambda: shard in stage.view())
            stage.registry.tenants.revoke_key(ALL, KeyId("ab"), now=NOW)
            loops.publisher.wake()
            await stage.until(lambda: shard not in stage.view(), within_s=0.1)

    on_stage(pool, scene)


def test_a_wall_clock_that_is_set_back_does_not_make_a_lease_last(pool: Pool) -> None:
    async def scene(stage: Stage) -> None:
        async with stage.running():
            await stage.until(lambda: full(stage))
            before = stage.clock.wall_ns()
            stage.clock.offset_ns = -3_600_000_000_000
            await asyncio.sleep(20)
            # The holder has renewed by its present clock; unrenewed, the lease would last longer.
            taken = stage.registry.leases.take(LEASE, "another", now=before, ttl_ns=1)
            assert taken is not None

    on_stage(pool, scene)


def test_lost_buckets_are_filled_again(pool: Pool) -> None:
    async def scene(stage: Stage) -> None:
        async with stage.running():
            await stage.until(lambda: full(stage))
            own = subjects.site_bucket("sydney")
            for bucket in (subjects.VIEW_BUCKET, own):
                stage.hub.lose_bucket(bucket)
            await stage.until(lambda: full(stage))
            await stage.until(lambda: subjects.DESIRED_KEY in stage.hub.buckets[own].values)

    on_stage(pool, scene)


def test_strange_entries_are_removed_and_forged_ones_replaced(pool: Pool) -> None:
    async def scene(stage: Stage) -> None:
        async with stage.running():
            await stage.until(lambda: full(stage))
            site = stage.view()["site.sydney"]
            stranger = stage.hub.bus()
            before = stage.serials()["site.sydney"]
            await stranger.put(subjects.VIEW_BUCKET, "site.nowhere", site)
            await stranger.put(subjects.VIEW_BUCKET, "site.sydney", b"forged")
            await stage.until(
                lambda: "site.nowhere" not in stage.view()
                and stage.view()["site.sydney"] != b"forged"
            )
            assert stage.serials()["site.sydney"] > before

    on_stage(pool, scene)


def test_outages_of_book_and_bus_are_waited_out(pool: Pool) -> None:
    async def scene(stage: Stage) -> None:
        stage.hub.down()
        stage.store_is_away = True
        async with stage.running():
            await asyncio.sleep(20)
            stage.store_is_away = False
            await asyncio.sleep(20)
            stage.hub.up()
            await stage.until(lambda: full(stage))
            stage.store_is_away = True
            await asyncio.sleep(20)
            stage.store_is_away = False
            shard = stage.add_key("cd")
            await stage.until(lambda: shard in stage.view())

    on_stage(pool, scene)


def test_one_copy_publishes_and_another_takes_over(pool: Pool) -> None:
    async def scene(stage: Stage) -> None:
        async with stage.running("two"):
            async with stage.running("one") as one:
                await stage.until(lambda: full(stage))
                await asyncio.sleep(30)
                rounds = one.publisher.rounds
            await asyncio.sleep(15)
            shard = stage.add_key("ef")
            await stage.until(lambda: shard in stage.view())
            assert one.publisher.rounds == rounds

    on_stage(pool, scene)


def test_a_holder_that_was_frozen_cannot_publish(pool: Pool) -> None:
    async def scene(stage: Stage) -> None:
        frozen, _ = stage.control("frozen")
        assert await frozen.publisher.publish()
        await asyncio.sleep(4)
        other, _ = stage.control("other")
        assert not await other.publisher.publish()
        lease = stage.registry.leases
        await asyncio.sleep(2)
        taken = lease.take(
            "publisher", "other", now=stage.clock.wall_ns() + 60_000_000_000, ttl_ns=1
        )
        assert taken is not None
        stage.add_key("aa")
        with pytest.raises(Conflict):
            lease.serials(replace(taken, epoch=taken.epoch - 1), 1, above=0)
        assert not await frozen.publisher.publish()
        assert "keys.aa" not in stage.view()

    on_stage(pool, scene)


def test_a_removed_site_leaves_the_view_and_is_told_to_stop(pool: Pool) -> None:
    async def scene(stage: Stage) -> None:
        async with stage.running() as loops:
            await stage.until(lambda: full(stage))
            names = sorted(key for key in stage.view() if key.startswith("site."))
            stage.reconcile(emulated=True, sites=2)
            loops.publisher.wake()
            await stage.until(
                lambda: sorted(key for key in stage.view() if key.startswith("site.")) != names
            )
            (gone,) = stage.registry.estate.snapshot(now=NOW).removed_sites
            bucket = stage.hub.buckets[subjects.site_bucket(gone)]
            signed = fleet.decode(bucket.values[subjects.DESIRED_KEY][0], fleet.Signed)
            assert b"tiny-fable" not in signed.body

    on_stage(pool, scene)


def test_probes_correct_links_unless_distance_is_emulated(pool: Pool) -> None:
    async def scene(stage: Stage) -> None:
        agent = stage.hub.bus()
        probe = ProbedRtt(peer=SiteName("frankfurt"), rtt_ms=3.0)
        digest = SiteDigest(
            site=SiteName("sydney"), epoch=1, sequence=1, at=0, loads=(), probes=(probe,)
        )

        def source() -> str:
            links = stage.registry.estate.links(SiteName("sydney"))
            return next(link.source for link in links if link.peer == "frankfurt")

        async with stage.running() as loops:
            await asyncio.sleep(1)
            await agent.publish(subjects.digest_subject("sydney"), fleet.encode(digest))
            await asyncio.sleep(30)
            assert loops.fleet.heard(SiteName("sydney")) is not None
            assert source() == "emulated"
            stage.reconcile(emulated=False)
            await stage.until(lambda: source() == "probed")

    on_stage(pool, scene)

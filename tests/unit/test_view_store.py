"""The stored view: what a gateway that starts without NATS knows, and what it must not believe."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs

from isochrone.adapters.disk.files import FileDisk
from isochrone.adapters.packaged import load_blocs
from isochrone.core.ids import KeyId, ModelName, OrgId, PolicyId, ProjectId, ReplicaId, SiteName
from isochrone.core.rng import Random
from isochrone.core.world.digest import SiteDigest
from isochrone.core.world.model import Replica
from isochrone.core.world.site import Site
from isochrone.core.world.tenant import ApiKey, KeyShard, Policy
from isochrone.gateway import view_store
from isochrone.gateway.view_cache import Data, ViewCache
from isochrone.gateway.view_store import Proof, StoredView, ViewStore
from isochrone.ports.disk import Disk
from isochrone.twin.clock import VirtualClock
from isochrone.twin.fakes.bus import FakeHub
from isochrone.twin.fakes.disk import MemoryDisk
from isochrone.twin.loop import VirtualLoop, run
from isochrone.wire import fleet, subjects

SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(32))
SYDNEY = SiteName("sydney")
SITE = Site(
    name=SYDNEY, country="AU", operator=None, parent=None, latitude_deg=0.0, longitude_deg=0.0,
    host="127.0.0.1", port=1, public_url="", peer_key=None,
)
POLICY = Policy(
    id=PolicyId("p"), org_id=OrgId("o"), residency=("any",), transit=("any",), max_view_age_s=3600
)
PATIENT = replace(POLICY, id=PolicyId("patient"), max_view_age_s=1e9)
KEY = ApiKey(
    id=KeyId("k"), secret_sha256="ab" * 32, org_id=OrgId("o"), project_id=ProjectId("p"),
    policy_id=POLICY.id,
)
SHARD = subjects.keys_key("ab")
REPLICA = Replica(
    id=ReplicaId("r"), site=SYDNEY, model=ModelName("m"), revision="1", generation=1,
    state="ready", engine="llamacpp", base_url="http://127.0.0.1:1/v1", engine_key=None,
    credential=None, upstream_model="m", slots=1, pid=None, started_at=0,
)


class CountingDisk(MemoryDisk):
    """Notes what is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.saved: list[str] = []

    async def save(self, name: str, data: bytes) -> None:
        self.saved.append(name)
        await super().save(name, data)


class Stage:
    """Control's side of the bus, a disk, and as many lives of a gateway as a test wants."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.clock = VirtualClock(loop)
        self.hub = FakeHub(self.clock)
        self.control = self.hub.bus()
        self.disk = CountingDisk()
        self.serial = 0

    async def fill(self) -> None:
        await self.control.ensure_bucket(subjects.VIEW_BUCKET)
        await self.control.ensure_bucket(subjects.site_bucket(SYDNEY))
        await self.put(subjects.site_key(SYDNEY), SITE)
        await self.put(subjects.policy_key(POLICY.id), POLICY)
        await self.put(subjects.policy_key(PATIENT.id), PATIENT)
        await self.put(SHARD, KeyShard(shard="ab", keys=(KEY,)))
        await self.control.put(
            subjects.site_bucket(SYDNEY), subjects.replica_key(REPLICA.id), fleet.encode(REPLICA)
        )

    async def put(self, key: str, noun: object) -> bytes:
        self.serial += 1
        value = fleet.sign(
            noun, bucket=subjects.VIEW_BUCKET, key=key, serial=self.serial, signer=SIGNER
        )
        await self.control.put(subjects.VIEW_BUCKET, key, value)
        return value

    async def life(
        self, disk: Disk | None = None, *, connected: bool = True, site: SiteName = SYDNEY,
        signer: Ed25519PrivateKey = SIGNER,
    ) -> tuple[ViewCache, ViewStore]:
        """A gateway that starts, as far as its view goes."""
        view = ViewCache(
            site, signer.public_key().public_bytes_raw().hex(),
            Data(blocs=load_blocs(), hardware={}),
        )
        store = ViewStore(disk or self.disk, view, self.clock)
        store.load()
        if connected:
            await view.follow(self.hub.bus())
        return view, store

    async def stored(self) -> bytes:
        """The file of a gateway that has run and ended."""
        view, store = await self.life()
        await store.flush()
        await view.close()
        return self.disk.read(view_store.NAME)


def picked(view: ViewCache) -> Replica | None:
    return view.replicas.pick(SYDNEY, ModelName("m"), (), now_ns=0, rng=Random(1))


def on_stage(scene: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        stage = Stage()
        await stage.fill()
        await scene(stage)

    run(main())


def test_a_gateway_starts_from_its_last_good_view() -> None:
    async def scene(stage: Stage) -> None:
        await stage.stored()
        view, _ = await stage.life(connected=False)
        assert (view.synced, view.current) == (False, False)
        assert view.serve_stored()
        assert view.own == SITE
        assert view.keys.by_id(KEY.id) == KEY
        assert view.policy(POLICY.id) == POLICY
        assert picked(view) == REPLICA
        assert view.table.view.policies.keys() == {POLICY.id, PATIENT.id}
        await view.close()

    on_stage(scene)


def test_without_a_stored_view_there_is_nothing_to_serve() -> None:
    async def scene(stage: Stage) -> None:
        view, _ = await stage.life(connected=False)
        assert not view.serve_stored()
        assert not view.synced

    on_stage(scene)


def test_what_was_deleted_meanwhile_vanishes_at_the_first_listing() -> None:
    async def scene(stage: Stage) -> None:
        await stage.stored()
        await stage.control.delete(subjects.VIEW_BUCKET, SHARD)
        await stage.control.delete(
            subjects.site_bucket(SYDNEY), subjects.replica_key(REPLICA.id)
        )
        view, store = await stage.life(connected=False)
        assert view.serve_stored()
        assert view.keys.by_id(KEY.id) == KEY
        await view.follow(stage.hub.bus())
        assert view.keys.by_id(KEY.id) is None
        assert picked(view) is None
        assert view.own == SITE
        await store.flush()
        view, _ = await stage.life(connected=False)  # the file has forgotten it too
        assert view.keys.by_id(KEY.id) is None

    on_stage(scene)


def test_the_newer_serial_wins_wherever_it_comes_from() -> None:
    async def scene(stage: Stage) -> None:
        key = subjects.site_key(SYDNEY)
        old = stage.hub.buckets[subjects.VIEW_BUCKET].values[key][0]
        await stage.put(key, replace(SITE, operator="stored"))
        await stage.stored()
        await stage.control.put(subjects.VIEW_BUCKET, key, old)  # somebody plays it back
        with capture_logs() as logs:
            view, _ = await stage.life()
        assert view.own == replace(SITE, operator="stored")
        assert [line["why"] for line in logs if line["event"] == "view_entry_refused"] == [
            "older than the one known"
        ]
        await stage.put(key, replace(SITE, operator="live"))
        await asyncio.sleep(1)
        assert view.own is not None
        assert view.own.operator == "live"
        await view.close()

    on_stage(scene)


def spoilt(file: bytes, how: str) -> bytes:
    if how == "torn":
        return file[: len(file) // 2]
    if how == "flipped":
        return file[:-40] + bytes([file[-40] ^ 1]) + file[-39:]
    return {"empty": b"", "text": b"something else\n", "magic only": file[:17]}[how]


@pytest.mark.parametrize("how", ["torn", "flipped", "empty", "text", "magic only"])
def test_a_damaged_file_is_ignored_and_written_anew(how: str) -> None:
    async def scene(stage: Stage) -> None:
        stage.disk.replace(view_store.NAME, spoilt(await stage.stored(), how))
        with capture_logs() as logs:
            view, _ = await stage.life(connected=False)
        assert [line["event"] for line in logs] == ["stored_view_ignored"]
        assert not view.serve_stored()
        assert view.entries == {}
        await stage.stored()
        view, _ = await stage.life(connected=False)
        assert view.serve_stored()

    on_stage(scene)


def test_the_file_of_another_site_or_cloud_is_ignored() -> None:
    async def scene(stage: Stage) -> None:
        await stage.stored()
        for site, signer in ((SiteName("oslo"), SIGNER), (SYDNEY, Ed25519PrivateKey.generate())):
            with capture_logs() as logs:
                view, _ = await stage.life(connected=False, site=site, signer=signer)
            assert [line["event"] for line in logs] == ["stored_view_ignored"]
            assert not view.serve_stored()

    on_stage(scene)


def test_entries_of_the_file_are_checked_like_those_of_the_bus() -> None:
    async def scene(stage: Stage) -> None:
        await stage.stored()
        forged = fleet.sign(
            KeyShard(shard="ab", keys=(replace(KEY, id=KeyId("mallory")),)),
            bucket=subjects.VIEW_BUCKET, key=SHARD, serial=99, signer=Ed25519PrivateKey.generate(),
        )
        view, _ = await stage.life(connected=False)
        body = fleet.encode(
            StoredView(
                site=SYDNEY, control_key=view.control_key, proved_at=1,
                view={**view.entries, SHARD: forged}, replicas=view.replica_entries, digests={},
            )
        )
        magic = stage.disk.read(view_store.NAME)[: -len(body)]
        stage.disk.replace(
            view_store.NAME, magic.partition(b"\n")[0] + b"\n" + sha256(body).digest() + body
        )
        view, _ = await stage.life(connected=False)
        assert view.own == SITE
        assert view.keys.by_id(KeyId("mallory")) is None
        assert SHARD not in view.entries

    on_stage(scene)


def test_the_age_survives_the_process_and_bounds_what_is_served() -> None:
    async def scene(stage: Stage) -> None:
        view, store = await stage.life()
        await store.flush()
        stage.hub.down()
        await asyncio.sleep(1000)
        view.judge_age(stage.clock.monotonic_ns())
        assert view.age_s == pytest.approx(1000, abs=1)
        await store.flush()
        await view.close()
        stage.disk.process_died()
        await asyncio.sleep(2000)
        view, _ = await stage.life(connected=False)
        assert view.serve_stored()
        assert view.age_s == pytest.approx(3000, abs=1)
        assert (view.aged, view.too_old(POLICY.id)) == (False, None)
        await asyncio.sleep(601)
        view.judge_age(stage.clock.monotonic_ns())
        assert view.aged
        assert view.too_old(POLICY.id) == 3600
        assert view.too_old(PATIENT.id) is None
        stage.hub.up()
        await view.follow(stage.hub.bus())
        view.judge_age(stage.clock.monotonic_ns())
        assert (view.aged, view.too_old(POLICY.id)) == (False, None)
        await view.close()

    on_stage(scene)


def test_a_proof_counts_only_for_the_view_that_it_was_given_for() -> None:
    async def scene(stage: Stage) -> None:
        view, store = await stage.life()
        running = asyncio.create_task(store.run())
        await asyncio.sleep(500)
        saved = set(stage.disk.saved[1:])
        assert saved == {view_store.PROOF_NAME}  # nothing changed: only the proof is new
        running.cancel()
        await asyncio.wait([running])
        await view.close()
        view, _ = await stage.life(connected=False)
        assert view.age_s < 31
        proof = fleet.decode(stage.disk.read(view_store.PROOF_NAME), Proof)
        stage.disk.replace(
            view_store.PROOF_NAME, fleet.encode(replace(proof, digest=bytes(32)))
        )
        view, _ = await stage.life(connected=False)
        assert view.age_s == pytest.approx(500, abs=10)
        stage.disk.replace(view_store.PROOF_NAME, b"?")
        view, _ = await stage.life(connected=False)
        assert view.age_s == pytest.approx(500, abs=10)

    on_stage(scene)


def test_digests_are_kept_for_the_sites_of_the_view() -> None:
    async def scene(stage: Stage) -> None:
        view, store = await stage.life()
        for site in ("sydney", "atlantis"):
            digest = SiteDigest(site=SiteName(site), epoch=1, sequence=2, at=3, loads=())
            store.heard(digest.site, fleet.encode(digest))
        await store.flush()
        await view.close()
        _, store = await stage.life(connected=False)
        (digest,) = store.digests()
        assert (digest.site, digest.sequence) == (SYDNEY, 2)
        store.heard(SYDNEY, b"?")
        assert store.digests() == []

    on_stage(scene)


def test_everything_is_written_again_now_and_then() -> None:
    async def scene(stage: Stage) -> None:
        view, store = await stage.life()
        running = asyncio.create_task(store.run())
        await asyncio.sleep(10 * view_store.SAVE_EVERY_S)
        assert 9 <= stage.disk.saved.count(view_store.NAME) <= 11
        running.cancel()
        await asyncio.wait([running])
        await view.close()

    on_stage(scene)


def test_a_clock_that_was_set_back_makes_the_age_unknown() -> None:
    async def scene(stage: Stage) -> None:
        await stage.stored()
        stage.clock.offset_ns = -3_600_000_000_000
        view, _ = await stage.life(connected=False)
        assert view.serve_stored()
        assert math.isinf(view.age_s)
        assert view.too_old(POLICY.id) == 3600
        await view.follow(stage.hub.bus())
        assert view.too_old(POLICY.id) is None
        await view.close()

    on_stage(scene)


def test_many_changes_are_written_once_and_no_change_not_at_all() -> None:
    async def scene(stage: Stage) -> None:
        view, store = await stage.life()
        running = asyncio.create_task(store.run())
        await asyncio.sleep(10)
        assert stage.disk.saved == [view_store.NAME]
        for number in range(50):
            await stage.put(subjects.site_key(SYDNEY), replace(SITE, operator=f"{number}"))
            await asyncio.sleep(0.02)
        await asyncio.sleep(10)
        assert stage.disk.saved.count(view_store.NAME) <= 3
        await asyncio.sleep(300)
        assert 8 <= stage.disk.saved.count(view_store.PROOF_NAME) <= 11
        running.cancel()
        await asyncio.wait([running])
        await view.close()
        view, _ = await stage.life(connected=False)
        assert view.own is not None
        assert view.own.operator == "49"

    on_stage(scene)


def test_a_view_without_this_site_never_replaces_a_good_one() -> None:
    async def scene(stage: Stage) -> None:
        good = await stage.stored()
        stage.hub.lose_bucket(subjects.VIEW_BUCKET)
        await stage.control.ensure_bucket(subjects.VIEW_BUCKET)
        assert await stage.stored() == good

    on_stage(scene)


def test_a_full_disk_is_told_once_and_tried_again() -> None:
    async def scene(stage: Stage) -> None:
        stage.disk.capacity_bytes = 10
        view, store = await stage.life()
        running = asyncio.create_task(store.run())
        with capture_logs() as logs:
            await asyncio.sleep(20)
        assert [line["event"] for line in logs] == ["view_not_stored"]
        stage.disk.capacity_bytes = None
        await asyncio.sleep(20)
        running.cancel()
        await asyncio.wait([running])
        await view.close()
        assert (await stage.life(connected=False))[0].serve_stored()

    on_stage(scene)


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    async def main() -> None:
        disk = FileDisk(tmp_path / "journal")
        await disk.save(view_store.NAME, b"x")
        await disk.save(view_store.PROOF_NAME, b"x")
        for name in disk.names():
            assert (tmp_path / "journal" / name).stat().st_mode & 0o777 == 0o600
        assert list(disk.names()) == [view_store.NAME, view_store.PROOF_NAME]
        disk.close()

    asyncio.run(main())


def test_an_old_view_is_warned_of_once() -> None:
    async def scene(stage: Stage) -> None:
        view, _ = await stage.life()
        with capture_logs() as logs:
            for _ in range(30):
                view.judge_age(stage.clock.monotonic_ns(), 60.0)
                await asyncio.sleep(1)
            assert logs == []
            stage.hub.down()
            for _ in range(120):
                view.judge_age(stage.clock.monotonic_ns(), 60.0)
                await asyncio.sleep(1)
            stage.hub.up()
            await asyncio.sleep(1)
            view.judge_age(stage.clock.monotonic_ns(), 60.0)
        assert [line["event"] for line in logs] == ["view_is_old", "view_is_current_again"]
        await view.close()

    on_stage(scene)

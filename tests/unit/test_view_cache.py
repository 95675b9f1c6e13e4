"""The view cache: what arrives together never lets a key run ahead of its policy."""

import asyncio
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from isochrone.adapters.packaged import load_blocs, load_hardware
from isochrone.core.ids import EntitlementId, KeyId, ModelName, OrgId, PolicyId, ProjectId, SiteName
from isochrone.core.residency.rule import Denied
from isochrone.core.world.entitlement import Entitlement, Slice, Voters
from isochrone.core.world.site import Site
from isochrone.core.world.tenant import ApiKey, KeyShard, Policy
from isochrone.gateway.access import Keys
from isochrone.gateway.view_cache import Data, ViewCache
from isochrone.ports.bus import Entry
from isochrone.wire import fleet, subjects

SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(32))
SITE = Site(
    name=SiteName("sydney"), country="AU", operator=None, parent=None, latitude_deg=0.0,
    longitude_deg=0.0, host="127.0.0.1", port=1, public_url="", peer_key=None,
)
POLICY = Policy(
    id=PolicyId("p"), org_id=OrgId("o"), residency=("any",), transit=("any",)
)
KEY = ApiKey(
    id=KeyId("k"), secret_sha256="ab" * 32, org_id=OrgId("o"), project_id=ProjectId("p"),
    policy_id=POLICY.id,
)


def entry(key: str, noun: object) -> Entry:
    value = fleet.sign(noun, bucket=subjects.VIEW_BUCKET, key=key, serial=1, signer=SIGNER)
    return Entry(key=key, value=value, revision=1)


def test_what_was_sold_comes_and_goes_with_the_view() -> None:
    sold = Entitlement(
        id=EntitlementId("e"), org_id=OrgId("o"), project_id=None, model=ModelName("tiny"),
        class_="reserved", tok_s=5, residency=("AU",), starts_at=1, ends_at=2,
        slices=(Slice(site=SITE.name, tok_s=5),),
    )
    view = ViewCache(
        SITE.name, SIGNER.public_key().public_bytes_raw().hex(),
        Data(blocs=load_blocs(), hardware=load_hardware()),
    )
    key = subjects.entitlement_key(sold.id)
    view.on_view_entry(entry(key, sold))
    view.on_view_entry(entry(subjects.VOTERS_KEY, Voters(sites=(SITE.name,))))
    assert list(view.entitlements.values()) == [sold]
    assert view.voters == Voters(sites=(SITE.name,))
    for gone in (key, subjects.VOTERS_KEY):
        view.on_view_entry(Entry(key=gone, value=None, revision=2))
    assert not view.entitlements
    assert view.voters is None


def test_a_key_never_works_before_its_policy() -> None:
    async def main() -> None:
        view = ViewCache(
            SITE.name, SIGNER.public_key().public_bytes_raw().hex(),
            Data(blocs=load_blocs(), hardware=load_hardware()),
        )
        view.on_view_entry(entry(subjects.site_key(SITE.name), SITE))
        view.on_view_entry(entry(subjects.policy_key(POLICY.id), POLICY))
        assert isinstance(view.table.transit_allows(POLICY.id), Denied)  # compiled a little later
        view.on_view_entry(entry(subjects.keys_key("ab"), KeyShard(shard="ab", keys=(KEY,))))
        assert view.keys.by_id(KEY.id) == KEY
        assert not isinstance(view.table.transit_allows(POLICY.id), Denied)
        await view.close()

    asyncio.run(main())


def test_a_key_that_got_another_secret_is_found_by_its_id_whichever_shard_came_first() -> None:
    before, other = KEY, replace(KEY, id=KeyId("other"), secret_sha256="ab" * 31 + "cd")
    after = replace(KEY, secret_sha256="ef" * 32)
    old, left = (KeyShard(shard="ab", keys=keys) for keys in ((before, other), (other,)))
    new = KeyShard(shard="ef", keys=(after,))
    for shards in ((old, new, left), (old, left, new)):
        keys = Keys()
        for shard in shards:
            keys.put(shard)
        assert keys.by_id(KEY.id) == after
        assert (keys.by_hash(after.secret_sha256), keys.by_hash(before.secret_sha256)) == (
            after, None,
        )
        assert len(keys) == 2
        keys.drop("ef")
        assert keys.by_id(KEY.id) is None
    keys.put(old)
    keys.put(new)
    keys.drop("ab")
    assert (keys.by_id(KEY.id), keys.by_id(other.id)) == (after, None)

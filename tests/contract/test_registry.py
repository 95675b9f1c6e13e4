"""The registry on a real PostgreSQL: tenancy, idempotency, joining, reconciliation, leases."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.registry import open_registry
from isochrone.core.errors import Conflict, NotFound, Untrusted
from isochrone.core.ids import KeyId, ModelName, OrgId, PolicyId, ProjectId, SiteName
from isochrone.core.world.model import Deployment, EngineSpec, Model
from isochrone.core.world.site import Hardware, Link, Site, SiteLinks
from isochrone.core.world.site_policy import ClassRule, SitePolicy
from isochrone.core.world.tenant import (
    ApiKey,
    Organisation,
    Policy,
    Principal,
    Project,
    Scope,
)
from isochrone.ports.estate import Intent, Joining, SiteToken
from isochrone.ports.registry import Registry
from isochrone.ports.tenants import Once, Page, Seed, StoredKey, StoredPolicy

NOW = 1_760_000_000_000_000_000
ALL = Scope(org_id=None)
PAGE = Page(most=100)
HOUR_NS = 3600 * 1_000_000_000


@pytest.fixture
def registry(pool: Pool) -> Registry:
    registry = open_registry(pool)
    registry.tenants.seed(
        Seed(
            organisation=Organisation(id=OrgId("default"), name="default", created_at=NOW),
            project=a_project("default", "default"),
            policy=a_policy("any", "default", residency=("any",)),
            operator=Principal(
                id="operator", org_id=None, name="operator", role="operator", kind="service"
            ),
            operator_secret_sha256="0" * 64,
        ),
        now=NOW,
    )
    return registry


def a_project(project_id: str, org: str) -> Project:
    return Project(id=ProjectId(project_id), org_id=OrgId(org), name=project_id, created_at=NOW)


def a_policy(
    policy_id: str, org: str, residency: tuple[str, ...] = ("DE",)
) -> StoredPolicy:
    policy = Policy(
        id=PolicyId(policy_id), org_id=OrgId(org), residency=residency, transit=("any",)
    )
    return StoredPolicy(policy=policy, name=policy_id, created_at=NOW)


def a_key(key_id: str, org: str = "default", project: str = "default") -> StoredKey:
    key = ApiKey(
        id=KeyId(key_id), secret_sha256=key_id.ljust(64, "0"), org_id=OrgId(org),
        project_id=ProjectId(project), policy_id=PolicyId("unbound yet"),
    )
    return StoredKey(key=key, name=key_id, created_at=NOW)


def a_site(name: str, **changes: object) -> Site:
    site = Site(
        name=SiteName(name), country="DE", operator="op", parent=None, latitude_deg=50.0,
        longitude_deg=8.0, host="", port=0, public_url="", peer_key=None,
        hardware=(Hardware(kind="cpu"),),
    )
    return replace(site, **changes)  # type: ignore[arg-type]


SHARED = SitePolicy(reserved=ClassRule(floor=0.25, share=6), reclaim_ms=4_000.5)


def an_intent(fingerprint: str, *names: str) -> Intent:
    model = Model(
        name=ModelName("tiny"), kind="chat", revision="abc", context_tokens=2048, created_at=NOW
    )
    return Intent(
        fingerprint=fingerprint,
        sites=tuple(a_site(name) for name in names),
        models=(model,),
        deployments=tuple(
            Deployment(
                site=SiteName(name), model=model.name, replicas=1, context_tokens=2048,
                engine=EngineSpec(
                    kind="llamacpp", source="/m.gguf", threads=2, slots_stated=name != "aa"
                ),
                admission=SHARED if name == "aa" else None,
            )
            for name in names
        ),
        links=tuple(
            SiteLinks(
                site=SiteName(one),
                links=tuple(
                    Link(peer=SiteName(other), rtt_ms=20.0, source="emulated")
                    for other in names if other != one
                ),
            )
            for one in names
        ),
    )


def a_joining(token: str, keys: str = "a") -> Joining:
    return Joining(
        token_sha256=token, peer_key=keys, nats_key=keys, host="127.0.0.1", port=4100,
        public_url="http://127.0.0.1:4100/v1",
    )


def test_seeding_again_changes_only_the_operators_secret(registry: Registry) -> None:
    assert registry.members.principal("0" * 64, now=NOW) is not None
    registry.tenants.seed(
        Seed(
            organisation=Organisation(id=OrgId("default"), name="default", created_at=NOW),
            project=a_project("default", "default"),
            policy=a_policy("any", "default", residency=("any",)),
            operator=Principal(
                id="operator", org_id=None, name="operator", role="operator", kind="service"
            ),
            operator_secret_sha256="1" * 64,
        ),
        now=NOW + 1,
    )
    assert registry.members.principal("0" * 64, now=NOW) is None
    operator = registry.members.principal("1" * 64, now=NOW)
    assert operator is not None
    assert operator.role == "operator"
    assert [each.id for each in registry.tenants.organisations(ALL, PAGE)] == ["default"]


def test_rows_outside_the_scope_do_not_exist(registry: Registry) -> None:
    tenants = registry.tenants
    two = Organisation(id=OrgId("o2"), name="two", created_at=NOW)
    tenants.add_organisation(ALL, two, once=None)
    other = Scope(org_id=OrgId("o2"))
    tenants.add_project(other, a_project("p2", "o2"), once=None)
    tenants.add_key(ALL, a_key("k1"), a_policy("x", "default"), once=None)
    tenants.add_key(other, a_key("k2", "o2", "p2"), a_policy("y", "o2"), once=None)
    assert [key.key.id for key, _ in tenants.keys(other, PAGE)] == ["k2"]
    assert [each.id for each in tenants.projects(other, PAGE)] == ["p2"]
    assert [each.policy.org_id for each in tenants.policies(other, PAGE)] == ["o2"]
    assert [each.id for each in tenants.organisations(other, PAGE)] == ["o2"]
    refused: list[Callable[[], object]] = [
        lambda: tenants.revoke_key(other, KeyId("k1"), now=NOW),
        lambda: tenants.project(other, ProjectId("default")),
        lambda: tenants.add_project(other, a_project("p3", "default"), once=None),
        lambda: tenants.add_key(other, a_key("k3"), a_policy("z", "default"), once=None),
        lambda: tenants.add_key(ALL, a_key("k4", "o2"), a_policy("z", "o2"), once=None),
        lambda: registry.members.revoke(other, "operator", judge=lambda _: None, now=NOW),
    ]
    for call in refused:
        with pytest.raises(NotFound):
            call()
    assert [key.key.id for key, _ in tenants.keys(ALL, PAGE)] == ["k1", "k2"]


def test_pages_follow_each_other(registry: Registry) -> None:
    for number in range(5):
        registry.tenants.add_key(ALL, a_key(f"k{number}"), a_policy("x", "default"), once=None)
    first = registry.tenants.keys(ALL, Page(most=2))
    second = registry.tenants.keys(ALL, Page(most=10, after=first[-1][0].key.id))
    assert [key.key.id for key, _ in (*first, *second)] == [f"k{number}" for number in range(5)]


def test_a_write_under_one_idempotency_key_happens_once(registry: Registry) -> None:
    tenants = registry.tenants
    once = Once(caller="me", key="1", body_sha256="a")
    policy = a_policy("x", "default")
    first, _ = tenants.add_key(ALL, a_key("k1"), policy, once=once)
    again, _ = tenants.add_key(ALL, a_key("k2"), policy, once=once)
    assert first == again
    with pytest.raises(Conflict, match="used before with another request"):
        tenants.add_key(ALL, a_key("k3"), policy, once=replace(once, body_sha256="b"))
    tenants.add_key(ALL, a_key("k4"), policy, once=replace(once, caller="somebody else"))
    assert [key.key.id for key, _ in tenants.keys(ALL, PAGE)] == ["k1", "k4"]


def test_concurrent_writes_under_one_key_make_one_row(registry: Registry) -> None:
    once = Once(caller="me", key="1", body_sha256="a")
    policy = a_policy("x", "default")
    with ThreadPoolExecutor(4) as threads:
        made = list(
            threads.map(
                lambda number: registry.tenants.add_key(
                    ALL, a_key(f"k{number}"), policy, once=once
                )[0].key.id,
                range(8),
            )
        )
    assert len(set(made)) == 1
    assert len(registry.tenants.keys(ALL, PAGE)) == 1


def test_a_failed_write_leaves_its_idempotency_key_free(registry: Registry) -> None:
    once = Once(caller="me", key="1", body_sha256="a")
    policy = a_policy("x", "default")
    with pytest.raises(NotFound):
        registry.tenants.add_key(ALL, a_key("k1", project="nowhere"), policy, once=once)
    registry.tenants.add_key(ALL, a_key("k1"), policy, once=once)


def test_names_are_taken_once(registry: Registry) -> None:
    with pytest.raises(Conflict):
        registry.tenants.add_organisation(
            ALL, Organisation(id=OrgId("o2"), name="default", created_at=NOW), once=None
        )
    with pytest.raises(Conflict):
        registry.tenants.add_project(
            ALL, replace(a_project("p2", "default"), name="default"), once=None
        )


def test_equal_axes_share_one_policy(registry: Registry) -> None:
    one = registry.tenants.add_policy(ALL, a_policy("x", "default"), once=None)
    _, bound = registry.tenants.add_key(ALL, a_key("k1"), a_policy("y", "default"), once=None)
    assert bound == one.policy


def test_a_revoked_key_is_neither_live_nor_published(registry: Registry) -> None:
    key, _ = registry.tenants.add_key(ALL, a_key("k1"), a_policy("x", "default"), once=None)
    secret = key.key.secret_sha256
    assert registry.tenants.live_key(secret, now=NOW) == key
    assert [each.id for each in registry.estate.snapshot(now=NOW).keys] == ["k1"]
    revoked = registry.tenants.revoke_key(ALL, KeyId("k1"), now=NOW + 5)
    assert registry.tenants.revoke_key(ALL, KeyId("k1"), now=NOW + 9) == revoked
    assert revoked.revoked_at == NOW + 5
    assert registry.tenants.live_key(secret, now=NOW) is None
    assert registry.estate.snapshot(now=NOW).keys == ()


def test_reconciling_follows_the_intent_and_keeps_identities(registry: Registry) -> None:
    estate = registry.estate
    assert estate.reconcile(an_intent("1", "aa", "bb"), now=NOW)
    assert not estate.reconcile(an_intent("1", "aa", "bb"), now=NOW)
    estate.add_token(
        ALL,
        SiteToken(
            secret_sha256="t", site=SiteName("aa"), created_at=NOW, expires_at=NOW + HOUR_NS
        ),
        once=None,
    )
    estate.join(a_joining("t"), now=NOW)
    assert estate.set_replicas(ALL, SiteName("aa"), ModelName("tiny"), 3).replicas == 3
    assert not estate.reconcile(an_intent("1", "aa", "bb"), now=NOW)
    assert [each.replicas for each in estate.deployments(PAGE)] == [3, 1]
    assert estate.reconcile(an_intent("2", "aa", "cc"), now=NOW)
    snapshot = estate.snapshot(now=NOW)
    assert [site.name for site in snapshot.sites] == ["aa", "cc"]
    assert snapshot.removed_sites == ("bb",)
    assert snapshot.sites[0].peer_key == "a"
    assert snapshot.links == an_intent("2", "aa", "cc").links
    assert snapshot.deployments == an_intent("2", "aa", "cc").deployments
    with pytest.raises(NotFound):
        estate.site(SiteName("bb"))


def test_a_drained_site_stays_drained_until_it_is_told_or_removed(registry: Registry) -> None:
    estate, aa = registry.estate, SiteName("aa")
    estate.reconcile(an_intent("1", "aa", "bb"), now=NOW)
    assert estate.set_draining(ALL, aa, True).draining
    estate.reconcile(an_intent("2", "aa", "bb", "cc"), now=NOW)
    assert {each.name for each in estate.snapshot(now=NOW).sites if each.draining} == {"aa"}
    assert not estate.set_draining(ALL, aa, False).draining
    estate.set_draining(ALL, aa, True)
    estate.reconcile(an_intent("3", "bb"), now=NOW)
    with pytest.raises(NotFound):
        estate.set_draining(ALL, aa, False)
    estate.reconcile(an_intent("4", "aa", "bb"), now=NOW)
    assert not estate.site(aa).draining, "one that comes back begins anew"


def test_a_replica_is_asked_to_restart_up_to_a_generation(registry: Registry) -> None:
    estate, aa, tiny = registry.estate, SiteName("aa"), ModelName("tiny")
    estate.reconcile(an_intent("1", "aa", "bb"), now=NOW)
    estate.set_replicas(ALL, aa, tiny, 2)
    assert estate.restart(ALL, aa, tiny, 1, up_to=70).restart_up_to == (0, 70)
    assert estate.restart(ALL, aa, tiny, 1, up_to=60).restart_up_to == (0, 70)
    assert estate.restart(ALL, aa, tiny, 0, up_to=80).restart_up_to == (80, 70)
    estate.reconcile(an_intent("2", "aa"), now=NOW)
    (kept,) = estate.snapshot(now=NOW).deployments
    assert kept.restart_up_to == (80, 70), "an edit of the world file changes nothing"
    for site, index in ((aa, 1), (aa, -1), (SiteName("bb"), 0)):
        with pytest.raises(NotFound):
            estate.restart(ALL, site, tiny, index, up_to=1)


def test_a_stopped_site_runs_as_much_again_as_before(registry: Registry) -> None:
    estate, aa, tiny = registry.estate, SiteName("aa"), ModelName("tiny")
    estate.reconcile(an_intent("1", "aa", "bb"), now=NOW)
    estate.set_replicas(ALL, aa, tiny, 3)

    def wish() -> tuple[int, int | None, bool]:
        (found,) = estate.deployments(PAGE, site=aa)
        return found.replicas, found.stopped_replicas, found.at_once

    estate.set_running(ALL, aa, False, at_once=False)
    assert wish() == (0, 3, False)
    estate.set_running(ALL, aa, False, at_once=True)
    assert wish() == (0, 3, True), "urgent now, and nothing is forgotten"
    estate.reconcile(an_intent("2", "aa"), now=NOW)
    assert wish() == (0, 1, True), "the file says how many, but does not start them"
    for _ in range(2):
        estate.set_running(ALL, aa, True, at_once=False)
        assert wish() == (1, None, False)
    estate.set_running(ALL, aa, False, at_once=False)
    estate.set_replicas(ALL, aa, tiny, 2)
    assert wish() == (2, None, False), "whoever says a number wants them to run"
    with pytest.raises(NotFound):
        estate.set_running(ALL, SiteName("bb"), False, at_once=False)


def test_a_join_token_is_spent_once_but_its_answer_can_be_had_again(registry: Registry) -> None:
    estate = registry.estate
    estate.reconcile(an_intent("1", "aa"), now=NOW)
    token = SiteToken(
        secret_sha256="t1", site=SiteName("aa"), created_at=NOW, expires_at=NOW + HOUR_NS
    )
    estate.add_token(ALL, token, once=None)
    joined = estate.join(a_joining("t1"), now=NOW)
    assert joined.site.peer_key == "a"
    assert estate.join(a_joining("t1"), now=NOW + 1) == joined
    with pytest.raises(Untrusted, match="used before"):
        estate.join(a_joining("t1", keys="b"), now=NOW + 1)
    elsewhere = ({"host": "10.0.0.2"}, {"port": 4200}, {"public_url": "https://x/v1"})
    for address in elsewhere:  # it would be told that it joined there, and be reached nowhere
        with pytest.raises(Untrusted, match="used before"):
            estate.join(replace(a_joining("t1"), **address), now=NOW + 1)
    assert estate.site(SiteName("aa")) == joined.site
    with pytest.raises(Untrusted, match="expired"):
        estate.join(a_joining("t1"), now=NOW + HOUR_NS)
    with pytest.raises(Untrusted, match="unknown"):
        estate.join(a_joining("t2"), now=NOW)
    estate.add_token(ALL, replace(token, secret_sha256="t2"), once=None)
    assert estate.join(a_joining("t2", keys="b"), now=NOW).site.peer_key == "b"
    with pytest.raises(Untrusted, match="used before"):
        estate.join(a_joining("t1"), now=NOW + 1)


def test_emulated_links_stay_and_unknown_sites_are_skipped(registry: Registry) -> None:
    estate = registry.estate
    estate.reconcile(replace(an_intent("1", "aa", "bb"), links=()), now=NOW)
    probed = Link(peer=SiteName("bb"), rtt_ms=7.0, source="probed")
    nowhere = Link(peer=SiteName("zz"), rtt_ms=7.0, source="probed")
    estate.set_links([SiteLinks(site=SiteName("aa"), links=(probed, nowhere))])
    assert estate.links(SiteName("aa")) == [probed]
    estate.reconcile(an_intent("2", "aa", "bb"), now=NOW)
    estate.set_links([SiteLinks(site=SiteName("aa"), links=(probed,))])
    assert [link.source for link in estate.links(SiteName("aa"))] == ["emulated"]


def test_a_probe_leaves_what_was_stated_of_the_way(registry: Registry) -> None:
    estate = registry.estate
    stated = Link(peer=SiteName("bb"), rtt_ms=9.0, source="stated", via=("DE", "FR"))
    links = (SiteLinks(site=SiteName("aa"), links=(stated,)),)
    estate.reconcile(replace(an_intent("1", "aa", "bb"), links=links), now=NOW)
    assert estate.links(SiteName("aa")) == [stated]
    probed = Link(peer=SiteName("bb"), rtt_ms=7.0, source="probed")
    estate.set_links([SiteLinks(site=SiteName("aa"), links=(probed,))])
    assert estate.links(SiteName("aa")) == [replace(probed, via=("DE", "FR"))]
    estate.reconcile(an_intent("2", "aa", "bb"), now=NOW)
    assert estate.links(SiteName("aa"))[0].via is None


def test_a_lease_has_one_holder_and_its_epoch_fences_serials(registry: Registry) -> None:
    leases = registry.leases
    first = leases.take("loop", "one", now=NOW, ttl_ns=10)
    assert first is not None
    assert leases.take("loop", "two", now=NOW + 9, ttl_ns=10) is None
    assert leases.serials(first, 3, above=0) == 1
    assert leases.serials(first, 1, above=0) == 4
    assert leases.serials(first, 1, above=100) == 101
    second = leases.take("loop", "two", now=NOW + 10, ttl_ns=10)
    assert second is not None
    assert second.epoch > first.epoch
    assert leases.renew(first, now=NOW + 11, ttl_ns=10) is None
    with pytest.raises(Conflict):
        leases.serials(first, 1, above=0)
    leases.release(first)
    assert leases.take("loop", "one", now=NOW + 11, ttl_ns=10) is None
    leases.release(second)
    assert leases.take("loop", "one", now=NOW + 11, ttl_ns=10) is not None

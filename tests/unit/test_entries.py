"""Which entries the buckets should hold, and which differ from what they hold."""

from dataclasses import replace

from isochrone.control.entries import (
    Place,
    content,
    differences,
    kind_of,
    wanted_entries,
    with_serial,
)
from isochrone.control.fleet_state import worth_writing
from isochrone.core.ids import EntitlementId, KeyId, ModelName, OrgId, PolicyId, ProjectId, SiteName
from isochrone.core.world.digest import ProbedRtt, SiteDigest
from isochrone.core.world.entitlement import Entitlement, Slice, Voters
from isochrone.core.world.model import Deployment, Desired, EngineSpec
from isochrone.core.world.site import Link, RttSource, Site, SiteLinks
from isochrone.core.world.tenant import ApiKey, KeyShard, Policy
from isochrone.ports.estate import Snapshot
from isochrone.wire import subjects

SYDNEY, GONE = SiteName("sydney"), SiteName("gone")
TINY = ModelName("tiny")


def a_key(key_id: str, secret: str) -> ApiKey:
    return ApiKey(
        id=KeyId(key_id), secret_sha256=secret.ljust(64, "0"), org_id=OrgId("o"),
        project_id=ProjectId("p"), policy_id=PolicyId("any"),
    )


def a_deployment(replicas: int = 1) -> Deployment:
    return Deployment(
        site=SYDNEY, model=TINY, replicas=replicas, context_tokens=2048,
        engine=EngineSpec(kind="openai", source="https://x/v1", credential="file:/secret"),
    )


def an_entitlement() -> Entitlement:
    return Entitlement(
        id=EntitlementId("e"), org_id=OrgId("o"), project_id=None, model=TINY, class_="reserved",
        tok_s=5, residency=("AU",), starts_at=1, ends_at=2,
        slices=(Slice(site=SYDNEY, tok_s=5),),
    )


def a_snapshot() -> Snapshot:
    site = Site(
        name=SYDNEY, country="AU", operator=None, parent=None, latitude_deg=0.0,
        longitude_deg=0.0, host="", port=0, public_url="", peer_key=None,
    )
    policy = Policy(
        id=PolicyId("any"), org_id=OrgId("o"), residency=("any",), transit=("any",)
    )
    return Snapshot(
        sites=(site,), removed_sites=(GONE,), links=(SiteLinks(site=SYDNEY, links=()),),
        models=(), deployments=(a_deployment(),), policies=(policy,),
        keys=(a_key("k1", "aa1"), a_key("k2", "aa0"), a_key("k3", "bb")),
        entitlements=(an_entitlement(),), voters=Voters(sites=(SYDNEY,)),
    )


def view(key: str) -> Place:
    return Place(subjects.VIEW_BUCKET, key)


def desired(site: str) -> Place:
    return Place(subjects.site_bucket(site), subjects.DESIRED_KEY)


def test_every_entry_has_its_place_and_kind() -> None:
    wanted = wanted_entries(a_snapshot())
    assert list(wanted) == [
        view("policy.any"), view("site.sydney"), view("links.sydney"),
        view(subjects.deployment_key("sydney", "tiny")), view("voters"),
        view("entitlement.e"), view("keys.aa"), view("keys.bb"),
        desired("sydney"), desired("gone"),
    ]
    for place, noun in wanted.items():
        assert kind_of(place) is type(noun)


def test_keys_are_sharded_by_their_hash() -> None:
    shard = wanted_entries(a_snapshot())[view("keys.aa")]
    assert isinstance(shard, KeyShard)
    assert [key.id for key in shard.keys] == ["k1", "k2"]


def test_only_the_site_itself_learns_where_its_engine_is() -> None:
    wanted = wanted_entries(a_snapshot())
    public = wanted[view(subjects.deployment_key("sydney", "tiny"))]
    assert isinstance(public, Deployment)
    assert (public.engine.source, public.engine.credential) == ("", None)
    own = wanted[desired("sydney")]
    assert isinstance(own, Desired)
    assert own.deployments == (a_deployment(),)


def test_a_removed_site_is_told_to_run_nothing() -> None:
    assert wanted_entries(a_snapshot())[desired("gone")] == Desired(
        site=GONE, serial=0, deployments=()
    )


def test_a_deployment_without_replicas_is_not_in_the_view_but_its_agent_hears() -> None:
    wanted = wanted_entries(replace(a_snapshot(), deployments=(a_deployment(0),)))
    assert view(subjects.deployment_key("sydney", "tiny")) not in wanted
    own = wanted[desired("sydney")]
    assert isinstance(own, Desired)
    assert own.deployments[0].replicas == 0


def test_a_stopped_deployment_stays_in_the_view() -> None:
    stopped = replace(a_deployment(0), stopped_replicas=2, at_once=True)
    wanted = wanted_entries(replace(a_snapshot(), deployments=(stopped,)))
    public = wanted[view(subjects.deployment_key("sydney", "tiny"))]
    assert isinstance(public, Deployment)
    assert (public.replicas, public.stopped_replicas, public.at_once) == (0, None, False)
    never_ran = replace(a_deployment(0), stopped_replicas=0)
    wanted = wanted_entries(replace(a_snapshot(), deployments=(never_ran,)))
    assert view(subjects.deployment_key("sydney", "tiny")) not in wanted


def test_nothing_differs_from_what_was_published_under_any_serial() -> None:
    wanted = wanted_entries(a_snapshot())
    held = {place: content(with_serial(noun, 7)) for place, noun in wanted.items()}
    found = differences(wanted, held)
    assert (found.puts, found.deletes) == ((), ())


def test_missing_changed_unreadable_and_stale_entries_are_found() -> None:
    wanted = wanted_entries(a_snapshot())
    held: dict[Place, bytes | None] = {
        place: content(noun) for place, noun in wanted.items()
    }
    del held[view("policy.any")]
    held[view("keys.aa")] = b"other"
    held[view("site.sydney")] = None
    held[view("site.stale")] = b"x"
    held[view("strange")] = None
    found = differences(wanted, held)
    assert [place for place, _ in found.puts] == [
        view("policy.any"), view("site.sydney"), view("keys.aa"),
    ]
    assert found.deletes == (view("site.stale"), view("strange"))


def a_digest(rtt_ms: float) -> SiteDigest:
    probe = ProbedRtt(peer=GONE, rtt_ms=rtt_ms)
    return SiteDigest(site=SYDNEY, epoch=1, sequence=1, at=0, loads=(), probes=(probe,))


def test_a_probe_is_worth_writing_when_it_says_something_new() -> None:
    cases: list[tuple[RttSource | None, float, float, bool]] = [
        (None, 0.0, 20.0, True),
        ("table", 20.0, 20.0, True),
        ("stated", 20.0, 20.0, True),
        ("probed", 20.0, 21.9, False),
        ("probed", 20.0, 22.1, True),
        ("probed", 0.2, 0.6, False),
        ("emulated", 20.0, 0.1, False),
    ]
    for source, known_ms, rtt_ms, expected in cases:
        known = [] if source is None else [Link(peer=GONE, rtt_ms=known_ms, source=source)]
        news = worth_writing([a_digest(rtt_ms)], {SYDNEY: known})
        assert bool(news) is expected, (source, known_ms, rtt_ms)
        if news:
            assert news[0].links == (Link(peer=GONE, rtt_ms=rtt_ms, source="probed"),)

"""Decides which entries the buckets should hold, and which of them differ from what they hold.

Pure: a snapshot of the book goes in, a mapping from (bucket, key) to noun comes out; comparing it
with what the buckets hold gives the puts and deletes that are missing.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from isochrone.core.ids import SiteName
from isochrone.core.world.entitlement import Entitlement, Voters
from isochrone.core.world.limit import OrgLimits
from isochrone.core.world.model import Deployment, Desired, EngineSpec, Model
from isochrone.core.world.site import Site, SiteLinks
from isochrone.core.world.tenant import ApiKey, KeyShard, Policy
from isochrone.ports.estate import Snapshot
from isochrone.wire import fleet, subjects

Noun = (
    Site | SiteLinks | Model | Deployment | Policy | KeyShard | Entitlement | Voters | OrgLimits
    | Desired
)


class Place(NamedTuple):
    """Where an entry lives."""

    bucket: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """What has to be written and removed; puts in the order in which readers need them."""

    puts: tuple[tuple[Place, Noun], ...]
    deletes: tuple[Place, ...]


def kind_of(place: Place) -> type[Noun] | None:
    """The noun that an entry at `place` must hold, None for a key that control never writes."""
    if place.bucket != subjects.VIEW_BUCKET:
        return Desired if place.key == subjects.DESIRED_KEY else None
    kinds: dict[str, type[Noun]] = {
        "site": Site, "links": SiteLinks, "model": Model, "deployment": Deployment,
        "policy": Policy, "keys": KeyShard, "entitlement": Entitlement, "voters": Voters,
        "limits": OrgLimits,
    }
    return kinds.get(place.key.partition(".")[0])


def wanted_entries(snapshot: Snapshot) -> dict[Place, Noun]:
    """Every entry that the buckets should hold.

    Policies and models come before the keys and deployments that name them, so that a reader which
    follows along never meets a name that it does not know yet.
    """
    view: dict[str, Noun] = {}
    for policy in snapshot.policies:
        view[subjects.policy_key(policy.id)] = policy
    for model in snapshot.models:
        view[subjects.model_key(model.name)] = model
    for site in snapshot.sites:
        view[subjects.site_key(site.name)] = site
    for links in snapshot.links:
        view[subjects.links_key(links.site)] = links
    for deployment in snapshot.deployments:
        if deployment.replicas or deployment.stopped_replicas:  # a stopped one will run again
            view[subjects.deployment_key(deployment.site, deployment.model)] = replace(
                deployment, engine=_without_place(deployment.engine),
                restart_up_to=(), stopped_replicas=None, at_once=False,  # between control and agent
            )
    if snapshot.voters is not None:
        view[subjects.VOTERS_KEY] = snapshot.voters
    for entitlement in snapshot.entitlements:
        view[subjects.entitlement_key(entitlement.id)] = entitlement
    for limits in snapshot.limits:
        view[subjects.limits_key(limits.org_id)] = limits
    for shard in _shards(snapshot.keys):
        view[subjects.keys_key(shard.shard)] = shard
    entries = {Place(subjects.VIEW_BUCKET, key): noun for key, noun in view.items()}
    for desired in _desired(snapshot):
        entries[Place(subjects.site_bucket(desired.site), subjects.DESIRED_KEY)] = desired
    return entries


def _without_place(engine: EngineSpec) -> EngineSpec:
    """What other sites may know of an engine: not where it is, nor where its credential lies."""
    return replace(engine, source="", upstream_model=None, credential=None)


def _shards(keys: tuple[ApiKey, ...]) -> list[KeyShard]:
    by_shard: defaultdict[str, list[ApiKey]] = defaultdict(list)
    for key in keys:
        by_shard[key.secret_sha256[:2]].append(key)
    return [
        KeyShard(shard=shard, keys=tuple(sorted(by_shard[shard], key=lambda key: key.id)))
        for shard in sorted(by_shard)
    ]


def _desired(snapshot: Snapshot) -> list[Desired]:
    by_site: defaultdict[SiteName, list[Deployment]] = defaultdict(list)
    for deployment in snapshot.deployments:
        by_site[deployment.site].append(deployment)
    return [
        Desired(
            site=site,
            serial=0,
            deployments=tuple(sorted(by_site[site], key=lambda wish: wish.model)),
        )
        for site in (*(site.name for site in snapshot.sites), *snapshot.removed_sites)
    ]


def content(noun: Noun) -> bytes:
    """What two versions of an entry are compared by: everything but the serial."""
    return fleet.encode(replace(noun, serial=0) if isinstance(noun, Desired) else noun)


def with_serial(noun: Noun, serial: int) -> Noun:
    """The noun as it is published under `serial`."""
    return replace(noun, serial=serial) if isinstance(noun, Desired) else noun


def differences(wanted: Mapping[Place, Noun], held: Mapping[Place, bytes | None]) -> Differences:
    """Compare with `held`: the content of each entry that exists, None where it is unreadable."""
    return Differences(
        puts=tuple(
            (place, noun) for place, noun in wanted.items() if held.get(place) != content(noun)
        ),
        deletes=tuple(sorted(place for place in held if place not in wanted)),
    )

"""What the API shows of a site: what the book says of it, and what its last digest says."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from isochrone.control.api.auth import Caller
from isochrone.control.api.context import Context
from isochrone.control.fleet_state import Heard
from isochrone.core.estimate.power import estimated_power
from isochrone.core.lifecycle.health import ShownState, known_state, shown, worse
from isochrone.core.world.digest import DeploymentLoad, ReplicaLoad
from isochrone.core.world.health import SeenReplica
from isochrone.core.world.model import Deployment
from isochrone.core.world.site import Link, RttSource, Site

STALE_MS = 5000.0  # a digest comes every second


class HardwareShape(BaseModel):
    kind: str
    count: int


class ReplicaShape(BaseModel):
    """`state` is what its agent says, `health` how far its site's gateway trusts it, and `why` not
    more (see docs/health.md). `pid` and `host` are shown to operators only, `host` null where its
    agent does not know it; token totals are the engine's own since its start, `kept_tokens` what
    its cache has room for, `held_tokens` what running requests take of it; both null where it does
    not say."""

    id: str
    model: str
    state: str
    health: ShownState
    why: str | None
    generation: int
    host: str | None
    pid: int | None
    running: int
    waiting: int
    restarts: int
    kept_tokens: int | None
    held_tokens: int | None
    prompt_tokens_total: int | None
    cached_tokens_total: int | None
    output_tokens_total: int | None


class LoadShape(BaseModel):
    """Load of all ready replicas of a model; rates are of one stream on one replica."""

    model: str
    replicas_wanted: int
    ready: int
    slots: int
    running: int
    waiting: int
    prefill_tok_s: float | None
    decode_tok_s: float | None


class PowerShape(BaseModel):
    """`source`: estimated from the site's kinds of hardware and the share of its slots in use,
    boards alone. `most_w`: with every slot in use."""

    watts: float
    most_w: float
    source: Literal["estimated"]


class LinkShape(BaseModel):
    """`source` says where the figure is from; `emulated` is added by software, not by distance.
    `via` are the countries that the way passes, null where its operator states none."""

    peer: str
    rtt_ms: float
    source: RttSource
    via: list[str] | None


class SeenShape(BaseModel):
    """The gateway of site `by` does not trust this one fully: its `state` there, and `why`."""

    by: str
    state: str
    why: str


class SiteShape(BaseModel):
    """`ready`: it has joined, was heard within 5 s, and every model wanted there has a replica
    that is ready. `digest_age_ms` is null when this control has not heard from it. `health`:
    draining, down, or that of the replica there that is trusted most. `stopped`: an operator
    stopped its replicas."""

    name: str
    country: str | None
    operator: str | None
    parent: str | None
    latitude_deg: float
    longitude_deg: float
    public_url: str | None
    joined: bool
    draining: bool
    stopped: bool
    ready: bool
    health: ShownState
    digest_age_ms: float | None
    hardware: list[HardwareShape]


class SiteStatus(SiteShape):
    """`seen`: the gateways of other sites that do not trust it, as they last said. `power` is null
    when the site is not heard, or its hardware unknown."""

    seen: list[SeenShape]
    loads: list[LoadShape]
    replicas: list[ReplicaShape]
    power: PowerShape | None


class SiteDetails(SiteStatus):
    links: list[LinkShape]


def status_of(
    context: Context, caller: Caller, site: Site, deployments: Sequence[Deployment]
) -> SiteStatus:
    """A site with the loads and replicas of its last digest."""
    heard = context.fleet.heard(site.name)
    wanted = {wish.model: wish.replicas for wish in deployments if wish.replicas > 0}
    loads = {load.model: load for load in heard.digest.loads} if heard else {}
    details = caller.may("estate.details")
    trust = context.fleet.replicas_seen(site.name)
    return SiteStatus(
        **shape_of(context, site, deployments).model_dump(),
        seen=[
            SeenShape(by=by, state=each.state, why=each.why)
            for by, each in sorted(context.fleet.seen_by(site.name).items())
        ],
        loads=[
            _load(model, wanted.get(model, 0), loads.get(model))
            for model in sorted({*wanted, *loads})
        ],
        replicas=[
            _replica(each, trust.get(each.id), details) for each in heard.digest.replicas
        ] if heard else [],
        power=_power(context, site, heard),
    )


def shape_of(context: Context, site: Site, deployments: Sequence[Deployment]) -> SiteShape:
    """A site and whether it can serve."""
    heard = context.fleet.heard(site.name)
    return SiteShape(
        name=site.name,
        country=site.country,
        operator=site.operator,
        parent=site.parent,
        latitude_deg=site.latitude_deg,
        longitude_deg=site.longitude_deg,
        public_url=site.public_url or None,
        joined=site.peer_key is not None,
        draining=site.draining,
        stopped=any(wish.stopped_replicas is not None for wish in deployments),
        ready=_ready(context, site, deployments, heard),
        health=health_of(context, site, heard),
        digest_age_ms=None if heard is None else round(context.fleet.age_ms(heard), 1),
        hardware=[HardwareShape(kind=each.kind, count=each.count) for each in site.hardware],
    )


def links_of(links: Sequence[Link]) -> list[LinkShape]:
    return [
        LinkShape(
            peer=each.peer, rtt_ms=each.rtt_ms, source=each.source,
            via=None if each.via is None else list(each.via),
        )
        for each in links
    ]


def _ready(
    context: Context, site: Site, deployments: Sequence[Deployment], heard: Heard | None
) -> bool:
    if site.peer_key is None or heard is None or context.fleet.age_ms(heard) > STALE_MS:
        return False
    ready = {load.model for load in heard.digest.loads if load.ready > 0}
    return all(wish.model in ready for wish in deployments if wish.replicas > 0)


def health_of(context: Context, site: Site, heard: Heard | None) -> ShownState:
    """How the site stands."""
    return best_of(context, site, heard, () if heard is None else heard.digest.replicas)


def best_of(
    context: Context, site: Site, heard: Heard | None, replicas: Sequence[ReplicaLoad]
) -> ShownState:
    """How these replicas of a site stand together: draining or down with the site, else as the one
    that is trusted most."""
    if site.draining:
        return "draining"
    if site.peer_key is None or heard is None or context.fleet.age_ms(heard) > STALE_MS:
        return "down"
    trust = context.fleet.replicas_seen(site.name)
    best: ShownState = "healthy" if not replicas else "down"
    for each in replicas:
        state = _trusted(each, trust.get(each.id))
        if worse(best, state):
            best = state
    return best


def _power(context: Context, site: Site, heard: Heard | None) -> PowerShape | None:
    if heard is None or context.fleet.age_ms(heard) > STALE_MS:
        return None
    loads = heard.digest.loads
    found = estimated_power(
        site.hardware, context.power, running=sum(load.running for load in loads),
        slots=sum(load.slots for load in loads),
    )
    return None if found is None else PowerShape(
        watts=round(found.watts, 1), most_w=found.most_w, source="estimated"
    )


def _trusted(replica: ReplicaLoad, seen: SeenReplica | None) -> ShownState:
    """By its agent's word and, where that is of the same engine, its gateway's."""
    if seen is None or seen.generation != replica.generation:
        return shown(replica.state, None)
    return shown(replica.state, known_state(seen.state))


def _load(model: str, wanted: int, load: DeploymentLoad | None) -> LoadShape:
    return LoadShape(
        model=model,
        replicas_wanted=wanted,
        ready=load.ready if load else 0,
        slots=load.slots if load else 0,
        running=load.running if load else 0,
        waiting=load.waiting if load else 0,
        prefill_tok_s=load.prefill_tok_s if load else None,
        decode_tok_s=load.decode_tok_s if load else None,
    )


def _replica(replica: ReplicaLoad, seen: SeenReplica | None, details: bool) -> ReplicaShape:
    health = _trusted(replica, seen)
    return ReplicaShape(
        id=replica.id,
        model=replica.model,
        state=replica.state,
        health=health,
        why=seen.why or None if seen is not None and health not in ("healthy", "down") else None,
        generation=replica.generation,
        host=replica.host if details else None,
        pid=replica.pid if details else None,
        running=replica.running,
        waiting=replica.waiting,
        restarts=replica.restarts,
        kept_tokens=replica.kept_tokens,
        held_tokens=replica.held_tokens,
        prompt_tokens_total=replica.prompt_tokens_total,
        cached_tokens_total=replica.cached_tokens_total,
        output_tokens_total=replica.output_tokens_total,
    )

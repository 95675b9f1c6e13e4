"""What control and the agents would publish, made from the file of a gateway that runs alone.

The entries are told to the gateway through its bus, signed with a key that the process made at its
start, so a gateway alone decides and checks by the same code as a gateway of the cloud.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from isochrone.adapters.alone.bus import AloneBus
from isochrone.adapters.packaged import load_round_trips
from isochrone.core.estimate.round_trip import Position, estimate_rtt
from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.world.digest import DeploymentLoad, SiteDigest
from isochrone.core.world.entitlement import Voters
from isochrone.core.world.model import (
    ALL_ENDPOINTS,
    Deployment,
    EngineKind,
    EngineSpec,
    Model,
    Replica,
)
from isochrone.core.world.site import Link, Site, SiteLinks
from isochrone.core.world.tenant import ApiKey, KeyShard
from isochrone.wire import fleet, subjects
from isochrone.wiring.alone_entitlements import part_of_worker
from isochrone.wiring.alone_file import AloneFile
from isochrone.wiring.alone_sites import AloneSite, Upstream

Place = tuple[str, str]  # bucket and key


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Everything that a gateway is told, in an order in which nothing comes before what it needs.

    `view` is to be signed; `replicas` are not; `loads` are by site.
    """

    view: Mapping[str, object]
    replicas: Mapping[str, Replica]
    loads: Mapping[SiteName, tuple[DeploymentLoad, ...]]


def told_by(file: AloneFile, peer_key: str, *, worker: int = 0, workers: int = 1) -> Told:
    """The entries of a file; `peer_key` is the public key of this gateway, of whose workers one is
    told.

    A site whose upstreams are asked directly has no gateway of its own: this one stands for it, so
    its entry carries this gateway's key.
    """
    sites = {site.site.name: site for site in file.sites}
    if file.site not in sites:
        sites[file.site] = _unstated_own_site(file)
    view: dict[str, object] = {}
    for policy in file.policies:
        view[subjects.policy_key(policy.id)] = policy
    models = {model.name: model for model in file.models}
    for model in file.models:
        view[subjects.model_key(model.name)] = model
    for name, each in sites.items():
        site = each.site if each.is_peer else replace(each.site, peer_key=peer_key)
        if name == file.site:
            site = replace(site, host=file.settings.host, port=file.settings.port)
        view[subjects.site_key(name)] = site
    view[subjects.links_key(file.site)] = _links(file, sites)
    for name, each in sites.items():
        for served in each.models:
            key = subjects.deployment_key(name, served)
            view[key] = _deployment(each, models[served])
    if file.entitlements:
        view[subjects.VOTERS_KEY] = Voters(sites=(file.site,))
    for sold in file.entitlements:
        part = part_of_worker(sold, file.site, worker=worker, workers=workers)
        if part is not None:
            view[subjects.entitlement_key(sold.id)] = part
    for shard, keys in _shards(file.keys).items():
        view[subjects.keys_key(shard)] = KeyShard(shard=shard, keys=keys)
    replicas = {
        subjects.replica_key(replica.id): replica
        for each in file.sites for replica in _replicas(each, models)
    }
    loads = {name: _loads(each, models) for name, each in sites.items() if each.models}
    return Told(view=view, replicas=replicas, loads=loads)


def _unstated_own_site(file: AloneFile) -> AloneSite:
    """A gateway that only sends requests elsewhere need not describe its own site."""
    site = Site(
        name=file.site, country=None, operator=None, parent=None, latitude_deg=0.0,
        longitude_deg=0.0, host="", port=0, public_url="", peer_key=None,
    )
    return AloneSite(
        site=site, rtt_ms=0.0, is_placed=False, upstreams=(), peer_models=(), peer_slots=1,
        peer_endpoints=(),
    )


def _links(file: AloneFile, sites: Mapping[SiteName, AloneSite]) -> SiteLinks:
    own = _position(sites[file.site].site)
    table = None
    links = []
    for name, each in sites.items():
        if name == file.site:
            continue
        if each.rtt_ms is not None:
            links.append(
                Link(peer=each.site.name, rtt_ms=each.rtt_ms, source="stated", via=each.via)
            )
            continue
        table = table or load_round_trips()
        rtt_ms, source = estimate_rtt(own, _position(each.site), table)
        links.append(Link(peer=each.site.name, rtt_ms=rtt_ms, source=source, via=each.via))
    return SiteLinks(site=file.site, links=tuple(links))


def _position(site: Site) -> Position:
    return Position(latitude_deg=site.latitude_deg, longitude_deg=site.longitude_deg)


def _deployment(site: AloneSite, model: Model) -> Deployment:
    """That the site serves the model; the engine is not started from this."""
    of_model = [each for each in site.upstreams if each.model == model.name]
    source = of_model[0].url if of_model else ""
    return Deployment(
        site=site.site.name, model=model.name, replicas=max(len(of_model), 1),
        engine=EngineSpec(kind="openai", source=source), context_tokens=model.context_tokens,
        admission=site.admission,
    )


def _shards(keys: Iterable[ApiKey]) -> dict[str, tuple[ApiKey, ...]]:
    shards: dict[str, tuple[ApiKey, ...]] = {}
    for key in keys:
        shard = key.secret_sha256[:2]
        shards[shard] = (*shards.get(shard, ()), key)
    return shards


def _replicas(site: AloneSite, models: Mapping[ModelName, Model]) -> Iterable[Replica]:
    for each in site.upstreams:
        # The same upstream keeps its id when others come and go around it.
        name = f"{site.site.name}-{subjects.token(f'{each.url} {each.model}')[:8]}"
        yield Replica(
            id=ReplicaId(name), site=site.site.name, model=each.model,
            revision=models[each.model].revision, generation=1, state="ready",
            engine=_engine_kind(each), base_url=each.url, engine_key=None,
            credential=each.credential, upstream_model=each.upstream_model, slots=each.slots,
            pid=None, started_at=0, running_counts=each.running_counts,
            usage_counts_one_choice=each.usage_counts_one_choice, endpoints=each.endpoints,
            cache_salt=each.cache_salt,
            slots_stated=each.slots_stated,
        )


def _engine_kind(upstream: Upstream) -> EngineKind:
    return "llamacpp" if upstream.engine == "llamacpp" else "openai"


def _loads(
    site: AloneSite, models: Mapping[ModelName, Model]
) -> tuple[DeploymentLoad, ...]:
    """An idle site: what runs there now is counted by this gateway itself."""
    loads = []
    for name in site.models:
        of_model = [each for each in site.upstreams if each.model == name]
        had = {endpoint for each in of_model for endpoint in each.endpoints}
        loads.append(DeploymentLoad(
            model=name, revision=models[name].revision, ready=max(len(of_model), 1),
            slots=sum(each.slots for each in of_model) or site.peer_slots, running=0, waiting=0,
            pending_prompt_tokens=0, pending_output_tokens=0,
            prefill_tok_s=min((each.prefill_tok_s for each in of_model), default=0.0),
            decode_tok_s=min((each.decode_tok_s for each in of_model), default=0.0),
            endpoints=tuple(each for each in ALL_ENDPOINTS if each in had) or site.peer_endpoints,
        ))
    return tuple(loads)


class Teller:
    """Tells the bus what a file says, and later only what has changed."""

    def __init__(self, bus: AloneBus, site: str, signer: Ed25519PrivateKey) -> None:
        self._bus = bus
        self._bucket = subjects.site_bucket(site)
        self._signer = signer
        self._serial = 0
        self._told = Told(view={}, replicas={}, loads={})

    async def tell(self, told: Told) -> int:
        """Returns how many entries changed. Should one of them not be told, none is."""
        before = self._told
        self._serial += 1
        view = {
            key: self._signed(key, noun) for key, noun in told.view.items()
            if before.view.get(key) != noun
        }
        self._told = told
        await self._bus.ensure_bucket(subjects.VIEW_BUCKET)
        await self._bus.ensure_bucket(self._bucket)
        gone = [key for key in before.view if key not in told.view]
        for key in reversed(gone):  # keys before what binds them
            await self._bus.delete(subjects.VIEW_BUCKET, key)
        for key in before.replicas.keys() - told.replicas.keys():
            await self._bus.delete(self._bucket, key)
        changed = len(view)
        for key, replica in told.replicas.items():
            if before.replicas.get(key) != replica:
                changed += 1
                await self._bus.put(self._bucket, key, fleet.encode(replica))
        for key, signed in view.items():
            await self._bus.put(subjects.VIEW_BUCKET, key, signed)
        for site, loads in told.loads.items():
            if before.loads.get(site) != loads:
                await self._say_load(site, loads)
        return changed + len(gone) + len(before.replicas.keys() - told.replicas.keys())

    def _signed(self, key: str, noun: object) -> bytes:
        return fleet.sign(
            noun, bucket=subjects.VIEW_BUCKET, key=key, serial=self._serial, signer=self._signer
        )

    async def _say_load(self, site: SiteName, loads: tuple[DeploymentLoad, ...]) -> None:
        """Only when it changed: a digest makes the gateway forget what it has sent there since."""
        digest = SiteDigest(
            site=site, epoch=1, sequence=self._serial, at=0, loads=loads
        )
        await self._bus.retain(subjects.digest_subject(site), fleet.encode(digest))

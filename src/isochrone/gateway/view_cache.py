"""The gateway's last good view: follows the buckets, checks control's signature, compiles routes.

Entries of bucket `view` count only when control signed them for exactly that key and with a serial
not below the one known; anything else is refused and logged, and what was known stays. While NATS
or control are away, the gateway goes on with what it knows, and knows how old that is: `age_s` is
the time since the bus last proved that nothing newer was published.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from isochrone.core.errors import Untrusted
from isochrone.core.estimate.hardware import HardwareTable
from isochrone.core.ids import ModelName, PolicyId, SiteName
from isochrone.core.residency.blocs import Blocs
from isochrone.core.routing.choice import Refused
from isochrone.core.routing.table import RoutingTable, compile_table
from isochrone.core.world.entitlement import Entitlement, Voters
from isochrone.core.world.limit import OrgLimits
from isochrone.core.world.model import Model, Replica
from isochrone.core.world.site import Link, Site, SiteLinks
from isochrone.core.world.site_policy import SitePolicy
from isochrone.core.world.tenant import Class, KeyShard, Policy
from isochrone.core.world.view import View
from isochrone.gateway.access import Keys
from isochrone.gateway.deployed import Closed, Deployed, closed_sites
from isochrone.gateway.replicas import Replicas
from isochrone.ports.bus import Bus, Entry, Watch
from isochrone.wire import fleet, subjects

T = TypeVar("T")

COMPILE_DELAY_S = 0.02  # changes that arrive together are compiled once
WARN_S = 60.0
_SOLD = ("entitlement", "voters")
_NOT_COMPILED = ("keys", "limits", *_SOLD)  # the routes do not depend on them

_USUAL = SitePolicy()

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Packaged tables that a view is compiled with."""

    blocs: Blocs
    hardware: HardwareTable


class ViewCache:
    """Mutable, owned by the event loop. `table` is always a whole, consistent view.

    `entries` and `replica_entries` are what was accepted, as it came, by key; `version` grows with
    every change of them. `current`: the first listing of this life has been taken. `synced`: there
    is a view to serve from. `aged`: some policy allows no view of this age; see `too_old`.
    `direct`: replicas of other sites are taken too, because this gateway asks them itself.
    """

    def __init__(
        self, own_site: SiteName, control_key_hex: str, data: Data, *, direct: bool = False
    ) -> None:
        self.own_site = own_site
        self._direct = direct
        self.control_key = control_key_hex
        self.keys = Keys()
        self.replicas = Replicas()
        self.synced = False
        self.current = False
        self.entries: dict[str, bytes] = {}
        self.replica_entries: dict[str, bytes] = {}
        self.version = 0
        self.age_s = math.inf  # unknown
        self.aged = False
        self._proved_ns: int | None = None
        self._strictest_s = math.inf  # what the strictest policy allows
        self._warned = False
        self._stored: set[str] = set()  # keys that no listing of this life has confirmed yet
        self._stored_replicas: set[str] = set()
        self._verifier = Ed25519PublicKey.from_public_bytes(bytes.fromhex(control_key_hex))
        self._data = data
        self._serials: dict[str, int] = {}
        self._sites: dict[SiteName, Site] = {}
        self._links: Mapping[SiteName, Link] = {}
        self._models: dict[str, Model] = {}
        self._deployed: dict[str, Deployed] = {}
        self._policies: dict[PolicyId, Policy] = {}
        self.entitlements: dict[str, Entitlement] = {}  # by entry key
        self.voters: Voters | None = None
        self.limits: dict[str, OrgLimits] = {}  # by entry key
        self.limits_version = 0  # grows with every change of these
        self.sold_version = 0  # grows with every change of these two
        self._names: dict[str, SiteName | PolicyId] = {}  # by entry key, to undo deletions
        self._watches: list[Watch] = []
        self._timer: asyncio.TimerHandle | None = None
        self.own: Site | None = None  # this site; None before the view has it
        self.closed: Closed = {}
        self.table = self._compile()

    @property
    def heard_ns(self) -> int | None:
        """Monotonic instant of the last proof that the bus reaches us; None before the first."""
        return max((watch.heard_ns for watch in self._watches), default=None)

    async def follow(self, bus: Bus) -> None:
        """Start to follow both buckets; returns when the first listings have been taken."""
        own_bucket = subjects.site_bucket(self.own_site)
        if not self._watches:
            self._watches.append(await bus.watch(subjects.VIEW_BUCKET, "", self.on_view_entry))
        if len(self._watches) < 2:
            self._watches.append(await bus.watch(own_bucket, "replica", self._hear_replica))
        view, replicas = self._watches
        await view.synced()
        # What was stored and is not listed was deleted while this gateway was away.
        for key in sorted(self._stored):
            self.on_view_entry(Entry(key=key, value=None, revision=0))
        self.current = True
        await replicas.synced()
        for key in sorted(self._stored_replicas):
            self._hear_replica(Entry(key=key, value=None, revision=0))
        self._recompile()
        self.synced = True
        self.judge_age(view.heard_ns)

    async def close(self) -> None:
        for watch in self._watches:
            await watch.close()
        if self._timer is not None:
            self._timer.cancel()

    def site(self, name: SiteName) -> Site | None:
        return self._sites.get(name)

    def policy(self, policy_id: PolicyId) -> Policy | None:
        return self._policies.get(policy_id)

    def admission_of(self, site: SiteName, model: ModelName) -> SitePolicy:
        """How classes share the slots of a model at a site."""
        deployed = self._deployed.get(subjects.deployment_key(site, model))
        return _USUAL if deployed is None or deployed.admission is None else deployed.admission

    def closed_to(self, class_: Class, model: ModelName) -> Sequence[Refused]:
        """The sites whose policies take nothing of the class."""
        return self.closed.get((class_, model), ()) if self.closed else ()

    def is_stopped(self, model: ModelName, site: SiteName) -> bool:
        """Whether its operator stopped what runs of a model at a site."""
        deployed = self._deployed.get(subjects.deployment_key(site, model))
        return deployed is not None and deployed.replicas == 0

    def rtt_ms(self, peer: SiteName) -> float:
        """The round trip to a peer as the view has it; 0 where it has none."""
        link = self._links.get(peer)
        return 0.0 if link is None else link.rtt_ms

    def gateways(self) -> tuple[SiteName, ...]:
        """The sites that have joined, by name: each has a gateway."""
        return tuple(sorted(
            [name for name, site in self._sites.items() if site.peer_key is not None]
        ))

    def emulated_rtt_ms(self, peer: SiteName) -> float:
        """The round trip to emulate on the way to a peer; 0 on real links."""
        link = self._links.get(peer)
        return link.rtt_ms if link is not None and link.source == "emulated" else 0.0

    # -- stored views and age --------------------------------------------------------------------

    def take_stored(
        self, view: Mapping[str, bytes], replicas: Mapping[str, bytes], *, proved_ns: int | None
    ) -> None:
        """Take entries of an earlier life, checked as if they came from the bus; `proved_ns` is
        the monotonic instant at which they were current, None when nobody knows."""
        # Keys last: each that comes behind a policy has the table compiled at once.
        for key, value in sorted(view.items(), key=lambda item: item[0].startswith("keys.")):
            self.on_view_entry(Entry(key=key, value=value, revision=0))
        for key, value in replicas.items():
            self._hear_replica(Entry(key=key, value=value, revision=0))
        self._stored, self._stored_replicas = set(self.entries), set(self.replica_entries)
        self._proved_ns = proved_ns
        self._recompile()

    def serve_stored(self) -> bool:
        """Serve from the stored view until there is a live one; False when there is none."""
        if not self.synced and self.own is not None:
            self.synced = True
            log.warning(
                "view_from_disk", site=self.own_site, entries=len(self.entries),
                age_s=round(self.age_s, 1) if math.isfinite(self.age_s) else None,
            )
        return self.synced

    def judge_age(self, now_ns: int, warn_s: float = WARN_S) -> None:
        """Renew `age_s` and `aged`; call it about once a second."""
        if self.current:
            heard_ns = self._watches[0].heard_ns
            self._proved_ns = max(heard_ns, self._proved_ns or heard_ns)
        proved_ns = self._proved_ns
        self.age_s = math.inf if proved_ns is None else max(now_ns - proved_ns, 0) / 1e9
        self.aged = self.age_s > self._strictest_s
        if not self.synced or (self.age_s > warn_s) == self._warned:
            return
        self._warned = not self._warned
        if self._warned:
            age_s = round(self.age_s, 1) if math.isfinite(self.age_s) else None
            log.warning("view_is_old", age_s=age_s, warn_s=warn_s)
        else:
            log.info("view_is_current_again")

    def too_old(self, policy_id: PolicyId) -> float | None:
        """The age that the policy allows, in seconds, when the view is older; else None."""
        policy = self._policies.get(policy_id)
        if policy is None or self.age_s <= policy.max_view_age_s:
            return None
        return policy.max_view_age_s

    # -- entries ---------------------------------------------------------------------------------

    def on_view_entry(self, entry: Entry) -> None:
        """Take one change of bucket `view`."""
        kind = entry.key.partition(".")[0]
        self._stored.discard(entry.key)
        if entry.value is None:
            self._remove(kind, entry.key)
            self.entries.pop(entry.key, None)
        else:
            if self.entries.get(entry.key) == entry.value:
                return  # listed again
            try:
                if not self._take(kind, entry.key, entry.value):
                    return
            except Untrusted as error:
                log.warning("view_entry_refused", key=entry.key, why=error.message)
                return
            self.entries[entry.key] = entry.value
        self.version += 1
        if kind in _SOLD:
            self.sold_version += 1
        elif kind == "limits":
            self.limits_version += 1
        if kind not in _NOT_COMPILED:
            self._compile_soon()

    def _hear_replica(self, entry: Entry) -> None:
        self._stored_replicas.discard(entry.key)
        if entry.value is None:
            self.replica_entries.pop(entry.key, None)
        else:
            self.replica_entries[entry.key] = entry.value
        self.version += 1
        self.on_replica_entry(entry)

    def on_replica_entry(self, entry: Entry) -> None:
        """Take one change of the site's bucket of replicas; only its agent may write them."""
        if entry.value is None:
            self.replicas.drop(entry.key)
            return
        try:
            replica = fleet.decode(entry.value, Replica)
        except Untrusted as error:
            log.warning("replica_entry_refused", key=entry.key, why=error.message)
            return
        foreign = replica.site != self.own_site and not self._direct
        if entry.key != subjects.replica_key(replica.id) or foreign:
            log.warning("replica_entry_refused", key=entry.key, why="names another replica")
            return
        self.replicas.put(entry.key, replica)

    def _take(self, kind: str, key: str, value: bytes) -> bool:
        if kind == "site":
            site = self._open(key, value, Site)
            if site is not None:
                self._sites[site.name] = site
                self._names[key] = site.name
            return site is not None
        if kind == "links":
            if key != subjects.links_key(self.own_site):
                return False
            links = self._open(key, value, SiteLinks)
            if links is not None:
                self._links = {link.peer: link for link in links.links}
            return links is not None
        if kind == "model":
            model = self._open(key, value, Model)
            if model is not None:
                self._models[key] = model
            return model is not None
        if kind == "deployment":
            deployed = self._open(key, value, Deployed)
            if deployed is not None:
                self._deployed[key] = deployed
            return deployed is not None
        if kind == "policy":
            policy = self._open(key, value, Policy)
            if policy is not None:
                self._policies[policy.id] = policy
                self._names[key] = policy.id
            return policy is not None
        if kind == "keys":
            shard = self._open(key, value, KeyShard)
            if shard is not None:
                if self._timer is not None:
                    self._recompile()  # a new key's policy came just before it
                self.keys.put(shard)
            return shard is not None
        return self._take_sold(kind, key, value)

    def _take_sold(self, kind: str, key: str, value: bytes) -> bool:
        if kind == "entitlement":
            sold = self._open(key, value, Entitlement)
            if sold is not None:
                self.entitlements[key] = sold
            return sold is not None
        if kind == "voters":
            voters = self._open(key, value, Voters)
            if voters is not None:
                self.voters = voters
            return voters is not None
        if kind == "limits":
            limits = self._open(key, value, OrgLimits)
            if limits is not None:
                self.limits[key] = limits
            return limits is not None
        return False

    def _open(self, key: str, value: bytes, kind: type[T]) -> T | None:
        """The signed noun; None when a newer one is known. Raises Untrusted."""
        noun, serial = fleet.open_signed(
            value, kind, bucket=subjects.VIEW_BUCKET, key=key, verifier=self._verifier
        )
        if serial < self._serials.get(key, 0):
            log.warning("view_entry_refused", key=key, why="older than the one known")
            return None
        self._serials[key] = serial
        return noun

    def _remove(self, kind: str, key: str) -> None:
        if kind == "site":
            self._sites.pop(SiteName(self._names.pop(key, "")), None)
        elif kind == "links":
            if key == subjects.links_key(self.own_site):
                self._links = {}
        elif kind == "model":
            self._models.pop(key, None)
        elif kind == "deployment":
            self._deployed.pop(key, None)
        elif kind == "policy":
            self._policies.pop(PolicyId(self._names.pop(key, "")), None)
        elif kind == "entitlement":
            self.entitlements.pop(key, None)
        elif kind == "voters":
            self.voters = None
        elif kind == "limits":
            self.limits.pop(key, None)
        elif kind == "keys":
            self.keys.drop(key.partition(".")[2])

    # -- compiling -------------------------------------------------------------------------------

    def _compile_soon(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(COMPILE_DELAY_S, self._recompile)

    def _recompile(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.table = self._compile()

    def _compile(self) -> RoutingTable:
        self.own = self._sites.get(self.own_site)
        self.closed = closed_sites(self._deployed.values())
        deployments: dict[ModelName, set[SiteName]] = {}
        for deployed in self._deployed.values():
            sites = deployments.setdefault(ModelName(deployed.model), set())
            sites.add(SiteName(deployed.site))
        view = View(
            own_site=self.own_site,
            sites=dict(self._sites),
            links=dict(self._links),
            models={model.name: model for model in self._models.values()},
            deployments={model: frozenset(sites) for model, sites in deployments.items()},
            policies=dict(self._policies),
        )
        limits_s = (policy.max_view_age_s for policy in self._policies.values())
        self._strictest_s = min(limits_s, default=math.inf)
        return compile_table(view, self._data.blocs, self._data.hardware)

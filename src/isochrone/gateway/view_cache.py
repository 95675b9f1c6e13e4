"""The gateway's last good view: follows the buckets, checks control's signature, compiles routes.

Entries of bucket `view` count only when control signed them for exactly that key and with a serial
not below the one known; anything else is refused and logged, and what was known stays. Nothing here
ever expires: while NATS or control are away, the gateway goes on with what it knows.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from isochrone.core.errors import Untrusted
from isochrone.core.estimate.hardware import HardwareTable
from isochrone.core.ids import ModelName, PolicyId, SiteName
from isochrone.core.residency.blocs import Blocs
from isochrone.core.routing.table import RoutingTable, compile_table
from isochrone.core.world.model import Model, Replica
from isochrone.core.world.site import Link, Site, SiteLinks
from isochrone.core.world.tenant import KeyShard, Policy
from isochrone.core.world.view import View
from isochrone.gateway.access import Keys
from isochrone.gateway.replicas import Replicas
from isochrone.ports.bus import Bus, Entry, Watch
from isochrone.wire import fleet, subjects

T = TypeVar("T")

COMPILE_DELAY_S = 0.02  # changes that arrive together are compiled once

log = structlog.get_logger()


class _Deployed(msgspec.Struct, frozen=True):
    """The part of a deployment that matters here: that `site` serves `model`."""

    site: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Packaged tables that a view is compiled with."""

    blocs: Blocs
    hardware: HardwareTable


class ViewCache:
    """Mutable, owned by the event loop. `table` is always a whole, consistent view."""

    def __init__(self, own_site: SiteName, control_key_hex: str, data: Data) -> None:
        self.own_site = own_site
        self.keys = Keys()
        self.replicas = Replicas()
        self.synced = False
        self._verifier = Ed25519PublicKey.from_public_bytes(bytes.fromhex(control_key_hex))
        self._data = data
        self._serials: dict[str, int] = {}
        self._sites: dict[SiteName, Site] = {}
        self._links: Mapping[SiteName, Link] = {}
        self._models: dict[str, Model] = {}
        self._deployed: dict[str, _Deployed] = {}
        self._policies: dict[PolicyId, Policy] = {}
        self._names: dict[str, SiteName | PolicyId] = {}  # by entry key, to undo deletions
        self._watches: list[Watch] = []
        self._timer: asyncio.TimerHandle | None = None
        self.own: Site | None = None  # this site; None before the view has it
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
            self._watches.append(await bus.watch(own_bucket, "replica", self.on_replica_entry))
        for watch in self._watches:
            await watch.synced()
        self._recompile()
        self.synced = True

    async def close(self) -> None:
        for watch in self._watches:
            await watch.close()
        if self._timer is not None:
            self._timer.cancel()

    def site(self, name: SiteName) -> Site | None:
        return self._sites.get(name)

    def policy(self, policy_id: PolicyId) -> Policy | None:
        return self._policies.get(policy_id)

    def emulated_rtt_ms(self, peer: SiteName) -> float:
        """The round trip to emulate on the way to a peer; 0 on real links."""
        link = self._links.get(peer)
        return link.rtt_ms if link is not None and link.source == "emulated" else 0.0

    # -- entries ---------------------------------------------------------------------------------

    def on_view_entry(self, entry: Entry) -> None:
        """Take one change of bucket `view`."""
        kind = entry.key.partition(".")[0]
        if entry.value is None:
            self._remove(kind, entry.key)
        else:
            try:
                if not self._take(kind, entry.key, entry.value):
                    return
            except Untrusted as error:
                log.warning("view_entry_refused", key=entry.key, why=error.message)
                return
        if kind != "keys":
            self._compile_soon()

    def on_replica_entry(self, entry: Entry) -> None:
        """Take one change of the own site's replicas; only its agent may write them."""
        if entry.value is None:
            self.replicas.drop(entry.key)
            return
        try:
            replica = fleet.decode(entry.value, Replica)
        except Untrusted as error:
            log.warning("replica_entry_refused", key=entry.key, why=error.message)
            return
        if entry.key != subjects.replica_key(replica.id) or replica.site != self.own_site:
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
            deployed = self._open(key, value, _Deployed)
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
        return compile_table(view, self._data.blocs, self._data.hardware)

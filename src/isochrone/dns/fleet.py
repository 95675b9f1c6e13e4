"""Follows the signed view over the bus, as far as a name server needs it.

Entries count only when control signed them for exactly that key and with a serial not below the one
known, as at a gateway. Keys of customers are not followed. Links are followed of those sites alone
that the file says clients to be at: a whole fleet's would be a million.
"""

import math
from collections.abc import Collection, Mapping
from typing import TypeVar

import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from isochrone.core.errors import Untrusted
from isochrone.core.ids import SiteName
from isochrone.core.world.site import Site, SiteLinks
from isochrone.core.world.tenant import Policy
from isochrone.dns.estate import Estate
from isochrone.ports.bus import Bus, Entry, Watch
from isochrone.wire import fleet, subjects

T = TypeVar("T")

FOLLOWED = ("site", "deployment", "policy")

log = structlog.get_logger()


class _Deployed(msgspec.Struct, frozen=True):
    """The part of a deployment that matters here: that `site` has one."""

    site: str


class FleetView:
    """Owned by the event loop. `version` grows with every change that was taken in; `entries` are
    what was accepted, as it came, by key. `synced`: the whole view was listed in this life."""

    def __init__(self, control_key_hex: str) -> None:
        self.version = 0
        self.synced = False
        self.entries: dict[str, bytes] = {}
        self._stored: set[str] = set()  # keys that no listing of this life has confirmed yet
        self._proved_ns: int | None = None  # of what was stored
        self._verifier = Ed25519PublicKey.from_public_bytes(bytes.fromhex(control_key_hex))
        self._serials: dict[str, int] = {}
        self._sites: dict[str, Site] = {}       # these four by entry key
        self._deployed: dict[str, SiteName] = {}
        self._policies: dict[str, Policy] = {}
        self._links: dict[str, SiteLinks] = {}
        self._watches: dict[str, Watch] = {}

    async def follow(self, bus: Bus, links_of: Collection[SiteName]) -> None:
        """Follow the view, with the links of these sites; returns when all was listed. Call it
        again for other links. Raises BusUnavailable."""
        prefixes = [*FOLLOWED, *(subjects.links_key(site) for site in sorted(links_of))]
        for prefix in prefixes:
            if prefix not in self._watches:
                self._watches[prefix] = await bus.watch(
                    subjects.VIEW_BUCKET, prefix, self.on_entry
                )
        for watch in list(self._watches.values()):
            await watch.synced()
        # What was stored and is not listed was deleted while this name server was away.
        for key in sorted(self._stored):
            self.on_entry(Entry(key=key, value=None, revision=0))
        self.synced = True

    def take_stored(self, entries: Mapping[str, bytes], *, proved_ns: int | None) -> None:
        """Take entries of an earlier life, checked as if they came from the bus; `proved_ns` is the
        monotonic instant at which they were current, None when nobody knows."""
        for key, value in entries.items():
            self.on_entry(Entry(key=key, value=value, revision=0))
        self._stored = set(self.entries)
        self._proved_ns = proved_ns

    @property
    def knows_sites(self) -> bool:
        return bool(self._sites)

    @property
    def heard_ns(self) -> int | None:
        """Monotonic instant of the last proof that the bus reaches us; None before the first."""
        return max(self._proofs_ns(), default=None)

    def age_s(self, now_ns: int) -> float:
        """Time since the bus proved that nothing newer is known of any part; infinite when nobody
        knows."""
        proved_ns = min(self._proofs_ns(), default=None) if self.synced else self._proved_ns
        return math.inf if proved_ns is None else max(now_ns - proved_ns, 0) / 1e9

    def _proofs_ns(self) -> list[int]:
        """Of each watch that was listed."""
        return [watch.heard_ns for watch in self._watches.values() if watch.heard_ns > 0]

    async def close(self) -> None:
        for watch in self._watches.values():
            await watch.close()

    def estate(self) -> Estate:
        """All that is known now."""
        links: dict[SiteName, Mapping[SiteName, float]] = {
            each.site: {link.peer: link.rtt_ms for link in each.links}
            for each in self._links.values()
        }
        return Estate(
            sites={site.name: site for site in self._sites.values()},
            joined=frozenset(s.name for s in self._sites.values() if s.peer_key is not None),
            reporting=frozenset(self._deployed.values()),
            links=links,
            policies={policy.id: policy for policy in self._policies.values()},
        )

    def on_entry(self, entry: Entry) -> None:
        """Take one change of the view; what cannot be trusted changes nothing."""
        kind = entry.key.partition(".")[0]
        self._stored.discard(entry.key)
        if entry.value is None:
            self.entries.pop(entry.key, None)
            for known in (self._sites, self._deployed, self._policies, self._links):
                known.pop(entry.key, None)
        elif self.entries.get(entry.key) == entry.value:
            return  # listed again
        else:
            try:
                self._take(kind, entry.key, entry.value)
            except Untrusted as error:
                log.warning("view_entry_refused", key=entry.key, why=error.message)
                return
            self.entries[entry.key] = entry.value
        self.version += 1

    def _take(self, kind: str, key: str, value: bytes) -> None:
        if kind == "site":
            self._sites[key] = self._open(key, value, Site)
        elif kind == "deployment":
            self._deployed[key] = SiteName(self._open(key, value, _Deployed).site)
        elif kind == "policy":
            self._policies[key] = self._open(key, value, Policy)
        elif kind == "links":
            self._links[key] = self._open(key, value, SiteLinks)

    def _open(self, key: str, value: bytes, kind: type[T]) -> T:
        noun, serial = fleet.open_signed(
            value, kind, bucket=subjects.VIEW_BUCKET, key=key, verifier=self._verifier
        )
        if serial < self._serials.get(key, 0):
            raise Untrusted("older than the one known")
        self._serials[key] = serial
        return noun

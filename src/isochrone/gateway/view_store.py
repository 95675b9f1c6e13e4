"""Keeps the last good view on disk, so that a gateway can serve that starts while NATS is away.

What is kept are the entries as they came, with control's signatures: reading them back goes through
the same checks as hearing them from the bus, and their serials are known again, so that nothing
older is taken afterwards. With them goes the last digest of every site, without which nothing could
be chosen, and the instant at which the bus last proved the view current, renewed in a small note of
its own: the age of a view survives the process.

Hashes of keys are in it, so it is for the gateway's user only; the disk port sees to that.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import structlog

from isochrone.core.errors import Untrusted
from isochrone.core.ids import SiteName
from isochrone.core.world.digest import SiteDigest
from isochrone.gateway.view_cache import ViewCache
from isochrone.ports.clock import Clock
from isochrone.ports.disk import Disk
from isochrone.wire import fleet

NAME = "view"
PROOF_NAME = "view-proved"
LOOK_EVERY_S = 3.0
PROVE_EVERY_S = 30.0
SAVE_EVERY_S = 600.0  # also without a change of the view, for the digests
SET_BACK_NS = 60_000_000_000  # a proof this far ahead says that our clock was set back

_MAGIC = b"isochrone view 1\n"
_DIGEST_BYTES = 32

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredView:
    """Entries of the view and the own site's replicas by key, and digests by site, as they came
    from the bus."""

    site: str
    control_key: str
    proved_at: int
    view: Mapping[str, bytes]
    replicas: Mapping[str, bytes]
    digests: Mapping[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The view whose file has this digest was current at that instant."""

    digest: bytes
    proved_at: int


class ViewStore:
    """Call `load` once, then `run` for as long as the process serves, then `flush`."""

    def __init__(self, disk: Disk, view: ViewCache, clock: Clock) -> None:
        self._disk = disk
        self._view = view
        self._clock = clock
        self._version = -1            # the one in the file
        self._digest = b""
        self._digests: dict[str, bytes] = {}
        self._proved_ns = 0           # monotonic, of the last write
        self._saved_ns = 0            # monotonic, of the last write of everything
        self._writing = asyncio.Lock()
        self._failed = ""

    def load(self) -> None:
        """Hand the stored view to the cache, if there is one; what is wrong with it is logged."""
        try:
            data = self._disk.read(NAME)
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("stored_view_ignored", why=f"it cannot be read: {error}")
            return
        try:
            stored, digest = self._open(data)
        except Untrusted as error:
            log.warning("stored_view_ignored", why=error.message)
            return
        proved_at = max(stored.proved_at, self._proof_of(digest))
        age_ns = self._clock.wall_ns() - proved_at
        if age_ns < -SET_BACK_NS:
            log.warning("stored_view_from_the_future", ahead_s=round(-age_ns / 1e9))
        known = age_ns >= -SET_BACK_NS and proved_at > 0
        now_ns = self._clock.monotonic_ns()
        self._view.take_stored(
            stored.view, stored.replicas, proved_ns=now_ns - max(age_ns, 0) if known else None
        )
        self._view.judge_age(now_ns)
        self._version, self._digest = self._view.version, digest
        self._digests = dict(stored.digests)
        log.info(
            "stored_view_read", entries=len(stored.view), age_s=_rounded(self._view.age_s)
        )

    def heard(self, site: SiteName, digest: bytes) -> None:
        """The latest digest of a site, as it came."""
        self._digests[site] = digest

    def digests(self) -> Sequence[SiteDigest]:
        """The latest digest of every site, of this life or the one before."""
        found = []
        for site, digest in self._digests.items():
            try:
                found.append(fleet.decode(digest, SiteDigest))
            except Untrusted as error:
                log.warning("stored_digest_ignored", site=site, why=error.message)
        return found

    async def run(self) -> None:
        """Write what has changed, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self._settle(PROVE_EVERY_S, SAVE_EVERY_S)

    async def flush(self) -> None:
        """Write everything now."""
        await self._settle(0.0, 0.0)

    async def _settle(self, prove_every_s: float, save_every_s: float) -> None:
        view = self._view
        # A view that lacks this site is none to start from: the bucket was lost or is being filled.
        if not view.current or view.own is None:
            return
        async with self._writing:
            now_ns = self._clock.monotonic_ns()
            view.judge_age(now_ns)
            try:
                due = now_ns - self._saved_ns >= save_every_s * 1e9
                if view.version != self._version or due:
                    await self._save()
                    self._saved_ns = now_ns
                elif now_ns - self._proved_ns >= prove_every_s * 1e9:
                    await self._prove()
                else:
                    return
            except OSError as error:
                if str(error) != self._failed:
                    log.warning("view_not_stored", why=str(error))
                self._failed = str(error)
            else:
                self._proved_ns, self._failed = now_ns, ""

    async def _save(self) -> None:
        view, version = self._view, self._view.version
        body = fleet.encode(
            StoredView(
                site=view.own_site, control_key=view.control_key, proved_at=self._proved_at(),
                view=view.entries, replicas=view.replica_entries,
                digests={
                    site: digest for site, digest in self._digests.items()
                    if view.site(SiteName(site)) is not None
                },
            )
        )
        digest = sha256(body).digest()
        await self._disk.save(NAME, _MAGIC + digest + body)
        self._version, self._digest = version, digest

    async def _prove(self) -> None:
        proof = Proof(digest=self._digest, proved_at=self._proved_at())
        await self._disk.save(PROOF_NAME, fleet.encode(proof))

    def _proved_at(self) -> int:
        age_s = self._view.age_s
        return self._clock.wall_ns() - int(age_s * 1e9) if math.isfinite(age_s) else 0

    def _open(self, data: bytes) -> tuple[StoredView, bytes]:
        """The stored view and its digest; raises Untrusted for a damaged file or another's."""
        if not data.startswith(_MAGIC):
            raise Untrusted("the file holds something else")
        body = data[len(_MAGIC) + _DIGEST_BYTES :]
        digest = data[len(_MAGIC) : len(_MAGIC) + _DIGEST_BYTES]
        if sha256(body).digest() != digest:
            raise Untrusted("the file is damaged")
        stored = fleet.decode(body, StoredView)
        if stored.site != self._view.own_site:
            raise Untrusted(f"it is the view of {stored.site}")
        if stored.control_key != self._view.control_key:
            raise Untrusted("it comes from another cloud")
        return stored, digest

    def _proof_of(self, digest: bytes) -> int:
        """When the view with this digest was last proved current; 0 where nothing says so."""
        try:
            proof = fleet.decode(self._disk.read(PROOF_NAME), Proof)
        except (OSError, Untrusted):
            return 0
        return proof.proved_at if proof.digest == digest else 0


def _rounded(age_s: float) -> float | None:
    return round(age_s, 1) if math.isfinite(age_s) else None

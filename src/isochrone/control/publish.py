"""Publishes what gateways and agents are told: brings the buckets in line with the book.

Load a snapshot of the book, decide which entries differ from what the buckets hold, sign those and
put them. A round runs at every change (`wake`) and every few seconds anyway. One copy of control
publishes at a time: it holds a lease, and the serials of its entries are drawn under the lease's
epoch, so a copy that was frozen cannot overwrite newer entries under a newer serial.
"""

import asyncio
from collections.abc import Mapping

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from isochrone.control.entries import (
    Differences,
    Noun,
    Place,
    differences,
    wanted_entries,
    with_serial,
)
from isochrone.control.mirror import Mirror
from isochrone.control.offload import Offload
from isochrone.control.pausing import pause
from isochrone.core.errors import Conflict, MessageTooLarge, Unavailable
from isochrone.ports.bus import Bus
from isochrone.ports.clock import Clock
from isochrone.ports.leases import Lease
from isochrone.ports.registry import Registry
from isochrone.wire import fleet, subjects

LEASE = "publisher"
LEASE_TTL_NS = 10_000_000_000
INTERVAL_S = 2.0
RETRY_S = 0.5
SILENCE_NS = 4_000_000_000  # heartbeats of a watched bucket come every second
SYNC_TIMEOUT_S = 5.0

log = structlog.get_logger()


class Publisher:
    """The publishing loop of one copy of control, which is named `holder`."""

    def __init__(
        self,
        registry: Registry,
        bus: Bus,
        *,
        clock: Clock,
        signer: Ed25519PrivateKey,
        holder: str,
        offload: Offload,
    ) -> None:
        self._registry = registry
        self._bus = bus
        self._clock = clock
        self._signer = signer
        self._holder = holder
        self._offload = offload
        self._changed = asyncio.Event()
        self._lease: Lease | None = None
        self._renew_ns = 0  # monotonic: a wall clock that jumps must not make a lease last
        self._mirrors: dict[str, Mirror] = {}
        self.rounds = 0

    def wake(self) -> None:
        """Publish now; call it on the loop's own thread."""
        self._changed.set()

    async def run(self) -> None:
        """Publish until cancelled; outages of the book and the bus are waited out."""
        try:
            while True:
                pause_s = INTERVAL_S
                try:
                    await self.publish()
                except (Unavailable, TimeoutError) as error:
                    log.warning("publishing_waits", reason=str(error) or "the bus is silent")
                    pause_s = RETRY_S
                except Conflict as error:
                    log.warning("publishing_lease_lost", reason=str(error))
                    self._lease = None
                await pause(self._changed, pause_s)
        finally:
            for mirror in self._mirrors.values():
                await mirror.close()

    async def resign(self) -> None:
        """Give the lease up, so that another copy takes over at once."""
        lease, self._lease = self._lease, None
        if lease is not None:
            await self._offload(lambda: self._registry.leases.release(lease))

    async def publish(self) -> bool:
        """One round; False when another copy publishes. Raises Unavailable or Conflict."""
        self._changed.clear()
        lease = await self._hold_lease()
        if lease is None:
            return False
        estate, now = self._registry.estate, self._clock.wall_ns()
        wanted = await self._offload(lambda: wanted_entries(estate.snapshot(now=now)))
        await self._follow(wanted)
        held: dict[Place, bytes | None] = {}
        for mirror in self._mirrors.values():
            held.update(mirror.held)
        await self._apply(lease, differences(wanted, held))
        self.rounds += 1
        return True

    async def _hold_lease(self) -> Lease | None:
        now, asked_ns, lease = self._clock.wall_ns(), self._clock.monotonic_ns(), self._lease
        leases = self._registry.leases
        if lease is not None and asked_ns < self._renew_ns:
            return lease
        if lease is None:
            self._lease = await self._offload(
                lambda: leases.take(LEASE, self._holder, now=now, ttl_ns=LEASE_TTL_NS)
            )
        else:
            held = lease
            self._lease = await self._offload(
                lambda: leases.renew(held, now=now, ttl_ns=LEASE_TTL_NS)
            )
        self._renew_ns = asked_ns + LEASE_TTL_NS // 2
        return self._lease

    async def _follow(self, wanted: Mapping[Place, Noun]) -> None:
        """Make sure that every bucket exists and is watched."""
        for bucket in sorted({place.bucket for place in wanted} | {subjects.VIEW_BUCKET}):
            mirror = self._mirrors.get(bucket)
            if mirror is None:
                prefix = "" if bucket == subjects.VIEW_BUCKET else subjects.DESIRED_KEY
                mirror = Mirror(bucket, prefix, self._signer.public_key(), on_loss=self.wake)
                self._mirrors[bucket] = mirror
            if mirror.silent_ns(self._clock.monotonic_ns()) > SILENCE_NS:
                # New, or the server came back without its buckets.
                await self._bus.ensure_bucket(bucket)
            async with asyncio.timeout(SYNC_TIMEOUT_S):
                await mirror.follow(self._bus)

    async def _apply(self, lease: Lease, changes: Differences) -> None:
        if changes.puts:
            above = max(mirror.serial for mirror in self._mirrors.values())
            first = await self._offload(
                lambda: self._registry.leases.serials(lease, len(changes.puts), above=above)
            )
            for serial, (place, noun) in enumerate(changes.puts, first):
                try:
                    await self._put(place, with_serial(noun, serial), serial)
                except MessageTooLarge as error:
                    # Readers keep the one before it; all others are told, revocations too.
                    log.error("entry_not_published", key=place.key, reason=error.message)
        for place in changes.deletes:
            await self._bus.delete(place.bucket, place.key)
            self._mirrors[place.bucket].deleted(place)
        if changes.puts or changes.deletes:
            log.info("published", puts=len(changes.puts), deletes=len(changes.deletes))

    async def _put(self, place: Place, noun: Noun, serial: int) -> None:
        value = fleet.sign(
            noun, bucket=place.bucket, key=place.key, serial=serial, signer=self._signer
        )
        await self._bus.put(place.bucket, place.key, value)
        self._mirrors[place.bucket].put(place, noun, serial)

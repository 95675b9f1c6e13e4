"""Mirror: what one bucket holds just now, by content, kept by watching it.

The publisher compares with this instead of with its memory, so a bucket that was lost, restored
from a backup or changed by a stranger is found and repaired.
"""

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from isochrone.control.entries import Noun, Place, content, kind_of
from isochrone.core.errors import Untrusted
from isochrone.ports.bus import Bus, Entry, Watch
from isochrone.wire import fleet

NEVER_NS = 1 << 62


class Mirror:
    """The entries of `bucket` under `prefix` ('' is all) that control is responsible for.

    `held` has the content of each entry, None where it is not validly signed; `serial` is the
    highest serial among valid entries. `on_loss` is called when an entry vanished that this copy of
    control did not remove.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        verifier: Ed25519PublicKey,
        *,
        on_loss: Callable[[], None],
    ) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._verifier = verifier
        self._on_loss = on_loss
        self._watch: Watch | None = None
        self.held: dict[Place, bytes | None] = {}
        self.serial = 0

    async def follow(self, bus: Bus) -> None:
        """Start to watch and wait for the first listing. Raises BusUnavailable."""
        if self._watch is None:
            self._watch = await bus.watch(self._bucket, self._prefix, self._on_entry)
        await self._watch.synced()

    def silent_ns(self, now_ns: int) -> int:
        """How long the bucket has given no sign of life; for ever when it is not watched yet."""
        return NEVER_NS if self._watch is None else now_ns - self._watch.heard_ns

    async def close(self) -> None:
        if self._watch is not None:
            await self._watch.close()

    def put(self, place: Place, noun: Noun, serial: int) -> None:
        """Note what was just stored, ahead of the watch."""
        self.held[place] = content(noun)
        self.serial = max(self.serial, serial)

    def deleted(self, place: Place) -> None:
        """Note what was just removed, ahead of the watch."""
        self.held.pop(place, None)

    def _on_entry(self, entry: Entry) -> None:
        place = Place(self._bucket, entry.key)
        if entry.value is None:
            if place in self.held:
                del self.held[place]
                self._on_loss()
            return
        kind = kind_of(place)
        if kind is None:
            self.held[place] = None
            return
        try:
            noun, serial = fleet.open_signed(
                entry.value, kind, bucket=place.bucket, key=place.key, verifier=self._verifier
            )
        except Untrusted:
            self.held[place] = None
            return
        self.put(place, noun, serial)

"""The Bus port inside one process: buckets in memory, durable messages appended to a file.

A gateway that runs alone is told everything by its own process, so this bus is never away. What is
retained for a subject is told to whoever subscribes later, as nobody says it again. Watches and
subscriptions hear of a change before the call that made it returns.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from isochrone.core.errors import BusUnavailable
from isochrone.ports.bus import Durable, Entry
from isochrone.ports.clock import Clock


class DurableStore(Protocol):
    """Where durable messages go. Raises BusUnavailable."""

    async def store(
        self, subject: str, payload: bytes, *, message_id: str, timeout_s: float
    ) -> None:
        """Return once it is safe; the same `message_id` again is stored once."""
        ...

    async def close(self) -> None: ...


class NoStore:
    """Durable messages go nowhere: the file of the gateway says so."""

    async def store(
        self, subject: str, payload: bytes, *, message_id: str, timeout_s: float
    ) -> None:
        return

    async def close(self) -> None:
        return


class AloneSubscription:
    """Interest in one subject, or in all with the same first part (`digest.*`)."""

    def __init__(
        self, bus: "AloneBus", pattern: str, on_message: Callable[[str, bytes], None]
    ) -> None:
        self._bus = bus
        self._pattern = pattern
        self._on_message = on_message

    def hear(self, subject: str, payload: bytes) -> None:
        head, _, last = self._pattern.rpartition(".")
        if subject == self._pattern or (last == "*" and subject.rpartition(".")[0] == head):
            self._on_message(subject, payload)

    async def close(self) -> None:
        self._bus.subscriptions.discard(self)


class AloneWatch:
    """A followed bucket; always current once there is such a bucket."""

    def __init__(
        self, bus: "AloneBus", bucket: str, prefix: str, on_entry: Callable[[Entry], None]
    ) -> None:
        self._bus = bus
        self._bucket = bucket
        self._prefix = prefix
        self._on_entry = on_entry
        self._listed = asyncio.Event()

    async def synced(self) -> None:
        await self._listed.wait()

    @property
    def heard_ns(self) -> int:
        return self._bus.clock.monotonic_ns() if self._listed.is_set() else 0

    def begin(self, bucket: str, entries: Sequence[Entry]) -> None:
        """The bucket exists: take its listing."""
        for entry in entries:
            self.hear(bucket, entry)
        if bucket == self._bucket:
            self._listed.set()

    def hear(self, bucket: str, entry: Entry) -> None:
        key, prefix = entry.key, self._prefix
        if bucket == self._bucket and (
            not prefix or key == prefix or key.startswith(f"{prefix}.")
        ):
            self._on_entry(entry)

    async def close(self) -> None:
        self._bus.watches.pop(self, None)


class AloneBus:
    """Implements ports.bus.Bus for one gateway. One event loop only."""

    def __init__(self, clock: Clock, store: DurableStore) -> None:
        self.clock = clock
        self.subscriptions: set[AloneSubscription] = set()
        self.watches: dict[AloneWatch, None] = {}
        self._store = store
        self._buckets: dict[str, dict[str, Entry]] = {}
        self._retained: dict[str, bytes] = {}
        self._revision = 0
        self._closed = False

    @property
    def connected(self) -> bool:
        return not self._closed

    async def publish(self, subject: str, payload: bytes) -> None:
        for subscription in list(self.subscriptions):
            subscription.hear(subject, payload)

    async def retain(self, subject: str, payload: bytes) -> None:
        """Publish, and tell it to later subscribers too until something else is retained."""
        self._retained[subject] = payload
        await self.publish(subject, payload)

    async def subscribe(
        self, subject: str, on_message: Callable[[str, bytes], None]
    ) -> AloneSubscription:
        subscription = AloneSubscription(self, subject, on_message)
        self.subscriptions.add(subscription)
        for known, payload in list(self._retained.items()):
            subscription.hear(known, payload)
        return subscription

    async def publish_durable(
        self, subject: str, payload: bytes, *, message_id: str, timeout_s: float = 2.0
    ) -> None:
        if self._closed:
            raise BusUnavailable(f"{subject}: the bus is closed")
        await self._store.store(subject, payload, message_id=message_id, timeout_s=timeout_s)

    async def pull(
        self, stream: str, consumer: str, *, most: int, wait_s: float
    ) -> Sequence[Durable]:
        raise BusUnavailable(f"{stream}: a gateway alone keeps durable messages in a file")

    async def ack(self, messages: Sequence[Durable]) -> None:
        if messages:
            raise BusUnavailable("a gateway alone keeps durable messages in a file")

    async def put(self, bucket: str, key: str, value: bytes) -> None:
        self._change(bucket, key, value)

    async def delete(self, bucket: str, key: str) -> None:
        self._change(bucket, key, None)

    async def keys(self, bucket: str) -> Sequence[str]:
        return sorted(self._bucket(bucket))

    async def ensure_bucket(self, bucket: str) -> None:
        if bucket not in self._buckets:
            self._buckets[bucket] = {}
            for watch in list(self.watches):
                watch.begin(bucket, ())

    async def ensure_stream(self, stream: str, subjects: Sequence[str], consumer: str) -> None:
        """Every durable subject has its place already."""

    async def watch(
        self, bucket: str, prefix: str, on_entry: Callable[[Entry], None]
    ) -> AloneWatch:
        watch = AloneWatch(self, bucket, prefix, on_entry)
        self.watches[watch] = None
        if bucket in self._buckets:
            watch.begin(bucket, list(self._buckets[bucket].values()))
        return watch

    async def close(self) -> None:
        """Nothing is heard any more; durable messages on their way are written first."""
        if not self._closed:
            self._closed = True
            self.subscriptions.clear()
            self.watches.clear()
            await self._store.close()

    def _bucket(self, bucket: str) -> dict[str, Entry]:
        found = self._buckets.get(bucket)
        if found is None:
            raise BusUnavailable(f"{bucket}: there is no such bucket")
        return found

    def _change(self, bucket: str, key: str, value: bytes | None) -> None:
        entries = self._bucket(bucket)
        self._revision += 1
        entry = Entry(key=key, value=value, revision=self._revision)
        if value is None:
            if entries.pop(key, None) is None:
                return
        else:
            entries.pop(key, None)  # listings are in the order of changes
            entries[key] = entry
        for watch in list(self.watches):
            watch.hear(bucket, entry)

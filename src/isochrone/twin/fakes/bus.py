"""The Bus port in memory: one `FakeHub` stands for NATS, one `FakeBus` for each process's login.

Deterministic on any loop: no threads, no wall clock, no chance; deliveries keep their order and
may be given a latency. Faults: the hub or one bus goes down, a bucket is lost, a reply is lost
after the change was made, a durable message is delivered twice, a stream is full, plain messages
are lost, late, doubled or out of order (`copies`). Unlike NATS it
has no permissions, and a watch is current (`heard_ns`) while its bus is up, without heartbeats.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from isochrone.core.errors import BusUnavailable, MessageTooLarge
from isochrone.ports.bus import Durable, Entry
from isochrone.ports.clock import Clock

NOTICE_S = 2.5  # how long a watch needs to find that its bucket was made again
DUPLICATE_WINDOW_S = 120.0
_NS_PER_S = 1_000_000_000
_CALL_S = 5.0
_ANSWER_S = 2.0


@dataclass(slots=True, kw_only=True)
class _Bucket:
    """Current values with their revisions."""

    values: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    revision: int = 0


@dataclass(slots=True, kw_only=True)
class _Stored:
    """One message of a stream; `free_at` is when an unacknowledged delivery is offered again."""

    subject: str
    message_id: str
    payload: bytes
    delivered: int = 0
    free_at: float = 0.0


@dataclass(slots=True, kw_only=True)
class _Stream:
    """A work queue: messages leave when they are acknowledged."""

    subjects: tuple[str, ...]
    consumers: set[str]
    messages: dict[int, _Stored] = field(default_factory=dict)
    sequence: int = 0
    stored_at: dict[str, float] = field(default_factory=dict)
    full: bool = False

    def forget_ids(self, *, before_s: float) -> None:
        """Drop message ids that left the duplicate window; they are kept in order of time."""
        while self.stored_at and next(iter(self.stored_at.values())) < before_s:
            del self.stored_at[next(iter(self.stored_at))]


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject falls under a pattern with `*` (one token) and a final `>` (the rest)."""
    wanted, given = pattern.split("."), subject.split(".")
    for place, token in enumerate(wanted):
        if token == ">":
            return len(given) > place
        if place >= len(given) or token not in ("*", given[place]):
            return False
    return len(wanted) == len(given)


class FakeHub:
    """What all buses share: buckets, streams and who listens."""

    def __init__(
        self, clock: Clock, *, latency_ms: float = 0.0, redeliver_after_s: float = 15.0
    ) -> None:
        self.clock = clock
        self.latency_s = latency_ms / 1000
        self.redeliver_after_s = redeliver_after_s
        self.is_up = True
        self.message_bytes_most = 8 << 20
        self.buckets: dict[str, _Bucket] = {}
        self.streams: dict[str, _Stream] = {}
        self.buses: list[FakeBus] = []
        # By how many s each copy of a plain message is late that goes to one subscription; none:
        # it is lost.
        self.copies: Callable[[], Sequence[float]] = lambda: (0.0,)
        self._waiting: list[asyncio.Future[None]] = []

    def bus(self) -> "FakeBus":
        """The login of one more process."""
        bus = FakeBus(self)
        self.buses.append(bus)
        return bus

    def down(self) -> None:
        """NATS is away; buckets and streams survive."""
        self.is_up = False
        for bus in self.buses:
            bus.lost()

    def up(self) -> None:
        self.is_up = True
        for bus in self.buses:
            bus.found()

    def lose_bucket(self, bucket: str) -> None:
        """The bucket and all that is in it is gone; watches do not hear of it."""
        del self.buckets[bucket]

    def fill_stream(self, stream: str, *, full: bool = True) -> None:
        """A full stream refuses new messages."""
        self.streams[stream].full = full

    def changed(self) -> None:
        """Wake whoever waits for a connection or a message."""
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def change(self, timeout_s: float) -> None:
        """Return at the next change, or after `timeout_s`."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await asyncio.wait([waiter], timeout=max(timeout_s, 0.0))

    def deliver(self, subject: str, payload: bytes) -> None:
        """Hand a plain message to every subscription under whose pattern it falls."""
        for bus in self.buses:
            for subscription in bus.subscriptions:
                if matches(subscription.pattern, subject):
                    for late_s in self.copies():
                        bus.later(subscription.receive, subject, payload, late_s=late_s)

    def tell(self, bucket: str, entry: Entry) -> None:
        """Tell every watch of the bucket of one change."""
        for bus in self.buses:
            for watch in bus.watches:
                if watch.bucket == bucket:
                    watch.hear(entry)


class FakeSubscription:
    """Interest of one bus in a subject pattern."""

    def __init__(
        self, bus: "FakeBus", pattern: str, on_message: Callable[[str, bytes], None]
    ) -> None:
        self._bus = bus
        self.pattern = pattern
        self._on_message = on_message

    def receive(self, subject: str, payload: bytes) -> None:
        if self in self._bus.subscriptions:
            self._on_message(subject, payload)

    async def close(self) -> None:
        if self in self._bus.subscriptions:
            self._bus.subscriptions.remove(self)


class FakeWatch:
    """A followed bucket: lists again whenever the connection or the bucket comes back."""

    def __init__(
        self, bus: "FakeBus", bucket: str, prefix: str, on_entry: Callable[[Entry], None]
    ) -> None:
        self._bus = bus
        self.bucket = bucket
        self._prefix = prefix
        self._on_entry = on_entry
        self._known: dict[str, int] = {}
        self._first = asyncio.Event()
        self._generation = 0
        self._follows: _Bucket | None = None
        self._heard_ns = 0

    async def synced(self) -> None:
        await self._first.wait()

    @property
    def heard_ns(self) -> int:
        if self._current():
            self._heard_ns = self._bus.hub.clock.monotonic_ns()
        return self._heard_ns

    async def close(self) -> None:
        self._generation += 1
        if self in self._bus.watches:
            self._bus.watches.remove(self)

    def _current(self) -> bool:
        bucket = self._bus.hub.buckets.get(self.bucket)
        return (
            self._bus.connected and bucket is not None and bucket is self._follows
            and self in self._bus.watches
        )

    def relist(self) -> None:
        """Start a new generation; what the old one still had on its way is ignored."""
        self._generation += 1
        self._bus.later(self._list, self._generation)

    def lost(self) -> None:
        """The connection is gone: remember until when this was current."""
        if self._follows is not None and self in self._bus.watches:
            self._heard_ns = self._bus.hub.clock.monotonic_ns()
        self._generation += 1
        self._follows = None

    def hear(self, entry: Entry) -> None:
        """One change was made to the bucket."""
        if self._current() and self._wants(entry.key):
            self._bus.later(self._receive, self._generation, entry)

    def _wants(self, key: str) -> bool:
        return not self._prefix or key == self._prefix or key.startswith(f"{self._prefix}.")

    def _receive(self, generation: int, entry: Entry) -> None:
        if generation != self._generation:
            return
        if entry.value is not None:
            self._known[entry.key] = entry.revision
        elif self._known.pop(entry.key, None) is None:
            return
        self._on_entry(entry)

    def _list(self, generation: int) -> None:
        bucket = self._bus.hub.buckets.get(self.bucket)
        if generation != self._generation or bucket is None or not self._bus.connected:
            return
        self._follows = bucket
        listing = sorted(bucket.values.items(), key=lambda item: item[1][1])
        seen = {key for key, _ in listing}
        for key, (value, revision) in listing:
            if self._wants(key):
                self._receive(generation, Entry(key=key, value=value, revision=revision))
        for key in [key for key in self._known if key not in seen]:
            self._receive(generation, Entry(key=key, value=None, revision=self._known[key]))
        self._heard_ns = self._bus.hub.clock.monotonic_ns()
        self._first.set()


class FakeBus:
    """Implements ports.bus.Bus over a FakeHub; made by `FakeHub.bus`."""

    def __init__(self, hub: FakeHub) -> None:
        self.hub = hub
        self.subscriptions: list[FakeSubscription] = []
        self.watches: list[FakeWatch] = []
        self._cut = False
        self._closed = False
        self._connection = 0
        self._replies_to_lose = 0
        self._pulls_to_double = 0

    # Faults

    def down(self) -> None:
        """Cut this process off."""
        self._cut = True
        self.lost()

    def up(self) -> None:
        self._cut = False
        self.found()

    def lose_next_reply(self) -> None:
        """The next put, delete, durable publish or ack is done, but its reply never comes."""
        self._replies_to_lose += 1

    def double_next_pull(self) -> None:
        """The next pull with messages delivers each of them twice."""
        self._pulls_to_double += 1

    def lost(self) -> None:
        """The connection is gone (called by the hub)."""
        self._connection += 1
        for watch in self.watches:
            watch.lost()
        self.hub.changed()

    def found(self) -> None:
        """The connection may be there again (called by the hub)."""
        if self.connected:
            for watch in self.watches:
                watch.relist()
        self.hub.changed()

    # The port

    @property
    def connected(self) -> bool:
        return self.hub.is_up and not self._cut and not self._closed

    async def publish(self, subject: str, payload: bytes) -> None:
        if self.connected and len(payload) <= self.hub.message_bytes_most:
            self.hub.deliver(subject, payload)

    async def subscribe(
        self, subject: str, on_message: Callable[[str, bytes], None]
    ) -> FakeSubscription:
        subscription = FakeSubscription(self, subject, on_message)
        self.subscriptions.append(subscription)
        return subscription

    async def publish_durable(
        self, subject: str, payload: bytes, *, message_id: str, timeout_s: float = 2.0
    ) -> None:
        self._check_length(subject, payload)
        await self._reach(subject, timeout_s)
        stream = self._stream_of(subject)
        now_s = asyncio.get_running_loop().time()
        stream.forget_ids(before_s=now_s - DUPLICATE_WINDOW_S)
        if message_id not in stream.stored_at:
            if stream.full:
                raise BusUnavailable(f"{subject}: the stream refused it: maximum bytes exceeded")
            stream.stored_at[message_id] = now_s
            stream.sequence += 1
            stream.messages[stream.sequence] = _Stored(
                subject=subject, message_id=message_id, payload=payload
            )
            self.hub.changed()
        await self._reply(subject, timeout_s)

    async def pull(
        self, stream: str, consumer: str, *, most: int, wait_s: float
    ) -> Sequence[Durable]:
        await self._reach(stream, wait_s + _ANSWER_S)
        connection = self._connection
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + wait_s
        while True:
            queue = self.hub.streams.get(stream)
            if queue is None or consumer not in queue.consumers:
                raise BusUnavailable(f"{stream}: no stream or service takes it")
            got = self._take(stream, queue, most)
            if got or loop.time() >= ends_s:
                return got
            freed = [message.free_at for message in queue.messages.values()]
            await self.hub.change(min([ends_s, *freed]) - loop.time())
            if connection != self._connection:
                raise BusUnavailable(f"{stream}: the connection was lost before the answer")

    async def ack(self, messages: Sequence[Durable]) -> None:
        if not messages:
            return
        await self._reach("acknowledgement", _CALL_S)
        for message in messages:
            match message.receipt:
                case (str(stream), int(sequence)):
                    self.hub.streams[stream].messages.pop(sequence, None)
        await self._reply("acknowledgement", _CALL_S)

    async def put(self, bucket: str, key: str, value: bytes) -> None:
        self._check_length(f"{bucket}.{key}", value)
        await self._store(bucket, key, value)

    async def delete(self, bucket: str, key: str) -> None:
        await self._store(bucket, key, None)

    async def keys(self, bucket: str) -> Sequence[str]:
        await self._reach(bucket, _CALL_S)
        return sorted(self._bucket(bucket).values)

    async def ensure_bucket(self, bucket: str) -> None:
        await self._reach(bucket, _CALL_S)
        if bucket not in self.hub.buckets:
            self.hub.buckets[bucket] = _Bucket()
            loop = asyncio.get_running_loop()
            for bus in self.hub.buses:
                for watch in bus.watches:
                    if watch.bucket == bucket:
                        loop.call_later(NOTICE_S, watch.relist)

    async def ensure_stream(self, stream: str, subjects: Sequence[str], consumer: str) -> None:
        await self._reach(stream, _CALL_S)
        queue = self.hub.streams.setdefault(
            stream, _Stream(subjects=tuple(subjects), consumers=set())
        )
        queue.subjects = tuple(subjects)
        queue.consumers.add(consumer)

    async def watch(
        self, bucket: str, prefix: str, on_entry: Callable[[Entry], None]
    ) -> FakeWatch:
        watch = FakeWatch(self, bucket, prefix, on_entry)
        self.watches.append(watch)
        watch.relist()
        return watch

    async def close(self) -> None:
        self._closed = True
        self.subscriptions.clear()
        self.watches.clear()
        self.lost()

    # How messages travel

    def later(
        self, call: Callable[..., None], *arguments: object, late_s: float = 0.0
    ) -> None:
        """Call back after the latency and `late_s`, unless the connection is lost on the way."""
        loop = asyncio.get_running_loop()
        connection = self._connection

        def arrive() -> None:
            if connection == self._connection and self.connected:
                call(*arguments)

        if self.hub.latency_s + late_s > 0:
            loop.call_later(self.hub.latency_s + late_s, arrive)
        else:
            loop.call_soon(arrive)

    def _check_length(self, what: str, payload: bytes) -> None:
        if len(payload) > self.hub.message_bytes_most:
            raise MessageTooLarge(f"{what}: maximum payload exceeded")

    async def _reach(self, what: str, timeout_s: float) -> None:
        """Wait for the connection and for the way there. Raises BusUnavailable."""
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + timeout_s
        while not self.connected:
            if loop.time() >= ends_s or self._closed:
                raise BusUnavailable(f"{what}: NATS is not connected")
            await self.hub.change(ends_s - loop.time())
        await self._travel(what)

    async def _reply(self, what: str, timeout_s: float) -> None:
        if self._replies_to_lose:
            self._replies_to_lose -= 1
            await asyncio.sleep(timeout_s)
            raise BusUnavailable(f"{what}: no answer within {timeout_s:.1f} s")
        await self._travel(what)

    async def _travel(self, what: str) -> None:
        connection = self._connection
        await asyncio.sleep(self.hub.latency_s)
        if connection != self._connection:
            raise BusUnavailable(f"{what}: the connection was lost before the answer")

    async def _store(self, bucket: str, key: str, value: bytes | None) -> None:
        await self._reach(f"{bucket}/{key}", _CALL_S)
        found = self._bucket(bucket)
        found.revision += 1
        if value is None:
            found.values.pop(key, None)
        else:
            found.values[key] = (value, found.revision)
        self.hub.tell(bucket, Entry(key=key, value=value, revision=found.revision))
        await self._reply(f"{bucket}/{key}", _CALL_S)

    def _bucket(self, bucket: str) -> _Bucket:
        found = self.hub.buckets.get(bucket)
        if found is None:
            raise BusUnavailable(f"{bucket}: no stream or service takes it")
        return found

    def _stream_of(self, subject: str) -> _Stream:
        for stream in self.hub.streams.values():
            if any(matches(pattern, subject) for pattern in stream.subjects):
                return stream
        raise BusUnavailable(f"{subject}: no stream or service takes it")

    def _take(self, stream: str, queue: _Stream, most: int) -> list[Durable]:
        now_s = asyncio.get_running_loop().time()
        got: list[Durable] = []
        for sequence, message in queue.messages.items():
            if len(got) == most:
                break
            if message.free_at <= now_s:
                message.free_at = now_s + self.hub.redeliver_after_s
                message.delivered += 1
                got.append(
                    Durable(
                        subject=message.subject,
                        message_id=message.message_id,
                        payload=message.payload,
                        receipt=(stream, sequence),
                        delivered=message.delivered,
                    )
                )
        if got and self._pulls_to_double:
            self._pulls_to_double -= 1
            got += got
        return got

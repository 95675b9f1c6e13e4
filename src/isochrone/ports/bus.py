"""Bus: subjects, durable streams and watched buckets; live on NATS, in memory for the twin.

Failures: methods that need the server raise BusUnavailable after their deadline. `publish` never
raises for a lost connection: it drops (digests are replaced a second later). Handlers are plain
functions called on the event loop; they must not block.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One change of a bucket; `value` is None for a deletion."""

    key: str
    value: bytes | None
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Durable:
    """One message of a durable stream; `receipt` is what `ack` wants back, opaque to callers."""

    subject: str
    message_id: str | None
    payload: bytes
    receipt: object
    delivered: int


class Watch(Protocol):
    """A bucket followed for ever: after an interruption it lists again and sweeps what vanished."""

    async def synced(self) -> None:
        """Return when the first full listing has been delivered."""
        ...

    @property
    def heard_ns(self) -> int:
        """Monotonic instant of the last proof of being current (listing, entry, heartbeat)."""
        ...

    async def close(self) -> None: ...


class Subscription(Protocol):
    async def close(self) -> None: ...


class Bus(Protocol):
    @property
    def connected(self) -> bool: ...

    async def publish(self, subject: str, payload: bytes) -> None: ...

    async def subscribe(
        self, subject: str, on_message: Callable[[str, bytes], None]
    ) -> Subscription: ...

    async def publish_durable(
        self, subject: str, payload: bytes, *, message_id: str, timeout_s: float = 2.0
    ) -> None:
        """Return once the stream has stored it; the same `message_id` again is stored once."""
        ...

    async def pull(
        self, stream: str, consumer: str, *, most: int, wait_s: float
    ) -> Sequence[Durable]:
        """Up to `most` messages, empty after `wait_s` without any."""
        ...

    async def ack(self, messages: Sequence[Durable]) -> None: ...

    async def put(self, bucket: str, key: str, value: bytes) -> None:
        """Raises MessageTooLarge, too, where the server takes no message of that length."""
        ...

    async def delete(self, bucket: str, key: str) -> None: ...

    async def keys(self, bucket: str) -> Sequence[str]: ...

    async def ensure_bucket(self, bucket: str) -> None:
        """Make the bucket if it does not exist (control only)."""
        ...

    async def ensure_stream(self, stream: str, subjects: Sequence[str], consumer: str) -> None:
        """Make the durable stream (never discards old messages) and its pull consumer."""
        ...

    async def watch(
        self, bucket: str, prefix: str, on_entry: Callable[[Entry], None]
    ) -> Watch:
        """Follow keys of `bucket` that equal `prefix` or start with `prefix.`; '' follows all."""
        ...

    async def close(self) -> None: ...

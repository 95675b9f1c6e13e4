"""The Bus port on NATS: plain subjects, durable work queues and watched buckets of one user."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from random import Random

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from isochrone.adapters.nats import api
from isochrone.adapters.nats.connection import Connection
from isochrone.adapters.nats.identity import Credentials
from isochrone.adapters.nats.watcher import BucketWatch
from isochrone.core.errors import BusUnavailable
from isochrone.ports.bus import Durable, Entry, Subscription, Watch
from isochrone.ports.clock import Clock

_PUT_S = 5.0
_LIST_S = 10.0
_ACK_S = 5.0
_ANSWER_S = 2.0
_MARKER_LIFE = "24h"
ACK_WAIT_S = 15.0  # what a killed reader held comes back; much later would look like loss


class NatsBus:
    """Implements ports.bus.Bus; made by `open_bus`."""

    def __init__(
        self, connection: Connection, *, clock: Clock, rng: Random, ack_wait_s: float = ACK_WAIT_S
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._rng = rng
        self._ack_wait_s = ack_wait_s
        self._watches: list[BucketWatch] = []

    @property
    def connected(self) -> bool:
        return self._connection.client is not None

    @property
    def refused(self) -> int:
        """Publishes and subscriptions that the server did not allow since the start."""
        return self._connection.refused

    async def publish(self, subject: str, payload: bytes) -> None:
        client = self._connection.client
        if client is not None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await client.publish(subject, payload)

    async def subscribe(
        self, subject: str, on_message: Callable[[str, bytes], None]
    ) -> Subscription:
        async def receive(message: Msg) -> None:
            on_message(message.subject, message.data)

        return await self._connection.add(subject, receive)

    async def publish_durable(
        self, subject: str, payload: bytes, *, message_id: str, timeout_s: float = 2.0
    ) -> None:
        headers = {"Nats-Msg-Id": message_id}
        answer = await self._connection.request(
            subject, payload, timeout_s=timeout_s, headers=headers
        )
        api.stored(answer, subject)

    async def pull(
        self, stream: str, consumer: str, *, most: int, wait_s: float
    ) -> Sequence[Durable]:
        subject = f"{api.API}.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        async with self._connection.deadline(wait_s + _ANSWER_S, subject) as wait:
            client = await self._connection.live()
            wait.sent = True
            fetch = _Fetch(client, subject, self._connection.new_inbox())
            async with fetch:
                got = await fetch.now(most)
                if not got and wait_s > 0:
                    got = await fetch.first(wait_s)
                    if got and most > 1:
                        got += await fetch.now(most - 1)
                return got

    async def ack(self, messages: Sequence[Durable]) -> None:
        if not messages:
            return
        client = self._connection.client
        for message in messages[:-1]:
            if client is not None:
                with contextlib.suppress(nats.errors.Error):
                    await client.publish(str(message.receipt), b"+ACK")
        # The server handles one connection's messages in order: its answer covers all before.
        await self._connection.request(str(messages[-1].receipt), b"+ACK", timeout_s=_ACK_S)

    async def put(self, bucket: str, key: str, value: bytes) -> None:
        await self._store(bucket, key, value, None)

    async def delete(self, bucket: str, key: str) -> None:
        await self._store(bucket, key, b"", {"KV-Operation": "DEL", "Nats-TTL": _MARKER_LIFE})

    async def _store(
        self, bucket: str, key: str, value: bytes, headers: dict[str, str] | None
    ) -> None:
        subject = f"$KV.{bucket}.{key}"
        answer = await self._connection.request(
            subject, value, timeout_s=_PUT_S, headers=headers
        )
        api.stored(answer, subject)

    async def keys(self, bucket: str) -> Sequence[str]:
        found: set[str] = set()

        def on_entry(entry: Entry) -> None:
            (found.discard if entry.value is None else found.add)(entry.key)

        watch = await self.watch(bucket, "", on_entry)
        try:
            async with asyncio.timeout(_LIST_S):
                await watch.synced()
        except TimeoutError as error:
            raise BusUnavailable(f"bucket {bucket} could not be listed in {_LIST_S} s") from error
        finally:
            await watch.close()
        return sorted(found)

    async def ensure_bucket(self, bucket: str) -> None:
        await api.ensure_stream(self._connection, api.bucket_config(bucket))

    async def ensure_stream(self, stream: str, subjects: Sequence[str], consumer: str) -> None:
        await api.ensure_stream(self._connection, api.durable_config(stream, list(subjects)))
        await api.ensure_consumer(
            self._connection, stream, consumer, ack_wait_s=self._ack_wait_s
        )

    async def watch(
        self, bucket: str, prefix: str, on_entry: Callable[[Entry], None]
    ) -> Watch:
        watch = BucketWatch(
            self._connection, bucket, prefix, on_entry, clock=self._clock, rng=self._rng
        )
        watch.start()
        self._watches = [*(other for other in self._watches if not other.closed), watch]
        return watch

    async def close(self) -> None:
        for watch in self._watches:
            await watch.close()
        await self._connection.close()


class _Fetch:
    """Pull requests of one call, answered into an inbox of their own."""

    def __init__(self, client: Client, subject: str, inbox: str) -> None:
        self._client = client
        self._subject = subject
        self._inbox = inbox
        self._box: asyncio.Queue[Msg] = asyncio.Queue()

    async def __aenter__(self) -> None:
        self._subscription = await self._client.subscribe(self._inbox, cb=self._box.put)

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(nats.errors.Error):
            await self._subscription.unsubscribe()

    async def now(self, most: int) -> list[Durable]:
        """What is there already, at most `most`."""
        return await self._request(most, {"batch": most, "no_wait": True})

    async def first(self, wait_s: float) -> list[Durable]:
        """The next message, or none within `wait_s`."""
        return await self._request(1, {"batch": 1, "expires": int(wait_s * api.NS_PER_S)})

    async def _request(self, most: int, body: dict[str, object]) -> list[Durable]:
        await self._client.publish(self._subject, msgspec.json.encode(body), reply=self._inbox)
        got: list[Durable] = []
        while len(got) < most:
            message = await self._box.get()
            headers = message.headers or {}
            delivery = api.delivery_of(message.reply)
            if delivery is not None:
                got.append(
                    Durable(
                        subject=message.subject,
                        message_id=headers.get("Nats-Msg-Id"),
                        payload=message.data,
                        receipt=message.reply,
                        delivered=delivery.delivered,
                    )
                )
            elif headers.get("Status") in ("404", "408"):
                break
            elif headers.get("Status") == "503":
                raise nats.errors.NoRespondersError
            elif headers.get("Status") != "100":
                raise BusUnavailable(f"{self._subject}: {headers.get('Description', 'refused')}")
        return got


async def open_bus(
    urls: Sequence[str],
    credentials: Credentials,
    *,
    name: str,
    clock: Clock,
    rng: Random,
    wait_s: float = 5.0,
    ack_wait_s: float = ACK_WAIT_S,
) -> NatsBus:
    """Start a bus as the user of `credentials`; return once connected, or after `wait_s` anyway.

    A bus that is not connected yet goes on trying, so processes may start before NATS does.
    `ack_wait_s` matters to the maker of a durable stream only.
    """
    connection = Connection(urls, credentials, name=name, rng=rng)
    await connection.open(wait_s=wait_s)
    return NatsBus(connection, clock=clock, rng=rng, ack_wait_s=ack_wait_s)

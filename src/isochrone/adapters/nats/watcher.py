"""Follows one bucket for ever: lists it again after every doubt, never resumes.

Each *generation* is a new inbox and a push consumer that starts with the last value of every key.
While it lists, seen keys are marked; when nothing is pending, known keys without a mark are swept.
A generation ends when the connection is lost, a sequence jumps, or the heartbeat stays away; the
consumer of one watch always has the same random name and is deleted before the name is used again.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from random import Random

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from isochrone.adapters.nats import api
from isochrone.adapters.nats.connection import Connection, end
from isochrone.core.errors import BusUnavailable
from isochrone.ports.bus import Entry
from isochrone.ports.clock import Clock

HEARTBEAT_S = 1.0
SILENCE_S = 2.5
_KEEP_S = 30
_CREATE_S = 5.0
_DELETE_S = 1.0
_STEADY_S = 5.0
_BACK_OFF_S = (0.1, 5.0)


class BucketWatch:
    """One followed bucket; made and started by the bus."""

    def __init__(
        self,
        connection: Connection,
        bucket: str,
        prefix: str,
        on_entry: Callable[[Entry], None],
        *,
        clock: Clock,
        rng: Random,
    ) -> None:
        self._connection = connection
        self._bucket = bucket
        self._subjects = (
            [f"$KV.{bucket}.{prefix}", f"$KV.{bucket}.{prefix}.>"] if prefix else
            [f"$KV.{bucket}.>"]
        )
        self._on_entry = on_entry
        self._clock = clock
        self._rng = rng
        self._log = structlog.get_logger().bind(bucket=bucket)
        self._consumer = f"watch-{secrets.token_hex(12)}"
        self._made = False
        self._known: dict[str, int] = {}
        self._first = asyncio.Event()
        self._heard_ns = 0
        self._task: asyncio.Task[None] | None = None
        self._generation: _Generation | None = None
        self.closed = False

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"watch {self._bucket}")

    async def synced(self) -> None:
        """Return when the first full listing has been delivered."""
        await self._first.wait()

    @property
    def heard_ns(self) -> int:
        """Monotonic instant of the last proof of being current; 0 before the first listing."""
        return self._heard_ns

    async def close(self) -> None:
        """Deliver nothing more and let the server forget the consumer."""
        self.closed = True
        if self._task is not None:
            await end(self._task)
            self._task = None
            await self._delete()

    async def _run(self) -> None:
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            client = await self._connection.live()
            started = loop.time()
            try:
                reason = await self._follow(client)
            except (BusUnavailable, nats.errors.Error) as error:
                reason = str(error)
            failures = 0 if loop.time() - started > _STEADY_S else failures + 1
            self._log.info("bucket_relist", reason=reason, failures=failures)
            shortest, longest = _BACK_OFF_S
            pause_s = min(shortest * 2 ** min(failures, 10), longest)
            await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.0))

    async def _follow(self, client: Client) -> str:
        """Live one generation; return why it ended."""
        if self._made:
            await self._delete()
        generation = _Generation(self)
        self._generation = generation
        inbox = self._connection.new_inbox()
        subscription = await client.subscribe(inbox, cb=generation.receive)
        try:
            reply = await self._create(inbox)
            if reply.error is not None:
                return reply.error.description
            self._made = True
            if reply.num_pending == 0 and reply.delivered.consumer_seq == 0:
                generation.listed()
            return await self._until_doubt(generation)
        finally:
            self._generation = None
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def _until_doubt(self, generation: "_Generation") -> str:
        loop = asyncio.get_running_loop()
        lost = asyncio.create_task(self._connection.lost())
        ends: list[asyncio.Future[str]] = [lost, generation.doubt]
        try:
            while True:
                left_s = generation.heard_s + SILENCE_S - loop.time()
                if left_s <= 0:
                    return f"nothing heard for {SILENCE_S} s"
                done, _ = await asyncio.wait(
                    ends, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
                )
                for end in done:
                    return end.result()
        finally:
            lost.cancel()

    async def _create(self, inbox: str) -> api.ApiReply:
        stream = f"KV_{self._bucket}"
        subject = f"CONSUMER.CREATE.{stream}.{self._consumer}"
        config: dict[str, object] = {
            "name": self._consumer,
            "deliver_subject": inbox,
            "deliver_policy": "last_per_subject",
            "ack_policy": "none",
            "replay_policy": "instant",
            "flow_control": True,
            "idle_heartbeat": int(HEARTBEAT_S * api.NS_PER_S),
            "inactive_threshold": _KEEP_S * api.NS_PER_S,
            "mem_storage": True,
            "num_replicas": 1,
        }
        if len(self._subjects) == 1:
            config["filter_subject"] = self._subjects[0]
            subject = f"{subject}.{self._subjects[0]}"
        else:
            config["filter_subjects"] = self._subjects
        body = {"stream_name": stream, "config": config, "action": "create"}
        return await api.call(self._connection, subject, body, timeout_s=_CREATE_S)

    async def _delete(self) -> None:
        if not self._made:
            return
        subject = f"CONSUMER.DELETE.KV_{self._bucket}.{self._consumer}"
        with contextlib.suppress(BusUnavailable):  # it expires by itself
            await api.call(self._connection, subject, None, timeout_s=_DELETE_S)
            self._made = False

    def is_current(self, generation: "_Generation") -> bool:
        return self._generation is generation

    def key_of(self, subject: str) -> str:
        return subject[len(f"$KV.{self._bucket}.") :]

    def heard(self) -> None:
        self._heard_ns = self._clock.monotonic_ns()

    def deliver(self, entry: Entry) -> None:
        """Pass on one change; a deletion of what was never known is none."""
        if entry.value is not None:
            self._known[entry.key] = entry.revision
        elif self._known.pop(entry.key, None) is None:
            return
        self._on_entry(entry)

    def sweep(self, seen: set[str]) -> None:
        """Report as deleted what a complete listing did not contain."""
        for key in [key for key in self._known if key not in seen]:
            self.deliver(Entry(key=key, value=None, revision=self._known[key]))
        self.heard()
        self._first.set()


class _Generation:
    """One consumer's life: counts its sequence, marks what it lists, doubts what does not fit."""

    def __init__(self, watch: BucketWatch) -> None:
        self._watch = watch
        self._loop = asyncio.get_running_loop()
        self._sequence = 0
        self._seen: set[str] | None = set()
        self.heard_s = self._loop.time()
        self.doubt: asyncio.Future[str] = self._loop.create_future()

    def _suspect(self, reason: str) -> None:
        if not self.doubt.done():
            self.doubt.set_result(reason)

    async def receive(self, message: Msg) -> None:
        """Handle one message of the consumer: an entry, a heartbeat or a flow control request."""
        if not self._watch.is_current(self) or self.doubt.done():
            return
        self.heard_s = self._loop.time()
        headers = message.headers or {}
        delivery = api.delivery_of(message.reply)
        if delivery is not None:
            self._entry(message, headers, delivery)
        elif headers.get("Status") == "100":
            await self._control(message, headers)
        elif "Status" in headers:
            self._suspect(f"the consumer ended: {headers.get('Description', headers['Status'])}")

    async def _control(self, message: Msg, headers: dict[str, str]) -> None:
        answer_to = message.reply or headers.get("Nats-Consumer-Stalled")
        if answer_to:
            await message._client.publish(answer_to)
        if message.reply:
            return
        last = headers.get("Nats-Last-Consumer")
        if last is not None and int(last) != self._sequence:
            self._suspect(f"heartbeat at {last}, heard {self._sequence}")
        elif self._seen is None:
            self._watch.heard()

    def _entry(self, message: Msg, headers: dict[str, str], delivery: api.Delivery) -> None:
        if delivery.consumer_seq != self._sequence + 1:
            self._suspect(f"message {delivery.consumer_seq} after {self._sequence}")
            return
        self._sequence = delivery.consumer_seq
        key = self._watch.key_of(message.subject)
        gone = headers.get("KV-Operation") in ("DEL", "PURGE") or "Nats-Marker-Reason" in headers
        if self._seen is not None and not gone:
            self._seen.add(key)
        value = None if gone else message.data
        self._watch.deliver(Entry(key=key, value=value, revision=delivery.stream_seq))
        if self._seen is None:
            self._watch.heard()
        elif delivery.pending == 0:
            self.listed()

    def listed(self) -> None:
        """The listing is complete."""
        if self._seen is not None:
            seen, self._seen = self._seen, None
            self._watch.sweep(seen)

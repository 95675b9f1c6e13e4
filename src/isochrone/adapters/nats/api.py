"""Speaks JetStream's JSON interface: stream and consumer settings out, typed answers back.

Settings are sent in full and by subject names that carry stream, consumer and filter, so that a
site's permissions can say what it may read.
"""

from dataclasses import dataclass, field

import msgspec
from nats.aio.msg import Msg

from isochrone.adapters.nats.connection import Connection
from isochrone.core.errors import BusUnavailable

API = "$JS.API"
NAME_IN_USE = 10058
STREAM_NOT_FOUND = 10059
CONSUMER_NOT_FOUND = 10014
NS_PER_S = 1_000_000_000

DUPLICATE_WINDOW_S = 120
ACK_PENDING_MOST = 100_000
STREAM_BYTES = 4 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiError:
    """Why JetStream said no."""

    code: int = 0
    err_code: int = 0
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """How far a consumer has delivered."""

    consumer_seq: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiReply:
    """The fields that we read of any answer: `seq` of a stored message, the rest of consumers."""

    error: ApiError | None = None
    seq: int = 0
    num_pending: int = 0
    delivered: Delivered = field(default_factory=Delivered)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What the reply subject of a delivered message tells."""

    delivered: int
    stream_seq: int
    consumer_seq: int
    pending: int


def delivery_of(reply: str) -> Delivery | None:
    """Read `$JS.ACK.[domain.account.]stream.consumer.delivered.sseq.cseq.time.pending[.token]`."""
    tokens = reply.split(".")
    if tokens[:2] != ["$JS", "ACK"] or len(tokens) < 9:
        return None
    start = 4 if len(tokens) == 9 else 6
    delivered, stream_seq, consumer_seq, _, pending = (int(x) for x in tokens[start : start + 5])
    return Delivery(
        delivered=delivered, stream_seq=stream_seq, consumer_seq=consumer_seq, pending=pending
    )


def reply_of(message: Msg) -> ApiReply:
    """Decode an answer. Raises BusUnavailable when it is no JetStream answer."""
    try:
        return msgspec.json.decode(message.data, type=ApiReply)
    except msgspec.MsgspecError as error:
        raise BusUnavailable(f"not an answer of JetStream: {message.data[:80]!r}") from error


def stored(message: Msg, subject: str) -> int:
    """The stream sequence of an acknowledged publish. Raises BusUnavailable when refused."""
    reply = reply_of(message)
    if reply.error is not None:
        raise BusUnavailable(f"{subject}: the stream refused it: {reply.error.description}")
    return reply.seq


async def call(
    connection: Connection, subject: str, body: object, *, timeout_s: float = 5.0
) -> ApiReply:
    """One API request; the answer may hold an error. Raises BusUnavailable."""
    payload = b"" if body is None else msgspec.json.encode(body)
    answer = await connection.request(f"{API}.{subject}", payload, timeout_s=timeout_s)
    return reply_of(answer)


async def ensure_stream(connection: Connection, config: dict[str, object]) -> None:
    """Create the stream, or bring an existing one to these settings. Raises BusUnavailable."""
    name = config["name"]
    reply = await call(connection, f"STREAM.CREATE.{name}", config)
    if reply.error is not None and reply.error.err_code == NAME_IN_USE:
        reply = await call(connection, f"STREAM.UPDATE.{name}", config)
    if reply.error is not None:
        raise BusUnavailable(f"stream {name}: {reply.error.description}")


def bucket_config(bucket: str) -> dict[str, object]:
    """A key-value bucket with one value a key; markers of deletion may expire by themselves."""
    return {
        "name": f"KV_{bucket}",
        "subjects": [f"$KV.{bucket}.>"],
        "retention": "limits",
        "storage": "file",
        "max_msgs_per_subject": 1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_consumers": -1,
        "discard": "new",
        "allow_rollup_hdrs": True,
        "allow_direct": True,
        "allow_msg_ttl": True,
        "deny_delete": True,
        "num_replicas": 1,
        "duplicate_window": DUPLICATE_WINDOW_S * NS_PER_S,
    }


def durable_config(stream: str, subjects: list[str]) -> dict[str, object]:
    """A stream that keeps each message until it is acknowledged, and refuses new ones when full."""
    return {
        "name": stream,
        "subjects": subjects,
        "retention": "workqueue",
        "storage": "file",
        "max_msgs": -1,
        "max_bytes": STREAM_BYTES,
        "max_consumers": -1,
        "discard": "new",
        "num_replicas": 1,
        "duplicate_window": DUPLICATE_WINDOW_S * NS_PER_S,
    }


async def ensure_consumer(
    connection: Connection, stream: str, consumer: str, *, ack_wait_s: float
) -> None:
    """Make the pull consumer of a durable stream: each message is acknowledged on its own.

    What is not acknowledged within `ack_wait_s` is delivered again.
    """
    config = {
        "durable_name": consumer,
        "name": consumer,
        "ack_policy": "explicit",
        "ack_wait": int(ack_wait_s * NS_PER_S),
        "max_ack_pending": ACK_PENDING_MOST,
        "max_deliver": -1,
        "deliver_policy": "all",
        "replay_policy": "instant",
        "num_replicas": 0,
    }
    body = {"stream_name": stream, "config": config}
    reply = await call(connection, f"CONSUMER.CREATE.{stream}.{consumer}", body)
    if reply.error is not None:
        raise BusUnavailable(f"consumer {consumer} of {stream}: {reply.error.description}")

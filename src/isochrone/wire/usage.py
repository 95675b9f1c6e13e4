"""What a gateway writes down about one request: records that journal and usage stream carry as is.

The one exception to "the nouns of `core` are the payload": these records are made and encoded on
the path of every request, so they are arrays without field names, built and packed in C. A newer
sender may add fields with defaults at the end; an older reader skips them. `event` gives the noun.
"""

from collections.abc import Iterable, Sequence

import msgspec

from isochrone.core.errors import Untrusted
from isochrone.core.ids import KeyId, ModelName, OrgId, ProjectId, ReplicaId, RequestId, SiteName
from isochrone.core.metering.event import (
    Endpoint,
    Outcome,
    Reporter,
    Tokens,
    TokenSource,
    UsageEvent,
)
from isochrone.core.routing.bond import Bond, HomeVerdict
from isochrone.core.routing.choice import (
    Because,
    Decision,
    Foretold,
    Ground,
    Refused,
    Stopped,
    UnpaidBecause,
)
from isochrone.core.world.tenant import Class
from isochrone.wire.fleet import UNREADABLE

VERSION = 2


class BondRecord(msgspec.Struct, frozen=True, gc=False):
    """`core.routing.bond.Bond`, as it is encoded, for a quarter of what that takes to be made."""

    cached_tokens: int
    prompt_tokens: int
    verdict: HomeVerdict = "none"
    home: SiteName | None = None
    limit_ms: float = 0.0

    def bond(self) -> Bond:
        return Bond(**msgspec.structs.asdict(self))


class DecisionRecord(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """`core.routing.choice.Decision`, field by field."""

    ground: str
    chosen: int
    costs_ms: bytes
    queues_ms: bytes
    prefill_ms: float
    decode_ms: float
    digest_age_ms: float
    predicted_ttft_ms: float | None
    actual_ttft_ms: float | None
    refused: tuple[Refused, ...]
    tried: tuple[Refused, ...] = ()
    decodes_ms: bytes = b""
    bond: BondRecord | None = None
    queued_ms: float = 0.0
    because: Because | None = None
    body_bytes: int = 0
    chosen_queue_ms: float = 0.0
    eligible: int = 0
    runner_up: int = -1
    runner_up_ms: float = 0.0
    wanted_class: Class | None = None
    key_class: Class | None = None
    unpaid_because: UnpaidBecause | None = None
    since_ms: float = 0.0
    foretold: tuple[Foretold, ...] = ()
    stops: tuple[Stopped, ...] = ()

    def decision(self) -> Decision:
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return Decision(**fields | {"bond": None if self.bond is None else self.bond.bond()})


class UsageRecord(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """`core.metering.event.UsageEvent`, field by field, the token counts in line."""

    request_id: RequestId
    org_id: OrgId
    project_id: ProjectId
    key_id: KeyId
    client_request_id: str | None
    endpoint: Endpoint
    stream: bool
    class_: Class
    model: ModelName
    revision: str | None
    ingress_site: SiteName
    ingress_country: str | None
    serving_site: SiteName | None
    serving_country: str | None
    replica: ReplicaId | None
    received_at: int
    finished_at: int
    chosen_ms: float | None
    sent_ms: float | None
    first_byte_ms: float | None
    total_ms: float
    input_uncached: int
    input_cached: int
    output: int
    token_source: TokenSource
    outcome: Outcome
    status: int
    reason: str | None
    reporter: Reporter
    attempts: int
    decision: DecisionRecord | None = None

    def event(self) -> UsageEvent:
        """The noun that control books."""
        fields = {
            name: getattr(self, name) for name in self.__struct_fields__ if name not in _INLINE
        }
        return UsageEvent(
            tokens=Tokens(
                input_uncached=self.input_uncached, input_cached=self.input_cached,
                output=self.output, source=self.token_source,
            ),
            decision=None if self.decision is None else self.decision.decision(),
            **fields,
        )


_INLINE = frozenset(("input_uncached", "input_cached", "output", "token_source", "decision"))


class Opening(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A request that is about to be served: enough to book it should nothing more be heard of it.

    `closing` is that report; a progress record may have counted tokens since.
    """

    request_id: RequestId
    org_id: OrgId
    project_id: ProjectId
    key_id: KeyId
    client_request_id: str | None
    endpoint: Endpoint
    stream: bool
    class_: Class
    model: ModelName
    revision: str | None
    ingress_site: SiteName
    ingress_country: str | None
    serving_site: SiteName | None
    serving_country: str | None
    replica: ReplicaId | None
    received_at: int
    attempts: int

    def closing(self, *, finished_at: int, tokens: Tokens, reporter: Reporter) -> UsageRecord:
        """The request was found open: its ingress died."""
        return UsageRecord(
            self.request_id, self.org_id, self.project_id, self.key_id, self.client_request_id,
            self.endpoint, self.stream, self.class_, self.model, self.revision,
            self.ingress_site, self.ingress_country, self.serving_site, self.serving_country,
            self.replica, self.received_at, finished_at, None, None, None,
            max(finished_at - self.received_at, 0) / 1e6,
            tokens.input_uncached, tokens.input_cached, tokens.output, tokens.source,
            "ingress_lost", 0, None, reporter, self.attempts,
        )


class UsageBatch(msgspec.Struct, array_like=True, frozen=True):
    """At most 100 records of one gateway, and every ground that their decisions name.

    `batch_id` is the durable message id.
    """

    version: int
    batch_id: str
    grounds: tuple[Ground, ...]
    events: tuple[UsageRecord, ...]


class RawBatch(msgspec.Struct, array_like=True, frozen=True):
    """`UsageBatch` as a gateway sends it: grounds and records as the journal holds them."""

    version: int
    batch_id: str
    grounds: msgspec.Raw
    events: msgspec.Raw


def encode_batch(batch_id: str, grounds: Iterable[bytes], events: Iterable[bytes]) -> bytes:
    """A `UsageBatch` of encoded grounds and records, none of which is looked at."""
    return msgspec.msgpack.encode(
        RawBatch(VERSION, batch_id, _encoded_array(grounds), _encoded_array(events))
    )


def _encoded_array(encoded: Iterable[bytes]) -> msgspec.Raw:
    """MessagePack's array 32 of what is encoded already."""
    items = list(encoded)
    return msgspec.Raw(b"\xdd" + len(items).to_bytes(4, "big") + b"".join(items))


def decode_batch(payload: bytes) -> tuple[Sequence[Ground], Sequence[UsageEvent]]:
    """The grounds and events of a batch; raises Untrusted when it is none that we read."""
    try:
        if payload.startswith(_FIRST):
            return (), [
                msgspec.convert({**event, "decision": None}, UsageEvent)
                for event in _decode_first(payload).events
            ]
        batch = _decode_batch(payload)
    except UNREADABLE as error:
        raise Untrusted(f"not a valid UsageBatch: {error}") from error
    if batch.version > VERSION:
        raise Untrusted(f"version {batch.version} is newer than {VERSION}, which we read")
    return batch.grounds, [record.event() for record in batch.events]


class _FirstBatch(msgspec.Struct):
    """A batch of version 1, whose events were maps. Their decisions had another shape: what was
    used is booked, why it ran where it ran is not shown."""

    events: list[dict[str, object]]


_FIRST = b"\x83"  # a map of three; batches since then are arrays
_decode_first = msgspec.msgpack.Decoder(_FirstBatch).decode
_decode_batch = msgspec.msgpack.Decoder(UsageBatch).decode

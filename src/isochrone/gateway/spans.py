"""Makes one span of each request that ended, by OpenTelemetry's conventions for generative AI.

A span is made from the request's record a moment after its end, so that tracing costs a request
next to nothing. Ids follow from the request: the trace is the client's where it sent a valid
`traceparent`, else the request id; a gateway's span id is a digest of request id and site. So the
spans of two gateways belong together although nothing about spans crosses the hop.
"""

import re
from collections.abc import Mapping
from hashlib import blake2b

from isochrone.core.metering.event import Endpoint
from isochrone.gateway.surface import PATHS
from isochrone.ports.telemetry import Scalar, Span, SpanCounts, SpanSink
from isochrone.wire.usage import UsageRecord

MOST_KEPT = 256
PROVIDER = "isochrone"

# https://www.w3.org/TR/trace-context/: version, trace id, parent id, flags; later versions may
# append to that.
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_WHOLE = 1 << 64

_OPERATIONS: Mapping[Endpoint, str] = {
    "chat.completions": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
    "responses": "chat",
    "messages": "chat",
}
_OURS = ("engine_lost", "timed_out", "engine_error", "refused")


class Spans:
    """`ratio` of all traces is kept, the same ones by every gateway. `host` and `port` are where
    this gateway listens; port 0 is not known."""

    def __init__(
        self, sink: SpanSink, *, site: str, host: str, port: int, ratio: float = 1.0
    ) -> None:
        self._sink = sink
        self._site = site
        self._server: dict[str, Scalar] = {"server.address": host}
        if port:
            self._server["server.port"] = port
        self._limit = int(ratio * _WHOLE)
        self._waiting: list[tuple[UsageRecord, bytes | None, int]] = []

    def ended(
        self, record: UsageRecord, headers: Mapping[bytes, bytes], continued: int = 0
    ) -> None:
        """A request of a known key came to its end; `headers` are those that it came with."""
        self._waiting.append((record, headers.get(b"traceparent"), continued))
        if len(self._waiting) >= MOST_KEPT:
            self.flush()

    def counts(self) -> SpanCounts:
        """What became of the spans so far."""
        return self._sink.counts()

    def flush(self) -> None:
        """Hand over what has gathered."""
        waiting, self._waiting = self._waiting, []
        for record, traceparent, continued in waiting:
            trace_id, parent_id = trace_of(record.request_id, traceparent)
            if trace_id % _WHOLE < self._limit:
                self._sink.take(self._span(record, trace_id, parent_id, continued))

    def _span(
        self, record: UsageRecord, trace_id: int, parent_id: int | None, continued: int
    ) -> Span:
        peer = record.reporter == "evidence"
        if peer:
            parent_id = span_id_of(record.request_id, record.ingress_site)
        operation = _OPERATIONS[record.endpoint]
        attributes = self._attributes(record, operation)
        if continued:
            attributes["isochrone.continued"] = continued
        error = None
        if record.outcome in _OURS and (record.status >= 500 or record.status == 200):
            error = record.reason or record.outcome
        return Span(
            name=f"{operation} {record.model}".rstrip(), trace_id=trace_id,
            span_id=span_id_of(record.request_id, self._site), parent_id=parent_id,
            began_at=record.received_at, ended_at=record.finished_at, attributes=attributes,
            error=error,
        )

    def _attributes(self, record: UsageRecord, operation: str) -> dict[str, Scalar]:
        attributes: dict[str, Scalar] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": record.model,
            "gen_ai.request.stream": record.stream,
            "gen_ai.usage.input_tokens": record.input_uncached + record.input_cached,
            "gen_ai.usage.cache_read.input_tokens": record.input_cached,
            "gen_ai.usage.output_tokens": record.output,
            **self._server,
            "http.request.method": "POST",
            "http.route": PATHS[record.endpoint],
            "http.response.status_code": record.status,
            "isochrone.request.id": record.request_id,
            "isochrone.key.id": record.key_id,
            "isochrone.class": record.class_,
            "isochrone.outcome": record.outcome,
            "isochrone.attempts": record.attempts,
            "isochrone.ingress": record.ingress_site,
            "isochrone.tokens.source": record.token_source,
        }
        if record.serving_site is not None:
            attributes["gen_ai.response.model"] = record.model
        if record.outcome not in ("finished", "client_gone"):
            attributes["error.type"] = record.reason or record.outcome
        if record.stream and record.first_byte_ms is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = record.first_byte_ms / 1000
        perhaps: dict[str, Scalar | None] = {
            "isochrone.site": record.serving_site,
            "isochrone.country": record.serving_country,
            "isochrone.replica": record.replica,
            "isochrone.revision": record.revision,
            "isochrone.reason": record.reason,
            "isochrone.sent_ms": record.sent_ms,
        }
        attributes.update({name: value for name, value in perhaps.items() if value is not None})
        return attributes


def trace_of(request_id: str, traceparent: bytes | None) -> tuple[int, int | None]:
    """(trace id, parent span id): the client's when its header is valid, else made of the id."""
    found = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
    if found is not None:
        version, trace, parent, rest = found.groups()
        trace_id, parent_id = int(trace, 16), int(parent, 16)
        fits = version != b"ff" and (version != b"00" or rest is None)
        if fits and trace_id and parent_id:
            return trace_id, parent_id
    return _digest(request_id, 16), None


def span_id_of(request_id: str, site: str) -> int:
    """The id of the span that the gateway of a site makes of a request."""
    return _digest(f"{site} {request_id}", 8)


def _digest(text: str, size: int) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=size).digest()) or 1

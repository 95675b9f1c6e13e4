"""Sends spans to a collector by OTLP over HTTP, in the background and never in anybody's way.

OpenTelemetry's batch processor does the sending in a thread of its own. This module bounds what may
wait for it, counts what became of each span, and turns ours into the SDK's. What the SDK has to say
names the collector's URL, its answers and headers that it could not read, which may hold secrets:
of that only the kind of failure comes into the log, once.
"""

import logging
import threading
from collections.abc import Sequence

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from isochrone.ports.telemetry import Span, SpanCounts

MOST_WAITING = 4096
BATCH = 512
EVERY_S = 1.0
TIMEOUT_S = 5.0
CLOSE_S = 1.0

log = structlog.get_logger()

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class OtlpSpans:
    """`endpoint` is a collector's full URL, such as http://127.0.0.1:4318/v1/traces. Headers, such
    as those that authorise, come from OTEL_EXPORTER_OTLP_HEADERS as the SDK reads it."""

    def __init__(
        self, endpoint: str, *, service: str, version: str, instance: str,
        most_waiting: int = MOST_WAITING, every_s: float = EVERY_S,
    ) -> None:
        self._most_waiting = most_waiting
        self._taken = self._dropped = 0
        self._resource = Resource({
            "service.name": service, "service.version": version, "service.instance.id": instance,
        })
        self._scope = InstrumentationScope(service, version)
        told = _Told()
        sdk = logging.getLogger("opentelemetry")
        sdk.handlers, sdk.propagate = [told], False
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=TIMEOUT_S)
        if told.why is not None:
            log.warning("otlp_environment_not_read", why="OTEL_EXPORTER_OTLP_HEADERS or another")
        self._exporter = _Counting(exporter, told)
        self._processor = BatchSpanProcessor(
            self._exporter, max_queue_size=most_waiting, schedule_delay_millis=every_s * 1000,
            max_export_batch_size=min(BATCH, most_waiting),
        )

    def take(self, span: Span) -> None:
        """Send it some time. What waits, or is just being sent, is bounded: the rest is dropped."""
        sent = self._exporter
        if self._taken - sent.exported - sent.failed >= self._most_waiting:
            self._dropped += 1
            return
        self._taken += 1
        self._processor.on_end(self._readable(span))

    def counts(self) -> SpanCounts:
        sent = self._exporter
        return SpanCounts(exported=sent.exported, dropped=self._dropped, failed=sent.failed)

    def close(self) -> None:
        """Send what waits; after CLOSE_S it is given up, with a collector that does not answer."""
        flushing = threading.Thread(target=self._processor.shutdown, daemon=True)
        flushing.start()
        flushing.join(CLOSE_S)
        if flushing.is_alive():
            self._exporter.shutdown()

    def _readable(self, span: Span) -> ReadableSpan:
        parent = None
        if span.parent_id is not None:
            parent = SpanContext(span.trace_id, span.parent_id, is_remote=True)
        status = Status(StatusCode.UNSET)
        if span.error is not None:
            status = Status(StatusCode.ERROR, span.error)
        return ReadableSpan(
            span.name,
            context=SpanContext(
                span.trace_id, span.span_id, is_remote=False, trace_flags=_SAMPLED
            ),
            parent=parent, resource=self._resource, attributes=dict(span.attributes),
            kind=SpanKind.SERVER, status=status, start_time=span.began_at, end_time=span.ended_at,
            instrumentation_scope=self._scope,
        )


class _Told(logging.Handler):
    """Hears what the SDK says, and keeps the kind of it: a status, or the class of an error."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.why: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.why = self.why or "no answer in time"
        for each in record.args if isinstance(record.args, tuple) else ():
            if isinstance(each, Exception):
                self.why = type(each).__name__
            elif isinstance(each, int):
                self.why = f"status {each}"


class _Counting(SpanExporter):
    """Counts what another exporter does, and says when it begins to fail and when that is over;
    only the processor's thread writes to the counts."""

    def __init__(self, exporter: SpanExporter, told: _Told) -> None:
        self._exporter = exporter
        self._told = told
        self._failing = False
        self.exported = 0
        self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            if result is SpanExportResult.SUCCESS:
                self.exported += len(spans)
            else:
                self.failed += len(spans)
            self._say(result is not SpanExportResult.SUCCESS)
        return result

    def _say(self, failing: bool) -> None:
        why, self._told.why = self._told.why, None
        if failing and not self._failing:
            log.warning("spans_not_sent", why=why)
        elif self._failing and not failing:
            log.info("spans_sent_again", failed=self.failed)
        self._failing = failing

    def shutdown(self) -> None:
        self._exporter.shutdown()

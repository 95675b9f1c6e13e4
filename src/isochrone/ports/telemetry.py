"""Telemetry: what a gateway tells monitoring systems, as plain values; formats are the adapters'.

A metric is declared once, as a `Metric`. Its values are collected when somebody asks for them.
Spans are handed over whole, after the end of what they tell of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

MetricKind = Literal["counter", "gauge", "histogram"]
Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric as it is declared. `name` is what a scraper sees; that of a counter ends in
    `_total`. Before that, a name ends in its `unit`; states, which are 0 or 1, have none.

    `buckets` are the upper bounds of a histogram, in `unit`.
    """

    name: str
    kind: MetricKind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a counter or gauge; `labels` in the order of its metric."""

    labels: tuple[str, ...]
    value: float


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a histogram counted: one count a bucket and one for all above the last, and the sum."""

    labels: tuple[str, ...]
    counts: tuple[int, ...]
    sum: float


@dataclass(frozen=True, slots=True)
class Family:
    """A metric with its present values; none when nothing of it has happened yet."""

    metric: Metric
    samples: Sequence[Sample | Distribution]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessUse:
    """What the operating system says of this process; `started_at` in seconds since 1970."""

    cpu_s: float
    resident_bytes: int
    open_fds: int
    most_fds: int
    started_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One request as tracing systems see it: `trace_id` has 128 bits, the other ids 64, none is 0.

    Instants are wall nanoseconds UTC. `error` says in a word what failed on our side.
    """

    name: str
    trace_id: int
    span_id: int
    parent_id: int | None
    began_at: int
    ended_at: int
    attributes: Mapping[str, Scalar]
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanCounts:
    """What became of spans: `dropped` for want of room, `failed` where the collector did not take
    them."""

    exported: int
    dropped: int
    failed: int


class SpanSink(Protocol):
    def take(self, span: Span) -> None:
        """Send it some time; never blocks, never fails."""
        ...

    def counts(self) -> SpanCounts: ...

    def close(self) -> None:
        """Send what waits, within a few seconds."""
        ...

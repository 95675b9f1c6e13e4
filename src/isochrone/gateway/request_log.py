"""One canonical line a request, written in batches; never a prompt, never a key.

Lines are kept as records until the next flush: encoding and writing happen off the path of the
request.
"""

from collections.abc import Callable

import msgspec

from isochrone.wire.usage import UsageRecord

MOST_KEPT = 4096


class _Line(msgspec.Struct, gc=False):
    """What is said of a request, in the order in which it is written."""

    at: int
    event: str
    request: str
    client_request: str | None
    key: str
    endpoint: str
    stream: bool
    class_: str = msgspec.field(name="class")
    model: str
    ingress: str
    site: str | None
    replica: str | None
    status: int
    outcome: str
    reason: str | None
    attempts: int
    input_uncached: int
    input_cached: int
    output: int
    source: str
    chosen_ms: float | None
    first_byte_ms: float | None
    total_ms: float


class RequestLog:
    """`sink` takes whole lines of JSON, each with its line end."""

    def __init__(self, sink: Callable[[bytes], None]) -> None:
        self._sink = sink
        self._waiting: list[UsageRecord | dict[str, object]] = []
        self._encoder = msgspec.json.Encoder()

    def request(self, record: UsageRecord) -> None:
        """A request of a known key came to its end."""
        self._waiting.append(record)
        if len(self._waiting) >= MOST_KEPT:
            self.flush()

    def other(self, request_id: str, *, at: int, status: int, path: str, reason: str) -> None:
        """Anything else that was answered; `path` is cut, it is the client's."""
        self._waiting.append({
            "at": at, "event": "answer", "request": request_id, "status": status,
            "path": path[:200], "reason": reason,
        })
        if len(self._waiting) >= MOST_KEPT:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        lines = [_line(each) if isinstance(each, UsageRecord) else each for each in waiting]
        self._sink(self._encoder.encode_lines(lines))


def _line(record: UsageRecord) -> _Line:
    return _Line(
        record.finished_at,
        "request" if record.reporter == "ingress" else "peer_request",
        record.request_id,
        record.client_request_id,
        record.key_id,
        record.endpoint,
        record.stream,
        record.class_,
        record.model,
        record.ingress_site,
        record.serving_site,
        record.replica,
        record.status,
        record.outcome,
        record.reason,
        record.attempts,
        record.input_uncached,
        record.input_cached,
        record.output,
        record.token_source,
        record.chosen_ms,
        record.first_byte_ms,
        record.total_ms,
    )

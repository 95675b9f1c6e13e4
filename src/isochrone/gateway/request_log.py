"""One canonical line a request, written in batches; never a prompt, never a key.

Lines are kept as records until the next flush: encoding and writing happen off the path of the
request.
"""

from collections.abc import Callable

import msgspec

from isochrone.core.metering.event import UsageEvent

MOST_KEPT = 4096


class RequestLog:
    """`sink` takes whole lines of JSON, each with its line end."""

    def __init__(self, sink: Callable[[bytes], None]) -> None:
        self._sink = sink
        self._events: list[UsageEvent] = []
        self._lines: list[bytes] = []
        self._encoder = msgspec.json.Encoder()

    def request(self, event: UsageEvent) -> None:
        """A request of a known key came to its end."""
        self._events.append(event)
        if len(self._events) >= MOST_KEPT:
            self.flush()

    def other(self, request_id: str, *, at: int, status: int, path: str, reason: str) -> None:
        """Anything else that was answered; `path` is cut, it is the client's."""
        line = {
            "at": at, "event": "answer", "request": request_id, "status": status,
            "path": path[:200], "reason": reason,
        }
        self._lines.append(self._encoder.encode(line))
        if len(self._lines) >= MOST_KEPT:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        if not self._events and not self._lines:
            return
        events, self._events = self._events, []
        lines, self._lines = self._lines, []
        lines += [self._encoder.encode(_line(event)) for event in events]
        self._sink(b"\n".join(lines) + b"\n")


def _line(event: UsageEvent) -> dict[str, object]:
    tokens = event.tokens
    return {
        "at": event.finished_at,
        "event": "request" if event.reporter == "ingress" else "peer_request",
        "request": event.request_id,
        "client_request": event.client_request_id,
        "key": event.key_id,
        "endpoint": event.endpoint,
        "stream": event.stream,
        "class": event.class_,
        "model": event.model,
        "ingress": event.ingress_site,
        "site": event.serving_site,
        "replica": event.replica,
        "status": event.status,
        "outcome": event.outcome,
        "reason": event.reason,
        "attempts": event.attempts,
        "input_uncached": tokens.input_uncached,
        "input_cached": tokens.input_cached,
        "output": tokens.output,
        "source": tokens.source,
        "chosen_ms": event.chosen_ms,
        "first_byte_ms": event.first_byte_ms,
        "total_ms": event.total_ms,
    }

"""One canonical line a request, written in batches; never a prompt, never a key.

Lines are kept as records until the next flush: encoding and writing happen off the path of the
request. A line is one JSON object, so nothing that a client sends can end it or add a field. The
fields are listed in docs/observability.md.
"""

import re
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec.structs import astuple

from isochrone.wire.usage import UsageRecord

MOST_KEPT: Final = 16  # one request in so many waits until they are written
# Other paths are the client's own text.
_PLAIN_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._-]{1,32}){1,6}/?|/")


class _Line(msgspec.Struct, gc=False):
    """What is said of a request, in the order in which it is written."""

    at: int
    event: str
    worker: int
    request: str
    client_request: str | None
    key: str
    endpoint: str
    stream: bool
    class_: str = msgspec.field(name="class")
    model: str
    ingress: str
    site: str | None
    country: str | None
    replica: str | None
    status: int
    outcome: str
    reason: str | None
    attempts: int
    continued: int
    input_uncached: int
    input_cached: int
    output: int
    source: str
    chosen_ms: float | None
    sent_ms: float | None
    first_byte_ms: float | None
    predicted_ms: float | None
    believed_cached: int | None
    session: str | None
    total_ms: float
    queued_ms: float


class _Answer(msgspec.Struct, gc=False):
    """What is said of anything else that was answered."""

    at: int
    event: str
    worker: int
    request: str
    status: int
    path: str
    reason: str


class RequestLog:
    """`sink` takes whole lines of JSON, each with its line end."""

    def __init__(self, sink: Callable[[bytes], None], *, worker: int = 0) -> None:
        self._sink = sink
        self._worker = worker
        self._waiting: list[UsageRecord | _Line | _Answer] = []
        self._encoder = msgspec.json.Encoder()

    def request(
        self, record: UsageRecord, continued: int = 0, reference: str | None = None,
        queued_ms: float = 0.0,
    ) -> None:
        """A request of a known key came to its end, after so many continuations of its stream and
        so long a wait for its turn. `reference` is the client's own id of it where the record has
        to leave it out."""
        if continued or queued_ms or (
            reference is not None and record.client_request_id is None
        ):
            self._waiting.append(_line(record, self._worker, continued, reference, queued_ms))
        else:
            self._waiting.append(record)
        if len(self._waiting) >= MOST_KEPT:
            self.flush()

    def other(self, request_id: str, *, at: int, status: int, path: str, reason: str) -> None:
        """Anything else that was answered; `path` is left out unless it looks like one."""
        shown = path if _PLAIN_PATH.fullmatch(path) is not None else ""
        self._waiting.append(
            _Answer(at, "answer", self._worker, request_id, status, shown, reason)
        )
        if len(self._waiting) >= MOST_KEPT:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        worker = self._worker
        lines = [
            each if not isinstance(each, UsageRecord)
            else _line(each, worker, 0, None, 0.0)
            for each in waiting
        ]
        self._sink(self._encoder.encode_lines(lines))


def _line(
    record: UsageRecord, worker: int, continued: int, reference: str | None, queued_ms: float
) -> _Line:
    # All fields at once: this is said of every request.
    (request_id, _, _, key_id, client_request_id, endpoint, stream, class_, model, _, ingress, _,
     site, country, replica, _, finished_at, chosen_ms, sent_ms, first_byte_ms, total_ms, uncached,
     cached, output, source, outcome, status, reason, reporter, attempts,
     decision) = astuple(record)
    bond = predicted_ms = None
    if decision is not None:  # of a stream that went on elsewhere, what its first byte is held to
        bond, predicted_ms = decision.bond, decision.predicted_ttft_ms
        if decision.foretold:
            predicted_ms = decision.foretold[0].predicted_ttft_ms
    return _Line(
        finished_at,
        "request" if reporter == "ingress" else "peer_request",
        worker,
        request_id,
        client_request_id or reference,
        key_id,
        endpoint,
        stream,
        class_,
        model,
        ingress,
        site,
        country,
        replica,
        status,
        outcome,
        reason,
        attempts,
        continued,
        uncached,
        cached,
        output,
        source,
        chosen_ms,
        sent_ms,
        first_byte_ms,
        predicted_ms,
        None if bond is None else bond.cached_tokens,
        None if bond is None or bond.verdict == "none" else bond.verdict,
        total_ms,
        queued_ms,
    )

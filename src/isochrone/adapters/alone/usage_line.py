"""The lines of the usage file: what of each record people and their tools read."""

from collections.abc import Sequence
from time import gmtime, strftime

import msgspec
from msgspec.structs import astuple

from isochrone.adapters.alone.stored_usage import StoredUsage


class UsageLine(msgspec.Struct, frozen=True, gc=False):
    """One request, as it stands in the file. Instants are UTC, durations milliseconds since
    `received_at`; null where a step was not reached. `batch` comes last: see `_BATCH`."""

    request_id: str
    received_at: str
    finished_at: str
    organisation: str
    project: str
    key: str
    client_request_id: str | None
    endpoint: str
    stream: bool
    class_: str = msgspec.field(name="class")
    model: str
    revision: str | None
    ingress: str
    ingress_country: str | None
    site: str | None
    country: str | None
    replica: str | None
    input_uncached: int
    input_cached: int
    output: int
    token_source: str
    outcome: str
    status: int
    reason: str | None
    attempts: int
    chosen_ms: float | None
    sent_ms: float | None
    first_byte_ms: float | None
    total_ms: float
    reporter: str
    batch: str


class UsageLines:
    """Makes them; remembers how it wrote the last second, since most instants are of the same."""

    def __init__(self) -> None:
        self._encode_lines = msgspec.json.Encoder().encode_lines
        self._second = -1
        self._written = ""

    def of(self, records: Sequence[StoredUsage], batch: str) -> bytes:
        """One line for each record, each with its end."""
        lines: list[UsageLine] = []
        for record in records:
            # All fields at once: reading one after the other would take half of the time.
            (request_id, org, project, key, client_request_id, endpoint, stream, class_, model,
             revision, ingress, ingress_country, site, country, replica, received_at, finished_at,
             chosen_ms, sent_ms, first_byte_ms, total_ms, uncached, cached, output, source, outcome,
             status, reason, reporter, attempts) = astuple(record)
            lines.append(UsageLine(
                request_id, self._instant(received_at), self._instant(finished_at), org, project,
                key, client_request_id, endpoint, stream, class_, model, revision, ingress,
                ingress_country, site, country, replica, uncached, cached, output, source, outcome,
                status, reason, attempts, chosen_ms, sent_ms, first_byte_ms, total_ms, reporter,
                batch,
            ))
        return self._encode_lines(lines)

    def _instant(self, wall_ns: int) -> str:
        """UTC, to the microsecond (RFC 3339)."""
        micros = (wall_ns + 500) // 1_000
        second, micros = micros // 1_000_000, micros % 1_000_000
        if second != self._second:
            self._second = second
            self._written = strftime("%Y-%m-%dT%H:%M:%S.", gmtime(second))
        return f"{self._written}{str(micros + 1_000_000)[1:]}Z"

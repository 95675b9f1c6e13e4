"""One line of the usage file: what of a record people and their tools read."""

from datetime import UTC, datetime

import msgspec

from isochrone.wire.usage import UsageRecord


class UsageLine(msgspec.Struct, frozen=True, gc=False):
    """One request, as it stands in the file. Instants are UTC, durations milliseconds since
    `received_at`; null where a step was not reached. `batch` comes last: see `_BATCH`."""

    request_id: str
    received_at: datetime
    finished_at: datetime
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


def usage_line(event: UsageRecord, batch: str) -> UsageLine:
    return UsageLine(
        event.request_id, _instant(event.received_at), _instant(event.finished_at),
        event.org_id, event.project_id, event.key_id, event.client_request_id,
        event.endpoint, event.stream, event.class_, event.model, event.revision,
        event.ingress_site, event.ingress_country, event.serving_site, event.serving_country,
        event.replica, event.input_uncached, event.input_cached, event.output,
        event.token_source, event.outcome, event.status, event.reason, event.attempts,
        event.chosen_ms, event.sent_ms, event.first_byte_ms, event.total_ms, event.reporter, batch,
    )


def _instant(wall_ns: int) -> datetime:
    return datetime.fromtimestamp(wall_ns / 1e9, UTC)

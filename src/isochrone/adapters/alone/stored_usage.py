"""What lines of the usage file are made of: the first fields of a record, without its decision.

Apart from `usage_line`, because msgspec reads the types of a class that it decodes, and classes
that are compiled do not keep theirs.
"""

import msgspec


class StoredUsage(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """`wire.usage.UsageRecord` up to its decision, in the same order."""

    request_id: str
    org_id: str
    project_id: str
    key_id: str
    client_request_id: str | None
    endpoint: str
    stream: bool
    class_: str
    model: str
    revision: str | None
    ingress_site: str
    ingress_country: str | None
    serving_site: str | None
    serving_country: str | None
    replica: str | None
    received_at: int
    finished_at: int
    chosen_ms: float | None
    sent_ms: float | None
    first_byte_ms: float | None
    total_ms: float
    input_uncached: int
    input_cached: int
    output: int
    token_source: str
    outcome: str
    status: int
    reason: str | None
    reporter: str
    attempts: int


class StoredBatch(msgspec.Struct, array_like=True, frozen=True):
    """`wire.usage.UsageBatch` without a look at its grounds: they list every site."""

    version: int
    batch_id: str
    grounds: msgspec.Raw
    events: list[StoredUsage]

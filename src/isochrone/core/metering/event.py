"""The usage event: what one request used, said once by the ingress, under the request's id.

Token classes are disjoint: uncached input, cached input, output. `source` says how the counts were
obtained: `engine` from the engine's final usage, `running` from the last running count that the
engine sent, `counted` from events and bytes by the gateway, `none` when nothing was processed.
"""

from dataclasses import dataclass
from typing import Literal

from isochrone.core.ids import KeyId, ModelName, OrgId, ProjectId, ReplicaId, RequestId, SiteName
from isochrone.core.routing.choice import Decision
from isochrone.core.world.model import Endpoint as Endpoint
from isochrone.core.world.tenant import Class

TokenSource = Literal["engine", "running", "counted", "none"]
Outcome = Literal[
    "finished",      # the whole answer went to the client
    "client_gone",   # the client closed first
    "engine_lost",   # the engine or its site ended the stream without an end
    "timed_out",     # a deadline of ours passed
    "engine_error",  # the engine answered with an error, which was passed on
    "refused",       # no site was tried, or every one refused; nothing was processed
    "ingress_lost",  # the ingress died; said by evidence or by its recovered journal
]
Reporter = Literal["recovered", "evidence", "ingress"]


@dataclass(slots=True, init=False)
class Tokens:
    """Disjoint token counts and how they were obtained. All counts are >= 0. Never changed once
    they are made: of every request, hence a constructor that takes a fifth of a frozen class's."""

    input_uncached: int
    input_cached: int
    output: int
    source: TokenSource

    def __init__(
        self, *, input_uncached: int = 0, input_cached: int = 0, output: int = 0,
        source: TokenSource = "none",
    ) -> None:
        self.input_uncached = input_uncached
        self.input_cached = input_cached
        self.output = output
        self.source = source

    @property
    def total(self) -> int:
        """Sum over the classes."""
        return self.input_uncached + self.input_cached + self.output


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageEvent:
    """One request, one event. Instants (`_at`) are wall nanoseconds UTC of the reporter; durations
    are milliseconds from `received_at`, None where the step was not reached.

    `reporter` ranks reports of the same request: `ingress` (the ingress saw the end) replaces
    `evidence` (the serving gateway saw it), which replaces `recovered` (the ingress found the
    request open in its journal after a crash). See `core/metering/merge.py`.
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
    finished_at: int
    chosen_ms: float | None
    sent_ms: float | None
    first_byte_ms: float | None
    total_ms: float
    tokens: Tokens
    outcome: Outcome
    status: int
    reason: str | None
    reporter: Reporter
    attempts: int
    decision: Decision | None = None

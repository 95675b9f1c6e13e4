"""Traffic: what booked requests looked like over time, for pages that people watch.

Bounded whatever the load: of each span at most so many requests are looked at, the earliest, and
counts are scaled to the whole span; a sample says so. For money there is `ports/book.py`.
Synchronous on purpose: one call is one transaction. A row outside the `Scope` does not exist for
the caller. All calls raise StoreUnavailable when the book is away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from isochrone.core.ids import ModelName, OrgId, SiteName
from isochrone.core.metering.event import Outcome
from isochrone.core.world.tenant import Class, Scope

TrafficGroup = Literal["all", "model", "class", "org", "site", "ingress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficFilter:
    """Requests received in `spans` spans of `span_ns` from `since` on (wall ns); None is any.
    `target_ms`: the first byte of a good answer is there by then."""

    since: int
    span_ns: int
    spans: int
    target_ms: float
    model: ModelName | None = None
    class_: Class | None = None
    org_id: OrgId | None = None
    site: SiteName | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Requests of one group, '' for none, in the span that begins at `at`. `looked_at` of them
    were looked at, counts are of all. `good` finished, with the first byte by the target; `spilled`
    were served elsewhere than where they entered. Milliseconds to the first byte are of streams and
    whole answers that had one; None where none had."""

    at: int
    name: str
    looked_at: int
    requests: float
    finished: float
    refused: float
    failed: float
    good: float
    spilled: float
    output_tokens: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonCount:
    """How many requests of the whole time ended for this reason."""

    outcome: Outcome
    reason: str
    requests: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """Requests that entered at `ingress` and were served at `site`, None for nowhere."""

    ingress: SiteName
    site: SiteName | None
    model: ModelName
    class_: Class
    outcome: Outcome
    requests: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Flows:
    """What was booked lately; `until` is what to ask from next."""

    until: int
    flows: tuple[Flow, ...]


class Traffic(Protocol):
    def spans(
        self, scope: Scope, chosen: TrafficFilter, group: TrafficGroup
    ) -> Sequence[Span]:
        """By time, then by name; spans without requests are left out."""
        ...

    def reasons(self, scope: Scope, chosen: TrafficFilter) -> Sequence[ReasonCount]:
        """Why requests did not finish, most frequent first."""
        ...

    def spills(self, scope: Scope, chosen: TrafficFilter, *, most: int) -> Sequence[Flow]:
        """Where requests went that left their ingress, most frequent first; of all classes."""
        ...

    def flows(self, scope: Scope, *, since: int, after: int) -> Flows:
        """Of the latest requests received from `since` on, what was booked after `after`."""
        ...

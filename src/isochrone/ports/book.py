"""Book: what requests used, exactly once each; evidence; and messages that could not be booked.

Synchronous on purpose: one call is one transaction, and instants and ids are arguments. All calls
raise StoreUnavailable when the book is away; calling again with the same arguments is safe. Which
of two reports of one request stands is decided by `core/metering/merge.py`, whatever the order of
their arrival.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from isochrone.core.ids import KeyId, ModelName, ReplicaId, RequestId, SiteName
from isochrone.core.metering.event import UsageEvent
from isochrone.core.routing.choice import Ground, Stopped
from isochrone.core.world.tenant import Scope

UsageGroup = Literal["key", "model", "site", "country", "class", "day"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageFilter:
    """Which requests: received at or after `since` and before `until` (wall ns), None is open."""

    since: int | None = None
    until: int | None = None
    key_id: KeyId | None = None
    model: ModelName | None = None
    site: SiteName | None = None  # the serving site
    ingress: SiteName | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Booked:
    """One booked request and when its present report was booked (wall ns).

    `ground` is what its decision names, where the decision was asked for and the ground is kept;
    `stops` is then how often the request gave its slot back, as each site that it was at says, and
    `bound` whether the policy of its key named the country that served, as it is charged.
    """

    event: UsageEvent
    booked_at: int
    ground: Ground | None = None
    stops: tuple[Stopped, ...] = ()
    bound: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageTotal:
    """Sums over the requests of one group.

    `name` is the key id, model, serving site, class or UTC day (2026-11-20) of the group; ''
    stands for requests that no site served, or whose body named no model. `unmeasured` counts
    requests that were processed without a final count of the engine: source `running` or `counted`.
    `first_at` and `last_at` are the earliest and latest `received_at`.
    """

    name: str
    requests: int
    finished: int
    unmeasured: int
    input_uncached: int
    input_cached: int
    output: int
    first_at: int
    last_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaTotal:
    """Sums over the booked requests that one replica served, to compare with its own counters."""

    replica: ReplicaId
    model: ModelName
    site: SiteName
    requests: int
    input_uncached: int
    input_cached: int
    output: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """A durable message, or one event of it, that cannot be booked; kept for a person to judge.

    `id` is derived from the content, so that parking it again changes nothing.
    """

    id: str
    subject: str
    payload: bytes
    reason: str


class Book(Protocol):
    def keep_grounds(self, grounds: Sequence[tuple[SiteName, Ground]], *, now: int) -> int:
        """Keep what decisions of the ingress at these sites name; return how many were new.

        A ground that is kept already stays as it is. A site's grounds serve its own requests only.
        Raises InvalidInput, with nothing kept, when a value cannot be stored.
        """
        ...

    def book_usage(self, events: Sequence[UsageEvent], *, now: int) -> int:
        """Book reports of the ingress; return how many rows are new or were replaced.

        Raises InvalidInput, with nothing booked, when a value cannot be stored.
        """
        ...

    def note_evidence(self, events: Sequence[UsageEvent], *, now: int) -> int:
        """Keep reports of serving gateways; as `book_usage`. Every event has a serving site."""
        ...

    def book_overdue_evidence(self, older_than: int, *, now: int, most: int = 500) -> int:
        """Settle at most `most` pieces of evidence heard before `older_than`; return how many.

        Where the ingress has not reported, or only what a crash left in its journal, the evidence
        is booked with the outcome `ingress_lost`. A later report of the ingress replaces it.
        """
        ...

    def request(self, scope: Scope, request_id: RequestId) -> Booked | None:
        """One request with decision and ground; None when not booked or outside the scope."""
        ...

    def requests(
        self, scope: Scope, chosen: UsageFilter, *, most: int, after: str | None = None,
        newest: bool = False,
    ) -> Sequence[Booked]:
        """Requests, oldest or `newest` first, without their decisions, after the request with id
        `after`."""
        ...

    def totals(
        self, scope: Scope, chosen: UsageFilter, group: UsageGroup, *, most: int,
        after: str | None = None,
    ) -> Sequence[UsageTotal]:
        """Groups in the order of their names, after the group named `after`."""
        ...

    def replica_totals(self, *, since: int) -> Sequence[ReplicaTotal]:
        """Sums of requests received since then, by replica and model; for reconciliation."""
        ...

    def wrong_hours(self, *, since: int, until: int) -> int:
        """How many sums by hour, of whole hours from `since` until before `until` (wall ns), are
        not those of the booked requests; 0 unless somebody changed the book by hand."""
        ...

    def make_hours_again(self, *, since: int, until: int) -> int:
        """Make those sums again from the requests; return how many were wrong. Bookings wait."""
        ...

    def park(self, messages: Sequence[Parked], *, now: int) -> None:
        """Keep these messages; one that is kept already stays as it is."""
        ...

    def parked(self, *, most: int) -> Sequence[Parked]:
        """Parked messages, the latest first."""
        ...

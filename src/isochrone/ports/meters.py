"""Meters: events of usage that no request tells, in the book of record; only ever added to.

Synchronous on purpose: one call is one transaction and instants are arguments. All calls raise
StoreUnavailable when the book is away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from isochrone.core.billing.meter_event import MeterEvent, Outcome
from isochrone.core.ids import OrgId, ProjectId
from isochrone.core.world.tenant import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """An event with when it came (wall ns). `counts`: it is of a known meter, and no other event
    replaces it."""

    event: MeterEvent
    arrived_at: int
    counts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which events; None is all. `since` and `until` bound when something was used (wall ns)."""

    org_id: OrgId | None = None
    project_id: ProjectId | None = None
    meter: str | None = None
    since: int | None = None
    until: int | None = None


class Meters(Protocol):
    def add_events(
        self, scope: Scope, events: Sequence[MeterEvent], *, now: int
    ) -> Sequence[Outcome]:
        """Add each event on its own merits, and bring the sums of its hours up to date.

        accepted: new. duplicate: known with the same content. conflicting: its id is known with
        another content, or what it replaces is not there to be replaced. unmetered: kept, but of no
        known meter. refused: it cannot be used; nothing of it is kept.
        """
        ...

    def events(
        self, scope: Scope, chosen: EventFilter, *, most: int, after: tuple[str, str] | None = None
    ) -> Sequence[StoredEvent]:
        """By organisation and id, after those of `after`; those that count no more, too."""
        ...

    def make_hours_again(self, *, since: int, until: int) -> int:
        """Make the sums of these whole hours again from their events; return how many were wrong.
        What was charged by those is due again."""
        ...

    def unmetered(self, scope: Scope, *, most: int) -> Sequence[MeterEvent]:
        """Events of no known meter, the latest first."""
        ...

"""Meters: events of usage that no request tells, in the book of record; only ever added to.

Synchronous on purpose: one call is one transaction and instants are arguments. All calls raise
StoreUnavailable when the book is away.
"""

from collections.abc import Sequence
from typing import Protocol

from isochrone.core.billing.meter_event import MeterEvent, Outcome
from isochrone.core.world.tenant import Scope


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

    def unmetered(self, scope: Scope, *, most: int) -> Sequence[MeterEvent]:
        """Events of no known meter, the latest first."""
        ...

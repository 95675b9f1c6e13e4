"""Reconciling: what engines counted, beside what was booked and charged, day by day.

Synchronous on purpose: one call is one transaction and instants are arguments. All calls raise
StoreUnavailable when the book is away. Days begin at midnight UTC (`day_at`, wall ns).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from isochrone.core.metering.loose import Loose
from isochrone.core.metering.reconcile import EngineDay, Life, MeterDay, Reading, UsageDay


@dataclass(frozen=True, slots=True, kw_only=True)
class DaySums:
    """All that a reconciliation compares, as one transaction saw it."""

    engines: Sequence[EngineDay]
    usage: Sequence[UsageDay]
    meters: Sequence[MeterDay]
    wrong_sums: int
    parked: int
    unmetered: int
    late: int
    loose: Sequence[Loose]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptReport:
    """A day's report as it was made, as JSON text."""

    day_at: int
    agrees: bool
    report: str
    made_at: int


class Reconciling(Protocol):
    def note_counts(self, readings: Sequence[Reading], *, day_at: int, now: int) -> None:
        """Keep the latest readings of a day, heard at `now`. The counts of an older one, and of one
        again, change nothing; counts below the known ones of the same life began anew."""
        ...

    def still_heard(self, lives: Sequence[Life], *, day_at: int, now: int) -> None:
        """Note that these lives were heard again at `now` with the counts that are kept of them on
        the day. Those of which none are kept are left out."""
        ...

    def day_sums(self, day_at: int) -> DaySums:
        """Usage counts for the day in which it ended, charges for the hours of the day."""
        ...

    def keep_report(self, report: KeptReport) -> bool:
        """Keep a day's report; False when the day has one, which stays."""
        ...

    def reports(self, *, most: int) -> Sequence[KeptReport]:
        """The latest first."""
        ...

"""Days of usage: partitions of the book, and those that were detached from it as files.

Synchronous on purpose; instants are arguments. Days are named by their first nanosecond UTC
(`day_at`); a request belongs to the day in which its id was made. All calls raise StoreUnavailable
when the book is away; calling again with the same arguments is safe.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from isochrone.core.world.tenant import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class DayFile:
    """One file of a detached day: its rows are no longer in the book. `file` is its name in the
    archive, `sha256` that of its bytes."""

    day_at: int
    part: int
    rows: int
    file: str
    sha256: str
    size_bytes: int
    detached_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageDay:
    """A day that the book knows. `rows` are in the book now, about; `evidence_files` hold what
    serving gateways saw of its requests, and are no longer in the book either; `late_reports` are
    better reports of detached requests, kept until the day is attached. `kept_until`: it was
    attached and is not detached again before."""

    day_at: int
    rows: int
    files: tuple[DayFile, ...]
    evidence_files: tuple[DayFile, ...]
    late_reports: int
    kept_until: int | None


class UsageDays(Protocol):
    def keep(self, *, since: int, until: int) -> int:
        """Make the partitions of the days from `since` until before `until`, and of those that have
        rows and none yet and lie before `until`; return how many were made."""
        ...

    def days(self) -> Sequence[UsageDay]:
        """The latest first."""
        ...

    def detached(self, *, since: int | None, until: int | None) -> Sequence[DayFile]:
        """Files of days that have a part in that time, by day and part."""
        ...

    def overdue(self, *, before: int, now: int) -> Sequence[int]:
        """Days that ended before `before` and are to be detached. One that was detached already
        waits until nothing of it was booked for a day, one that was attached until its time, and
        evidence that came later until it is settled and nothing of it came for a day."""
        ...

    def detach(self, scope: Scope, day_at: int, *, now: int) -> DayFile | None:
        """Write the day's rows to a file of the archive and take them out of the book, and its
        evidence to another one; None when it has no requests. `scope` is everybody's: files hold
        rows of all. Raises InvalidInput where there is no archive or the day is too young, Conflict
        when rows changed meanwhile or evidence waits to be settled: what is not in a file then
        stayed in the book."""
        ...

    def attach(self, scope: Scope, day_at: int, *, now: int, keep_until: int) -> int:
        """Bring the day's files back into the book, evidence and late reports too; return how many
        requests.

        Raises NotFound when it is not detached, InvalidInput when a file is missing or damaged.
        """
        ...

    def check(self, day_at: int) -> Sequence[str]:
        """What is wrong with the files of a detached day; none when they are as they were written.
        """
        ...

    def book_late(self, *, now: int) -> int:
        """Book reports that came late for days that are attached by now; return how many."""
        ...

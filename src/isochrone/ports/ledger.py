"""Ledger: postings that sum to zero, charges of usage by hour, holds; only ever added to.

Synchronous on purpose: one call is one transaction, and instants, ids and idempotency keys are
arguments, so that calling again with the same arguments is safe. What is to be recorded is decided
in `core/billing`. All calls raise StoreUnavailable when the book is away.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from isochrone.core.billing.charging import Payer
from isochrone.core.billing.hold import Event, Hold
from isochrone.core.billing.ledger import Account, Posting, Verdict
from isochrone.core.billing.rate import Period, Rated
from isochrone.core.ids import OrgId, ProjectId
from isochrone.core.world.tenant import Scope
from isochrone.ports.tenants import Once


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A posting, its place in the order of recording, and when that was (wall ns)."""

    posting: Posting
    number: int
    recorded_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a project's period has come to so far. `rated` holds all usage there is; of its total
    `charged_pico` stands in the ledger, the rest will when the hours are over."""

    payer: Payer
    period: Period
    rated: Rated
    charged_pico: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unrated:
    """A project whose period comes to more money than the book holds, and why (`reason`). What of
    it stands in the ledger was charged while it came to less."""

    payer: Payer
    period: Period
    currency: str | None
    charged_pico: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpentDay:
    """What stands in the ledger for one project and one day of UTC, which begins at `at` (wall
    ns). In pico of the currency."""

    payer: Payer
    at: int
    currency: str
    charged_pico: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A project with usage of a period that is not charged yet, or not rightly any more."""

    payer: Payer
    period: Period


class Ledger(Protocol):
    def record(
        self, scope: Scope, posting: Posting, *, now: int, once: Once | None = None
    ) -> Verdict:
        """Record it unless its key is known in its organisation. Raises InvalidInput with all that
        is wrong, and Conflict for another write of `once`, whichever organisation that was for."""
        ...

    def posting(self, scope: Scope, org_id: OrgId, key: str) -> Recorded:
        """Raises NotFound."""
        ...

    def postings(
        self, scope: Scope, *, org_id: OrgId | None, project_id: ProjectId | None, most: int,
        after: int | None = None, newest: bool = False,
    ) -> Sequence[Recorded]:
        """In the order of their recording, or with `newest` backwards, after the one with the
        number `after`."""
        ...

    def balances(
        self, scope: Scope, *, org_id: OrgId | None, project_id: ProjectId | None
    ) -> Mapping[tuple[Account, str], int]:
        """Sums over entries, by account and currency; accounts at zero left out."""
        ...

    def due(self, *, before: int, now: int) -> Sequence[Due]:
        """Projects with hours before that instant to be charged, and those whose period is over
        and has not been closed."""
        ...

    def charge(self, due: Due, *, before: int, now: int) -> int:
        """Charge what a project used in the hours before `before`; return how many charges were
        recorded. Two copies that do it at once record each once. Much is charged in several
        transactions; what a failure leaves of it is due still."""
        ...

    def spent(
        self, scope: Scope, period: Period, *, now: int, org_id: OrgId | None,
        project_id: ProjectId | None,
    ) -> Sequence[Spent | Unrated]:
        """What each project's usage of the period has come to by now, the present hour included;
        what is once a period in proportion to the part that is over. Raises TooMuchMoney where
        `project_id` is named and comes to too much; of many each such is told as Unrated."""
        ...

    def spent_days(
        self, scope: Scope, period: Period, *, org_id: OrgId | None, project_id: ProjectId | None
    ) -> Sequence[SpentDay]:
        """What was charged for the hours of each day of the period, by project and day."""
        ...

    def open_hold(self, hold: Hold, *, now: int) -> Verdict:
        """Set its amount aside. The same again is a duplicate, another under its id a conflict."""
        ...

    def step_hold(self, org_id: OrgId, hold_id: str, event: Event, *, now: int) -> Hold:
        """Settle, void or expire it (`core/billing/hold`). Raises NotFound."""
        ...

    def expire_holds(self, *, now: int, most: int = 500) -> int:
        """Give back what was set aside for longer than it should; return how many were."""
        ...

"""Limits over sites in the book of record, and what budgets have spent.

Synchronous on purpose: one call is one transaction, instants and ids are arguments. A row outside
the `Scope` does not exist for the caller. All calls raise StoreUnavailable when the book is away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from isochrone.core.ids import LimitId
from isochrone.core.world.limit import Limit
from isochrone.core.world.tenant import Scope
from isochrone.ports.tenants import Page


@dataclass(frozen=True, slots=True, kw_only=True)
class DueBudget:
    """A budget of which it is not noted what it has spent by now. `is_open`: its project, if it is
    of one, and its organisation are; for what is closed no money is set aside any more."""

    limit: Limit
    is_open: bool


class Limits(Protocol):
    def limits(self, scope: Scope, page: Page) -> Sequence[Limit]: ...

    def limit(self, scope: Scope, limit_id: LimitId) -> Limit:
        """Raises NotFound."""
        ...

    def set_limit(self, scope: Scope, limit: Limit) -> Limit:
        """Add it, or change the one of its kind that its organisation, project or key has, which
        keeps its id and the instant of its making. What it says that a budget has spent is told to
        gateways with it, unless a later sum of the same period is there. Raises NotFound where
        what it is for does not exist in the scope."""
        ...

    def remove(self, scope: Scope, limit_id: LimitId) -> Limit:
        """The one that there was. Raises NotFound."""
        ...

    def unsummed(self, *, before: int) -> Sequence[DueBudget]:
        """Budgets of which it is not noted what they had spent before that instant, or only where
        they were set."""
        ...

    def spent(self, limit: Limit, *, since: int, before: int) -> int:
        """What the usage that a budget counts came to, of requests that came within; in pico.
        Both instants are starts of hours of one month."""
        ...

    def note_spent(self, limit: Limit, *, before: int, spent_pico: int, now: int) -> None:
        """Gateways are told it; a limit that is gone meanwhile is no matter."""
        ...

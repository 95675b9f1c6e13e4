"""Entitlements in the book of record: what was sold, and the voters that look after it.

Synchronous on purpose: one call is one transaction, instants and ids are arguments. A row outside
the `Scope` does not exist for the caller. All calls raise StoreUnavailable when the book is away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from isochrone.core.ids import EntitlementId, SiteName
from isochrone.core.world.entitlement import Entitlement, Voters
from isochrone.core.world.tenant import Scope
from isochrone.ports.tenants import Once, Page


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEntitlement:
    """An entitlement with what people want to know about it; `revoked_at` None while it is sold."""

    entitlement: Entitlement
    name: str
    created_at: int
    revoked_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVoters:
    """The cloud's voters, and when they were changed last; 0 for never."""

    voters: Voters
    changed_at: int


class Entitlements(Protocol):
    def entitlements(self, scope: Scope, page: Page) -> Sequence[StoredEntitlement]:
        """Revoked ones and those whose window is over too."""
        ...

    def entitlement(self, scope: Scope, entitlement_id: EntitlementId) -> StoredEntitlement:
        """One of them, revoked or not. Raises NotFound."""
        ...

    def add(
        self, scope: Scope, entitlement: StoredEntitlement, voters: Voters, *, once: Once | None
    ) -> StoredEntitlement:
        """Add it, or return what the same `once` added before. `voters` become the cloud's voters
        if it has none yet. Raises NotFound for an organisation or a project outside the scope."""
        ...

    def revoke(self, scope: Scope, entitlement_id: EntitlementId, *, now: int) -> StoredEntitlement:
        """Revoke; one revoked before keeps its first instant. Raises NotFound."""
        ...

    def voters(self) -> StoredVoters | None:
        """None before the first entitlement."""
        ...

    def change_voters(
        self, scope: Scope, sites: tuple[SiteName, ...], *, now: int
    ) -> StoredVoters:
        """Change them, as `core.admission.entitlement.changed_voters` decides. Raises Conflict
        where it is too early, NotFound before the first entitlement."""
        ...

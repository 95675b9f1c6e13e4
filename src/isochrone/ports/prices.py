"""Prices: versions of price sheets in the book of record; one is never changed.

Synchronous on purpose: one call is one transaction and instants are arguments. All calls raise
StoreUnavailable when the book is away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from isochrone.core.billing.sheet import PriceSheet
from isochrone.core.ids import OrgId
from isochrone.core.world.tenant import Scope
from isochrone.ports.tenants import Once


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSheet:
    """A version of a sheet; `only_for` is the organisation that it was made for, None: all."""

    sheet: PriceSheet
    only_for: OrgId | None
    created_at: int


class Prices(Protocol):
    def sheets(self, scope: Scope) -> Sequence[StoredSheet]:
        """All versions that the scope may see, by id and version."""
        ...

    def add_sheet(
        self, scope: Scope, sheet: StoredSheet, *, once: Once | None
    ) -> StoredSheet:
        """Add the next version of its id, whatever version it states, or return what the same
        `once` added. Usage of the hours that it prices is charged anew.

        Raises Conflict when the id is another organisation's or the currency is not that of the
        other sheets, NotFound for an unknown organisation, InvalidInput when it would price hours
        of an earlier period than that of its making.
        """
        ...

    def try_sheet(self, scope: Scope, sheet: StoredSheet) -> StoredSheet:
        """What `add_sheet` would add, and raise; nothing is written."""
        ...

    def applying(self, org_id: OrgId) -> Sequence[PriceSheet]:
        """The sheets that price an organisation's usage (`core/billing/sheet.applying`)."""
        ...

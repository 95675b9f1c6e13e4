"""Writes that carried a caller's idempotency key, in the book of record, for a day each.

The write itself claims its key in its own transaction. Here is only asked, before what a new write
has to pass: what the clock or other rows refuse now may have been made before.
"""

from typing import Protocol

from isochrone.core.world.tenant import Scope
from isochrone.ports.tenants import Once


class Writes(Protocol):
    def made_before(self, scope: Scope, once: Once | None, *, now: int) -> str | None:
        """The id of what this write made before; None for one that is new, or has no key. Raises
        Conflict where the key was used with another body, StoreUnavailable."""
        ...

    def forget_old(self, *, now: int) -> None:
        """Forget the keys that are older than a day, and what was asked with them."""
        ...

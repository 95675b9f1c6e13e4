"""Members: people and service accounts of organisations, and operators, in the book of record.

Who a person is (name, e-mail address) lies apart from everything else, which knows them by the id
of their principal, so that it can be erased and nothing else changes. Synchronous on purpose: one
call is one transaction, instants, ids and hashes of secrets are arguments. A row outside the
`Scope` does not exist for the caller. All calls raise StoreUnavailable when the book is away.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from isochrone.core.world.tenant import Principal, Role, Scope
from isochrone.ports.accounts import Account
from isochrone.ports.tenants import Once, Page


@dataclass(frozen=True, slots=True, kw_only=True)
class Turnover:
    """A new secret for a member: its hash, until when the present one goes on, and its end."""

    secret_sha256: str
    former_until: int
    expires_at: int | None


# Raises what speaks against a change of this member. It is asked in the transaction of the change,
# and nobody else changes the member meanwhile.
Judge = Callable[[Principal], None]


class Members(Protocol):
    def principal(self, secret_sha256: str, *, now: int) -> Principal | None:
        """Who holds this secret, or held it before a rotation whose overlap is not over."""
        ...

    def principals(self, scope: Scope, page: Page) -> Sequence[Principal]:
        """Principals that are not revoked."""
        ...

    def member(self, scope: Scope, principal_id: str) -> Principal:
        """One of them, revoked or not. Raises NotFound."""
        ...

    def add(
        self, scope: Scope, principal: Principal, secret_sha256: str, *, now: int,
        once: Once | None, account: Account | None = None,
    ) -> Principal:
        """Add a member, with the account that they sign in with where there is one. Raises
        NotFound for an organisation outside the scope, Conflict for a secret in use or a name to
        sign in with that is taken, and InvalidInput for one that is not written small; then
        nothing was added."""
        ...

    def set_role(
        self, scope: Scope, principal_id: str, role: Role, *, judge: Judge, now: int
    ) -> Principal:
        """Raises NotFound, also for one that is revoked, LastOwner, and what `judge` raises."""
        ...

    def turn_over(
        self, scope: Scope, principal_id: str, turnover: Turnover, *, now: int, once: Once | None
    ) -> Principal:
        """Give a member the new secret. A secret before the present one stops at once. Raises
        NotFound, also for one that is revoked, and Conflict for a secret in use."""
        ...

    def revoke(self, scope: Scope, principal_id: str, *, judge: Judge, now: int) -> Principal:
        """Revoke; revoking again changes nothing. Raises NotFound, what `judge` raises, and
        LastOwner where an open organisation would be left without an owner whose key works."""
        ...

    def erase(self, scope: Scope, principal_id: str, *, judge: Judge, now: int) -> Principal:
        """Erase who a person is, and revoke them; again changes nothing. Raises what `revoke`
        does, and Conflict for a service account, which is nobody."""
        ...

    def erase_overdue(self, *, now: int) -> int:
        """Erase all who left longer ago than their organisation retains them; return how many."""
        ...

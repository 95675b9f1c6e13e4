"""Accounts: names and passwords of members who sign in, their sessions, and what was tried.

Synchronous on purpose: one call is one transaction; instants, hashes and secrets are arguments.
A row outside the `Scope` does not exist for the caller. All calls raise StoreUnavailable when the
book is away.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from isochrone.core.ids import OrgId
from isochrone.core.tenancy.sign_in import Tried
from isochrone.core.world.tenant import Principal, Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a member signs in with. `password` is its hash; `is_given`: somebody else set it."""

    principal_id: str
    org_id: OrgId | None
    login: str
    password: str
    is_given: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One sign-in, by the hash of its secret."""

    secret_sha256: str
    principal_id: str
    org_id: OrgId | None
    begun_at: int
    expires_at: int


class Accounts(Protocol):
    def account(self, scope: Scope, principal_id: str) -> Account | None:
        """The account of a member, None without one."""
        ...

    def named(self, login: str, *, now: int) -> Account | None:
        """Whose name it is, in lower case; None too when the member is revoked or past their
        end."""
        ...

    def put(self, scope: Scope, account: Account, *, now: int, keep: str | None = None) -> None:
        """Make or change an account, and end its sessions but the one with the secret `keep`
        (sha256). Raises NotFound for a member outside the scope or revoked, Conflict for a name
        that is taken."""
        ...

    def begin(self, session: Session, *, password: str) -> bool:
        """Keep a new session, unless this is no longer the password (its hash) of the account:
        whoever changed it has ended all that the one before had begun."""
        ...

    def holder(self, secret_sha256: str, *, now: int) -> Principal | None:
        """Who holds this session, unless it is over or they are revoked."""
        ...

    def end(self, secret_sha256: str) -> bool:
        """End a session; whether there was one."""
        ...

    def try_once(self, tried: Mapping[Tried, str], *, now: int) -> float:
        """Count one more try of each of these (by hash) and return 0, or, where one of them has to
        wait, count nothing and return the seconds."""
        ...

    def succeeded(self, tried: Mapping[Tried, str]) -> None:
        """What was tried with these (by hash) was right: forget the tries of the name, and of the
        address this one."""
        ...

    def forget_old(self, *, now: int) -> None:
        """Remove sessions that are over, and counts of tries that are old."""
        ...

"""Who calls, and what they may do: bearer secret -> principal or project key -> rights.

Operators see everything. Everyone else sees their own organisation only, and a project key only
what that key did itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Header

from isochrone.control.api.context import Context
from isochrone.control.joining import hash_of
from isochrone.core.errors import Forbidden, Untrusted
from isochrone.core.ids import KeyId, OrgId
from isochrone.core.world.tenant import Role, Scope

Right = Literal[
    "organisations.write", "estate.write", "estate.details", "projects.write", "principals",
    "keys.write", "keys.read", "policies.write", "usage.read", "entitlements.write",
    "entitlements.read", "prices.read", "prices.write", "ledger.read", "ledger.write",
    "reconcile",
]
CallerRole = Role | Literal["key"]

RIGHTS: dict[CallerRole, frozenset[Right]] = {
    "operator": frozenset(
        (
            "organisations.write", "estate.write", "estate.details", "projects.write",
            "principals", "keys.write", "keys.read", "policies.write", "usage.read",
            "entitlements.write", "entitlements.read", "prices.read", "prices.write",
            "ledger.read", "ledger.write", "reconcile",
        )
    ),
    "owner": frozenset(
        (
            "projects.write", "principals", "keys.write", "keys.read", "policies.write",
            "usage.read", "entitlements.read", "prices.read", "ledger.read",
        )
    ),
    "admin": frozenset(
        (
            "projects.write", "keys.write", "keys.read", "policies.write", "usage.read",
            "entitlements.read", "prices.read", "ledger.read",
        )
    ),
    "developer": frozenset(
        ("keys.write", "keys.read", "usage.read", "entitlements.read", "prices.read")
    ),
    "auditor": frozenset(
        ("keys.read", "usage.read", "entitlements.read", "prices.read", "ledger.read")
    ),
    "billing": frozenset(("usage.read", "entitlements.read", "prices.read", "ledger.read")),
    "key": frozenset(("usage.read",)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whoever holds the bearer secret. `key_id` is set for a project key."""

    id: str
    role: CallerRole
    scope: Scope
    key_id: KeyId | None = None

    def may(self, right: Right) -> bool:
        return right in RIGHTS[self.role]

    def need(self, right: Right) -> None:
        """Raises Forbidden, naming the role and the missing right."""
        if not self.may(right):
            raise Forbidden(f"the role {self.role!r} lacks the right {right!r}")

    def organisation(self, wanted: str | None) -> OrgId | None:
        """The organisation that a write is for: the one named, else the caller's own."""
        return self.scope.org_id if wanted is None else OrgId(wanted)


def authenticator(context: Context) -> Callable[[str | None], Caller]:
    """The dependency that turns the authorization header into a Caller, or answers 401."""

    def caller(authorization: Annotated[str | None, Header()] = None) -> Caller:
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise Untrusted("send an admin key or project key: Authorization: Bearer KEY")
        secret_sha256 = hash_of(secret.strip())
        principal = context.registry.tenants.principal(secret_sha256)
        if principal is not None:
            return Caller(
                id=f"principal:{principal.id}", role=principal.role,
                scope=Scope(org_id=principal.org_id),
            )
        stored = context.registry.tenants.live_key(secret_sha256)
        if stored is None:
            raise Untrusted("the key is unknown or revoked")
        return Caller(
            id=f"key:{stored.key.id}", role="key", scope=Scope(org_id=stored.key.org_id),
            key_id=stored.key.id,
        )

    return caller

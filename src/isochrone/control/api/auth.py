"""Who calls, and whether they may: bearer secret -> principal or project key -> one action.

Every endpoint but those that need no key names the action that it does, and
`core/tenancy/authorise.py` decides. Operators see everything. Everyone else sees their own
organisation only, and a project key only what that key did itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header

from isochrone.control.api.context import Context
from isochrone.control.joining import hash_of
from isochrone.core.errors import Forbidden, NotFound, Untrusted
from isochrone.core.ids import KeyId, OrgId
from isochrone.core.tenancy.authorise import (
    MAY,
    Action,
    CallerRole,
    authorise,
    authorise_appointment,
    authorise_key,
)
from isochrone.core.world.tenant import KEY_SCOPES, KeyScope, Role, Scope

SESSION_PREFIX = "isoses_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whoever holds the bearer secret. `key_id` is set for a project key, `scopes` is what that
    key may be used for; `session_sha256` for somebody who signed in."""

    id: str
    role: CallerRole
    scope: Scope
    key_id: KeyId | None = None
    scopes: tuple[KeyScope, ...] = KEY_SCOPES
    session_sha256: str | None = None

    def may(self, action: Action) -> bool:
        return action in MAY[self.role]

    def need(self, action: Action, org_id: str | None = None) -> None:
        """Raises Forbidden, naming the role and the right, or NotFound for another's record."""
        denied = authorise(
            self.role, action, own=org_id is None or org_id == self.scope.org_id
        )
        if denied is None and self.key_id is not None:
            denied = authorise_key(self.scopes, action)
        if denied is None:
            return
        if denied.is_hidden:
            raise NotFound(f"there is no organisation {org_id!r}")
        raise Forbidden(denied.reason)

    def need_appointment(self, role: Role) -> None:
        """Raises Forbidden unless the caller may make, change and revoke members of this role."""
        denied = authorise_appointment(self.role, role)
        if denied is not None:
            raise Forbidden(denied.reason)

    def organisation(self, action: Action, wanted: str | None) -> OrgId | None:
        """The organisation that a write is for: the one named, which the caller has to be allowed
        to write to, else the caller's own. None for an operator who names none."""
        if wanted is None:
            return self.scope.org_id
        self.need(action, wanted)
        return OrgId(wanted)


class Need:
    """The dependency of an endpoint: turns the authorization header into a Caller who may do
    `action`; anybody else is answered 401 or 403."""

    def __init__(self, context: Context, action: Action) -> None:
        self._context = context
        self.action = action

    def __call__(self, authorization: Annotated[str | None, Header()] = None) -> Caller:
        caller = _caller(self._context, authorization)
        caller.need(self.action)
        return caller


def bearer(authorization: str | None) -> str:
    """The secret of an authorization header. Raises Untrusted without one."""
    scheme, _, secret = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise Untrusted("send an admin key or project key: Authorization: Bearer KEY")
    return secret.strip()


def access(context: Context) -> Callable[[Action], object]:
    """Makes the dependencies of one resource: `may = access(context)`, then
    `caller: Annotated[Caller, may("keys.read")]`."""

    def may(action: Action) -> object:
        return Depends(Need(context, action))

    return may


def _caller(context: Context, authorization: str | None) -> Caller:
    secret = bearer(authorization)
    secret_sha256, now = hash_of(secret), context.now()
    is_session = secret.startswith(SESSION_PREFIX)
    if is_session:
        principal = context.registry.accounts.holder(secret_sha256, now=now)
    else:
        principal = context.registry.members.principal(secret_sha256, now=now)
    if principal is not None:
        id_ = f"principal:{principal.id}"
        return Caller(
            id=id_, role=principal.role, scope=Scope(org_id=principal.org_id, actor=id_),
            session_sha256=secret_sha256 if is_session else None,
        )
    if is_session:
        raise Untrusted("the session is over; sign in again")
    stored = context.registry.tenants.live_key(secret_sha256, now=now)
    if stored is None:
        raise Untrusted("the key is unknown, revoked or past its end")
    id_ = f"key:{stored.key.id}"
    return Caller(
        id=id_, role="key", scope=Scope(org_id=stored.key.org_id, actor=id_),
        key_id=stored.key.id, scopes=stored.key.scopes,
    )

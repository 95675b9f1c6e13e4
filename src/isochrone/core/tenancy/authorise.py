"""Decides whether a caller may do something to records of their own or of another tenant.

One table, role by action, and one rule beside it: only operators reach beyond their own
organisation. Every endpoint of the Control API asks here, and names its action.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from isochrone.core.world.tenant import KeyScope, Role

# read: see; write: make, change or revoke. What an organisation may say about itself is `change`,
# what only the operator of the cloud may do to it `write`.
Action = Literal[
    "organisations.read", "organisations.change", "organisations.write",
    "projects.read", "projects.write",
    "members.read", "members.write", "members.erase",
    "policies.read", "policies.write",
    "keys.read", "keys.write",
    "entitlements.read", "entitlements.write",
    "limits.read", "limits.write",
    "usage.read", "traffic.read", "audit.read",
    "prices.read", "prices.write", "ledger.read", "ledger.write", "usage.write", "usage.days",
    "reconcile",
    "estate.read", "estate.details", "estate.write",
    "experiments.read", "experiments.write",
    "self.read", "self.write",
]
ACTIONS: tuple[Action, ...] = get_args(Action)
CallerRole = Role | Literal["key"]
CALLER_ROLES: tuple[CallerRole, ...] = (
    "owner", "admin", "developer", "billing", "auditor", "operator", "key",
)

_EVERYBODY: tuple[Action, ...] = ("estate.read", "usage.read", "self.read")
_MEMBER: tuple[Action, ...] = (
    *_EVERYBODY, "organisations.read", "projects.read", "policies.read", "entitlements.read",
    "limits.read", "prices.read", "traffic.read", "self.write",
)
_DEVELOPER: tuple[Action, ...] = (*_MEMBER, "keys.read", "keys.write")
_ADMIN: tuple[Action, ...] = (
    *_DEVELOPER, "projects.write", "policies.write", "members.read", "members.write", "audit.read",
    "ledger.read", "limits.write",
)

MAY: Mapping[CallerRole, frozenset[Action]] = {
    "owner": frozenset((*_ADMIN, "organisations.change", "members.erase")),
    "admin": frozenset(_ADMIN),
    "developer": frozenset(_DEVELOPER),
    "billing": frozenset((*_MEMBER, "ledger.read")),
    "auditor": frozenset((*_MEMBER, "keys.read", "members.read", "audit.read", "ledger.read")),
    "operator": frozenset(ACTIONS),
    "key": frozenset(_EVERYBODY),
}

# Whom each role may make, change, revoke and give a new key: nobody makes anybody who may do more
# than themselves.
MAY_APPOINT: Mapping[CallerRole, frozenset[Role]] = {
    "owner": frozenset(("owner", "admin", "developer", "billing", "auditor")),
    "admin": frozenset(("developer", "billing", "auditor")),
    "developer": frozenset(),
    "billing": frozenset(),
    "auditor": frozenset(),
    "operator": frozenset(("owner", "admin", "developer", "billing", "auditor", "operator")),
    "key": frozenset(),
}

# What a project key needs beside its role.
NEEDS_SCOPE: Mapping[Action, KeyScope] = {"usage.read": "usage"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """Why not. `is_hidden`: the caller must not even learn that there is such a thing."""

    reason: str
    is_hidden: bool = False


def authorise(role: CallerRole, action: Action, *, own: bool) -> Denied | None:
    """None when `role` may do `action` to records of their own tenant (`own`) or of another."""
    if action not in MAY[role]:
        return Denied(reason=f"the role {role!r} lacks the right {action!r}")
    if not own and role != "operator":
        return Denied(reason="it belongs to another organisation", is_hidden=True)
    return None


def authorise_appointment(role: CallerRole, appointed: Role) -> Denied | None:
    """None when `role` may make, change or revoke a member with the role `appointed`."""
    if appointed in MAY_APPOINT[role]:
        return None
    allowed = ", ".join(sorted(MAY_APPOINT[role])) or "nobody"
    return Denied(
        reason=f"the role {role!r} may not appoint the role {appointed!r}, only: {allowed}"
    )


def authorise_key(scopes: tuple[KeyScope, ...], action: Action) -> Denied | None:
    """None when a project key with these scopes may do `action`."""
    needed = NEEDS_SCOPE.get(action)
    if needed is None or needed in scopes:
        return None
    return Denied(reason=f"the key lacks the scope {needed!r}")

"""Tenants: organisations, projects, keys and policies in the book of record.

Synchronous on purpose: one call is one transaction, instants, ids and hashes of secrets are
arguments. Every call on rows of a tenant takes the `Scope`; a row outside it does not exist for the
caller (NotFound). All calls raise StoreUnavailable when the book is away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from isochrone.core.ids import KeyId, OrgId, ProjectId
from isochrone.core.world.tenant import (
    ApiKey,
    Organisation,
    Policy,
    Principal,
    Project,
    Scope,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Once:
    """A caller's idempotency key: the same `caller` and `key` do a write at most once.

    `body_sha256` identifies what was asked, path included; another body under the same key raises
    Conflict.
    """

    caller: str
    key: str
    body_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """At most `most` rows after the row whose id (or name) is `after`, in that order."""

    most: int
    after: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A key with what people want to know about it; `revoked_at` is None until it is revoked,
    `replaces` the key that it was made for in a rotation."""

    key: ApiKey
    name: str
    created_at: int
    revoked_at: int | None = None
    replaces: KeyId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPolicy:
    """A policy with the name that whoever added it first gave it."""

    policy: Policy
    name: str
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """What a fresh book holds: one organisation with a project and an open policy, one operator."""

    organisation: Organisation
    project: Project
    policy: StoredPolicy
    operator: Principal
    operator_secret_sha256: str


class Tenants(Protocol):
    def seed(self, seed: Seed, *, now: int) -> None:
        """Make sure that the seed's rows exist; the operator's secret is brought up to date."""
        ...

    def live_key(self, secret_sha256: str, *, now: int) -> StoredKey | None:
        """The key with this secret that is neither revoked nor past its end, and whose project and
        organisation are open."""
        ...

    def organisations(self, scope: Scope, page: Page) -> Sequence[Organisation]: ...

    def add_organisation(
        self, scope: Scope, organisation: Organisation, *, project: Project | None = None,
        once: Once | None,
    ) -> Organisation:
        """Add it with its first project, or return what the same `once` added before. Conflict
        when the name is taken."""
        ...

    def organisation(self, scope: Scope, org_id: OrgId) -> Organisation:
        """Raises NotFound."""
        ...

    def change_organisation(
        self, scope: Scope, org_id: OrgId, *, name: str | None, retain_days: int | None
    ) -> Organisation:
        """Change what is not None. Raises NotFound, Conflict when the name is taken."""
        ...

    def close_organisation(self, scope: Scope, org_id: OrgId, *, now: int) -> Organisation:
        """No key of it works any more and nothing new is made in it (Closed); all that it has
        stays. One that is closed keeps its first instant. Raises NotFound."""
        ...

    def reopen_organisation(self, scope: Scope, org_id: OrgId) -> Organisation:
        """Its keys work again, those that are not revoked, past their end, or of closed projects.
        Raises NotFound."""
        ...

    def projects(
        self, scope: Scope, page: Page, *, org_id: OrgId | None = None
    ) -> Sequence[Project]: ...

    def add_project(self, scope: Scope, project: Project, *, once: Once | None) -> Project:
        """Raises NotFound for an organisation outside the scope, Closed for one that is closed,
        Conflict for a name taken."""
        ...

    def project(self, scope: Scope, project_id: ProjectId) -> Project:
        """Raises NotFound."""
        ...

    def rename_project(self, scope: Scope, project_id: ProjectId, name: str) -> Project:
        """Raises NotFound, Conflict when the organisation has a project of that name."""
        ...

    def close_project(self, scope: Scope, project_id: ProjectId, *, now: int) -> Project:
        """As an organisation is closed."""
        ...

    def reopen_project(self, scope: Scope, project_id: ProjectId) -> Project: ...

    def policies(self, scope: Scope, page: Page) -> Sequence[StoredPolicy]: ...

    def add_policy(
        self, scope: Scope, policy: StoredPolicy, *, once: Once | None
    ) -> StoredPolicy:
        """Add it, or return the organisation's policy with the same axes when there is one."""
        ...

    def keys(self, scope: Scope, page: Page) -> Sequence[tuple[StoredKey, Policy]]: ...

    def add_key(
        self, scope: Scope, key: StoredKey, policy: StoredPolicy, *, once: Once | None
    ) -> tuple[StoredKey, Policy]:
        """Add the key bound to `policy`, or to the organisation's policy with the same axes.

        Raises NotFound for a project outside the scope or of another organisation than the key,
        Closed for one that is closed, Conflict for a secret in use.
        """
        ...

    def key(self, scope: Scope, key_id: KeyId) -> tuple[StoredKey, Policy]:
        """One of them, revoked or not. Raises NotFound."""
        ...

    def rotate_key(
        self, scope: Scope, new: StoredKey, *, former_until: int, once: Once | None
    ) -> tuple[StoredKey, Policy]:
        """Add `new` under the policy of the key that it replaces, which goes on until then.

        Raises NotFound where that key is outside the scope or not live, Conflict for a secret in
        use.
        """
        ...

    def revoke_key(self, scope: Scope, key_id: KeyId, *, now: int) -> StoredKey:
        """Revoke; a key revoked before keeps its first instant. Raises NotFound."""
        ...

"""Tenants as a gateway sees them: keys and the policies that bind them."""

from dataclasses import dataclass
from typing import Literal

from isochrone.core.ids import KeyId, OrgId, PolicyId, ProjectId

Class = Literal["reserved", "on_demand", "batch"]
Role = Literal["owner", "admin", "developer", "billing", "auditor", "operator"]
ROLES: tuple[Role, ...] = ("owner", "admin", "developer", "billing", "auditor", "operator")
MemberKind = Literal["person", "service"]

# What a key may be used for: chat, completions, responses and messages; embeddings; the list of
# models; and, at the Control API, what was used with the key.
KeyScope = Literal["chat", "embeddings", "models", "usage"]
KEY_SCOPES: tuple[KeyScope, ...] = ("chat", "embeddings", "models", "usage")

ANY = "any"
CONTROL = "control"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Where a key's requests may be processed, enter, and be remembered.

    Each axis is a tuple of terms (see `core/residency/terms.py`): country codes, blocs and others,
    or `("any",)`. `residency` bounds the sites that process, `transit` the ingress and the links,
    `caches` what is kept of a prompt (None: as `residency`), `logs` records that hold what the
    customer wrote. `max_view_age_s`: a gateway whose view is older refuses keys bound by this
    policy.
    """

    id: PolicyId
    org_id: OrgId
    residency: tuple[str, ...]
    transit: tuple[str, ...]
    max_view_age_s: float = 86_400.0
    caches: tuple[str, ...] | None = None
    logs: tuple[str, ...] = (ANY,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one key may use at a gateway; None is no limit. Tokens are input and output together."""

    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    concurrent: int | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as gateways hold it: the sha256 of the secret in hex, never the secret.

    From `expires_at` on (wall ns UTC; None: never) it is refused, whether or not control is there.
    """

    id: KeyId
    secret_sha256: str
    org_id: OrgId
    project_id: ProjectId
    policy_id: PolicyId
    classes: tuple[Class, ...] = ("on_demand", "batch")
    limits: Limits = NO_LIMITS
    scopes: tuple[KeyScope, ...] = KEY_SCOPES
    expires_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyShard:
    """All live keys whose hash starts with `shard` (two hex digits)."""

    shard: str
    keys: tuple[ApiKey, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Organisation:
    """A customer: the tenant that owns projects, keys and policies.

    `retain_days`: how long after a member has left their name and e-mail address are kept. Once it
    is closed no key of it works and nothing new is made in it; what it has stays.
    """

    id: OrgId
    name: str
    created_at: int
    retain_days: int = 90
    closed_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A part of an organisation that keys and usage belong to; closed as an organisation is."""

    id: ProjectId
    org_id: OrgId
    name: str
    created_at: int
    closed_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A person or a service account that works with the Control API; `org_id` is None for operators
    of the cloud only. The name of a person is None, and so is their e-mail address, once erased."""

    id: str
    org_id: OrgId | None
    name: str | None
    role: Role
    kind: MemberKind = "person"
    email: str | None = None
    expires_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Whose rows a call may touch: one organisation's, or everyone's when `org_id` is None; and on
    whose behalf, which is what the audit log says of every change."""

    org_id: OrgId | None
    actor: str = CONTROL


EVERY_TENANT = Scope(org_id=None)  # for what control does by itself, on behalf of nobody

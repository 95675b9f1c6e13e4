"""Entitlement: capacity sold once, honoured at any site that its residency allows."""

from dataclasses import dataclass

from isochrone.core.ids import EntitlementId, ModelName, OrgId, ProjectId, SiteName
from isochrone.core.world.tenant import Class


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """The part of an entitlement, in tokens/s, that is at home at a site."""

    site: SiteName
    tok_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entitlement:
    """So many weighted tokens/s of a model in a class, from `starts_at` until before `ends_at`.

    `project_id` None: for all projects of the organisation. `residency` is an axis as in a policy.
    The slices add up to `tok_s` and never change: gateways borrow from one another.
    """

    id: EntitlementId
    org_id: OrgId
    project_id: ProjectId | None
    model: ModelName
    class_: Class
    tok_s: int
    residency: tuple[str, ...]
    starts_at: int
    ends_at: int
    slices: tuple[Slice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Voters:
    """The sites whose votes say which site looks after the slices of a home.

    `epoch` grows with every change. `former` are the voters of the epoch before: more than half of
    them must agree as well, so that no two sites win, of whom one knows of the change and the other
    does not. Empty in the first epoch.
    """

    sites: tuple[SiteName, ...]
    former: tuple[SiteName, ...] = ()
    epoch: int = 0

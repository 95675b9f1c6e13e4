"""Project keys: list, make one (its secret is shown once), revoke."""

from typing import Annotated

from fastapi import APIRouter, Depends, status
from pydantic import BaseModel, Field

from isochrone.control.api.auth import Caller, authenticator
from isochrone.control.api.axes import AxesShape, PolicyAxes, axes_of, policy_of
from isochrone.control.api.context import Context
from isochrone.control.api.paging import Listed, Paging, paging
from isochrone.control.api.shapes import Identifier, Name
from isochrone.control.api.writing import API_KEY_PREFIX, Repeat, new_secret, repeat
from isochrone.control.joining import hash_of
from isochrone.core.errors import InvalidInput
from isochrone.core.ids import KeyId, ProjectId
from isochrone.core.world.tenant import ApiKey, Class, Policy, Project
from isochrone.ports.tenants import Page, StoredKey, StoredPolicy


class NewKey(PolicyAxes):
    """`project_id` defaults to the only project of the caller's organisation, for an operator to
    `default`."""

    name: Name = "key"
    project_id: Identifier | None = None
    classes: list[Class] = Field(default=["on_demand", "batch"], min_length=1, max_length=3)


class KeyShape(AxesShape):
    id: str
    name: str
    org_id: str
    project_id: str
    policy_id: str
    classes: list[Class]
    created_at: int
    revoked_at: int | None


class MadeKey(KeyShape):
    """`key` is the secret, shown once."""

    key: str


class RevokedKey(BaseModel):
    id: str
    revoked_at: int


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/keys", tags=["tenants"])
    tenants = context.registry.tenants
    known = Depends(authenticator(context))

    @router.get("")
    def list_keys(
        caller: Annotated[Caller, known], page: Annotated[Paging, Depends(paging)]
    ) -> Listed[KeyShape]:
        """Keys that the caller sees, revoked ones too, never their secrets."""
        caller.need("keys.read")
        rows = tenants.keys(caller.scope, page.page)
        return page.listed(rows, lambda row: _shape(*row), lambda row: row[0].key.id)

    @router.post("", status_code=status.HTTP_201_CREATED)
    def make_key(
        body: NewKey,
        caller: Annotated[Caller, known],
        again: Annotated[Repeat, Depends(repeat)],
    ) -> MadeKey:
        """Make a key; the answer shows its secret, once."""
        caller.need("keys.write")
        project = _project(context, caller, body.project_id)
        policy = policy_of(
            body, policy_id=context.new_id(), org_id=project.org_id, blocs=context.blocs
        )
        once, now = again.once(caller, body), context.now()
        secret = new_secret(context, API_KEY_PREFIX, once)
        key = ApiKey(
            id=KeyId(context.new_id()), secret_sha256=hash_of(secret), org_id=project.org_id,
            project_id=project.id, policy_id=policy.id, classes=tuple(sorted(set(body.classes))),
        )
        made = tenants.add_key(
            caller.scope,
            StoredKey(key=key, name=body.name, created_at=now),
            StoredPolicy(policy=policy, name=f"of {body.name}", created_at=now),
            once=once,
        )
        context.changed()
        return MadeKey(**_shape(*made).model_dump(), key=secret)

    @router.delete("/{key_id}")
    def revoke_key(key_id: str, caller: Annotated[Caller, known]) -> RevokedKey:
        """Revoke a key for good; gateways learn of it within half a second."""
        caller.need("keys.write")
        now = context.now()
        revoked = tenants.revoke_key(caller.scope, KeyId(key_id), now=now)
        context.changed()
        return RevokedKey(id=revoked.key.id, revoked_at=revoked.revoked_at or now)

    return router


def _project(context: Context, caller: Caller, wanted: str | None) -> Project:
    tenants = context.registry.tenants
    if wanted is not None:
        return tenants.project(caller.scope, ProjectId(wanted))
    if caller.scope.org_id is None:
        return tenants.project(caller.scope, ProjectId("default"))
    projects = tenants.projects(caller.scope, Page(most=2))
    if len(projects) != 1:
        raise InvalidInput(["project_id: missing; the organisation has not exactly one project"])
    return projects[0]


def _shape(row: StoredKey, policy: Policy) -> KeyShape:
    return KeyShape(
        id=row.key.id, name=row.name, org_id=row.key.org_id, project_id=row.key.project_id,
        policy_id=policy.id, classes=list(row.key.classes), created_at=row.created_at,
        revoked_at=row.revoked_at, **axes_of(policy).model_dump(),
    )

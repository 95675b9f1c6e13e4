"""Project keys: list, make one (its secret is shown once), rotate, revoke."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, status
from pydantic import BaseModel, Field

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.axes import AxesShape, PolicyAxes, axes_of, policy_of
from isochrone.control.api.context import Context
from isochrone.control.api.instants import instant_of
from isochrone.control.api.paging import Listed, Paging, paging
from isochrone.control.api.shapes import Body, Identifier, Name
from isochrone.control.api.writing import API_KEY_PREFIX, Repeat, new_secret, repeat
from isochrone.control.joining import hash_of
from isochrone.core.errors import InvalidInput
from isochrone.core.ids import KeyId, ProjectId
from isochrone.core.tenancy.terms import (
    USUAL_OVERLAP_S,
    check_end,
    check_overlap,
    end_of_rotated,
    renewed_end,
)
from isochrone.core.world.tenant import KEY_SCOPES, ApiKey, Class, KeyScope, Policy, Project
from isochrone.ports.tenants import Page, StoredKey, StoredPolicy


class NewKey(PolicyAxes):
    """`project_id` defaults to the only project of the caller's organisation, for an operator to
    `default`. `scopes`: what the key may be used for. From `expires_at` on it is refused: RFC 3339
    with an offset, or wall nanoseconds; without, never."""

    name: Name = "key"
    project_id: Identifier | None = None
    classes: list[Class] = Field(default=["on_demand", "batch"], min_length=1, max_length=3)
    scopes: list[KeyScope] = Field(default=list(KEY_SCOPES), min_length=1, max_length=4)
    expires_at: str | None = None


class Rotation(Body):
    """`overlap_s`: for how many seconds the key that is replaced goes on, 0 for not at all. The
    term of the new one is as long as that of the old, unless `expires_at` says otherwise."""

    overlap_s: int = USUAL_OVERLAP_S
    expires_at: str | None = None


class KeyShape(AxesShape):
    id: str
    name: str
    org_id: str
    project_id: str
    policy_id: str
    classes: list[Class]
    scopes: list[KeyScope]
    expires_at: int | None
    replaces: str | None
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
    may = access(context)

    @router.get("")
    def list_keys(
        caller: Annotated[Caller, may("keys.read")], page: Annotated[Paging, Depends(paging)]
    ) -> Listed[KeyShape]:
        """Keys that the caller sees, revoked ones too, never their secrets."""
        rows = tenants.keys(caller.scope, page.page)
        return page.listed(rows, lambda row: _shape(*row), lambda row: row[0].key.id)

    @router.post("", status_code=status.HTTP_201_CREATED)
    def make_key(
        body: NewKey,
        caller: Annotated[Caller, may("keys.write")],
        again: Annotated[Repeat, Depends(repeat)],
    ) -> MadeKey:
        """Make a key; the answer shows its secret, once."""
        now, once = context.now(), again.once(caller, body)
        secret = new_secret(context, API_KEY_PREFIX, once)
        earlier = context.registry.writes.made_before(caller.scope, once, now=now)
        if earlier is not None:
            return _shown(tenants.key(caller.scope, KeyId(earlier)), secret)
        expires_at, problems = read_end(body.expires_at, now=now)
        project = _project(context, caller, body.project_id)
        policy = policy_of(
            body, policy_id=context.new_id(), org_id=project.org_id, blocs=context.blocs,
            also=problems,
        )
        key = ApiKey(
            id=KeyId(context.new_id()), secret_sha256=hash_of(secret), org_id=project.org_id,
            project_id=project.id, policy_id=policy.id, classes=tuple(sorted(set(body.classes))),
            scopes=tuple(sorted(set(body.scopes))), expires_at=expires_at,
        )
        made = tenants.add_key(
            caller.scope,
            StoredKey(key=key, name=body.name, created_at=now),
            StoredPolicy(policy=policy, name=f"of {body.name}", created_at=now),
            once=once,
        )
        context.changed()
        return _shown(made, secret)

    @router.delete("/{key_id}")
    def revoke_key(key_id: str, caller: Annotated[Caller, may("keys.write")]) -> RevokedKey:
        """Revoke a key for good; gateways learn of it within half a second."""
        now = context.now()
        revoked = tenants.revoke_key(caller.scope, KeyId(key_id), now=now)
        context.changed()
        return RevokedKey(id=revoked.key.id, revoked_at=revoked.revoked_at or now)

    _add_rotation(router, context)
    return router


def _add_rotation(router: APIRouter, context: Context) -> None:
    tenants, may = context.registry.tenants, access(context)

    @router.post("/{key_id}/rotate", status_code=status.HTTP_201_CREATED)
    def rotate_key(
        key_id: str,
        body: Rotation,
        caller: Annotated[Caller, may("keys.write")],
        again: Annotated[Repeat, Depends(repeat)],
    ) -> MadeKey:
        """Make a key that replaces this one: same project, policy, classes and scopes, its own id
        and secret. The old one goes on for `overlap_s`, so that nothing has to stop meanwhile."""
        now, once = context.now(), again.once(caller, body)
        secret = new_secret(context, API_KEY_PREFIX, once)
        earlier = context.registry.writes.made_before(caller.scope, once, now=now)
        if earlier is not None:
            return _shown(tenants.key(caller.scope, KeyId(earlier)), secret)
        stated = end_in(body, now=now)
        old, _ = tenants.key(caller.scope, KeyId(key_id))
        renewed = renewed_end(old.created_at, old.key.expires_at, now=now)
        key = replace(
            old.key, id=KeyId(context.new_id()), secret_sha256=hash_of(secret),
            expires_at=renewed if stated is None else stated,
        )
        made = tenants.rotate_key(
            caller.scope,
            StoredKey(key=key, name=old.name, created_at=now, replaces=old.key.id),
            former_until=end_of_rotated(
                old.key.expires_at, now=now, overlap_s=body.overlap_s
            ),
            once=once,
        )
        context.changed()
        return _shown(made, secret)


def read_end(text: str | None, *, now: int) -> tuple[int | None, list[str]]:
    """The end of a new key as the caller gives it, and what is wrong with it."""
    try:
        expires_at = instant_of("expires_at", text)
    except InvalidInput as error:
        return None, list(error.problems)
    return expires_at, check_end(expires_at, now=now)


def end_in(rotation: Rotation, *, now: int) -> int | None:
    """The end that a rotation states; raises InvalidInput with all that is wrong with both."""
    expires_at, problems = read_end(rotation.expires_at, now=now)
    problems += check_overlap(rotation.overlap_s)
    if problems:
        raise InvalidInput(problems)
    return expires_at


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


def _shown(made: tuple[StoredKey, Policy], secret: str) -> MadeKey:
    return MadeKey(**_shape(*made).model_dump(), key=secret)


def _shape(row: StoredKey, policy: Policy) -> KeyShape:
    return KeyShape(
        id=row.key.id, name=row.name, org_id=row.key.org_id, project_id=row.key.project_id,
        policy_id=policy.id, classes=list(row.key.classes), scopes=list(row.key.scopes),
        expires_at=row.key.expires_at, replaces=row.replaces, created_at=row.created_at,
        revoked_at=row.revoked_at, **axes_of(policy).model_dump(),
    )

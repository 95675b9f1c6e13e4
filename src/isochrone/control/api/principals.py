"""Principals, who work with the Control API: list, make one with its admin key, revoke."""

from typing import Annotated

from fastapi import APIRouter, Depends, status
from pydantic import BaseModel

from isochrone.control.api.auth import Caller, authenticator
from isochrone.control.api.context import Context
from isochrone.control.api.paging import Listed, Paging, paging
from isochrone.control.api.shapes import Body, Identifier, Name
from isochrone.control.api.writing import ADMIN_KEY_PREFIX, Repeat, new_secret, repeat
from isochrone.control.joining import hash_of
from isochrone.core.errors import Forbidden, InvalidInput
from isochrone.core.world.tenant import Principal, Role


class NewPrincipal(Body):
    """`org_id` defaults to the caller's own organisation; operators belong to none."""

    name: Name
    role: Role
    org_id: Identifier | None = None


class PrincipalShape(BaseModel):
    id: str
    org_id: str | None
    name: str
    role: Role


class MadePrincipal(PrincipalShape):
    """`key` is shown once."""

    key: str


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/principals", tags=["tenants"])
    tenants = context.registry.tenants
    known = Depends(authenticator(context))

    @router.get("")
    def list_principals(
        caller: Annotated[Caller, known], page: Annotated[Paging, Depends(paging)]
    ) -> Listed[PrincipalShape]:
        """Principals that the caller sees, without their keys."""
        caller.need("principals")
        rows = tenants.principals(caller.scope, page.page)
        return page.listed(rows, _shape, lambda row: row.id)

    @router.post("", status_code=status.HTTP_201_CREATED)
    def make_principal(
        body: NewPrincipal,
        caller: Annotated[Caller, known],
        again: Annotated[Repeat, Depends(repeat)],
    ) -> MadePrincipal:
        """Make a principal; the answer shows its admin key, once."""
        caller.need("principals")
        if body.role == "operator" and caller.role != "operator":
            raise Forbidden("only an operator may make an operator")
        org_id = caller.organisation(body.org_id)
        if (body.role == "operator") != (org_id is None):
            raise InvalidInput(
                ["org_id: an operator belongs to no organisation, everybody else to one"]
            )
        once = again.once(caller, body)
        secret = new_secret(context, ADMIN_KEY_PREFIX, once)
        wanted = Principal(id=context.new_id(), org_id=org_id, name=body.name, role=body.role)
        made = tenants.add_principal(
            caller.scope, wanted, hash_of(secret), now=context.now(), once=once
        )
        return MadePrincipal(**_shape(made).model_dump(), key=secret)

    @router.delete("/{principal_id}")
    def revoke_principal(
        principal_id: str, caller: Annotated[Caller, known]
    ) -> PrincipalShape:
        """Revoke a principal; its key works no more."""
        caller.need("principals")
        if caller.id == f"principal:{principal_id}":
            raise Forbidden("nobody may revoke their own key: ask another principal")
        return _shape(tenants.revoke_principal(caller.scope, principal_id, now=context.now()))

    return router


def _shape(row: Principal) -> PrincipalShape:
    return PrincipalShape(id=row.id, org_id=row.org_id, name=row.name, role=row.role)

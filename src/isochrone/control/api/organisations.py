"""Organisations, the tenants of the cloud: list, and make one (operators only)."""

from typing import Annotated

from fastapi import APIRouter, Depends, status
from pydantic import BaseModel

from isochrone.control.api.auth import Caller, authenticator
from isochrone.control.api.context import Context
from isochrone.control.api.paging import Listed, Paging, paging
from isochrone.control.api.shapes import Body, Name
from isochrone.control.api.writing import Repeat, repeat
from isochrone.core.ids import OrgId
from isochrone.core.world.tenant import Organisation


class NewOrganisation(Body):
    name: Name


class OrganisationShape(BaseModel):
    id: str
    name: str
    created_at: int


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/organisations", tags=["tenants"])
    tenants = context.registry.tenants
    known = Depends(authenticator(context))

    @router.get("")
    def list_organisations(
        caller: Annotated[Caller, known], page: Annotated[Paging, Depends(paging)]
    ) -> Listed[OrganisationShape]:
        """Organisations that the caller sees."""
        rows = tenants.organisations(caller.scope, page.page)
        return page.listed(rows, _shape, lambda row: row.id)

    @router.post("", status_code=status.HTTP_201_CREATED)
    def make_organisation(
        body: NewOrganisation,
        caller: Annotated[Caller, known],
        again: Annotated[Repeat, Depends(repeat)],
    ) -> OrganisationShape:
        """Make an organisation. It has no project yet."""
        caller.need("organisations.write")
        made = Organisation(id=OrgId(context.new_id()), name=body.name, created_at=context.now())
        return _shape(tenants.add_organisation(made, once=again.once(caller, body)))

    return router


def _shape(row: Organisation) -> OrganisationShape:
    return OrganisationShape(id=row.id, name=row.name, created_at=row.created_at)

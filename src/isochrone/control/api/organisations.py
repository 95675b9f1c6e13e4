"""Organisations, the tenants of the cloud: list, make one (operators only), change, close."""

from typing import Annotated

from fastapi import APIRouter, Depends, status
from pydantic import BaseModel, Field

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.control.api.paging import Listed, Paging, paging
from isochrone.control.api.shapes import Body, Name
from isochrone.control.api.writing import Repeat, repeat
from isochrone.core.errors import InvalidInput
from isochrone.core.ids import OrgId, ProjectId
from isochrone.core.world.tenant import Organisation, Project


class NewOrganisation(Body):
    """`project`: the name of a first project, made with it or not at all."""

    name: Name
    project: Name | None = None


class ChangedOrganisation(Body):
    """What is left out stays. `retain_days`: when a member has left for so long, their name and
    e-mail address are erased."""

    name: Name | None = None
    retain_days: Annotated[int, Field(ge=0, le=3650)] | None = None


class OrganisationShape(BaseModel):
    id: str
    name: str
    created_at: int
    retain_days: int
    closed_at: int | None


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/organisations", tags=["tenants"])
    tenants = context.registry.tenants
    may = access(context)

    @router.get("")
    def list_organisations(
        caller: Annotated[Caller, may("organisations.read")],
        page: Annotated[Paging, Depends(paging)],
    ) -> Listed[OrganisationShape]:
        """Organisations that the caller sees."""
        rows = tenants.organisations(caller.scope, page.page)
        return page.listed(rows, _shape, lambda row: row.id)

    @router.post("", status_code=status.HTTP_201_CREATED)
    def make_organisation(
        body: NewOrganisation,
        caller: Annotated[Caller, may("organisations.write")],
        again: Annotated[Repeat, Depends(repeat)],
    ) -> OrganisationShape:
        """Make an organisation, with a first project where one is named."""
        now = context.now()
        made = Organisation(id=OrgId(context.new_id()), name=body.name, created_at=now)
        project = None if body.project is None else Project(
            id=ProjectId(context.new_id()), org_id=made.id, name=body.project, created_at=now
        )
        once = again.once(caller, body)
        return _shape(
            tenants.add_organisation(caller.scope, made, project=project, once=once)
        )

    @router.get("/{org_id}")
    def get_organisation(
        org_id: str, caller: Annotated[Caller, may("organisations.read")]
    ) -> OrganisationShape:
        """One organisation."""
        return _shape(tenants.organisation(caller.scope, OrgId(org_id)))

    @router.patch("/{org_id}")
    def change_organisation(
        org_id: str,
        body: ChangedOrganisation,
        caller: Annotated[Caller, may("organisations.change")],
    ) -> OrganisationShape:
        """Change its name, or how long it retains who its former members were."""
        if body.name is None and body.retain_days is None:
            raise InvalidInput(["nothing to change: give name, retain_days or both"])
        caller.need("organisations.change", org_id)
        return _shape(
            tenants.change_organisation(
                caller.scope, OrgId(org_id), name=body.name, retain_days=body.retain_days
            )
        )

    _add_closing(router, context)
    return router


def _add_closing(router: APIRouter, context: Context) -> None:
    tenants, may = context.registry.tenants, access(context)

    @router.post("/{org_id}/close")
    def close_organisation(
        org_id: str, caller: Annotated[Caller, may("organisations.change")]
    ) -> OrganisationShape:
        """Close an organisation: none of its keys works any more, and nothing new is made in it.
        Usage, ledger and audit log stay, and what was used until now is charged."""
        caller.need("organisations.change", org_id)
        closed = tenants.close_organisation(caller.scope, OrgId(org_id), now=context.now())
        context.changed()
        return _shape(closed)

    @router.post("/{org_id}/reopen")
    def reopen_organisation(
        org_id: str, caller: Annotated[Caller, may("organisations.write")]
    ) -> OrganisationShape:
        """Open it again: keys work that were neither revoked nor are past their end."""
        opened = tenants.reopen_organisation(caller.scope, OrgId(org_id))
        context.changed()
        return _shape(opened)


def _shape(row: Organisation) -> OrganisationShape:
    return OrganisationShape(
        id=row.id, name=row.name, created_at=row.created_at, retain_days=row.retain_days,
        closed_at=row.closed_at,
    )

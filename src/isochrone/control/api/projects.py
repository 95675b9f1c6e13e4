"""Projects of an organisation: list, make one, rename, close."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, status
from pydantic import BaseModel

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.control.api.paging import Listed, Paging, paging
from isochrone.control.api.shapes import Body, Identifier, Name
from isochrone.control.api.whose import whose
from isochrone.control.api.writing import Repeat, repeat
from isochrone.core.errors import InvalidInput
from isochrone.core.ids import ProjectId
from isochrone.core.world.tenant import Project


class NewProject(Body):
    """`org_id` defaults to the caller's own organisation."""

    name: Name
    org_id: Identifier | None = None


class Renamed(Body):
    name: Name


class ProjectShape(BaseModel):
    id: str
    org_id: str
    name: str
    created_at: int
    closed_at: int | None


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/projects", tags=["tenants"])
    tenants = context.registry.tenants
    may = access(context)

    @router.get("")
    def list_projects(
        caller: Annotated[Caller, may("projects.read")],
        page: Annotated[Paging, Depends(paging)],
        org: Annotated[str | None, Query(max_length=100)] = None,
    ) -> Listed[ProjectShape]:
        """Projects that the caller sees, of one organisation or of all."""
        of, _ = whose(context, caller, org)
        rows = tenants.projects(caller.scope, page.page, org_id=of)
        return page.listed(rows, _shape, lambda row: row.id)

    @router.post("", status_code=status.HTTP_201_CREATED)
    def make_project(
        body: NewProject,
        caller: Annotated[Caller, may("projects.write")],
        again: Annotated[Repeat, Depends(repeat)],
    ) -> ProjectShape:
        """Make a project."""
        org_id = caller.organisation("projects.write", body.org_id)
        if org_id is None:
            raise InvalidInput(["org_id: missing; an operator has to name the organisation"])
        made = Project(
            id=ProjectId(context.new_id()), org_id=org_id, name=body.name, created_at=context.now()
        )
        return _shape(tenants.add_project(caller.scope, made, once=again.once(caller, body)))

    @router.patch("/{project_id}")
    def rename_project(
        project_id: str, body: Renamed, caller: Annotated[Caller, may("projects.write")]
    ) -> ProjectShape:
        """Give a project another name."""
        return _shape(tenants.rename_project(caller.scope, ProjectId(project_id), body.name))

    _add_closing(router, context)
    return router


def _add_closing(router: APIRouter, context: Context) -> None:
    tenants, may = context.registry.tenants, access(context)

    @router.post("/{project_id}/close")
    def close_project(
        project_id: str, caller: Annotated[Caller, may("projects.write")]
    ) -> ProjectShape:
        """Close a project: none of its keys works any more, and nothing new is made in it. What was
        used stays, and is charged."""
        closed = tenants.close_project(caller.scope, ProjectId(project_id), now=context.now())
        context.changed()
        return _shape(closed)

    @router.post("/{project_id}/reopen")
    def reopen_project(
        project_id: str, caller: Annotated[Caller, may("projects.write")]
    ) -> ProjectShape:
        """Open a project again: keys work that were neither revoked nor are past their end."""
        opened = tenants.reopen_project(caller.scope, ProjectId(project_id))
        context.changed()
        return _shape(opened)


def _shape(row: Project) -> ProjectShape:
    return ProjectShape(
        id=row.id, org_id=row.org_id, name=row.name, created_at=row.created_at,
        closed_at=row.closed_at,
    )

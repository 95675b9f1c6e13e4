"""Checks whom a question is about: an organisation and a project that the caller sees."""

from isochrone.control.api.auth import Caller
from isochrone.control.api.context import Context
from isochrone.core.errors import NotFound
from isochrone.core.ids import OrgId, ProjectId


def whose(
    context: Context, caller: Caller, org_id: str | None, project_id: str | None = None
) -> tuple[OrgId | None, ProjectId | None]:
    """Both as they were named; None is all. Raises NotFound: an empty answer about a misspelt name
    would read as if nothing had been used."""
    tenants = context.registry.tenants
    org = None if org_id is None else OrgId(org_id)
    project = None if project_id is None else ProjectId(project_id)
    if org is not None:
        tenants.organisation(caller.scope, org)
    if project is not None:
        of = tenants.project(caller.scope, project).org_id
        if org not in (None, of):
            raise NotFound(f"the organisation {org!r} has no project {project!r}")
    return org, project

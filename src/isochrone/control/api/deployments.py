"""Deployments, which say how many replicas of a model a site should run: list, and set."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.control.api.paging import Listed, Paging, paging
from isochrone.control.api.shapes import Body, Identifier, Text
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.world.model import Deployment, EngineKind

MOST_REPLICAS = 64


class WantedReplicas(Body):
    site: Identifier
    model: Text
    replicas: Annotated[int, Field(ge=0, le=MOST_REPLICAS)]


class DeploymentShape(BaseModel):
    """`stopped_replicas`: how many ran before the site was stopped, null where it is not."""

    site: str
    model: str
    replicas: int
    engine: EngineKind
    context_tokens: int
    stopped_replicas: int | None


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/deployments", tags=["estate"])
    estate = context.registry.estate
    may = access(context)

    @router.get("")
    def list_deployments(
        caller: Annotated[Caller, may("estate.read")],
        page: Annotated[Paging, Depends(paging)],
        site: Annotated[str | None, Query(max_length=100)] = None,
    ) -> Listed[DeploymentShape]:
        """Deployments of one site or of all."""
        at = None if site is None else SiteName(site)
        rows = estate.deployments(page.page, site=at)
        return page.listed(rows, _shape, lambda row: f"{row.site}/{row.model}")

    @router.put("")
    def set_replicas(
        body: WantedReplicas, caller: Annotated[Caller, may("estate.write")]
    ) -> DeploymentShape:
        """Set how many replicas should run; the site's agent follows."""
        changed = estate.set_replicas(
            caller.scope, SiteName(body.site), ModelName(body.model), body.replicas
        )
        context.changed()
        return _shape(changed)

    return router


def _shape(row: Deployment) -> DeploymentShape:
    return DeploymentShape(
        site=row.site, model=row.model, replicas=row.replicas, engine=row.engine.kind,
        context_tokens=row.context_tokens, stopped_replicas=row.stopped_replicas,
    )

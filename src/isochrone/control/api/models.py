"""Models that customers may name, and the sites where each is deployed."""

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.control.api.paging import Listed, Paging, paging
from isochrone.core.world.model import ModelKind


class ModelShape(BaseModel):
    """`revision` identifies the weights, null when nobody states it."""

    name: str
    kind: ModelKind
    revision: str | None
    context_tokens: int
    created_at: int
    sites: list[str]


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/models", tags=["estate"])
    may = access(context)

    @router.get("")
    def list_models(
        caller: Annotated[Caller, may("estate.read")], page: Annotated[Paging, Depends(paging)]
    ) -> Listed[ModelShape]:
        """All models."""
        rows = context.registry.estate.models_with_sites(page.page)
        return page.listed(
            rows,
            lambda row: ModelShape(
                name=row[0].name, kind=row[0].kind, revision=row[0].revision,
                context_tokens=row[0].context_tokens, created_at=row[0].created_at,
                sites=list(row[1]),
            ),
            lambda row: row[0].name,
        )

    return router

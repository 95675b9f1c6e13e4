"""Status of the cloud: what every site said last; and health of this process."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.control.api.site_shapes import SiteStatus, status_of
from isochrone.control.api.sites import EVERY, deployments_by_site


class Health(BaseModel):
    """`bus` tells whether NATS is connected; gateways serve without it."""

    status: str
    bus: bool


class Status(BaseModel):
    """`ready`: every site is. `at` is wall ns UTC of this control."""

    ready: bool
    at: int
    bus: bool
    sites: list[SiteStatus]


def routes(context: Context) -> APIRouter:
    router = APIRouter(tags=["status"])
    may = access(context)

    @router.get("/health")
    async def health() -> Health:
        """This process answers. Needs no key."""
        return Health(status="ok", bus=context.bus_connected())

    @router.get("/status")
    def status(caller: Annotated[Caller, may("estate.read")]) -> Status:
        """Every site with its replicas, as last heard."""
        wishes = deployments_by_site(context)
        sites = [
            status_of(context, caller, site, wishes.get(site.name, []))
            for site in context.registry.estate.sites(EVERY)
        ]
        return Status(
            ready=all(site.ready for site in sites), at=context.now(),
            bus=context.bus_connected(), sites=sites,
        )

    return router

"""Hosts: the machines of sites, as their agents last said, and how much of what runs there runs."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.control.api.paging import Listed, Paging, paging
from isochrone.control.api.site_shapes import best_of
from isochrone.control.api.sites import EVERY
from isochrone.control.fleet_state import Heard
from isochrone.core.ids import SiteName
from isochrone.core.lifecycle.health import ShownState
from isochrone.core.world.digest import HostLoad
from isochrone.core.world.site import Site


class GpuShape(BaseModel):
    """One accelerator; `memory_bytes` is null where its driver does not say."""

    kind: str
    memory_bytes: int | None


class HostShape(BaseModel):
    """`cores` and `memory_bytes` are what processes there may use. `machine` is the same for hosts
    that are one machine, and null where nobody can tell. `health`: draining or down with the site,
    else that of the replica there that is trusted most. Of the `replicas_wanted` there by its
    agent's word `ready` are; they work on `running` requests, `waiting` more wait in engines."""

    site: str
    name: str
    cores: int
    memory_bytes: int | None
    gpus: list[GpuShape]
    machine: str | None
    health: ShownState
    replicas_wanted: int
    ready: int
    running: int
    waiting: int
    digest_age_ms: float


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/hosts", tags=["estate"])
    may = access(context)

    @router.get("")
    def list_hosts(
        caller: Annotated[Caller, may("estate.details")],
        page: Annotated[Paging, Depends(paging)],
        site: Annotated[str | None, Query(max_length=100)] = None,
    ) -> Listed[HostShape]:
        """Hosts of one site or of all, as last heard; sites that were never heard have none."""
        estate = context.registry.estate
        sites = estate.sites(EVERY) if site is None else [estate.site(SiteName(site))]
        after = _place(page.after or "")
        hosts = (shape for each in sites for shape in _hosts(context, each))
        rows = sorted(
            (shape for shape in hosts if (shape.site, shape.name) > after),
            key=lambda shape: (shape.site, shape.name),
        )
        return page.listed(rows, lambda row: row, lambda row: f"{row.site}/{row.name}")

    return router


def _place(cursor: str) -> tuple[str, str]:
    site, _, name = cursor.partition("/")
    return site, name


def _hosts(context: Context, site: Site) -> Iterator[HostShape]:
    heard = context.fleet.heard(site.name)
    if heard is not None:
        for each in heard.digest.hosts:
            yield _shape(context, site, heard, each)


def _shape(context: Context, site: Site, heard: Heard, load: HostLoad) -> HostShape:
    host = load.host
    here = [each for each in heard.digest.replicas if each.host == host.name]
    return HostShape(
        site=site.name, name=host.name, cores=host.cores, memory_bytes=host.memory_bytes,
        gpus=[GpuShape(kind=each.kind, memory_bytes=each.memory_bytes) for each in host.gpus],
        machine=host.machine, health=best_of(context, site, heard, here),
        replicas_wanted=load.replicas_wanted,
        ready=sum(each.state == "ready" for each in here),
        running=sum(each.running for each in here), waiting=sum(each.waiting for each in here),
        digest_age_ms=round(context.fleet.age_ms(heard), 1),
    )

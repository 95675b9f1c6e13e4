"""What every site is doing now, in a few words: what a map of all of them draws each second."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.control.api.site_shapes import health_of
from isochrone.control.api.sites import EVERY
from isochrone.core.lifecycle.health import ShownState
from isochrone.core.world.site import Site

SITES_NS = 5_000_000_000  # how long the list of sites is used; what they do is as last heard


class LiveSite(BaseModel):
    """`ready` replicas have `slots`, in which `running` requests are worked on; `waiting` more
    wait. Their caches have room for `kept_tokens`, of which running requests take `held_tokens`;
    null where no engine says."""

    name: str
    health: ShownState
    ready: int
    slots: int
    running: int
    waiting: int
    kept_tokens: int | None
    held_tokens: int | None


class Live(BaseModel):
    """`at` is wall ns UTC; `sites` in the order of their names."""

    at: int
    bus: bool
    sites: list[LiveSite]


class KnownSites:
    """The sites of the book, asked for every few seconds at most."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._found: tuple[int, Sequence[Site]] | None = None

    def all(self) -> Sequence[Site]:
        now_ns = self._context.clock.monotonic_ns()
        if self._found is None or now_ns - self._found[0] > SITES_NS:
            sites = self._context.registry.estate.sites(EVERY)
            self._found = now_ns, sorted(sites, key=lambda site: site.name)
        return self._found[1]


def routes(context: Context) -> APIRouter:
    router = APIRouter(tags=["status"])
    may, known = access(context), KnownSites(context)

    @router.get("/live")
    def live(caller: Annotated[Caller, may("estate.read")]) -> Live:
        """Every site's load and health, as last heard."""
        return Live(
            at=context.now(), bus=context.bus_connected(),
            sites=[_live(context, site) for site in known.all()],
        )

    return router


def _live(context: Context, site: Site) -> LiveSite:
    heard = context.fleet.heard(site.name)
    loads = heard.digest.loads if heard is not None else ()
    replicas = heard.digest.replicas if heard is not None else ()
    kept = [each.kept_tokens for each in replicas if each.kept_tokens is not None]
    held = [each.held_tokens for each in replicas if each.held_tokens is not None]
    return LiveSite(
        name=site.name, health=health_of(context, site, heard),
        ready=sum(load.ready for load in loads), slots=sum(load.slots for load in loads),
        running=sum(load.running for load in loads), waiting=sum(load.waiting for load in loads),
        kept_tokens=sum(kept) if kept else None,
        held_tokens=sum(held) if held else None,
    )

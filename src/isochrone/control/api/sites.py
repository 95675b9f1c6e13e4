"""Sites: list, look at one, drain or stop it, make a join token, join with it, revoke its login."""

from typing import Annotated

from fastapi import APIRouter, Depends, status
from pydantic import BaseModel, Field

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.control.api.paging import Listed, Paging, paging
from isochrone.control.api.shapes import Body, Text
from isochrone.control.api.site_shapes import (
    SiteDetails,
    SiteShape,
    links_of,
    shape_of,
    status_of,
)
from isochrone.control.api.writing import SITE_TOKEN_PREFIX, Repeat, new_secret, repeat
from isochrone.control.joining import invite, join
from isochrone.core.errors import InvalidInput
from isochrone.core.ids import SiteName
from isochrone.core.world.model import Deployment
from isochrone.ports.tenants import Page
from isochrone.wire.identity import JoinReply, JoinRequest

EVERY = Page(most=1_000_000)


class WantedDraining(Body):
    draining: bool


class WantedRunning(Body):
    """`at_once`: without finishing what its replicas work on, as when the site is lost."""

    running: bool
    at_once: bool = False


class SiteToken(BaseModel):
    """`token` is shown once; `expires_at` is wall ns UTC."""

    site: str
    token: str
    expires_at: int


class Join(Body):
    """What a joining site states; see `isochrone site join`."""

    token: Text
    peer_key: Annotated[str, Field(max_length=64)]
    nats_key: Annotated[str, Field(pattern=r"^U[A-Z2-7]{55}$")]
    host: Annotated[str, Field(max_length=253)]
    port: int
    public_url: Text


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/sites", tags=["estate"])
    may = access(context)

    @router.get("")
    def list_sites(
        caller: Annotated[Caller, may("estate.read")], page: Annotated[Paging, Depends(paging)]
    ) -> Listed[SiteShape]:
        """All sites."""
        rows = context.registry.estate.sites(page.page)
        wishes = deployments_by_site(context)
        return page.listed(
            rows,
            lambda row: shape_of(context, row, wishes.get(row.name, [])),
            lambda row: row.name,
        )

    @router.get("/{name}")
    def get_site(name: str, caller: Annotated[Caller, may("estate.read")]) -> SiteDetails:
        """One site with its replicas, and its links with the source of each figure."""
        estate = context.registry.estate
        site = estate.site(SiteName(name))
        shown = status_of(context, caller, site, estate.deployments(EVERY, site=site.name))
        return SiteDetails(**shown.model_dump(), links=links_of(estate.links(site.name)))

    @router.put("/{name}/draining")
    def set_draining(
        name: str, body: WantedDraining, caller: Annotated[Caller, may("estate.write")]
    ) -> SiteShape:
        """Empty a site: it takes no new requests, and what runs there ends by itself; or let it
        take requests again. Its replicas go on running."""
        estate = context.registry.estate
        changed = estate.set_draining(caller.scope, SiteName(name), body.draining)
        context.changed()
        return shape_of(context, changed, estate.deployments(EVERY, site=changed.name))

    @router.put("/{name}/running")
    def set_running(
        name: str, body: WantedRunning, caller: Annotated[Caller, may("estate.write")]
    ) -> SiteShape:
        """Stop every replica of a site, or start as many as there were. Its gateway goes on and
        sends what enters there to other sites."""
        if body.running and body.at_once:
            raise InvalidInput(["at_once: only stopping has a choice"])
        estate = context.registry.estate
        wishes = estate.set_running(
            caller.scope, SiteName(name), body.running, at_once=body.at_once
        )
        context.changed()
        return shape_of(context, estate.site(SiteName(name)), wishes)

    _add_joining(router, context)
    return router


def _add_joining(router: APIRouter, context: Context) -> None:
    may = access(context)

    @router.post("/join")
    def join_site(body: Join) -> JoinReply:
        """Spend a one-time token. The same token and keys again give the same answer."""
        reply = join(
            context.registry.estate,
            JoinRequest(**body.model_dump()),
            context.hub,
            context.site_credentials,
            now=context.now(),
        )
        context.changed()
        return reply

    @router.post("/{name}/token", status_code=status.HTTP_201_CREATED)
    def make_token(
        name: str,
        caller: Annotated[Caller, may("estate.write")],
        again: Annotated[Repeat, Depends(repeat)],
    ) -> SiteToken:
        """Make a one-time token with which the site can join for an hour."""
        once = again.once(caller, None)
        secret = new_secret(context, SITE_TOKEN_PREFIX, once)
        made = invite(
            context.registry.estate, caller.scope, SiteName(name), secret, now=context.now(),
            once=once,
        )
        return SiteToken(site=made.site, token=secret, expires_at=made.expires_at)

    @router.delete("/{name}/login")
    def revoke_login(name: str, caller: Annotated[Caller, may("estate.write")]) -> SiteShape:
        """Cut a site off: NATS refuses its login and its peers no longer believe it, until it joins
        anew. Join tokens that nobody used are void."""
        estate = context.registry.estate
        site = estate.revoke_login(caller.scope, SiteName(name), now=context.now())
        context.changed()
        return shape_of(context, site, estate.deployments(EVERY, site=site.name))


def deployments_by_site(context: Context) -> dict[SiteName, list[Deployment]]:
    """What should run where."""
    wishes: dict[SiteName, list[Deployment]] = {}
    for wish in context.registry.estate.deployments(EVERY):
        wishes.setdefault(wish.site, []).append(wish)
    return wishes

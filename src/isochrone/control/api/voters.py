"""Voters, the sites that say who looks after the slices of entitlements: show, change."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.control.api.entitlements import EVERY
from isochrone.control.api.shapes import Body, Identifier
from isochrone.core.admission.entitlement import MOST_VOTERS, VOTERS_SETTLE_NS, check_voters
from isochrone.core.errors import InvalidInput, NotFound
from isochrone.core.ids import SiteName
from isochrone.ports.entitlements import StoredVoters


class NewVoters(Body):
    """An odd number of sites that have joined; in different places, best."""

    sites: tuple[Identifier, ...] = Field(min_length=1, max_length=MOST_VOTERS)


class VotersShape(BaseModel):
    """`former`: those before the last change, who must agree as well. `settled_at`: from when on
    they may be changed again; 0 for at once."""

    sites: list[str]
    former: list[str]
    epoch: int
    settled_at: int


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/voters", tags=["estate"])
    sold = context.registry.entitlements
    may = access(context)

    @router.get("")
    def show_voters(caller: Annotated[Caller, may("estate.details")]) -> VotersShape:
        """The voters; there are none before the first entitlement."""
        stored = sold.voters()
        if stored is None:
            raise NotFound("there are no voters before the first entitlement")
        return _shape(stored)

    @router.post("")
    def change_voters(
        body: NewVoters, caller: Annotated[Caller, may("estate.write")]
    ) -> VotersShape:
        """Change the voters, because a site leaves for good. Safe at any time; once in ten minutes.
        The same sites again, after that, end the change: the former ones are asked no more."""
        sites = tuple(map(SiteName, body.sites))
        problems = check_voters(sites, context.registry.estate.sites(EVERY))
        if problems:
            raise InvalidInput(problems)
        stored = sold.change_voters(caller.scope, sites, now=context.now())
        context.changed()
        return _shape(stored)

    return router


def _shape(stored: StoredVoters) -> VotersShape:
    voters = stored.voters
    return VotersShape(
        sites=list(voters.sites), former=list(voters.former), epoch=voters.epoch,
        settled_at=stored.changed_at + VOTERS_SETTLE_NS if voters.epoch else 0,
    )

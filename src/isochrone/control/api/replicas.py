"""Replicas: restart one. Its agent ends the process of the generation that is told, once."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.control.api.shapes import Body, Text
from isochrone.core.errors import Conflict, InvalidInput, NotFound
from isochrone.core.ids import SiteName
from isochrone.core.world.digest import ReplicaLoad


class WantedRestart(Body):
    """`replica` as GET /sites/{name} lists it. `generation`: the one to end, by default the one
    that runs now; where a newer one runs already, nothing happens."""

    replica: Text
    generation: Annotated[int, Field(ge=0)] | None = None


class RestartShape(BaseModel):
    """`generation` is the last that was heard; up to `restart_up_to` it is to be replaced."""

    replica: str
    site: str
    model: str
    generation: int
    restart_up_to: int


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/replicas", tags=["estate"])
    may = access(context)

    @router.post("/restart")
    def restart(
        body: WantedRestart, caller: Annotated[Caller, may("estate.write")]
    ) -> RestartShape:
        """Restart a replica: it takes no new work, has 20 s to finish what it has, and is started
        again. The same generation again changes nothing, whatever has happened since."""
        site, present = _heard(context, body.replica)
        up_to = present.generation if body.generation is None else body.generation
        if up_to > present.generation:
            raise InvalidInput(
                [f"generation: {up_to} was never heard of, the last is {present.generation}"]
            )
        index = _index_of(present)
        wish = context.registry.estate.restart(
            caller.scope, site, present.model, index, up_to=up_to
        )
        context.changed()
        return RestartShape(
            replica=present.id, site=site, model=present.model, generation=present.generation,
            restart_up_to=wish.restart_up_to[index],
        )

    return router


def _index_of(replica: ReplicaLoad) -> int:
    """Which of its deployment's it is. Raises NotFound for a name that no agent of ours gives."""
    number = replica.id.rpartition("/")[2]
    if not (number.isascii() and number.isdigit() and len(number) < 10):
        raise NotFound(f"{replica.id!r} is no replica of a deployment")
    return int(number)


def _heard(context: Context, replica: str) -> tuple[SiteName, ReplicaLoad]:
    """The replica as its agent said last. Raises Conflict or NotFound."""
    site = context.registry.estate.site(SiteName(replica.partition("/")[0])).name
    heard = context.fleet.heard(site)
    if heard is None:
        raise Conflict(f"nothing was heard from {site} yet: ask again when it is there")
    for each in heard.digest.replicas:
        if each.id == replica:
            return site, each
    raise NotFound(f"{site} has no replica {replica!r} now")

"""The map's data for browsers: where sites are, one shared stream of frames, links of a site.

A frame is made once a second for all viewers who may see the same, with the session of one of them:
by whoever asks first when the last one is a second old. With nobody looking nothing is asked.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import httpx
import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response, StreamingResponse

from isochrone.console.api import Api, part
from isochrone.console.estate import Hardware, Link
from isochrone.console.page import Me
from isochrone.console.sign_in import Cookie
from isochrone.core.errors import Forbidden, IsochroneError, Untrusted

FRAME_S = 1.0
CHECK_S = 60.0  # how often a viewer's session is looked at
MOST_SITES = 100_000
MOST_FLOWS = 400
DAY_S = 86_400


class LiveSite(msgspec.Struct, frozen=True):
    name: str
    health: str
    ready: int
    slots: int
    running: int
    waiting: int
    held_tokens: int | None = None


class Live(msgspec.Struct, frozen=True):
    at: int
    sites: tuple[LiveSite, ...]


class Flow(msgspec.Struct, frozen=True):
    ingress: str
    site: str | None
    model: str
    outcome: str
    requests: float


class Flows(msgspec.Struct, frozen=True):
    until: str
    flows: tuple[Flow, ...]


class KnownSite(msgspec.Struct, frozen=True):
    name: str
    country: str | None
    operator: str | None
    latitude_deg: float
    longitude_deg: float
    hardware: tuple[Hardware, ...]


class KnownModel(msgspec.Struct, frozen=True):
    name: str
    sites: tuple[str, ...]


class Links(msgspec.Struct, frozen=True):
    """Of GET /sites/{name} only these."""

    links: tuple[Link, ...]


@dataclass(slots=True)
class Feed:
    """The last frame for viewers who see the same, when it was made, and where flows go on."""

    frame: bytes = b""
    made_s: float = float("-inf")
    after: str | None = None
    making: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def latest(self, api: Api, now_s: float) -> bytes:
        """The frame of this second. Raises IsochroneError, above all Untrusted."""
        async with self.making:
            if now_s - self.made_s < FRAME_S * 0.9:
                return self.frame
            live = await api.get("live", Live)
            flows = await api.get("flows", Flows, after=self.after)
            self.after = flows.until
            self.frame, self.made_s = frame_of(live, flows), now_s
            return self.frame


def frame_of(live: Live, flows: Flows) -> bytes:
    """`v` names the list of sites that numbers of sites refer to; -1 is nowhere."""
    places = {site.name: number for number, site in enumerate(live.sites)}
    return msgspec.json.encode({
        "at": live.at // 1_000_000,
        "v": version_of(list(places)),
        "sites": [
            (site.health, site.ready, site.slots, site.running, site.waiting, site.held_tokens)
            for site in live.sites
        ],
        "flows": [
            (places[each.ingress], places.get(each.site or "", -1), each.model, each.outcome,
             round(each.requests))
            for each in flows.flows[:MOST_FLOWS] if each.ingress in places
        ],
    })


def version_of(names: list[str]) -> str:
    """What changes with the list of sites."""
    return f"{crc32(chr(10).join(names).encode()):08x}"


def routes(client: httpx.AsyncClient, cookie: Cookie, world_map: Path) -> APIRouter:
    router, feeds = APIRouter(), dict[str, Feed]()

    @router.get("/console/world.json")
    async def world() -> FileResponse:
        """The land of the map."""
        return FileResponse(world_map, headers={"cache-control": f"max-age={DAY_S}"})

    @router.get("/live/sites")
    async def sites(request: Request) -> Response:
        """Where sites are and what is deployed there, in the order of their names."""
        api = Api(client, cookie.of(request))
        try:
            return _json(await _sites(api))
        except IsochroneError as error:
            return _trouble(error)

    @router.get("/live/links/{name}")
    async def links(request: Request, name: str) -> Response:
        """Round trips between one site and others."""
        try:
            found = await Api(client, cookie.of(request)).get(f"sites/{part(name)}", Links)
        except IsochroneError as error:
            return _trouble(error)
        return _json(msgspec.json.encode(
            [(each.peer, each.rtt_ms, each.source) for each in found.links]
        ))

    @router.get("/live/frames")
    async def frames(request: Request) -> Response:
        """A frame a second, as server-sent events, for as long as the session holds."""
        api = Api(client, cookie.of(request))
        try:
            me = await api.get("me", Me)
            if not me.may("traffic.read"):  # what another viewer's session asked for is sent, too
                raise Forbidden(f"the role {me.role!r} lacks the right 'traffic.read'")
        except IsochroneError as error:
            return _trouble(error)
        feed = feeds.setdefault(me.org_id or "*", Feed())
        return StreamingResponse(
            _events(feed, api), media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    return router


async def _events(feed: Feed, api: Api) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    checked_s = loop.time()
    while True:
        try:
            if loop.time() - checked_s > CHECK_S:
                await api.get("me", Me)
                checked_s = loop.time()
            frame = await feed.latest(api, loop.time())
        except Untrusted:
            yield b"event: over\ndata: {}\n\n"
            return
        except IsochroneError as error:
            said = msgspec.json.encode({"detail": error.message})
            yield b"event: trouble\ndata: " + said + b"\n\n"
        else:
            yield b"data: " + frame + b"\n\n"
        await asyncio.sleep(FRAME_S)


async def _sites(api: Api) -> bytes:
    found = await api.items("sites", KnownSite, most=MOST_SITES)
    models = await api.items("models", KnownModel, most=MOST_SITES)
    at: dict[str, list[str]] = {}
    for model in models:
        for name in model.sites:
            at.setdefault(name, []).append(model.name)
    ordered = sorted(found, key=lambda site: site.name)
    return msgspec.json.encode({
        "v": version_of([site.name for site in ordered]),
        "sites": [
            {
                "name": site.name, "country": site.country, "operator": site.operator,
                "lat": site.latitude_deg, "lon": site.longitude_deg,
                "gpus": sum(each.count for each in site.hardware),
                "models": at.get(site.name, []),
            }
            for site in ordered
        ],
    })


def _json(content: bytes) -> Response:
    return Response(
        content, media_type="application/json", headers={"cache-control": "no-store"}
    )


def _trouble(error: IsochroneError) -> Response:
    kinds = ((Untrusted, 401), (Forbidden, 403))
    status = next((status for kind, status in kinds if isinstance(error, kind)), 503)
    return Response(
        msgspec.json.encode({"detail": error.message}), status_code=status,
        media_type="application/json",
    )

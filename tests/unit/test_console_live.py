"""The stream of the map: who gets frames that another viewer's session may have asked for."""

import asyncio
from pathlib import Path

import httpx
import msgspec
import pytest
from fastapi import FastAPI

from isochrone.console.api import open_client
from isochrone.console.live import routes
from isochrone.console.sign_in import cookie_for
from isochrone.core.tenancy.authorise import MAY, CallerRole

COOKIE = cookie_for("http://console.example:80")


def frames_for(role: CallerRole) -> httpx.Response:
    """What a viewer of this role is sent; their session is over at the first frame."""

    def control(request: httpx.Request) -> httpx.Response:
        if request.url.path != "/api/v1/me":
            return httpx.Response(401, content=b"{}")
        me = {
            "id": "x", "role": role, "org_id": "acme", "organisation": "acme", "name": None,
            "login": None, "is_given": False, "rights": sorted(MAY[role]),
        }
        return httpx.Response(200, content=msgspec.json.encode(me))

    async def run() -> httpx.Response:
        async with open_client("http://control.example", httpx.MockTransport(control)) as client:
            app = FastAPI()
            app.include_router(routes(client, COOKIE, Path("/nowhere")))
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app=app), base_url="http://console.example",
                cookies={COOKIE.name: "secret"},
            ) as browser:
                return await browser.get("/live/frames")

    return asyncio.run(run())


@pytest.mark.parametrize(("role", "status"), [("billing", 200), ("operator", 200), ("key", 403)])
def test_frames_are_for_those_who_may_see_the_traffic(role: CallerRole, status: int) -> None:
    answer = frames_for(role)
    assert answer.status_code == status
    assert ("event: over" in answer.text) == (status == 200)


def test_a_cookie_that_is_no_session_is_nobodys() -> None:
    asked: list[httpx.Request] = []

    def control(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(401, content=b"{}")

    async def run() -> int:
        async with open_client("http://control.example", httpx.MockTransport(control)) as client:
            app = FastAPI()
            app.include_router(routes(client, COOKIE, Path("/nowhere")))
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app=app), base_url="http://console.example"
            ) as browser:
                cookie = f"{COOKIE.name}=isoses_\u00e9".encode("latin-1")
                return (await browser.get("/live/sites", headers={b"cookie": cookie})).status_code

    assert asyncio.run(run()) == 401
    assert [each for each in asked if "authorization" in each.headers] == []

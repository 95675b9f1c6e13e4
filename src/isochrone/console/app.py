"""Assembles the console: sign-in, pages within the frame, files of our own, guards around all.

NiceGUI is the shell: pages are written in Python and live as long as their browser tab. It keeps
its pages in the process, so there is one console a process.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
from fastapi import FastAPI, Request
from fastapi.staticfiles import StaticFiles
from nicegui import ui
from starlette.responses import Response
from starlette.types import ASGIApp

from isochrone.console import live, relay, reports, sign_in
from isochrone.console.api import Api, open_client
from isochrone.console.frame import frame, title
from isochrone.console.guard import Guard
from isochrone.console.page import Me, Page, Visit, theme_of
from isochrone.console.pages.catalogue import PAGES
from isochrone.console.parts.notices import empty, trouble
from isochrone.console.settings import ConsoleSettings
from isochrone.console.sign_in import Cookie, cookie_for, to_sign_in
from isochrone.core.errors import IsochroneError, Untrusted

STATIC = Path(__file__).parent / "static"
NOBODY = Me(
    id="", role="key", org_id=None, organisation=None, name=None, login=None, is_given=False,
    rights=(),
)


def build_app(
    settings: ConsoleSettings, world_map: Path, transport: httpx.AsyncBaseTransport | None = None
) -> ASGIApp:
    """The console as an ASGI application; once a process. `world_map` is the file of the land,
    `transport` replaces the network to control."""
    app = FastAPI(title="Isochrone console", openapi_url=None, docs_url=None, redoc_url=None)
    client = open_client(settings.control_url, transport)
    cookie = cookie_for(settings.public_url)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    app.include_router(sign_in.routes(client, cookie))
    app.include_router(live.routes(client, cookie, world_map))
    app.include_router(relay.routes(client, relay.open_gateways(), cookie))
    app.include_router(reports.routes(client, cookie))
    app.mount("/console", StaticFiles(directory=STATIC))
    for page in PAGES:
        ui.page(page.path)(_opened(page, client, cookie))
    ui.run_with(
        app, show_welcome_message=False, reconnect_timeout=5.0, tailwind=False, language="en-GB"
    )
    return Guard(app)


def _opened(
    page: Page, client: httpx.AsyncClient, cookie: Cookie
) -> Callable[[Request], Awaitable[Response | None]]:
    """What happens when the address of `page` is asked for."""

    async def opened(request: Request) -> Response | None:
        secret = cookie.of(request)
        if secret is None:
            return to_sign_in(request)
        api, theme = Api(client, secret), theme_of(request)
        try:
            me = await api.get("me", Me)
        except Untrusted:
            return to_sign_in(request)
        except IsochroneError as error:
            with frame(page, (), NOBODY, theme):
                trouble(error)
            return None
        with frame(page, PAGES, me, theme):
            if me.role not in page.roles:
                title(page.title)
                empty("This page is not for your role.", f"You are {me.role}.", icon="lock")
                return None
            await page.build(Visit(me=me, api=api, query=dict(request.query_params)))
        return None

    return opened


"""Reports of experiments for a frame of the console: fetched as whoever looks, without any rights.

A report has no scripts and asks for nothing. What its titles and notes say was written by people,
so browsers are told to give it no scripts, no forms and an origin of its own all the same.
"""

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

from isochrone.console.api import Api, part
from isochrone.console.page import theme_of
from isochrone.console.sign_in import Cookie
from isochrone.core.errors import Forbidden, IsochroneError, NotFound, Untrusted

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; "
    "base-uri 'none'; form-action 'none'; sandbox"
)


def routes(client: httpx.AsyncClient, cookie: Cookie) -> APIRouter:
    router = APIRouter(prefix="/experiments")

    @router.get("/{run_id}/report")
    async def report(run_id: str, request: Request) -> Response:
        """The report of one run, to be framed or opened by itself."""
        api = Api(client, cookie.of(request))
        try:
            page = await api.text(f"experiments/{part(run_id)}/report")
        except IsochroneError as error:
            return PlainTextResponse(error.message + "\n", status_code=_status(error))
        theme = theme_of(request)
        if theme is not None:  # else as the system says, which the report sees by itself
            page = page.replace("<html lang=en>", f"<html lang=en data-theme={theme}>", 1)
        return HTMLResponse(page, headers={"content-security-policy": POLICY})

    return router


def _status(error: IsochroneError) -> int:
    kinds = ((Untrusted, 401), (Forbidden, 403), (NotFound, 404))
    return next((status for kind, status in kinds if isinstance(error, kind)), 503)

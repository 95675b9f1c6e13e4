"""Signing in and out: a plain form that needs no script, and the cookie that holds the session.

The cookie is HttpOnly and SameSite, so no script reads it and no other site's page sends it. It
holds the session's secret itself: the console keeps nothing of anybody.
"""

import math
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Annotated
from urllib.parse import quote, urlsplit

import httpx
import msgspec
from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from isochrone.console.api import Api
from isochrone.core.errors import IsochroneError, TooManyTries, Untrusted

FORM = Template((Path(__file__).parent / "static" / "sign_in.html").read_text(encoding="utf-8"))
SIGN_IN, SIGN_OUT, HOME = "/sign-in", "/sign-out", "/"
LONGEST = 300
NS_PER_S = 1_000_000_000


class Begun(msgspec.Struct, frozen=True):
    """What control answers to a sign-in."""

    token: str
    expires_at: int


class Ended(msgspec.Struct, frozen=True):
    ended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Cookie:
    """How the session is kept in a browser. The port is in the name, because browsers send
    cookies to every port of a host."""

    name: str
    is_secure: bool

    def of(self, request: Request) -> str | None:
        """The session's secret that came with the request."""
        secret = request.cookies.get(self.name)
        return secret if secret is None or secret.isascii() else None  # none of control's

    def set(self, answer: Response, begun: Begun) -> None:
        answer.set_cookie(
            self.name, begun.token, httponly=True, samesite="lax", secure=self.is_secure, path="/"
        )

    def clear(self, answer: Response) -> None:
        answer.delete_cookie(
            self.name, httponly=True, samesite="lax", secure=self.is_secure, path="/"
        )


def cookie_for(public_url: str) -> Cookie:
    """The cookie of a console that browsers reach at `public_url`."""
    parts = urlsplit(public_url)
    is_secure = parts.scheme == "https"
    prefix = "__Host-" if is_secure else ""
    return Cookie(name=f"{prefix}isochrone-{parts.port or 443}", is_secure=is_secure)


def sign_in_for(request: Request) -> str:
    """The address at which to sign in and come back to this page."""
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return f"{SIGN_IN}?next={quote(wanted, safe='')}"


def to_sign_in(request: Request) -> RedirectResponse:
    """Where somebody without a session is sent."""
    return RedirectResponse(sign_in_for(request), status_code=303)


def routes(client: httpx.AsyncClient, cookie: Cookie) -> APIRouter:
    router = APIRouter()

    @router.get(SIGN_IN)
    async def show(next: str = HOME) -> Response:  # noqa: A002
        """The form."""
        return _form(next)

    @router.post(SIGN_IN)
    async def sign_in(
        request: Request,
        login: Annotated[str, Form()] = "",
        password: Annotated[str, Form()] = "",
        next: Annotated[str, Form()] = HOME,  # noqa: A002
    ) -> Response:
        """Sign in at control, keep the session in the cookie, go where one wanted to go."""
        body = {
            "login": login.strip(), "password": password,
            "address": request.client.host if request.client is not None else "",
        }
        if not login.strip() or not password:
            return _form(next, login, "Give your name and your password.")
        if len(login) > LONGEST or len(password) > LONGEST:
            return _form(next, login[:LONGEST], "The name or the password is wrong.", status=401)
        try:
            begun = await Api(client, None).post("sessions", Begun, body)
        except Untrusted:
            return _form(next, login, "The name or the password is wrong.", status=401)
        except TooManyTries as error:
            wait_s = math.ceil(error.wait_s)
            answer = _form(
                next, login, f"Too many tries. Wait {wait_s} s, then try again.", status=429
            )
            answer.headers["retry-after"] = str(wait_s)
            return answer
        except IsochroneError as error:
            return _form(next, login, f"Signing in did not work: {error.message}", status=503)
        done = RedirectResponse(inside(next), status_code=303)
        cookie.set(done, begun)
        return done

    @router.post(SIGN_OUT)
    async def sign_out(request: Request) -> Response:
        """End the session at control, and forget it here whatever control says."""
        secret, answer = cookie.of(request), RedirectResponse(SIGN_IN, status_code=303)
        cookie.clear(answer)
        if secret is not None:
            with suppress(IsochroneError):
                await Api(client, secret).delete("sessions/current", Ended)
        return answer

    return router


def inside(wanted: str) -> str:
    """`wanted` where it is a path of this console, else the first page."""
    is_path = wanted.startswith("/") and not wanted.startswith(("//", "/\\"))
    return wanted if is_path and wanted.isprintable() else HOME


def _form(wanted: str, login: str = "", problem: str = "", *, status: int = 200) -> HTMLResponse:
    if problem and status == 200:
        status = 422
    shown = f'<p class="problem" role="alert">{escape(problem)}</p>' if problem else ""
    text = FORM.substitute(
        problem=shown, login=escape(login, quote=True), next=escape(inside(wanted), quote=True),
        focus_login="" if login else "autofocus", focus_password="autofocus" if login else "",
    )
    return HTMLResponse(text, status_code=status, headers={"cache-control": "no-store"})

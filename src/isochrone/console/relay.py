"""The playground's way to gateways: passes one chat on, under the key that came with it.

The browser asks the console alone, so the content security policy lets no page reach anything else,
and gateways need no CORS. The key is in the request of whoever types it, goes to the gateway of a
site that control names, and is not kept. Who asks is signed in, all the same.
"""

from collections.abc import AsyncIterator

import httpx
import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.background import BackgroundTask

from isochrone.console.api import Api, part
from isochrone.console.sign_in import Cookie
from isochrone.core.errors import IsochroneError, NotFound, Unavailable, Untrusted

MOST_BYTES = 1 << 20
PATIENCE = httpx.Timeout(10.0, read=120.0)
PASSED_BACK = ("content-type", "retry-after")
PREFIX_BACK = "x-isochrone-"


class Gateway(msgspec.Struct, frozen=True):
    """Of GET /sites/{name} only where its gateway answers."""

    public_url: str | None


class Timings(msgspec.Struct, frozen=True):
    first_byte_ms: float | None


class Tokens(msgspec.Struct, frozen=True):
    input_uncached: int
    input_cached: int
    output: int


class Price(msgspec.Struct, frozen=True):
    currency: str
    amount: str


class Answer(msgspec.Struct, frozen=True):
    """Of GET /requests/{id} what is shown beside an answer."""

    timings: Timings
    tokens: Tokens
    price: Price | None


def open_gateways(transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """The connections to gateways; they hold no credentials and follow nobody elsewhere."""
    return httpx.AsyncClient(
        timeout=PATIENCE, transport=transport, trust_env=False, follow_redirects=False,
        limits=httpx.Limits(max_connections=256),
    )


def routes(client: httpx.AsyncClient, gateways: httpx.AsyncClient, cookie: Cookie) -> APIRouter:
    router = APIRouter(prefix="/playground")

    @router.post("/chat")
    async def chat(request: Request, site: str) -> Response:
        """One chat completion at the gateway of `site`, its bytes as they come."""
        try:
            found = await Api(client, cookie.of(request)).get(f"sites/{part(site)}", Gateway)
            if not found.public_url:
                raise NotFound(f"{site} has no gateway yet")
            body = await _read(request)
            if body is None:
                return _said(413, f"the conversation has more than {MOST_BYTES} bytes")
            answer = await gateways.send(
                gateways.build_request(
                    "POST", f"{found.public_url.rstrip('/')}/chat/completions", content=body,
                    headers=_passed_on(request),
                ),
                stream=True,
            )
        except Untrusted:
            return _said(401, "Your session is over. Sign in again.")
        except NotFound as error:
            return _said(404, error.message)
        except IsochroneError as error:
            return _said(503, error.message)
        except httpx.HTTPError as error:
            return _said(502, f"the gateway of {site} does not answer ({type(error).__name__})")
        return StreamingResponse(
            _bytes(answer), status_code=answer.status_code, headers=_passed_back(answer),
            background=BackgroundTask(answer.aclose),
        )

    @router.get("/requests/{request_id}")
    async def booked(request: Request, request_id: str) -> Response:
        """What one answer used and cost; nothing (204) until it is booked,
        and where it is not theirs."""
        try:
            found = await Api(client, cookie.of(request)).get(
                f"requests/{part(request_id)}", Answer
            )
        except Untrusted:
            return _said(401, "Your session is over. Sign in again.")
        except NotFound:
            # Not an error: a browser would complain of each look that comes too early.
            return Response(status_code=204, headers={"cache-control": "no-store"})
        except Unavailable as error:
            return _said(503, error.message)
        return Response(
            msgspec.json.encode(found), media_type="application/json",
            headers={"cache-control": "no-store"},
        )

    return router


async def _read(request: Request) -> bytes | None:
    """The body; None where it is too large."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            return None
    return bytes(body)


def _passed_on(request: Request) -> dict[bytes, bytes]:
    """The key and nothing else of the browser's headers: above all not the session's cookie. As it
    came, whatever was pasted: the gateway says what is wrong with it."""
    return {
        b"authorization": request.headers.get("authorization", "").encode("latin-1"),
        b"content-type": b"application/json", b"accept-encoding": b"identity",
        b"x-isochrone-explain": b"full",
    }


def _passed_back(answer: httpx.Response) -> dict[str, str]:
    back = {
        name: value for name, value in answer.headers.items()
        if name in PASSED_BACK or name.startswith(PREFIX_BACK)
    }
    return {**back, "cache-control": "no-store", "x-accel-buffering": "no"}


async def _bytes(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The answer's bytes. Where the gateway is lost midway, the stream ends there: the browser sees
    that its end is missing."""
    try:
        async for piece in answer.aiter_raw():
            yield piece
    except httpx.HTTPError:
        return
    finally:
        await answer.aclose()  # a browser that left ends the request at the gateway


def _said(status: int, message: str) -> Response:
    """In the shape of a gateway's errors."""
    return Response(
        msgspec.json.encode({"error": {"message": message}}), status_code=status,
        media_type="application/json", headers={"cache-control": "no-store"},
    )

"""Calls the Control API as whoever is signed in: typed answers out, problems as typed errors.

The console has no key of its own: without a session's secret it can sign in and nothing else.
"""

from collections.abc import Mapping
from typing import NoReturn, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from isochrone.core.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    IsochroneError,
    NotFound,
    TooManyTries,
    Unavailable,
    Untrusted,
)

T = TypeVar("T")

PREFIX = "/api/v1"
TIMEOUT_S = 15.0
PAGE = 500


class Problem(msgspec.Struct, frozen=True):
    """A problem document (RFC 9457)."""

    detail: str = ""
    problems: tuple[str, ...] = ()


class Listed(msgspec.Struct, frozen=True):
    """One page of a list; its items are decoded later."""

    items: tuple[msgspec.Raw, ...]
    next: str | None


def open_client(control_url: str, transport: httpx.AsyncBaseTransport | None) -> httpx.AsyncClient:
    """The connections to control that all sessions share; they hold no credentials. Proxies of the
    environment are ignored: secrets go to the named host and nowhere else."""
    return httpx.AsyncClient(
        base_url=control_url, timeout=TIMEOUT_S, transport=transport, trust_env=False,
        limits=httpx.Limits(max_connections=64),
    )


def part(name: str) -> str:
    """`name` as one part of a path, whatever it holds."""
    return quote(name, safe="")


class Api:
    """Control for one session; None is nobody's. Every method raises a subclass of
    IsochroneError: Untrusted when the session is over, Unavailable when control is away."""

    def __init__(self, client: httpx.AsyncClient, secret: str | None) -> None:
        self._client = client
        self._headers = {} if secret is None else {"authorization": f"Bearer {secret}"}

    async def get(self, path: str, kind: type[T], /, **query: str | int | None) -> T:
        """The answer of GET /api/v1/{path}; query values that are None are left out."""
        return await self._call("GET", path, kind, query=query)

    async def items(
        self, path: str, kind: type[T], /, *, most: int = PAGE, **query: str | int | None
    ) -> tuple[T, ...]:
        """The first items of a list, `most` at most."""
        page = await self.get(path, Listed, limit=min(most, PAGE), **query)
        found = list(page.items)
        while page.next is not None and len(found) < most:
            page = await self.get(path, Listed, limit=PAGE, after=page.next, **query)
            found += page.items
        return tuple(msgspec.json.decode(item, type=kind) for item in found[:most])

    async def text(self, path: str) -> str:
        """The answer of GET /api/v1/{path} as it is."""
        return (await self._ask("GET", path)).text

    async def post(
        self, path: str, kind: type[T], body: object = None, *, once: str | None = None
    ) -> T:
        """`once` is the idempotency key, with which repeating is safe."""
        return await self._call("POST", path, kind, body=body, once=once)

    async def put(self, path: str, kind: type[T], body: object) -> T:
        return await self._call("PUT", path, kind, body=body)

    async def patch(self, path: str, kind: type[T], body: object) -> T:
        return await self._call("PATCH", path, kind, body=body)

    async def delete(self, path: str, kind: type[T]) -> T:
        return await self._call("DELETE", path, kind)

    async def _call(
        self, method: str, path: str, kind: type[T], *,
        query: Mapping[str, str | int | None] | None = None, body: object = None,
        once: str | None = None,
    ) -> T:
        answer = await self._ask(method, path, query=query, body=body, once=once)
        try:
            return msgspec.json.decode(answer.content, type=kind)
        except msgspec.MsgspecError as error:
            raise Unavailable(
                f"control's answer to {method} {path} was not understood: {error}"
            ) from error

    async def _ask(
        self, method: str, path: str, *,
        query: Mapping[str, str | int | None] | None = None, body: object = None,
        once: str | None = None,
    ) -> httpx.Response:
        headers = dict(self._headers)
        if once is not None:
            headers["idempotency-key"] = once
        if body is not None:
            headers["content-type"] = "application/json"
        given = {name: value for name, value in (query or {}).items() if value is not None}
        try:
            answer = await self._client.request(
                method, f"{PREFIX}/{path}", params=given, headers=headers,
                content=None if body is None else msgspec.json.encode(body),
            )
        except httpx.HTTPError as error:
            raise Unavailable(
                f"control does not answer ({str(error) or type(error).__name__})"
            ) from error
        if answer.status_code >= 400:
            _refuse(answer)
        return answer


def _refuse(answer: httpx.Response) -> NoReturn:
    """Raise the typed error of a problem document."""
    try:
        problem = msgspec.json.decode(answer.content, type=Problem)
    except msgspec.MsgspecError:
        problem = Problem()
    status = answer.status_code
    detail = problem.detail or f"control answered {status}"
    if status in (400, 413, 422):
        raise InvalidInput(problem.problems or (detail,))
    if status == 429:
        raise TooManyTries(detail, wait_s=_number(answer.headers.get("retry-after")))
    kinds: dict[int, type[IsochroneError]] = {
        401: Untrusted, 403: Forbidden, 404: NotFound, 409: Conflict,
    }
    raise kinds.get(status, Unavailable)(detail)


def _number(text: str | None) -> float:
    return float(text) if text is not None and text.isdigit() else 1.0

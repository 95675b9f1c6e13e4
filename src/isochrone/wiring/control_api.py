"""A client of the Control API on the standard library: JSON in and out, problems as typed errors.

Used by the command line and by `isochrone up`. Proxies of the environment are ignored on purpose:
an admin key must go to the named host and nowhere else.
"""

import http.client
import json
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn
from urllib.parse import urlencode, urlsplit

from isochrone.core.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    IsochroneError,
    NotFound,
    Unavailable,
)

PREFIX = "/api/v1"
PAGE = 500


def connection(url: str, *, timeout_s: float) -> tuple[http.client.HTTPConnection, str]:
    """(unopened connection, path prefix) for an http or https URL. Raises InvalidInput."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
        host.encode("idna")  # as it will be looked up
        is_secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if is_secure else http.client.HTTPConnection
        link = kind(host, port, timeout=timeout_s)
    except (ValueError, http.client.InvalidURL) as error:
        raise InvalidInput([f"{url!r} is not a URL: {error}"]) from error
    if parts.scheme not in ("http", "https") or not host:
        raise InvalidInput([f"{url!r} is not a URL; expected http://HOST:PORT"])
    return link, parts.path.rstrip("/")


class ControlApi:
    """Calls one control with one key; every method raises a subclass of IsochroneError."""

    def __init__(self, url: str, key: str | None, *, timeout_s: float = 15.0) -> None:
        self.url = url.rstrip("/")
        self._key = key
        self._timeout_s = timeout_s

    def get(self, path: str, query: Mapping[str, object] | None = None) -> Any:
        """The decoded answer of GET /api/v1/{path}; query values that are None are left out."""
        given = {name: value for name, value in (query or {}).items() if value is not None}
        asked = urlencode(given, errors="surrogateescape")  # what is no text is no name of ours
        return self._call("GET", f"{path}?{asked}" if given else path, None, None)

    def items(self, path: str, query: Mapping[str, object] | None = None) -> Iterator[Any]:
        """All items of a paginated list, page by page."""
        after: str | None = None
        while True:
            page = self.get(path, {"limit": PAGE, **(query or {}), "after": after})
            yield from page["items"]
            after = page.get("next")
            if after is None:
                return

    def post(self, path: str, body: object, *, idempotency_key: str | None = None) -> Any:
        """The decoded answer; the same idempotency key makes repeating safe."""
        return self._call("POST", path, body, idempotency_key)

    def put(self, path: str, body: object) -> Any:
        return self._call("PUT", path, body, None)

    def patch(self, path: str, body: object) -> Any:
        return self._call("PATCH", path, body, None)

    def delete(self, path: str) -> Any:
        return self._call("DELETE", path, None, None)

    def _call(self, method: str, path: str, body: object, idempotency_key: str | None) -> Any:
        headers = {"accept": "application/json"}
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        if idempotency_key is not None:
            headers["idempotency-key"] = idempotency_key
        payload = None
        if body is not None:
            headers["content-type"] = "application/json"
            payload = json.dumps(body).encode()
        link, prefix = connection(self.url, timeout_s=self._timeout_s)
        try:
            link.request(method, f"{prefix}{PREFIX}/{path}", payload, headers)
            answer = link.getresponse()
            content = answer.read()
        except ValueError as error:
            raise InvalidInput(["an id or key of this command cannot be sent"]) from error
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(
                f"control at {self.url} does not answer ({reason_of(error)}); is the cloud up?"
            ) from error
        finally:
            link.close()
        if answer.status >= 400:
            _refuse(self.url, answer.status, content)
        return _decoded(self.url, content) if content else None


def reason_of(error: Exception) -> str:
    """Short words for a connection that failed."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _decoded(url: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise Unavailable(f"{url} did not answer with JSON; is it the Control API?") from error


def _refuse(url: str, status: int, content: bytes) -> NoReturn:
    """Raise the typed error of a problem document (RFC 9457)."""
    try:
        problem = json.loads(content)
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {}
    detail = str(problem.get("detail") or problem.get("title") or f"{url} answered {status}")
    if status in (400, 413, 422):
        listed = problem.get("problems") or problem.get("errors")
        raise InvalidInput([str(item) for item in listed] if listed else [detail])
    if status == 401:
        raise Forbidden(f"the key was not accepted: {detail}")
    kinds: dict[int, type[IsochroneError]] = {403: Forbidden, 404: NotFound, 409: Conflict}
    raise kinds.get(status, Unavailable)(detail)

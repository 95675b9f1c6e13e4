"""Turns failures into problem details (RFC 9457) with a stable `code`."""

import math
from collections.abc import Sequence
from http import HTTPStatus

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

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

MEDIA_TYPE = "application/problem+json"
STATUS: tuple[tuple[type[IsochroneError], HTTPStatus], ...] = (
    (InvalidInput, HTTPStatus.UNPROCESSABLE_ENTITY),
    (Untrusted, HTTPStatus.UNAUTHORIZED),
    (Forbidden, HTTPStatus.FORBIDDEN),
    (NotFound, HTTPStatus.NOT_FOUND),
    (Conflict, HTTPStatus.CONFLICT),
    (TooManyTries, HTTPStatus.TOO_MANY_REQUESTS),
    (Unavailable, HTTPStatus.SERVICE_UNAVAILABLE),
)
HEADERS = {
    HTTPStatus.UNAUTHORIZED: {"www-authenticate": "Bearer"},
    HTTPStatus.SERVICE_UNAVAILABLE: {"retry-after": "1"},
}

log = structlog.get_logger()


def problem(
    status: int, code: str, detail: str, *, problems: Sequence[str] = ()
) -> JSONResponse:
    """A problem document; `problems` lists every fault of an input."""
    kind = HTTPStatus(status)
    content: dict[str, object] = {
        "type": "about:blank", "title": kind.phrase, "status": kind.value, "detail": detail,
        "code": code,
    }
    if problems:
        content["problems"] = list(problems)
    return JSONResponse(
        content, status_code=kind.value, media_type=MEDIA_TYPE, headers=HEADERS.get(kind)
    )


def install(app: FastAPI) -> None:
    """Answer every failure of `app` with a problem document."""
    app.add_exception_handler(IsochroneError, _of_product)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(Exception, _of_bug)


async def _of_product(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, IsochroneError)
    status = next((each for kind, each in STATUS if isinstance(error, kind)), None)
    if status is None:
        return await _of_bug(_, error)
    problems = error.problems if isinstance(error, InvalidInput) else ()
    answer = problem(status, error.code, error.message, problems=problems)
    if isinstance(error, TooManyTries):
        answer.headers["retry-after"] = str(math.ceil(error.wait_s))
    return answer


async def _of_validation(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [_fault(each["loc"], each["msg"], each["type"]) for each in error.errors()]
    return problem(
        HTTPStatus.UNPROCESSABLE_ENTITY, InvalidInput.code, "; ".join(problems), problems=problems
    )


def _fault(location: Sequence[object], message: str, kind: str) -> str:
    """One fault in plain words. The given value is never repeated: it might be a secret."""
    if kind == "json_invalid":
        return "the body is not valid JSON"
    if kind == "model_attributes_type" and len(location) == 1:
        return "the body must be a JSON object"
    where = ".".join(str(part) for part in location[1:]) or str(location[0])
    if kind == "extra_forbidden":
        return f"{where}: unknown field"
    if kind == "missing":
        return f"{where}: missing"
    message = message.removeprefix("Value error, ")  # what a validator of ours says
    return f"{where}: {message[:1].lower()}{message[1:]}"


async def _of_http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    answer = problem(status, status.name.lower(), str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def _of_bug(request: Request, error: Exception) -> JSONResponse:
    log.error("control_api_bug", method=request.method, path=request.url.path, exc_info=error)
    return problem(
        HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "a fault of the server; its log says more"
    )

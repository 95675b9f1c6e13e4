"""Builds the bytes of answers: heads that say where a request ran, and OpenAI's error bodies."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import msgspec

from isochrone.wire import peer

_STATUS: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus
}
_encode: Final = msgspec.json.encode
_REQUEST_LINE: Final = f"\r\n{peer.REQUEST}: "

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request is not served. `reason` names the rule for machines (`x-isochrone-reason`),
    `code` is OpenAI's error code. `retry_after_s` is set where a later try may succeed, `allow`
    where another method would."""

    status: int
    reason: str
    message: str
    code: str | None = None
    param: str | None = None
    retry_after_s: int | None = None
    allow: str | None = None


def error_type(status: int) -> str:
    """OpenAI's error type for a status."""
    if status == 401:
        return "authentication_error"
    if status == 403:
        return "permission_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def error_body(refusal: Refusal) -> bytes:
    """OpenAI's error body."""
    return _encode(
        {
            "error": {
                "message": refusal.message,
                "type": error_type(refusal.status),
                "param": refusal.param,
                "code": refusal.code or refusal.reason,
            }
        }
    )


def error_event(code: str, message: str) -> bytes:
    """The last event of a stream that cannot go on: an error, and no [DONE] after it."""
    error = {"message": message, "type": "server_error", "param": None, "code": code}
    return b"data: " + _encode({"error": error}) + b"\n\n"


def head(
    status: int,
    *,
    content_type: str,
    request_id: str,
    where: str,
    timing: str,
    length: int | None,
    close: bool,
    client_request_id: str | None = None,
    extra: str = "",
) -> bytes:
    """The head of an answer. `length` None means chunked, or up to the end when closing.

    `where` and `extra` are whole lines; `client_request_id` is echoed as x-request-id.
    """
    first = _STATUS.get(status) or f"HTTP/1.1 {status} Status\r\n"
    if length is not None:
        extra = f"{extra}content-length: {length}\r\n"
    if client_request_id is not None:
        extra = f"{extra}x-request-id: {client_request_id}\r\n"
    if close:
        extra += "connection: close\r\n"
    return (
        f"{first}content-type: {content_type}{_REQUEST_LINE}{request_id}\r\n{where}"
        f"server-timing: {timing}\r\n{extra}\r\n"
    ).encode("latin-1")


def head_for_peer(
    status: int, *, content_type: str, extra: str, length: int, hop: str, close: bool
) -> bytes:
    """The head of a whole answer to a peer, who knows all but this. `hop` stands last but one, so
    that the peer knows the rest from the answer before."""
    first = _STATUS.get(status) or f"HTTP/1.1 {status} Status\r\n"
    if close:
        extra += "connection: close\r\n"
    return (
        f"{first}content-type: {content_type}\r\n{extra}{peer.HOP}: {hop}\r\n"
        f"content-length: {length}\r\n\r\n"
    ).encode("latin-1")


def refusal_lines(refusal: Refusal) -> str:
    """Lines of the head that go with a refusal."""
    text = f"{peer.REASON}: {refusal.reason}\r\n"
    if refusal.retry_after_s is not None:
        text += f"retry-after: {refusal.retry_after_s}\r\n"
    if refusal.allow is not None:
        text += f"allow: {refusal.allow}\r\n"
    if refusal.status == 401:
        text += "www-authenticate: Bearer\r\n"
    return text

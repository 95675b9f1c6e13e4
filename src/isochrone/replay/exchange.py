"""One streamed request as a client sees it: bytes out, events in, times of what arrived."""

import asyncio
from dataclasses import dataclass
from typing import Any, cast

import httptools
import msgspec

from isochrone.ports.clock import Clock

MOST_LINE_BYTES = 1024 * 1024
MOST_ERROR_BYTES = 64 * 1024
_LOOK_CLOSER = (b'"usage"', b'"error"', b'"finish_reason":"', b'"finish_reason": "')


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """OpenAI's usage as the client got it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None

    @property
    def cached_tokens(self) -> int:
        details = self.prompt_tokens_details
        return (details.cached_tokens or 0) if details else 0


class _Choice(msgspec.Struct):
    delta: dict[str, msgspec.Raw] = {}
    finish_reason: str | None = None


class _Error(msgspec.Struct):
    code: str | int | None = None
    type: str | None = None
    message: str = ""


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Event).decode
_EMPTY = (b"null", b'""', b"[]", b"{}")


@dataclass(slots=True)
class Answer:
    """What came back. Instants are monotonic; None where that point was not reached.

    `error` is None for a whole answer, else `status_N`, `status_N:reason`, `stream:CODE`, `cut`
    (the stream ended without its end), `lost` (the connection broke), `no_http` or `timed_out`.
    """

    status: int = 0
    request_id: str | None = None
    site: str | None = None
    country: str | None = None
    first_ns: int | None = None
    ended_ns: int | None = None
    usage: Usage | None = None
    error: str | None = None


class Exchange(asyncio.Protocol):
    """Sends one request on a connection of its own; `over` is set when the answer is `answer`."""

    _transport: asyncio.Transport

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._parser: Any = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._rest = b""
        self._whole: list[bytes] = []
        self._whole_bytes = 0
        self._done = False
        self._finished = False
        self._stream_error: str | None = None
        self.answer = Answer()
        self.over = asyncio.Event()

    def send(self, data: bytes) -> None:
        self._transport.write(data)

    def give_up(self, error: str) -> None:
        """End now, with this error."""
        self._end(error)
        self._transport.abort()

    # -- transport -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.give_up("no_http")

    def connection_lost(self, error: Exception | None) -> None:
        self._end("cut" if self.answer.status == 200 else "lost")

    # -- parser ----------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        answer = self.answer
        answer.status = self._parser.get_status_code()
        answer.request_id = self._header(b"x-isochrone-request")
        answer.site = self._header(b"x-isochrone-site")
        answer.country = self._header(b"x-isochrone-country")

    def on_body(self, body: bytes) -> None:
        if self.answer.status != 200:
            self._whole_bytes += len(body)
            if self._whole_bytes <= MOST_ERROR_BYTES:
                self._whole.append(body)
            return
        lines = (self._rest + body).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            self._line(line.rstrip(b"\r"))
        if len(self._rest) > MOST_LINE_BYTES:
            self.give_up("no_http")

    def on_message_complete(self) -> None:
        if self.answer.status != 200:
            reason = self._header(b"x-isochrone-reason") or _code(b"".join(self._whole))
            suffix = f":{reason}" if reason else ""
            self._end(f"status_{self.answer.status}{suffix}")
        elif self._stream_error is not None:
            self._end(self._stream_error)
        else:
            self._end(None if self._done or self._finished else "cut")
        self._transport.close()

    # -- inside ----------------------------------------------------------------------------------

    def _line(self, line: bytes) -> None:
        if not line.startswith(b"data:"):
            return
        payload = line[5:].strip()
        if payload == b"[DONE]":
            self._done = True
            return
        answer = self.answer
        if answer.first_ns is not None and not any(mark in payload for mark in _LOOK_CLOSER):
            return
        try:
            event = _decode(payload)
        except msgspec.MsgspecError:
            return
        if event.error is not None:
            code = event.error.code or event.error.type or "error"
            self._stream_error = f"stream:{code}"
        for choice in event.choices:
            self._finished = self._finished or choice.finish_reason is not None
            spoke = any(
                name != "role" and bytes(value) not in _EMPTY
                for name, value in choice.delta.items()
            )
            if spoke and answer.first_ns is None:
                answer.first_ns = self._clock.monotonic_ns()
        answer.usage = event.usage or answer.usage

    def _header(self, name: bytes) -> str | None:
        value = self._headers.get(name)
        return None if value is None else value.decode("latin-1")

    def _end(self, error: str | None) -> None:
        if not self.over.is_set():
            self.answer.error = error
            self.answer.ended_ns = self._clock.monotonic_ns()
            self.over.set()


def _code(body: bytes) -> str | None:
    try:
        error = _decode(body).error
    except msgspec.MsgspecError:
        return None
    return None if error is None else str(error.code or error.type or "") or None

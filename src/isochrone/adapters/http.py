"""Asks one HTTP question with a deadline: the small client of adapters and command line.

One connection a request, HTTP/1.1 over asyncio streams, answers bounded in size. Everything that
goes wrong on the way is `Unavailable`; a status of any kind is an answer.
"""

import asyncio
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from isochrone.core.errors import Unavailable

MOST_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """Status, headers (names in lower case; the last of equal names) and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:  # the caller parses it into a type
        """The body as JSON; raises Unavailable when it is none."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise Unavailable(f"the answer (status {self.status}) is not JSON") from error


async def request(
    method: str,
    url: str,
    *,
    body: object | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float,
    most_bytes: int = MOST_BYTES,
) -> HttpAnswer:
    """Send one request and return the whole answer; `body` (if not None) is sent as JSON.

    Raises Unavailable when nobody answers within `timeout_s`, the answer is malformed or longer
    than `most_bytes`.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _exchange(method, url, body, dict(headers or {}), most_bytes)
    except TimeoutError as error:
        raise Unavailable(f"{method} {url}: no answer within {timeout_s:g} s") from error
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
        raise Unavailable(f"{method} {url}: {error or type(error).__name__}") from error


async def _exchange(
    method: str, url: str, body: object | None, headers: dict[str, str], most_bytes: int
) -> HttpAnswer:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("the URL must start with http:// or https:// and name a host")
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if tls else 80)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=tls)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        writer.write(_request_bytes(method, target, parts.netloc, body, headers))
        await writer.drain()
        return await _read_answer(reader, method, most_bytes)
    finally:
        # Abort, not close: a TLS farewell could outlast the deadline.
        writer.transport.abort()


def _request_bytes(
    method: str, target: str, netloc: str, body: object | None, headers: dict[str, str]
) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    lines = {
        "host": netloc.rpartition("@")[2], "connection": "close", "accept": "*/*",
        "user-agent": "isochrone", **headers,
    }
    if body is not None:
        lines["content-type"] = "application/json"
    if content or method not in ("GET", "HEAD"):
        lines["content-length"] = str(len(content))
    if any("\r" in text or "\n" in text for pair in lines.items() for text in pair):
        raise ValueError("a header contains a line break")
    head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items())
    return head.encode("latin-1") + b"\r\n" + content


async def _read_answer(
    reader: asyncio.StreamReader, method: str, most_bytes: int
) -> HttpAnswer:
    status, headers = await _read_head(reader)
    while 100 <= status < 200:
        status, headers = await _read_head(reader)
    if method == "HEAD" or status in (204, 304):
        body = b""
    elif "chunked" in headers.get("transfer-encoding", "").lower():
        body = await _read_chunks(reader, most_bytes)
    elif "content-length" in headers:
        length = int(headers["content-length"])
        if length > most_bytes:
            raise ValueError(f"the answer has {length} bytes, more than {most_bytes}")
        body = await reader.readexactly(length)
    else:
        body = await reader.read(most_bytes + 1)
        while len(body) <= most_bytes and (piece := await reader.read(most_bytes)):
            body += piece
        if len(body) > most_bytes:
            raise ValueError(f"the answer has more than {most_bytes} bytes")
    return HttpAnswer(status=status, headers=headers, body=body)


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError("the answer is not HTTP/1")
    headers = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return int(rest[:3]), headers


async def _read_chunks(reader: asyncio.StreamReader, most_bytes: int) -> bytes:
    body = bytearray()
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        if len(body) + size > most_bytes:
            raise ValueError(f"the answer has more than {most_bytes} bytes")
        body += (await reader.readexactly(size + 2))[:-2]
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailers are of no interest
    return bytes(body)

"""Asks a server on this machine whether it answers: one HTTP GET, of which the status counts."""

import asyncio

TRY_S = 2.0


async def http_status(host: str, port: int, path: str, *, key: str | None = None) -> int | None:
    """Status of GET `path`, None when nobody answers HTTP there within two seconds."""
    bearer = f"authorization: Bearer {key}\r\n" if key is not None else ""
    head = f"GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\n{bearer}connection: close\r\n\r\n"
    words = (await _first_line(host, port, head.encode())).split(b" ")
    if len(words) >= 2 and words[0].startswith(b"HTTP/1.") and words[1].isdigit():
        return int(words[1])
    return None


async def _first_line(host: str, port: int, request: bytes) -> bytes:
    try:
        async with asyncio.timeout(TRY_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(request)
                return await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return b""

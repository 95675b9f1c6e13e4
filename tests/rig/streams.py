"""Many streams at once from one client process, held back until all begin, and judged by event."""

import asyncio
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from tests.fixtures.recorded_answers import Received, received

ANSWER_S = 240.0
POLL_S = 0.01
CREATED = re.compile(rb'"created":(\d+)')
TEXT_MARKS = (b'"content":"', b'"text":"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request for a stream. `own_id` is what the client calls it."""

    own_id: str
    path: str
    body: dict[str, Any]

    @property
    def wants_usage(self) -> bool:
        return "stream_options" in self.body

    @property
    def max_tokens(self) -> int:
        return int(self.body["max_tokens"])


@dataclass(slots=True, kw_only=True)
class Stream:
    """What one client sees of its stream through `entry`. `whole` once its body has come to its
    proper end; `text_at` are the instants at which text came, `lost` says how a connection broke.
    """

    ask: Ask
    entry: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    text_at: list[float] = field(default_factory=list)
    whole: bool = False
    ended: bool = False
    lost: str | None = None
    texts_at_kill: int = 0
    created_at_kill: set[int] = field(default_factory=set)

    @property
    def texts(self) -> int:
        """Events with text that have come."""
        return len(self.text_at)

    @property
    def open(self) -> bool:
        """Whether more of the answer has to come."""
        return not self.ended and b'"finish_reason":"' not in self.data

    @property
    def created(self) -> set[int]:
        """All `created` of its events."""
        return set(map(int, CREATED.findall(self.data)))

    @property
    def events(self) -> list[bytes]:
        return [each for each in self.data.split(b"\n\n") if each.startswith(b"data: ")]

    @property
    def error(self) -> dict[str, Any] | None:
        """The error event that it ended with."""
        last = self.events[-1][6:] if self.events else b"{}"
        if last == b"[DONE]":
            return None
        error: dict[str, Any] | None = json.loads(last).get("error")
        return error

    @property
    def error_free(self) -> bool:
        """Whether it is a whole answer of status 200 without an error event."""
        return self.status == 200 and self.whole and self.lost is None and self.error is None

    def received(self) -> Received:
        return received(self.data)

    def pause_s(self, since: float) -> float:
        """The longest that the client waited for more text after an instant."""
        later = [since, *(at for at in self.text_at if at > since)]
        return max((after - before for before, after in pairwise(later)), default=0.0)

    # -- called by its connection ----------------------------------------------------------------

    def take(self, data: bytes) -> None:
        now = time.monotonic()
        self.data += data
        self.text_at += [now] * sum(data.count(mark) for mark in TEXT_MARKS)


class Client:
    """Streams to one endpoint each, all sent but for their last byte until `begin`."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._ready = 0
        self._go = asyncio.Event()

    def add(self, ask: Ask, base: str, key: str) -> Stream:
        """Prepare one stream from the gateway, or engine, whose OpenAI API is at `base`."""
        stream = Stream(ask=ask, entry=base)
        self.streams.append(stream)
        self._tasks.append(asyncio.create_task(self._run(stream, base, key)))
        return stream

    async def begin(self) -> None:
        """Send the last byte of every request."""
        await until(lambda: self._ready == len(self._tasks), "all connections are there")
        self._go.set()

    async def finish(self) -> None:
        """Wait for the end of every stream."""
        async with asyncio.timeout(ANSWER_S):
            await asyncio.gather(*self._tasks)

    async def _run(self, stream: Stream, base: str, key: str) -> None:
        parts = urlsplit(base)
        body = json.dumps(stream.ask.body).encode()
        head = (
            f"POST {parts.path}{stream.ask.path} HTTP/1.1\r\nhost: {parts.netloc}\r\n"
            f"authorization: Bearer {key}\r\ncontent-type: application/json\r\n"
            f"x-request-id: {stream.ask.own_id}\r\nconnection: close\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            writer.write(head.encode() + body[:-1])
            await writer.drain()
            self._ready += 1
            await self._go.wait()
            writer.write(body[-1:])
            await _read(reader, stream)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            stream.lost = str(error)
        finally:
            stream.ended = True
            writer.transport.abort()


async def _read(reader: asyncio.StreamReader, stream: Stream) -> None:
    """A stream in chunks, or any other body up to its end."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    stream.status = int(lines[0].split()[1])
    fields = (line.partition(":") for line in lines[1:] if line)
    stream.headers = {name.lower(): value.strip() for name, _, value in fields}
    if stream.headers.get("transfer-encoding") != "chunked":
        stream.data = await reader.read()
        stream.whole = True
        return
    while size := int(await reader.readuntil(b"\r\n"), 16):
        stream.take((await reader.readexactly(size + 2))[:-2])
    await reader.readuntil(b"\r\n")
    stream.whole = True


async def until(
    condition: Callable[[], bool], what: str, *, deadline_s: float = ANSWER_S
) -> None:
    """Return once the condition holds; fails with `what` when it does not in time."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < deadline_s, f"not within {deadline_s:.0f} s: {what}"
        await asyncio.sleep(POLL_S)


async def answers(asks: Sequence[Ask], base: str, key: str, *, at_once: int) -> list[Stream]:
    """All streams, so many side by side, without disturbance. llama.cpp wakes whoever waits for it
    with every token, so more of them than it has slots take longer."""
    client = Client()
    for i in range(0, len(asks), at_once):
        for ask in asks[i : i + at_once]:
            client.add(ask, base, key)
        await client.begin()
        await client.finish()
    streams = client.streams
    for stream in streams:
        assert stream.error_free, (stream.status, stream.lost, stream.data[-300:])
    return streams

"""An engine in memory that speaks HTTP as llama.cpp does: slots, a queue, paced known tokens.

Time passes only by timers of the event loop, so it runs alike on virtual and real loops. The text
depends on nothing but the prompt; a prompt token stands for four bytes; usage and timings have
llama.cpp's shape, counts and all (`usage` covers one choice when there are several). What it
computed is kept in `works`. Faults: it gets slow (`speed`), stands still, answers errors.
"""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, cast

import httptools

from isochrone.ports.network import Listener, Network

BYTES_A_TOKEN = 4
REMEMBERED_PROMPTS = 64
REMEMBERED_WORKS = 10_000
WORDS = (
    "the", "fox", "and", "bear", "walked", "over", "a", "small", "bridge", "to", "find", "some",
    "honey", "in", "quiet", "forest", "where", "birds", "sang", "all", "day", "long",
)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeSpeed:
    """Tokens a second that one stream sees."""

    prefill_tok_s: float = 2000.0
    decode_tok_s: float = 100.0


@dataclass(slots=True, kw_only=True)
class FakeCounters:
    """What llama.cpp's metrics count since the start."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    prompt_s: float = 0.0
    output_s: float = 0.0


@dataclass(slots=True, kw_only=True, eq=False)
class FakeWork:
    """One answer of one request, as far as it was computed."""

    prompt: str
    prompt_tokens: int
    output_tokens: int = 0


@dataclass(slots=True, kw_only=True, eq=False)
class _Choice:
    """One answer of one request; occupies one slot from the start of its prefill to its end."""

    index: int
    prompt: str
    prompt_tokens: int
    wanted_tokens: int
    on_token: Callable[["_Choice", str], None]
    on_end: Callable[["_Choice"], None]
    may_reuse: bool = False  # what other requests left here
    cached_tokens: int = 0
    tokens: list[str] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    work: FakeWork | None = None

    @property
    def timings(self) -> dict[str, int]:
        return {
            "cache_n": self.cached_tokens,
            "prompt_n": self.prompt_tokens - self.cached_tokens,
            "predicted_n": len(self.tokens),
        }

    @property
    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(self.tokens),
            "total_tokens": self.prompt_tokens + len(self.tokens),
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class FakeEngineServer:
    """One engine: listens on `network`, serves `slots` choices at once, the others wait."""

    def __init__(
        self, model: str, *, key: str, slots: int, context_tokens: int,
        embeddings: bool = False, speed: FakeSpeed | None = None,
    ) -> None:
        self.model = model
        self.key = key
        self.context_tokens = context_tokens
        self.embeddings = embeddings
        self.counters = FakeCounters()
        self.speed = speed or FakeSpeed()
        self.works: deque[FakeWork] = deque(maxlen=REMEMBERED_WORKS)
        self.failing = 0  # so many of the next requests are answered with an error
        self._stands = False
        self._held: list[Callable[[], None]] = []  # what was due while it stood still
        self._slots = slots
        self._waiting: deque[_Choice] = deque()
        self._running: dict[int, _Choice] = {}
        self._prompts: deque[str] = deque(maxlen=REMEMBERED_PROMPTS)
        self._connections: dict[_Connection, None] = {}
        self._listener: Listener | None = None

    @property
    def port(self) -> int:
        assert self._listener is not None, "the engine has not been started"
        return self._listener.port

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def decoding_tokens(self) -> int:
        """What the running choices have decoded so far."""
        return sum(len(choice.tokens) for choice in self._running.values())

    async def listen(self, network: Network, port: int = 0) -> None:
        self._listener = await network.listen(lambda: _Connection(self), "127.0.0.1", port)

    async def crash(self) -> None:
        """As the death of its process: the port refuses, connections are reset, work is lost."""
        if self._listener is not None:
            await self._listener.close()
        for connection in list(self._connections):
            connection.abort()

    def stand_still(self) -> None:
        """Connections are taken, and nothing is computed until `go_on`."""
        self._stands = True

    def go_on(self) -> None:
        self._stands = False
        held, self._held = self._held, []
        for step in held:
            step()

    # -- called by connections -------------------------------------------------------------------

    def opened(self, connection: "_Connection") -> None:
        self._connections[connection] = None

    def closed(self, connection: "_Connection") -> None:
        self._connections.pop(connection, None)

    def submit(self, choice: _Choice) -> None:
        self._waiting.append(choice)
        self._fill()

    def withdraw(self, choice: _Choice) -> None:
        """The client has gone: free the slot, or the place in the queue."""
        if choice in self._waiting:
            self._waiting.remove(choice)
        if choice.timer is not None:
            choice.timer.cancel()
        if self._running.pop(id(choice), None) is not None:
            self._fill()

    # -- pace ------------------------------------------------------------------------------------

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._slots:
            choice = self._waiting.popleft()
            self._running[id(choice)] = choice
            choice.work = FakeWork(prompt=choice.prompt, prompt_tokens=choice.prompt_tokens)
            self.works.append(choice.work)
            choice.cached_tokens = self._cached(choice)
            self._prompts.append(choice.prompt)
            wait_s = (choice.prompt_tokens - choice.cached_tokens) / self.speed.prefill_tok_s
            choice.timer = asyncio.get_running_loop().call_later(
                wait_s, self._prefilled, choice, wait_s
            )

    def _cached(self, choice: _Choice) -> int:
        """Whole tokens of the longest prefix that was seen lately, never the whole prompt; none
        where the request does not say that it may use them."""
        if not choice.may_reuse:
            return 0
        shared = max((_shared(choice.prompt, known) for known in self._prompts), default=0)
        return min(shared // BYTES_A_TOKEN, choice.prompt_tokens - 1)

    def _prefilled(self, choice: _Choice, took_s: float) -> None:
        if self._stands:
            self._held.append(lambda: self._prefilled(choice, took_s))
            return
        if id(choice) not in self._running:
            return  # it left while the engine stood still
        self.counters.prompt_tokens += choice.prompt_tokens - choice.cached_tokens
        self.counters.cached_tokens += choice.cached_tokens
        self.counters.prompt_s += took_s
        self._token(choice)

    def _token(self, choice: _Choice) -> None:
        if self._stands:
            self._held.append(lambda: self._token(choice))
            return
        if id(choice) not in self._running:
            return  # it left while the engine stood still
        place = len(choice.tokens)
        word = WORDS[(_seed(choice.prompt, choice.index) + place * 7) % len(WORDS)]
        choice.tokens.append(word if place == 0 else f" {word}")
        self.counters.output_tokens += 1
        if choice.work is not None:
            choice.work.output_tokens += 1
        choice.on_token(choice, choice.tokens[-1])
        if id(choice) not in self._running:
            return  # writing the token showed that the client has gone
        if len(choice.tokens) >= choice.wanted_tokens:
            del self._running[id(choice)]
            choice.on_end(choice)
            self._fill()
            return
        wait_s = 1 / self.speed.decode_tok_s
        self.counters.output_s += wait_s
        choice.timer = asyncio.get_running_loop().call_later(wait_s, self._token, choice)


class _Connection(asyncio.Protocol):
    """One client connection; one request at a time."""

    _transport: asyncio.Transport

    def __init__(self, engine: FakeEngineServer) -> None:
        self._engine = engine
        self._parser: Any = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body = b""
        self._ask: dict[str, Any] = {}
        self._chat = False
        self._stream = False
        self._choices: list[_Choice] = []
        self._open_choices = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._engine.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._engine.closed(self)
        for choice in self._choices:
            self._engine.withdraw(choice)

    def abort(self) -> None:
        self._transport.abort()
        for choice in self._choices:
            self._engine.withdraw(choice)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_message_begin(self) -> None:
        self._url, self._body, self._headers = b"", b"", {}

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        path = self._url.decode("latin-1").partition("?")[0]
        allowed = self._headers.get(b"authorization") == f"Bearer {self._engine.key}".encode()
        if path == "/health":
            self._answer(200, {"status": "ok"})
        elif not allowed:
            self._error(401, "authentication_error", "Invalid API Key")
        elif path == "/v1/models":
            self._answer(200, {"object": "list", "data": [{"id": self._engine.model}]})
        elif path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            self._serve(path)
        else:
            self._error(404, "not_found_error", f"no such path: {path}")

    # -- work ------------------------------------------------------------------------------------

    def _serve(self, path: str) -> None:
        if self._engine.failing > 0:
            self._engine.failing -= 1
            self._error(500, "server_error", "told to fail")
            return
        try:
            self._ask = json.loads(self._body)
            prompt = _prompt_of(self._ask, path)
        except (ValueError, KeyError, TypeError) as error:
            self._error(400, "invalid_request_error", f"cannot read the request: {error}")
            return
        prompt_tokens = max(1, -(-len(prompt.encode()) // BYTES_A_TOKEN))
        room = self._engine.context_tokens - prompt_tokens
        if room < 1:
            self._error(400, "exceed_context_size_error", "the prompt is longer than the context")
        elif path == "/v1/embeddings":
            self._embed(prompt, prompt_tokens)
        else:
            self._chat = path == "/v1/chat/completions"
            self._stream = bool(self._ask.get("stream"))
            self._generate(prompt, prompt_tokens, room)

    def _embed(self, prompt: str, prompt_tokens: int) -> None:
        if not self._engine.embeddings:
            self._error(501, "not_supported_error", "This server does not support embeddings")
            return
        self._engine.counters.prompt_tokens += prompt_tokens
        vector = [byte / 255 for byte in sha256(prompt.encode()).digest()[:8]]
        usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
        data = [{"object": "embedding", "index": 0, "embedding": vector}]
        self._answer(200, {"object": "list", "data": data, "usage": usage})

    def _generate(self, prompt: str, prompt_tokens: int, room: int) -> None:
        most = self._ask.get("max_completion_tokens") or self._ask.get("max_tokens")
        wanted = most or 16 + _seed(prompt, 0) % 48
        self._choices = [
            _Choice(
                index=index, prompt=prompt, prompt_tokens=prompt_tokens,
                wanted_tokens=max(1, min(wanted, room)),
                may_reuse=self._ask.get("cache_prompt") is True,
                on_token=self._on_token, on_end=self._on_end,
            )
            for index in range(self._ask.get("n") or 1)
        ]
        self._open_choices = len(self._choices)
        if self._stream:
            self._transport.write(STREAM_HEAD)
        for choice in self._choices:
            self._engine.submit(choice)

    def _on_token(self, choice: _Choice, text: str) -> None:
        if not self._stream:
            return
        extra: dict[str, Any] = {}
        if self._ask.get("timings_per_token"):
            extra["timings"] = choice.timings
        if self._chat and len(choice.tokens) == 1:
            role = {"role": "assistant", "content": None}
            self._event([{"index": choice.index, "delta": role, "finish_reason": None}], {})
        part = {"delta": {"content": text}} if self._chat else {"text": text}
        self._event([{"index": choice.index, **part, "finish_reason": None}], extra)

    def _on_end(self, choice: _Choice) -> None:
        self._open_choices -= 1
        if not self._stream:
            if self._open_choices == 0:
                self._answer(200, self._whole())
            return
        counts = {"usage": choice.usage, "timings": choice.timings}
        part: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        last = [{"index": choice.index, **part, "finish_reason": "length"}]
        self._event(last, {} if self._chat else counts)
        if self._chat and (self._ask.get("stream_options") or {}).get("include_usage"):
            self._event([], counts)
        if self._open_choices:
            return
        self._chunk(b"data: [DONE]\n\n")
        self._transport.write(b"0\r\n\r\n")
        self._finish()

    def _whole(self) -> dict[str, Any]:
        choices = []
        for choice in self._choices:
            text = "".join(choice.tokens)
            part: dict[str, Any] = {"text": text}
            if self._chat:
                part = {"message": {"role": "assistant", "content": text}}
            choices.append({"index": choice.index, **part, "finish_reason": "length"})
        first = self._choices[0]
        return self._frame(choices) | {"usage": first.usage, "timings": first.timings}

    def _frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion" if self._chat else "text_completion"
        if self._chat and self._stream:
            kind += ".chunk"
        return {"id": "fake", "object": kind, "created": 0, "model": self._engine.model,
                "choices": choices}

    # -- bytes -----------------------------------------------------------------------------------

    def _event(self, choices: list[dict[str, Any]], extra: Mapping[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(self._frame(choices) | dict(extra)).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _error(self, status: int, kind: str, message: str) -> None:
        self._answer(status, {"error": {"code": status, "message": message, "type": kind}})

    def _answer(self, status: int, answer: Mapping[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self._transport.write(
            b"HTTP/1.1 %d -\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (status, len(body), body)
        )
        self._finish()

    def _finish(self) -> None:
        self._choices = []
        if not self._parser.should_keep_alive():
            self._transport.close()


def _prompt_of(ask: Mapping[str, Any], path: str) -> str:
    """The text that is prefilled; raises KeyError or TypeError for a request without one."""
    if path == "/v1/chat/completions":
        return "\n".join(f"{m['role']}: {m.get('content')}" for m in ask["messages"])
    prompt = ask["prompt" if path == "/v1/completions" else "input"]
    return prompt if isinstance(prompt, str) else json.dumps(prompt)


def _shared(one: str, other: str) -> int:
    """Length of the common prefix."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(place for place in range(length) if one[place] != other[place])


def _seed(prompt: str, index: int) -> int:
    return int.from_bytes(sha256(f"{index}:{prompt}".encode()).digest()[:4], "big")

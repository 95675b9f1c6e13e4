"""Sends requests open loop: each at its recorded moment, however slow the answers are.

A request is sent once. When an ingress refuses the connection nothing was sent, so the next ingress
is tried; whatever happens after that is the request's outcome, and it is never sent again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec

from isochrone.core.errors import Unavailable
from isochrone.ports.clock import Clock
from isochrone.ports.network import Address, Network
from isochrone.replay.exchange import Answer, Exchange

CONNECT_TIMEOUT_S = 5.0
MOST_OPEN = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingress:
    """One gateway's endpoint; `base_path` is what comes before /chat/completions."""

    name: str
    host: str
    port: int
    tls: bool = False
    base_path: str = "/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which cloud, which model, and how long a request may take."""

    ingresses: tuple[Ingress, ...]
    api_key: str
    model: str
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to send, `at_s` after the start (already divided by the speed)."""

    row: int
    at_s: float
    text: str
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What came of one request. `late_ms` is how much after its moment it was sent; `ttft_ms` and
    `total_ms` count from there. `wanted_*` are the scaled recorded lengths. `sent` is False when no
    ingress took the connection, so that no byte of it left."""

    row: int
    client_request_id: str
    sent: bool
    ingress: str | None
    request_id: str | None
    site: str | None
    country: str | None
    status: int
    error: str | None
    at_s: float
    late_ms: float
    ttft_ms: float | None
    total_ms: float
    wanted_input_tokens: int
    wanted_output_tokens: int
    input_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None


class Client:
    """Asks one cloud. `run` names the replay; it becomes part of each client request id."""

    def __init__(self, network: Network, clock: Clock, target: Target, *, run: str) -> None:
        self._network = network
        self._clock = clock
        self._target = target
        self._run = run

    async def count_prompt(self, text: str) -> int:
        """Prompt tokens of a text, as the engine reports them. Raises Unavailable."""
        call = Call(row=0, at_s=0.0, text=text, input_tokens=0, output_tokens=1)
        ingress, answer = await self._ask(call, f"replay-{self._run}-probe")
        if ingress is None:
            raise Unavailable("no gateway takes connections; is the cloud up?")
        if answer.error is not None or answer.usage is None:
            why = answer.error or "the answer has no usage"
            raise Unavailable(f"a probe at {ingress.name} was not answered: {why}")
        return answer.usage.prompt_tokens

    async def send_all(
        self, calls: Sequence[Call], on_sent: Callable[[Sent], None]
    ) -> list[Sent]:
        """Send every call at its moment; returns what came of them, in the order of `calls`."""
        started_ns = self._clock.monotonic_ns()
        room = asyncio.Semaphore(MOST_OPEN)

        async def one(place: int, call: Call) -> Sent:
            try:
                sent = await self._send(place, call, started_ns)
            finally:
                room.release()
            on_sent(sent)
            return sent

        tasks: list[asyncio.Task[Sent]] = []
        async with asyncio.TaskGroup() as group:
            for place, call in enumerate(calls):
                wait_s = call.at_s - (self._clock.monotonic_ns() - started_ns) / 1e9
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                await room.acquire()
                tasks.append(group.create_task(one(place, call)))
        return [task.result() for task in tasks]

    async def _send(self, place: int, call: Call, started_ns: int) -> Sent:
        name = f"replay-{self._run}-{call.row}"
        begun_ns = self._clock.monotonic_ns()
        ingress, answer = await self._ask(call, name, first=place)
        ended_ns = answer.ended_ns or self._clock.monotonic_ns()
        usage = answer.usage
        return Sent(
            row=call.row,
            client_request_id=name,
            sent=ingress is not None,
            ingress=None if ingress is None else ingress.name,
            request_id=answer.request_id,
            site=answer.site,
            country=answer.country,
            status=answer.status,
            error=answer.error,
            at_s=(begun_ns - started_ns) / 1e9,
            late_ms=max((begun_ns - started_ns) / 1e6 - call.at_s * 1e3, 0.0),
            ttft_ms=None if answer.first_ns is None else (answer.first_ns - begun_ns) / 1e6,
            total_ms=(ended_ns - begun_ns) / 1e6,
            wanted_input_tokens=call.input_tokens,
            wanted_output_tokens=call.output_tokens,
            input_tokens=None if usage is None else usage.prompt_tokens,
            cached_tokens=None if usage is None else usage.cached_tokens,
            output_tokens=None if usage is None else usage.completion_tokens,
        )

    async def _ask(
        self, call: Call, name: str, *, first: int = 0
    ) -> tuple[Ingress | None, Answer]:
        """Ask at the first ingress, from place `first` on, that takes the connection."""
        ingresses = self._target.ingresses
        for turn in range(len(ingresses)):
            ingress = ingresses[(first + turn) % len(ingresses)]
            address = Address(host=ingress.host, port=ingress.port, tls=ingress.tls)
            try:
                exchange = await self._network.connect(
                    self._exchange, address, timeout_s=CONNECT_TIMEOUT_S
                )
            except (OSError, TimeoutError):
                continue
            exchange.send(self._request(call, name, ingress))
            await _within(exchange.over.wait(), self._target.timeout_s, exchange)
            return ingress, exchange.answer
        return None, Answer(error="no_ingress")

    def _exchange(self) -> Exchange:
        return Exchange(self._clock)

    def _request(self, call: Call, name: str, ingress: Ingress) -> bytes:
        body = msgspec.json.encode(
            {
                "model": self._target.model,
                "messages": [{"role": "user", "content": call.text}],
                "max_tokens": call.output_tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
                "ignore_eos": True,  # engines that know it answer at the recorded length
            }
        )
        host = f"[{ingress.host}]" if ":" in ingress.host else ingress.host
        head = (
            f"POST {ingress.base_path}/chat/completions HTTP/1.1\r\n"
            f"host: {host}:{ingress.port}\r\n"
            f"authorization: Bearer {self._target.api_key}\r\n"
            f"x-request-id: {name}\r\n"
            "content-type: application/json\r\n"
            f"content-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        return head.encode() + body


async def _within(over: Awaitable[object], timeout_s: float, exchange: Exchange) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await over
    except TimeoutError:
        exchange.give_up("timed_out")
    except asyncio.CancelledError:
        exchange.give_up("cancelled")
        raise

"""Counts the output of several choices again where an engine's usage covers only one of them."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import msgspec

from isochrone.core.metering.event import Tokens
from isochrone.core.world.model import Replica
from isochrone.gateway.target import place_of, request_bytes
from isochrone.gateway.upstream import UpstreamConnection, UpstreamPool

TIMEOUT_S = 2.0


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw(b"")


class _Choice(msgspec.Struct):
    text: str | None = None
    message: _Message | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []


class _Tokenized(msgspec.Struct):
    tokens: list[msgspec.Raw]


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_tokens = msgspec.json.Decoder(_Tokenized).decode


class _Whole:
    """Gathers one answer into a future."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[int, bytes]] = (
            asyncio.get_running_loop().create_future()
        )
        self._status = 0
        self._pieces: list[bytes] = []

    def answered(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        self._status = status

    def received(self, data: bytes) -> None:
        self._pieces.append(data)

    def ended(self) -> None:
        if not self.answer.done():
            self.answer.set_result((self._status, b"".join(self._pieces)))

    def lost(self, why: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(ConnectionResetError(why))


async def recount(
    pool: UpstreamPool, replica: Replica, body: bytes, estimate: Tokens
) -> Tokens:
    """`estimate` with the output counted by the engine's tokenizer over all choices.

    Texts only: with tool calls, or when the tokenizer does not answer in time, the estimate stays.
    """
    texts = _texts(body)
    if texts is None:
        return estimate
    try:
        async with asyncio.timeout(TIMEOUT_S):
            counts = [await _count(pool, replica, text) for text in texts]
    except (OSError, TimeoutError, ValueError, msgspec.MsgspecError):
        return estimate
    return replace(estimate, output=sum(counts), source="counted")


def _texts(body: bytes) -> list[str] | None:
    try:
        answer = _decode_answer(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    texts = []
    for choice in answer.choices:
        message = choice.message
        if message is None:
            texts.append(choice.text or "")
        elif bytes(message.tool_calls) not in (b"", b"null", b"[]"):
            return None
        else:
            texts.append((message.reasoning_content or "") + (message.content or ""))
    return texts


async def _count(pool: UpstreamPool, replica: Replica, text: str) -> int:
    """Tokens of one text. Raises OSError, TimeoutError, ValueError or MsgspecError."""
    if not text:
        return 0
    address, host, base_path = place_of(replica.base_url)
    headers = [("content-type", "application/json")]
    if replica.engine_key is not None:
        headers.append(("authorization", f"Bearer {replica.engine_key}"))
    path = base_path.removesuffix("/v1") + "/tokenize"
    data = request_bytes(path, host, headers, {}, msgspec.json.encode({"content": text}))
    connection: UpstreamConnection | None = pool.take(address)
    if connection is None:
        connection = await pool.connect(address, timeout_s=TIMEOUT_S)
    whole = _Whole()
    connection.send(data, whole)
    try:
        status, answer = await whole.answer
    except asyncio.CancelledError:
        connection.abort()
        raise
    if status != 200:
        raise ValueError(f"the tokenizer answered with status {status}")
    return len(_decode_tokens(answer).tokens)

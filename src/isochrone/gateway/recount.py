"""Counts several prompts and choices again where an engine's usage covers only the first of them.

Texts are counted by the engine's own tokenizer, prompts as its completions endpoint reads them.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from isochrone.core.metering.event import Tokens
from isochrone.core.world.model import Replica
from isochrone.gateway.request import prompts_of
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


class _Content(msgspec.Struct):
    """`add_special`: with what the model puts before a prompt, as a prompt is counted."""

    content: msgspec.Raw
    add_special: bool
    parse_special: bool = True


class _Tokenized(msgspec.Struct):
    tokens: list[msgspec.Raw]


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_tokens = msgspec.json.Decoder(_Tokenized).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


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
    pool: UpstreamPool,
    replica: Replica,
    body: bytes,
    estimate: Tokens,
    *,
    request_body: bytes | None = None,
) -> Tokens:
    """`estimate` with the output counted by the engine's tokenizer over all choices of the answer
    `body` and, when `request_body` holds several prompts, the input over all prompts.

    What cannot be counted (tool calls, a prompt that is not text or token ids, no answer of the
    tokenizer in time) stays as in the estimate. The cached part is known of the first prompt only.
    """
    texts = _texts(body)
    output = whole = None
    try:
        prompts = [] if request_body is None else prompts_of(request_body)
        async with asyncio.timeout(TIMEOUT_S):
            if texts is not None:
                said = [msgspec.Raw(_encode(text)) for text in texts if text]
                output = await _count(pool, replica, said, prompts=False)
            if len(prompts) > 1:
                whole = await _count(pool, replica, prompts, prompts=True)
    except (OSError, TimeoutError, ValueError, msgspec.MsgspecError, RecursionError):
        pass  # what was counted until now is still better than the estimate
    if output is not None:
        estimate = replace(estimate, output=output, source="counted")
    if whole is not None:
        uncached = max(whole - estimate.input_cached, 0)
        estimate = replace(estimate, input_uncached=uncached, source="counted")
    return estimate


async def _count(
    pool: UpstreamPool, replica: Replica, contents: Sequence[msgspec.Raw], *, prompts: bool
) -> int:
    """Tokens of all contents. Raises OSError, TimeoutError, ValueError or MsgspecError."""
    counts = 0
    for content in contents:
        first = bytes(memoryview(content)[:1])
        if first == b"[" and not any(
            bytes(memoryview(item)[:1]) == b'"' for item in _decode_items(content)
        ):
            counts += len(_decode_items(content))
        elif first in (b'"', b"["):
            counts += await _tokenize(pool, replica, content, prompt=prompts)
        else:
            raise ValueError("the prompt is neither text nor token ids")
    return counts


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


async def _tokenize(
    pool: UpstreamPool, replica: Replica, content: msgspec.Raw, *, prompt: bool
) -> int:
    """Tokens of one content. Raises OSError, TimeoutError, ValueError or MsgspecError."""
    address, host, base_path = place_of(replica.base_url)
    headers = [("content-type", "application/json")]
    if replica.engine_key is not None:
        headers.append(("authorization", f"Bearer {replica.engine_key}"))
    path = base_path.removesuffix("/v1") + "/tokenize"
    asked = _encode(_Content(content, prompt))
    data = request_bytes(path, host, headers, {}, asked)
    connection: UpstreamConnection | None = pool.idle(address)
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

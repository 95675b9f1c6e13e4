"""Reads what OpenAI's Responses and Anthropic's Messages API say of usage, streamed or whole.

Both name their events, and both always state usage. Anthropic's `input_tokens` leaves out what was
read from the cache or written to it, OpenAI's includes it.
"""

import msgspec

from isochrone.core.metering.event import Endpoint, Tokens
from isochrone.core.metering.tokens import BYTES_PER_TOKEN, Reported, settle

_EMPTY = (b"", b"null", b'""', b"[]", b"{}")
_ABSENT = msgspec.Raw()


class _Details(msgspec.Struct, frozen=True, gc=False):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True, gc=False):
    """The usage of either API. A field that is absent or null was not stated."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it says both counts; one that does not is treated as not sent."""
        return self.input_tokens is not None and self.output_tokens is not None


class _Timings(msgspec.Struct, frozen=True, gc=False):
    """As llama.cpp adds them to the events of either API; see `counts.Timings`."""

    prompt_n: int = 0
    predicted_n: int = 0
    cache_n: int = 0


class _Delta(msgspec.Struct, frozen=True, gc=False):
    """Anthropic's delta; what else it may be (a signature, a citation) was not generated."""

    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None


class _Inner(msgspec.Struct, frozen=True, gc=False):
    """The `response` or the `message` that an event is about."""

    usage: Usage | None = None


class NamedEvent(msgspec.Struct, frozen=True, gc=False):
    """One event of either API; or a whole answer."""

    type: str = ""
    delta: msgspec.Raw = _ABSENT
    response: _Inner | None = None
    message: msgspec.Raw = _ABSENT  # an object where a message starts, a text in an error
    usage: Usage | None = None
    timings: _Timings | None = None
    error: msgspec.Raw = _ABSENT
    content: msgspec.Raw = _ABSENT
    output: msgspec.Raw = _ABSENT

    @property
    def is_error(self) -> bool:
        if self.type in ("error", "response.failed"):
            return True
        return self.error is not _ABSENT and bytes(self.error) not in _EMPTY

    def running(self) -> Reported | None:
        """Counts up to this event, where the engine adds them."""
        timings = self.timings
        if timings is None:
            return None
        return Reported(
            timings.prompt_n + timings.cache_n, timings.cache_n, timings.predicted_n
        )

    def message_usage(self) -> Usage | None:
        """The usage that a message starts with."""
        if self.message is _ABSENT:
            return None
        try:
            return _decode_inner(self.message).usage
        except (msgspec.MsgspecError, RecursionError):
            return None

    def speaks(self, endpoint: Endpoint) -> bool:
        """Whether the event carries something that the model made."""
        if self.delta is _ABSENT:
            return False
        if endpoint == "responses":
            return self.type.endswith(".delta") and bytes(self.delta) not in _EMPTY
        if self.type != "content_block_delta":
            return False
        try:
            delta = _decode_delta(self.delta)
        except (msgspec.MsgspecError, RecursionError):
            return True
        return bool(delta.text or delta.thinking or delta.partial_json)


_decode = msgspec.json.Decoder(NamedEvent).decode
_decode_inner = msgspec.json.Decoder(_Inner).decode
_decode_delta = msgspec.json.Decoder(_Delta).decode


def read_named(payload: bytes) -> NamedEvent | None:
    """The event in `payload`, or None when it is not one that we understand."""
    try:
        return _decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def of_response(usage: Usage) -> Reported:
    """OpenAI's: the input includes the cached tokens."""
    details = usage.input_tokens_details
    cached = (details.cached_tokens if details else None) or 0
    return Reported(usage.input_tokens or 0, cached, usage.output_tokens or 0)


def of_message(usage: Usage) -> Reported:
    """Anthropic's: three disjoint parts of the input, of which the written one was computed."""
    cached = usage.cache_read_input_tokens or 0
    prompt = (usage.input_tokens or 0) + cached + (usage.cache_creation_input_tokens or 0)
    return Reported(prompt, cached, usage.output_tokens or 0)


def later(first: Usage | None, then: Usage) -> Usage:
    """Two usages of one message: each field as it was stated last, because counts only grow."""
    if first is None:
        return then
    return Usage(
        input_tokens=_last(first.input_tokens, then.input_tokens),
        output_tokens=_last(first.output_tokens, then.output_tokens),
        cache_read_input_tokens=_last(
            first.cache_read_input_tokens, then.cache_read_input_tokens
        ),
        cache_creation_input_tokens=_last(
            first.cache_creation_input_tokens, then.cache_creation_input_tokens
        ),
    )


def _last(first: int | None, then: int | None) -> int | None:
    return first if then is None else then


def tokens_of_message(body: bytes, endpoint: Endpoint, prompt_bytes: int) -> Tokens:
    """Token classes of a whole answer that was not streamed; without usage its bytes are counted.

    The JSON around the text is counted with it then, so the output is high by a few tokens.
    """
    answer = read_named(body)
    if answer is None:
        return Tokens()
    if answer.usage is not None and answer.usage.is_whole:
        stated = (of_response if endpoint == "responses" else of_message)(answer.usage)
        if stated.plausible:
            return settle(stated, None, counted=0, prompt_bytes=prompt_bytes)
    if answer.is_error:
        return Tokens()
    made = bytes(answer.output if endpoint == "responses" else answer.content)
    counted = 0 if made in _EMPTY else -(-len(made) // BYTES_PER_TOKEN)
    return settle(None, None, counted=counted, prompt_bytes=prompt_bytes)

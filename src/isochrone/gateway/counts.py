"""Counts the tokens of a whole answer by what it says of itself, and reads streamed events."""

from typing import Final

import msgspec

from isochrone.core.metering.event import Endpoint, Tokens
from isochrone.core.metering.tokens import (
    BYTES_PER_TOKEN,
    LARGEST_COUNT,
    Reported,
    settle,
    tokens_of,
)
from isochrone.gateway.answer_fields import (
    ABSENT,
    Event,
    decode_counts,
    decode_event,
    read_loosely,
)
from isochrone.gateway.message_counts import tokens_of_message

_USAGE: Final = b'"usage":'
_ERROR: Final = b'"error"'
_BEFORE_NAME: Final = b",{ \n\r\t"


def read(payload: bytes) -> Event | None:
    """The event in `payload`, or None when it is not one that we understand."""
    try:
        return decode_event(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _stated(body: bytes) -> Tokens | None:
    """The usage of a whole answer, where that is all that has to be looked at.

    Most engines say it behind the texts, which then need not be read: what follows the last
    `"usage":` is, with a brace in front, an object of its own exactly if the answer itself says it,
    and nothing within the answer. In a text the quotation marks would be escaped.
    """
    at = body.rfind(_USAGE)
    plain = at > 0 and body[at - 1] in _BEFORE_NAME and body.find(_ERROR) < 0
    try:
        counts = decode_counts(b"{" + body[at:] if plain else body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    usage = counts.usage
    if usage is None or counts.object == "error" or counts.error is not ABSENT:
        return None
    details, prompt, output = (
        usage.prompt_tokens_details, usage.prompt_tokens, usage.completion_tokens
    )
    if prompt is None or output is None:
        return None
    cached = (details.cached_tokens if details is not None else 0) or 0
    if not (0 <= cached <= prompt <= LARGEST_COUNT and 0 <= output <= LARGEST_COUNT):
        return None
    return tokens_of(prompt - cached, cached, output, "engine")


def tokens_of_answer(
    body: bytes,
    endpoint: Endpoint,
    n: int,
    *,
    prompt_bytes: int = 0,
    usage_counts_one_choice: bool = False,
    prompts: int = 1,
) -> Tokens:
    """Token classes of a whole answer that was not streamed.

    With `usage_counts_one_choice` and n > 1 the engine's output covers its first choice; the others
    are taken to have as many bytes a token as that one, and the source is then `counted`. Of
    several prompts its input covers the first; the input is then at least all their bytes / 4.
    """
    if endpoint in ("responses", "messages"):
        return tokens_of_message(body, endpoint, prompt_bytes)
    if n <= 1 and endpoint != "embeddings":
        known = _stated(body)
        if known is not None:
            return known
    event = read(body) or read_loosely(body)
    if event is None or event.is_error:
        return Tokens()
    final = event.reported()
    if endpoint == "embeddings":
        if event.usage is not None and event.usage.prompt_tokens is not None:
            final = event.usage.reported()
        if final is None:
            return Tokens()
        prompt_only = Reported(prompt=final.prompt, cached=final.cached, output=0)
        return settle(prompt_only, None, counted=0, prompt_bytes=0)
    if final is not None and n <= 1:
        return settle(final, None, counted=0, prompt_bytes=prompt_bytes)
    choices = sorted(event.choices or (), key=lambda choice: choice.index)
    sizes = [choice.text_bytes for choice in choices]
    if final is None:
        counted = sum(-(-size // BYTES_PER_TOKEN) for size in sizes)
        return settle(None, None, counted=counted, prompt_bytes=prompt_bytes, n_choices=n)
    if n <= 1 or not usage_counts_one_choice or len(choices) <= 1:
        spoken = sum(choice.carries_text for choice in choices)
        return settle(final, None, counted=spoken, prompt_bytes=prompt_bytes, n_choices=n)
    first = (max(final.output, 1), max(sizes[0], 1)) if sizes[0] else (1, BYTES_PER_TOKEN)
    others = sum(-(-size * first[0] // first[1]) for size in sizes[1:])
    known = settle(final, None, counted=0, prompt_bytes=prompt_bytes)
    estimate = -(-prompt_bytes // BYTES_PER_TOKEN) - known.input_cached if prompts > 1 else 0
    return Tokens(
        input_uncached=max(known.input_uncached, estimate),
        input_cached=known.input_cached,
        output=known.output + others,
        source="counted",
    )

"""Reads the few fields of an engine's answer that metering needs; everything else stays bytes."""

import msgspec

from isochrone.core.metering.event import Endpoint, Tokens
from isochrone.core.metering.tokens import BYTES_PER_TOKEN, LARGEST_COUNT, Reported, settle
from isochrone.gateway.message_counts import tokens_of_message

_EMPTY = (b"", b"null", b'""', b"[]", b"{}")
_ABSENT = msgspec.Raw()


class _Details(msgspec.Struct, frozen=True, gc=False):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True, gc=False):
    """OpenAI's `usage`: `prompt_tokens` includes the cached ones."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None

    def reported(self) -> Reported:
        details = self.prompt_tokens_details
        return Reported(
            self.prompt_tokens or 0,
            (details.cached_tokens if details else None) or 0,
            self.completion_tokens or 0,
        )


class Timings(msgspec.Struct, frozen=True, gc=False):
    """llama.cpp's `timings`: `prompt_n` leaves the cached tokens out."""

    prompt_n: int = 0
    predicted_n: int = 0
    cache_n: int = 0

    def reported(self) -> Reported:
        return Reported(self.prompt_n + self.cache_n, self.cache_n, self.predicted_n)


class Choice(msgspec.Struct, frozen=True, gc=False):
    """One choice of a streamed event or of a whole answer."""

    index: int = 0
    finish_reason: str | None = None
    text: str | None = None
    delta: dict[str, msgspec.Raw] | None = None
    message: dict[str, msgspec.Raw] | None = None

    @property
    def carries_text(self) -> bool:
        """True when anything but the role arrived: content, reasoning, a tool call."""
        if self.text:
            return True
        for name, value in (self.delta or self.message or {}).items():
            if name != "role" and bytes(value) not in _EMPTY:
                return True
        return False

    @property
    def text_bytes(self) -> int:
        """Size of what the choice of a whole answer says, JSON escapes included."""
        if self.text is not None:
            return len(self.text.encode())
        return sum(
            len(bytes(value)) - 2
            for name, value in (self.message or {}).items()
            if name != "role" and bytes(value) not in _EMPTY
        )


class Counts(msgspec.Struct, frozen=True, gc=False):
    """What a whole answer says of itself beside its choices."""

    usage: Usage | None = None
    timings: Timings | None = None
    error: msgspec.Raw = _ABSENT
    object: str | None = None


class Event(msgspec.Struct, frozen=True, gc=False):
    """A streamed event, or a whole answer."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    error: msgspec.Raw = _ABSENT
    object: str | None = None

    @property
    def is_error(self) -> bool:
        if self.object == "error":
            return True
        return self.error is not _ABSENT and bytes(self.error) not in _EMPTY

    @property
    def is_usage_only(self) -> bool:
        return self.usage is not None and not self.choices and not self.is_error

    def reported(self) -> Reported | None:
        """The counts that the event carries: its usage, else its timings."""
        counts = self.usage or self.timings
        found = counts.reported() if counts else None
        return found if found is not None and found.plausible else None


_decode = msgspec.json.Decoder(Event).decode
_decode_counts = msgspec.json.Decoder(Counts).decode


def read(payload: bytes) -> Event | None:
    """The event in `payload`, or None when it is not one that we understand."""
    try:
        return _decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _stated(body: bytes) -> Tokens | None:
    """The usage of a whole answer, where that is all that has to be looked at."""
    try:
        counts = _decode_counts(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    usage = counts.usage
    if usage is None or counts.object == "error" or counts.error is not _ABSENT:
        return None
    details = usage.prompt_tokens_details
    prompt, output = usage.prompt_tokens or 0, usage.completion_tokens or 0
    cached = (details.cached_tokens if details is not None else 0) or 0
    if not (0 <= cached <= prompt <= LARGEST_COUNT and 0 <= output <= LARGEST_COUNT):
        return None
    return Tokens(
        input_uncached=prompt - cached, input_cached=cached, output=output, source="engine"
    )


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
    event = read(body)
    if event is None or event.is_error:
        return Tokens()
    final = event.reported()
    if endpoint == "embeddings":
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

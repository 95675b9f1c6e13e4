"""The few fields of an engine's answer that metering needs; everything else of it stays bytes.

Apart from `counts`, because msgspec reads the types of a class that it decodes, and classes that
are compiled do not keep theirs.
"""

import msgspec

from isochrone.core.metering.tokens import Reported

EMPTY = (b"", b"null", b'""', b"[]", b"{}")
ABSENT = msgspec.Raw()


class _Details(msgspec.Struct, frozen=True, gc=False):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True, gc=False):
    """OpenAI's `usage`: `prompt_tokens` includes the cached ones."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it says both counts; one that does not is treated as not sent."""
        return self.prompt_tokens is not None and self.completion_tokens is not None

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
            if name != "role" and bytes(value) not in EMPTY:
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
            if name != "role" and bytes(value) not in EMPTY
        )


class Counts(msgspec.Struct, frozen=True, gc=False):
    """What a whole answer says of itself beside its choices."""

    usage: Usage | None = None
    timings: Timings | None = None
    error: msgspec.Raw = ABSENT
    object: str | None = None


class Event(msgspec.Struct, frozen=True, gc=False):
    """A streamed event, or a whole answer."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    error: msgspec.Raw = ABSENT
    object: str | None = None

    @property
    def is_error(self) -> bool:
        if self.object == "error":
            return True
        return self.error is not ABSENT and bytes(self.error) not in EMPTY

    @property
    def is_usage_only(self) -> bool:
        return self.usage is not None and not self.choices and not self.is_error

    def reported(self) -> Reported | None:
        """The counts that the event carries: its usage, else its timings."""
        usage = self.usage
        counts = usage if usage is not None and usage.is_whole else self.timings
        found = counts.reported() if counts else None
        return found if found is not None and found.plausible else None


decode_event = msgspec.json.Decoder(Event).decode
decode_counts = msgspec.json.Decoder(Counts).decode


def read_loosely(body: bytes) -> Event | None:
    """A whole answer whose fields are not all of the kinds that they should be: counts that are
    written as texts or fractions, choices with odd names of theirs. None when it is no object."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    usage = found.get("usage")
    known = None
    if isinstance(usage, dict):
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        known = Usage(
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
            prompt_tokens_details=_Details(cached_tokens=_count(cached)),
        )
        if known.prompt_tokens is None or known.completion_tokens is None:
            known = None
    choices = found.get("choices")
    error = found.get("error")
    return Event(
        choices=[
            _choice(number, each)
            for number, each in enumerate(choices if isinstance(choices, list) else ())
            if isinstance(each, dict)
        ],
        usage=known,
        error=ABSENT if error is None else msgspec.Raw(msgspec.json.encode(error)),
        object=_text(found.get("object")),
    )


def _choice(index: int, found: dict[str, object]) -> Choice:
    message = found.get("message")
    said = message.items() if isinstance(message, dict) else ()
    return Choice(
        index=index,
        text=_text(found.get("text")),
        message={str(name): msgspec.Raw(msgspec.json.encode(value)) for name, value in said},
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: object) -> int | None:
    """A whole number, however it is written."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 12:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None

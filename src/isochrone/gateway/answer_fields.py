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
        counts = self.usage or self.timings
        found = counts.reported() if counts else None
        return found if found is not None and found.plausible else None


decode_event = msgspec.json.Decoder(Event).decode
decode_counts = msgspec.json.Decoder(Counts).decode

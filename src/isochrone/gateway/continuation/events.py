"""Reads and writes the events of streamed answers, field by field, keeping what it does not know.

A channel is one string of an answer that grows over its events: the content of a choice, its
reasoning, the arguments of one of its tool calls. Two answers are the same when all their channels
are, whatever events they came in.
"""

from dataclasses import dataclass
from typing import Literal

import msgspec

from isochrone.core.metering.tokens import Reported
from isochrone.gateway import event_tee
from isochrone.gateway.answer_fields import Timings, Usage
from isochrone.gateway.event_tee import event_end

Fields = dict[str, msgspec.Raw]

# (index of the choice, name of the channel); "text" is the content of chat and of completions.
Channel = tuple[int, str]
TEXT = "text"

DONE = b"data: [DONE]\n\n"
WAITING = b": continuing\n\n"

TEXT_MARKS = (b'"content":"', b'"text":"')
ODD_IN_TEXT = (b'"', b"\n", b"\\u")  # a character of two escapes may be cut between two events

_EMPTY = (b"", b"null", b'""', b"[]", b"{}")
_fields = msgspec.json.Decoder(Fields)
_list = msgspec.json.Decoder(list[Fields])
_string = msgspec.json.Decoder(str)
_encode = msgspec.json.encode


class Unreadable(ValueError):
    """An event is not of a form that can be continued."""


class _Function(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct, frozen=True):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Logprobs(msgspec.Struct, frozen=True):
    """Of chat, and of completions: a list has an entry for each token."""

    content: list[msgspec.Raw] | None = None
    tokens: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    finish_reason: str | None = None
    text: str | None = None
    delta: Fields | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    logprobs: msgspec.Raw = msgspec.Raw()


class _Chunk(msgspec.Struct, frozen=True):
    id: str | None = None
    created: int | None = None
    model: str | None = None
    object: str | None = None
    system_fingerprint: str | None = None
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    prompt_token_ids: list[int] | None = None
    error: msgspec.Raw = msgspec.Raw()


class _PlainDelta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    content: str


class _PlainChoice(msgspec.Struct, frozen=True):
    index: Literal[0] = 0
    finish_reason: None = None
    text: str = ""
    delta: _PlainDelta | None = None
    token_ids: None = None


class _PlainChunk(msgspec.Struct, frozen=True):
    """A piece of the text of an only choice, as nearly all events are; anything else fails."""

    choices: tuple[_PlainChoice]
    error: None = None
    prompt_token_ids: None = None


_plain = msgspec.json.Decoder(list[_PlainChunk])
_chunk = msgspec.json.Decoder(_Chunk)
_chunks = msgspec.json.Decoder(list[_Chunk])
_tool_calls = msgspec.json.Decoder(list[_ToolCall])
_logprobs = msgspec.json.Decoder(_Logprobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What all events of one answer share."""

    id: str | None
    created: int | None
    model: str | None
    object: str | None
    system_fingerprint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What one event adds: pieces of channels, ids of tool calls by their channel, who
    has a role, who finished, and of how many tokens of which choice it has logprobs."""

    identity: Identity
    pieces: tuple[tuple[Channel, str], ...]
    tool_ids: tuple[tuple[Channel, str], ...]
    finished: tuple[tuple[int, str], ...]
    roles: tuple[int, ...]
    counts: Reported | None
    usage_only: bool
    is_error: bool
    token_ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    logprobs: tuple[tuple[int, int], ...] = ()


def payload_of(event: bytes) -> bytes | None:
    """The data of one event, None when it has none (a comment)."""
    if event.startswith(b"data:") and b"\n" not in event and b"\r" not in event:
        return event[5:].strip()
    data = [
        value.removeprefix(b" ")
        for name, _, value in (line.partition(b":") for line in event.splitlines())
        if name in (b"data", b"error")
    ]
    return b"\n".join(data).strip() if data else None


def split(data: bytes) -> tuple[list[bytes], bytes]:
    """(events that are whole, what follows the last of them)."""
    if b"\r" in data:
        half = data.endswith(b"\r")  # perhaps half of a line end
        whole = data[:-1] if half else data
        data = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n") + (b"\r" if half else b"")
    *whole_events, rest = data.split(b"\n\n")
    return [event.strip(b"\n") for event in whole_events if event.strip(b"\n")], rest


def read_said(payload: bytes) -> Said:
    """One event; raises Unreadable for anything but a chunk of an answer or an error."""
    try:
        return _said(_chunk.decode(payload))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(str(error)) from error


def read_many(payloads: list[bytes]) -> list[Said]:
    """All events; raises Unreadable."""
    try:
        return [_said(chunk) for chunk in _chunks.decode(_as_list(payloads))]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(str(error)) from error


def read_plain(payloads: list[bytes]) -> list[str] | None:
    """The texts of events that are nothing but text, at a microsecond each; None when one is not.

    Counts are left unread.
    """
    try:
        chunks = _plain.decode(_as_list(payloads))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    only = [chunk.choices[0] for chunk in chunks]
    return [choice.text if choice.delta is None else choice.delta.content for choice in only]


def joined_text(pieces: list[bytes]) -> str | None:
    """What such contents of JSON strings say together; None when that is not plain to see."""
    joined = b"".join(pieces)
    if any(odd in joined for odd in ODD_IN_TEXT):
        return None
    try:
        return _string.decode(b'"' + joined + b'"')
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _as_list(payloads: list[bytes]) -> bytes:
    return b"[" + b",".join(payloads) + b"]"


def _said(chunk: _Chunk) -> Said:
    pieces: list[tuple[Channel, str]] = []
    tool_ids: list[tuple[Channel, str]] = []
    ids: list[int] = []
    roles: list[int] = []
    choices = chunk.choices or []
    for choice in choices:
        if choice.text:
            pieces.append(((choice.index, TEXT), choice.text))
        delta = choice.delta or {}
        if "role" in delta:
            roles.append(choice.index)
        for name, value in delta.items():
            raw = bytes(value)
            if name == "tool_calls" and raw not in _EMPTY:
                _read_tool_calls(choice.index, raw, pieces, tool_ids)
            elif name != "role" and raw not in _EMPTY:
                channel = TEXT if name == "content" else name
                said = _string.decode(raw) if raw.startswith(b'"') else raw.decode()
                pieces.append(((choice.index, channel), said))
        ids += choice.token_ids or ()
    prompt_ids = chunk.prompt_token_ids or next(
        (choice.prompt_token_ids for choice in choices if choice.prompt_token_ids), None
    )
    usage = chunk.usage
    counts = usage if usage is not None and usage.is_whole else chunk.timings
    reported = None if counts is None else counts.reported()
    return Said(
        identity=Identity(
            id=chunk.id, created=chunk.created, model=chunk.model, object=chunk.object,
            system_fingerprint=chunk.system_fingerprint,
        ),
        pieces=tuple(pieces),
        tool_ids=tuple(tool_ids),
        finished=tuple((c.index, c.finish_reason) for c in choices if c.finish_reason),
        roles=tuple(roles),
        counts=reported if reported is not None and reported.plausible else None,
        usage_only=usage is not None and not choices,
        is_error=bytes(chunk.error) not in _EMPTY or chunk.object == "error",
        token_ids=tuple(ids),
        prompt_ids=tuple(prompt_ids or ()),
        logprobs=tuple([(c.index, logprobs_in(c.logprobs)) for c in choices if c.logprobs]),
    )


def _read_tool_calls(
    index: int, raw: bytes, pieces: list[tuple[Channel, str]], ids: list[tuple[Channel, str]]
) -> None:
    for call in _tool_calls.decode(raw):
        name = f"tool_calls/{call.index}"
        if call.id:
            ids.append(((index, name), call.id))
        if call.function is not None and call.function.name:
            pieces.append(((index, f"{name}/name"), call.function.name))
        if call.function is not None and call.function.arguments:
            pieces.append(((index, f"{name}/arguments"), call.function.arguments))


def logprobs_in(given: bytes | msgspec.Raw) -> int:
    """Of how many tokens; 0 for what is not of the form that either API has."""
    raw = bytes(given)
    if raw in _EMPTY:
        return 0
    try:
        found = _logprobs.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 0
    return len(found.content or found.tokens or ())


# -- writing -----------------------------------------------------------------------------------


def fields_of(payload: bytes | msgspec.Raw) -> Fields:
    return _fields.decode(payload)


def list_of(payload: bytes | msgspec.Raw) -> list[Fields]:
    return _list.decode(payload)


def raw(value: object) -> msgspec.Raw:
    """`value` as JSON, to be put among raw fields."""
    return msgspec.Raw(_encode(value))


def render(fields: object) -> bytes:
    """One event."""
    return b"data: " + _encode(fields) + b"\n\n"


def text_of(value: msgspec.Raw) -> str:
    """A string or null."""
    return "" if bytes(value) == b"null" else _string.decode(value)


def with_identity(fields: Fields, identity: Identity | None) -> Fields:
    """Put the first answer's id, date, model and fingerprint in place of an event's own."""
    if identity is not None:
        for name in ("id", "created", "model", "object", "system_fingerprint"):
            value = getattr(identity, name)
            if value is not None:
                fields[name] = raw(value)
            elif name == "system_fingerprint":
                fields.pop(name, None)
    return fields


def with_counts(fields: Fields, whole: Reported) -> None:
    """Make the counts that an event carries those of the whole run; others stay as they are."""
    if "usage" in fields and bytes(fields["usage"]) != b"null":
        usage = fields_of(fields["usage"])
        usage["prompt_tokens"] = raw(whole.prompt)
        usage["completion_tokens"] = raw(whole.output)
        usage["total_tokens"] = raw(whole.prompt + whole.output)
        details = usage.get("prompt_tokens_details")
        if details is not None and bytes(details) != b"null":
            kept = fields_of(details) | {"cached_tokens": raw(whole.cached)}
            usage["prompt_tokens_details"] = raw(kept)
        fields["usage"] = raw(usage)
    if "timings" in fields and bytes(fields["timings"]) != b"null":
        timings = fields_of(fields["timings"])
        timings["prompt_n"] = raw(whole.prompt - whole.cached)
        timings["cache_n"] = raw(whole.cached)
        timings["predicted_n"] = raw(whole.output)
        fields["timings"] = raw(timings)


def before_error(data: bytes) -> bytes:
    """What of whole events comes before the first error event."""
    begin = 0
    while (end := event_end(data, begin)) > 0 and not _is_error(data[begin:end]):
        begin = end
    return data[:begin]


def _is_error(event: bytes) -> bool:
    """Whether it is one, or so odd that it may be."""
    found = event_tee.payload_of(event)
    if found is None:
        return False
    payload, named_error = found
    if named_error or payload.strip() in (b"", b"null", b"[DONE]"):
        return named_error
    try:
        return read_said(payload).is_error
    except Unreadable:
        return True

"""The seam: what the second answer's events become before the client sees them.

They take the first answer's id, date, model and tool-call ids; what the client has already is
swallowed after it was compared; stop strings that lie across the seam end the answer; counts are
made those of the whole run. A seam is used like a meter: fed, asked for tokens, asked whether it is
finished.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from isochrone.core.continuation.stops import across, tail_for
from isochrone.core.metering.event import Tokens, TokenSource
from isochrone.core.metering.tokens import BYTES_PER_TOKEN, Reported
from isochrone.gateway.continuation.closing import Whole, closing
from isochrone.gateway.continuation.events import (
    DONE,
    TEXT,
    Channel,
    Fields,
    Said,
    Unreadable,
    fields_of,
    list_of,
    logprobs_in,
    payload_of,
    raw,
    read_said,
    render,
    split,
    text_of,
    with_counts,
    with_identity,
)
from isochrone.gateway.continuation.retained import Delivered
from isochrone.gateway.meter import MAX_EVENT_BYTES, StreamMeter

_NOTHING = msgspec.Raw(b"null")

Outcome = Literal[
    "open",
    "finished",  # [DONE] came
    "stopped",   # a stop string lay across the seam; the end was written, upstream is not needed
    "differs",   # what had to be repeated was not; nothing of the difference went out
    "error",     # the engine sent an error, or what is no event; nothing of it went out
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeamStart:
    """What a seam begins with. `swallow`: what the new answer must begin with, by channel.
    `repeats`: the new answer is the whole run, so its counts are too. `output`: tokens that were
    delivered; those of `whole` are fewer where some of them are asked for once more."""

    delivered: Delivered
    n_choices: int
    client_gets_usage: bool
    whole: Whole
    repeats: bool
    swallow: Mapping[Channel, str]
    output: int = 0
    stops: tuple[str, ...] = ()


class Seam:
    """One continued stream. Memory is bounded by one event and the text to be swallowed."""

    __slots__ = (
        "_at", "_closed", "_counts", "_ended", "_events", "_final", "_finished", "_fresh_text",
        "_held", "_logprobs_again", "_made_again", "_meter", "_reported", "_says_more", "_shown",
        "_start", "_tail", "_textless", "_waiting", "gave", "outcome",
    )

    def __init__(self, start: SeamStart) -> None:
        self._start = start
        self._held = b""
        self._at: dict[Channel, int] = {}
        self._counts: Reported | None = None
        self._final = False
        self._events = 0
        self._closed = frozenset(start.delivered.finished)
        self._reported = frozenset(start.delivered.reported)
        self._ended = -1  # the choice that did last
        self._made_again = len(start.delivered.later_ids)  # ids without text, which the client has
        self._logprobs_again = dict(start.delivered.later_logprobs)  # likewise
        self._textless = False  # the present event
        self._finished = set(self._closed)
        self._says_more = False  # a choice, than the client has of it
        self._shown = start.whole
        self._meter: StreamMeter | None = None
        if start.n_choices > 1:  # each of which its engine may count apart
            self._shown = replace(start.whole, output=0)
            self._meter = StreamMeter(start.n_choices, "chat.completions", True)
        self._tail = "" if start.repeats else tail_for(start.delivered.text(), start.stops)
        self._fresh_text = ""
        self._waiting = ""
        self.gave = False  # any of an answer, comments aside
        self.outcome: Outcome = "open"

    @property
    def finished(self) -> bool:
        """`[DONE]` came, or every choice has its finish reason."""
        complete = len(self._finished) >= self._start.n_choices
        return self.done or (self.outcome == "open" and complete)

    @property
    def done(self) -> bool:
        """The answer has its end: nothing of it is missing."""
        return self.outcome in ("finished", "stopped")

    @property
    def error(self) -> bool:
        """Never: the client gets no error event through a seam, the exchange decides again."""
        return False

    @property
    def over(self) -> bool:
        """Upstream is of no more use although it may still send."""
        return self.outcome in ("stopped", "differs", "error")

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the new answer; return what the client gets now."""
        events, self._held = split(self._held + data)
        out = b"".join([self._take(event) for event in events])
        if len(self._held) > MAX_EVENT_BYTES and self.outcome == "open":
            self.outcome = "error"
        return out

    def end(self) -> bytes:
        """The new answer came to an orderly end: judge what was held back."""
        rest, self._held = self._held.strip(b"\n"), b""
        return self._take(rest) if rest else b""

    def tokens(self, prompt_bytes: int = 0) -> Tokens:
        """Classes of the whole run up to now: the prompt once, as the first attempt had it.

        `prompt_bytes` stands in for a prompt that no attempt has counted, as it does in a meter.
        """
        start = self._start
        if self._meter is not None:
            return self._of_several(self._meter.tokens(prompt_bytes), prompt_bytes)
        whole = start.whole.with_counts(self._counts, repeats=start.repeats)
        prompt, output = whole.prompt, max(whole.output, start.output)
        source: TokenSource = "engine" if self._final else "running"
        if self._counts is None:
            again = 0 if start.repeats else start.whole.output
            output = max(output, again + self._events)
            if not output:
                return Tokens()
            if start.whole.prompt is None:
                prompt = -(-prompt_bytes // BYTES_PER_TOKEN)
            if self._events or start.whole.prompt is None:
                source = "counted"
        return Tokens(
            input_uncached=prompt - whole.cached, input_cached=whole.cached, output=output,
            source=source,
        )

    def _of_several(self, known: Tokens, prompt_bytes: int) -> Tokens:
        """Of all choices, of which the present attempt has `known`."""
        whole, source = self._start.whole, known.source
        output = max(known.output, whole.output)
        if not output:
            return known
        if whole.prompt is not None:
            return Tokens(
                input_uncached=whole.prompt - whole.cached, input_cached=whole.cached,
                output=output, source="running" if source == "none" else source,
            )
        if source == "none":
            prompt = -(-prompt_bytes // BYTES_PER_TOKEN)
            return Tokens(input_uncached=prompt, output=output, source="counted")
        return replace(known, output=output)

    # -- one event -----------------------------------------------------------------------------

    def _take(self, event: bytes) -> bytes:
        if self.outcome != "open":
            return b""
        payload = payload_of(event)
        if payload is None:
            return event + b"\n\n"
        if payload in (b"", b"null"):
            return b""
        try:
            out = self._done() if payload == b"[DONE]" else self._chunk(payload)
        except (Unreadable, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.outcome = "error"
            return b""
        self.gave = self.gave or bool(out)
        return out

    def _done(self) -> bytes:
        if any(self._left(channel) for channel in self._start.swallow):
            self.outcome = "differs"
            return b""
        self.outcome = "finished"
        return DONE

    def _chunk(self, payload: bytes) -> bytes:
        said = read_said(payload)
        if said.is_error:
            self.outcome = "error"
            return b""
        fields, self._textless = fields_of(payload), not said.pieces
        given = fields.get("choices", _NOTHING)
        choices = [] if bytes(given) == b"null" else [self._choice(each) for each in list_of(given)]
        if self.outcome == "differs":
            return b""  # what nobody gets nobody pays
        self._count(said, payload)
        if said.usage_only:
            return self._usage(fields)
        if self.outcome == "stopped":
            return self._closing()
        kept = [choice for choice in choices if choice is not None]
        if not kept:
            return b""
        fields["choices"] = raw(kept)
        return render(self._dressed(fields))

    def _count(self, said: Said, payload: bytes) -> None:
        self._counts = said.counts or self._counts
        self._final = self._final or (said.counts is not None and self._ends_with(said))
        self._events += bool(said.pieces)
        if self._meter is not None:
            self._meter.feed(b"data: %b\n\n" % payload)

    def _ends_with(self, said: Said) -> bool:
        return said.usage_only or bool(said.finished)

    def _usage(self, fields: Fields) -> bytes:
        if self._ended in self._reported or not self._start.client_gets_usage:
            return b""
        return render(self._dressed(fields))

    def _dressed(self, fields: Fields) -> Fields:
        start = self._start
        if start.delivered.prompt_ids:
            fields.pop("prompt_token_ids", None)
        with_identity(fields, start.delivered.identity)
        with_counts(fields, self._shown.with_counts(self._counts, repeats=start.repeats))
        return fields

    def _closing(self) -> bytes:
        tokens = self.tokens()
        return closing(
            self._start.delivered, reason="stop", tokens=tokens,
            client_gets_usage=self._start.client_gets_usage,
        )

    # -- one choice of an event ----------------------------------------------------------------

    def _choice(self, choice: Fields) -> Fields | None:
        """What is new of it; None when nothing is."""
        delivered = self._start.delivered
        index = msgspec.json.decode(choice.get("index", b"0"), type=int)
        if delivered.prompt_ids:
            choice.pop("prompt_token_ids", None)
        finish = bytes(choice.get("finish_reason", b"null")) not in (b"null", b'""')
        self._says_more = False
        if "text" in choice:
            text = self._text(index, text_of(choice["text"]), last=finish)
            choice["text"] = raw(text)
            new = bool(text)
        else:
            delta = self._delta(index, _object_of(choice.get("delta", _NOTHING)), last=finish)
            choice["delta"] = raw(delta)
            new = bool(delta)
        new = self._has_new_ids(choice) or new
        new = self._has_new_logprobs(index, choice) or new
        if (self._says_more and index in self._closed) or (
            (self._says_more or finish) and self._lacks(index)
        ):
            self.outcome = "differs"
        if finish:
            new = new or index not in self._finished
            self._finished.add(index)
            self._ended = index
        return choice if new else None

    def _has_new_ids(self, choice: Fields) -> bool:
        """Whether it names tokens that the client does not know, which may have no text yet."""
        given = choice.get("token_ids", _NOTHING)
        if self._start.repeats or bytes(given) == b"null":
            return False
        count = len(msgspec.json.decode(given, type=list[int]))
        again, self._made_again = self._made_again, max(self._made_again - count, 0)
        return count > again

    def _has_new_logprobs(self, index: int, choice: Fields) -> bool:
        """Whether it has those of tokens that the client does not know and that have no text."""
        if not self._textless or "logprobs" not in choice or self._lacks(index):
            return False
        count, again = logprobs_in(choice["logprobs"]), self._logprobs_again.get(index, 0)
        self._logprobs_again[index] = max(again - count, 0)
        return count > again

    def _delta(self, index: int, delta: Fields, *, last: bool) -> Fields:
        kept: Fields = {}
        content = delta.get("content", raw(None))
        text = self._text(index, text_of(content), last=last)
        if "role" in delta and not self._start.delivered.has_begun(index):
            kept = {"role": delta["role"], "content": content}
        if text:
            kept["content"] = raw(text)
        for name, value in delta.items():
            if name in ("role", "content") or bytes(value) in (b"null", b'""', b"[]"):
                continue
            if name == "tool_calls":
                calls = [self._tool_call(index, call) for call in list_of(value)]
                left = [call for call in calls if call is not None]
                if left:
                    kept[name] = raw(left)
            elif bytes(value).startswith(b'"'):
                rest = self._fresh((index, name), text_of(value))
                if rest:
                    kept[name] = raw(rest)
            elif self._fresh((index, name), bytes(value).decode()):
                kept[name] = value
        return kept

    def _tool_call(self, index: int, call: Fields) -> Fields | None:
        number = msgspec.json.decode(call.get("index", b"0"), type=int)
        name = f"tool_calls/{number}"
        known = self._start.delivered.has_call((index, name))
        function = _object_of(call.get("function", _NOTHING))
        kept: Fields = {}
        for part in ("name", "arguments"):
            said = text_of(function[part]) if part in function else ""
            rest = self._fresh((index, f"{name}/{part}"), said)
            if rest:
                kept[part] = raw(rest)
        if not known:
            self._says_more = True
            return call  # the client has nothing of it
        return {"index": raw(number), "function": raw(kept)} if kept else None

    def _text(self, index: int, piece: str, *, last: bool) -> str:
        """What the client gets now of a piece of text, stop strings across the seam observed."""
        text = self._fresh((index, TEXT), piece)
        if not self._tail or (not text and not last):
            return text
        self._fresh_text += text
        self._waiting += text
        judged = across(self._tail, self._fresh_text, self._start.stops)
        if judged == "stopped":
            self.outcome = "stopped"
            return ""
        if judged == "open" and not last:
            return ""
        self._tail = ""
        text, self._waiting = self._waiting, ""
        return text

    def _fresh(self, channel: Channel, piece: str) -> str:
        """The part of a piece that the client does not have; a difference ends the seam."""
        expected = self._start.swallow.get(channel, "")
        at = self._at.get(channel, 0)
        size = min(len(piece), len(expected) - at)
        if not expected.startswith(piece[:size], at):
            self.outcome = "differs"
            return ""
        self._at[channel] = at + size
        self._says_more = self._says_more or len(piece) > size
        return piece[size:]

    def _lacks(self, index: int) -> bool:
        """Whether a choice has still to say what the client has of it. What a model says, it says
        one after the other: it goes on with nothing else before."""
        return any(self._left(each) for each in self._start.swallow if each[0] == index)

    def _left(self, channel: Channel) -> bool:
        return self._at.get(channel, 0) < len(self._start.swallow[channel])


def _object_of(value: msgspec.Raw) -> Fields:
    """An object or null."""
    return {} if bytes(value) == b"null" else fields_of(value)

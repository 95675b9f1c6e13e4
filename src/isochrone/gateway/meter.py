"""Meters one streamed answer on a tee: counts events, keeps the last counts, hides what we asked.

The gateway asks every engine for usage, so the chunk that carries nothing but usage is withheld
from a client that did not ask; every other byte passes unchanged. Most events of a stream differ
in their text only, so with one choice what stands before and behind the text of one is remembered,
and the next ones are compared with it; only others are parsed, and the last that carried counts
when somebody asks. An event whose data is `null`, which llama.cpp sends between prompts and no
client expects, is withheld.
"""

import re
from typing import Final

import numpy as np

from isochrone.core.metering.event import Endpoint, Tokens
from isochrone.core.metering.tokens import Reported, of_answers, of_choices, settle
from isochrone.gateway.answer_fields import Event
from isochrone.gateway.counts import read, tokens_of_answer
from isochrone.gateway.event_tee import CARRIAGE_RETURN, EventTee, payload_of

__all__ = ["MAX_EVENT_BYTES", "StreamMeter", "tokens_of_answer"]

# An event beyond this is forwarded as it comes and counted as one event, unread.
MAX_EVENT_BYTES = EventTee.most_event_bytes

MOST_SPECIAL_BYTES: Final = 16  # of data that is `null` or `[DONE]`
MANY_BYTES: Final = 2048  # from here on all events of a read are compared together
MOST_MISSES: Final = 8    # events in a row like none before: then no more are remembered

_FINISH: Final = re.compile(rb'"finish_reason"\s*:\s*"[^"]')
_COUNTS: Final = re.compile(rb'"(?:usage|timings)"\s*:\s*\{')
# How engines write text that is there: behind this comes its first byte. Others are parsed.
_TEXT: dict[Endpoint, bytes] = {
    "chat.completions": b'"delta":{"content":"',
    "completions": b'"text":"',
    "embeddings": b'"embedding":"',
}
_NEVER: Final = b"\n\n?"  # stands where no quotation mark is, so nothing behind a text is like it
_NUMBERS: Final = b"0123456789.+-eE"
_BYTES = np.dtype(np.uint8)
_LINE_END = np.uint8(ord("\n"))
_QUOTE: Final = ord('"')
_LINE_FEED: Final = ord("\n")


class StreamMeter(EventTee):
    """One stream of an endpoint whose answers have choices."""

    __slots__ = (
        "_asked",
        "_before",
        "_behind",
        "_counted",
        "_counts_raw",
        "_done",
        "_ended",
        "_error",
        "_finals",
        "_finished",
        "_joint",
        "_learned_at",
        "_misses",
        "_mixed",
        "_n",
        "_plain",
        "_prompts",
        "_running",
        "_tail",
        "_text",
        "_textless",
    )

    def __init__(
        self, n_choices: int, endpoint: Endpoint, client_wants_usage: bool, *, prompts: int = 1
    ) -> None:
        """`n_choices` is over all `prompts`, each of which has the same number, one by one."""
        super().__init__()
        self._n = n = max(n_choices, 1)
        self._prompts = min(max(prompts, 1), n)
        self._asked = client_wants_usage
        self._text = _TEXT[endpoint]
        self._counted = [0] * n  # events with text, those of `_plain` aside
        self._running: list[Reported | None] = [None] * n
        self._counts_raw: bytes | None = None
        self._finals: list[Reported] = []
        self._finished: set[int] = set()
        self._ended: set[int] = set()  # choices whose last event carried counts
        self._done = False
        self._error = False
        # Plain events: before and behind their text they are alike, up to the numbers in a tail.
        self._before = _NEVER
        self._behind = _NEVER
        self._tail = b""      # what follows `_behind`, without its numbers
        self._joint = b""     # between two texts, where there is no tail
        self._textless = b""  # an event without text
        self._plain = 0       # such events with text
        self._learned_at = 0  # how many there were when these were remembered
        self._misses = 0
        self._mixed = False   # this read has others among them

    @property
    def done(self) -> bool:
        """`[DONE]` came: nothing of the stream is missing."""
        return self._done

    @property
    def finished(self) -> bool:
        """`[DONE]` came, or every choice has its finish reason."""
        return self._done or len(self._finished) >= self._n

    @property
    def error(self) -> bool:
        """The engine sent an error event."""
        return self._error

    def feed(self, data: bytes) -> bytes:
        """As EventTee.feed, and quick for reads of one plain event or of many and nothing else."""
        mixed = False
        if not self._held:
            before = self._before
            opens = len(before)
            if data[:opens] == before and self._joint:
                behind, tail = self._behind, self._tail
                closes = len(behind)
                if tail:
                    at = data.find(b'"', opens)
                    if (
                        data.startswith(behind, at)
                        and data[at + closes :].translate(None, _NUMBERS) == tail
                    ):
                        self._plain += at > opens
                        self._counts_raw = data
                        return data
                elif data[-closes:] == behind and len(data) >= opens + closes:
                    text = data[opens:-closes]
                    if _QUOTE not in text:
                        self._plain += len(text) > 0
                        return data
                    if self._take_many(data, 0) if len(data) > MANY_BYTES else self._take_few(text):
                        return data
                    mixed = True
        self._mixed = mixed
        return super().feed(data)

    def tokens(self, prompt_bytes: int) -> Tokens:
        """Counts up to now; may be asked at any time, for progress as well as at the end."""
        if self._counts_raw is not None:
            raw, self._counts_raw = self._counts_raw, None
            event = read(raw[5:] if raw.startswith(b"data:") else raw)
            self._running[0] = (event.reported() if event else None) or self._running[0]
        if self._n == 1:
            final = self._finals[-1] if self._finals else None
            running = self._running[0]
            if final is None and self._ended:
                final = running
            counted = self._counted[0] + self._plain
            if running is not None and running.output > counted:
                counted = running.output
            return settle(final, running, counted=counted, prompt_bytes=prompt_bytes)
        running = of_choices(self._running, self._prompts)
        final = of_answers(self._finals, self._n, self._prompts)
        if final is None and len(self._ended) == self._n:
            final = running
        elif final is not None and len(self._finals) < self._n and not self.finished:
            running, final = running or final, None  # it is of those that have ended
        counted = sum(
            max(events, count.output if count else 0)
            for events, count in zip(self._counted, self._running, strict=True)
        )
        return settle(
            final, running, counted=counted, prompt_bytes=prompt_bytes, n_choices=self._n
        )

    # -- plain events ----------------------------------------------------------------------------

    def _take_ahead(self, buffer: bytes, begin: int) -> int:
        before, behind, tail = self._before, self._behind, self._tail
        if not buffer.startswith(before, begin):
            return begin
        if len(buffer) - begin > MANY_BYTES and not (tail or self._mixed):
            begin = self._take_many(buffer, begin)
        texts, counts_at = 0, -1
        while buffer.startswith(before, begin):
            text = begin + len(before)
            at = buffer.find(b'"', text)
            if not buffer.startswith(behind, at):
                break
            end = at + len(behind)
            if tail:
                numbers, end = end, buffer.find(b"\n", end) + 2
                if end < numbers or buffer[numbers:end].translate(None, _NUMBERS) != tail:
                    break
                counts_at = begin
            texts += at > text
            begin = end
        self._plain += texts
        if counts_at >= 0:
            self._counts_raw = buffer[counts_at:begin]
        return begin

    def _take_few(self, middle: bytes) -> bool:
        """Take what a read holds between the beginning and the end of plain events, if it is
        nothing but plain events."""
        texts = middle.split(self._joint)
        text = b"".join(texts)
        if _QUOTE in text or _LINE_FEED in text or CARRIAGE_RETURN in text:
            return False
        self._plain += len(texts) - texts.count(b"")
        return True

    def _take_many(self, buffer: bytes, begin: int) -> int:
        """Take all plain events up to the last if there is nothing but them; `begin` otherwise.

        What joins two of them is found `joints` times, and there are as many lines as that makes
        events: so each event has what stands before and behind a text, and its text has no line.
        """
        end = max(buffer.rfind(self._behind) + len(self._behind), begin)
        data = buffer if not begin and end == len(buffer) else buffer[begin:end]
        joints = data.count(self._joint)
        if (
            np.count_nonzero(np.frombuffer(data, _BYTES) == _LINE_END) == 2 * joints + 2
            and CARRIAGE_RETURN not in data
            and self._textless not in data
        ):
            self._plain += joints + 1
            return end
        self._mixed = True
        return begin

    def _learn(self, event: bytes, text: int) -> None:
        """Remember what stands before and behind the text of an event, where the next ones may have
        the same: one line, one text that is there, no finish reason, counts in the tail if at all.
        """
        if self._plain - self._learned_at > 1:
            self._misses = 0
        self._misses += 1
        self._learned_at = self._plain
        at = event.find(b'"', text)
        before, behind, tail = event[:text], event[at:], b""
        counts = _COUNTS.search(behind)
        if counts is not None:
            behind, tail = behind[: counts.end()], behind[counts.end() :]
        fixed = before + behind
        if (
            at > text
            and event[at - 1 : at] != b"\\"
            and fixed.count(self._text) == 1
            and fixed.count(b'"finish_reason":null') == 1
            and fixed.count(b'"finish_reason"') == 1
            and b'"finish_reason"' not in tail
        ):
            self._before, self._behind = before, behind
            self._tail = tail.translate(None, _NUMBERS)
            self._joint, self._textless = behind + before, fixed

    # -- one event -------------------------------------------------------------------------------

    def _pass_by(self, head: bytes) -> None:
        self._counted[0] += 1

    def _account(self, event: bytes) -> bool:
        plain = event.find(b"\n") == len(event) - 2 and event.startswith(b"data:")
        plain = plain and CARRIAGE_RETURN not in event
        if plain:
            payload = event[5:-2]
        else:
            found = payload_of(event)
            if found is None:
                return True
            payload, named_error = found
            self._error = self._error or named_error
        if len(payload) <= MOST_SPECIAL_BYTES:
            special = payload.strip()
            if special == b"null":
                return False
            if special.startswith(b"[DONE]"):
                self._done = True
                return True
        said = read(payload)
        if said is None:
            self._counted[0] += b'"choices"' in payload
            if self._n == 1 and _FINISH.search(payload):
                self._finished.add(0)
            return True
        shown = self._take(said)
        if plain and self._n == 1 and self._misses < MOST_MISSES:
            text = event.find(self._text)
            if text >= 0 and b'"error"' not in event:
                self._learn(event, text + len(self._text))
        return shown

    def _take(self, event: Event) -> bool:
        """Account for what an event says; False when it must not reach the client."""
        if event.is_error:
            self._error = True
        reported = event.reported()
        for choice in event.choices or ():
            index = choice.index if 0 <= choice.index < self._n else 0
            self._counted[index] += choice.carries_text
            if choice.finish_reason:
                self._finished.add(index)
                if reported is not None:
                    self._ended.add(index)
            if reported is not None:
                self._running[index] = reported
                self._counts_raw = None
        if event.is_usage_only:
            if reported is not None:
                self._finals.append(reported)
                del self._finals[: -self._n]
            return self._asked
        return True

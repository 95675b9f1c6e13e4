"""Meters one streamed answer on a tee: counts events, keeps the last counts, hides what we asked.

The gateway asks every engine for usage, so the chunk that carries nothing but usage is withheld
from a client that did not ask; every other byte passes unchanged. With one choice no event is
parsed on the way: bytes are scanned and the last event with counts is kept raw, to be parsed when
somebody asks. With several choices every event is parsed, because counts are per choice. An event
whose data is `null`, which llama.cpp sends between prompts and no client expects, is withheld.
"""

import re

from isochrone.core.metering.event import Endpoint, Tokens
from isochrone.core.metering.tokens import Reported, of_answers, of_choices, settle
from isochrone.gateway.counts import Event, read, tokens_of_answer

__all__ = ["MAX_EVENT_BYTES", "StreamMeter", "tokens_of_answer"]

# An event beyond this is forwarded as it comes and counted as one event, unread.
MAX_EVENT_BYTES = 256 * 1024

# Behind the first event of a read, this much is worth trying to take at once.
PLAIN_BYTES = 1024

MOST_NULL_BYTES = 16

# Two line ends of any of the three kinds. A carriage return at the end of what has arrived may be
# half of a line end, so it never ends an event by itself.
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?=\r))(?:\r\n|\n|\r(?=[^\n]))")
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"')
_COUNTS = re.compile(rb'"(?:usage|timings)"\s*:\s*\{')
# How engines write text that is there: behind this comes its first byte. Others are parsed.
_TEXT: dict[Endpoint, bytes] = {
    "chat.completions": b'"delta":{"content":"',
    "completions": b'"text":"',
    "embeddings": b'"embedding":"',
}


class StreamMeter:
    """One stream. Memory is bounded by two events of MAX_EVENT_BYTES, whatever its length."""

    __slots__ = (
        "_asked",
        "_counted",
        "_counts_raw",
        "_done",
        "_ended",
        "_error",
        "_finals",
        "_finished",
        "_held",
        "_held_sent",
        "_n",
        "_prompts",
        "_running",
        "_skipping",
        "_text",
    )

    def __init__(
        self, n_choices: int, endpoint: Endpoint, client_wants_usage: bool, *, prompts: int = 1
    ) -> None:
        """`n_choices` is over all `prompts`, each of which has the same number, one by one."""
        self._n = max(n_choices, 1)
        self._prompts = min(max(prompts, 1), self._n)
        self._asked = client_wants_usage
        self._text = _TEXT[endpoint]
        self._held = b""        # the event that has not ended yet
        self._held_sent = 0     # bytes of it that went out already (oversized events only)
        self._skipping = False
        self._counted = [0] * self._n
        self._running: list[Reported | None] = [None] * self._n
        self._counts_raw: bytes | None = None
        self._finals: list[Reported] = []
        self._finished: set[int] = set()
        self._ended: set[int] = set()  # choices whose last event carried counts
        self._done = False
        self._error = False

    @property
    def finished(self) -> bool:
        """`[DONE]` came, or every choice has its finish reason."""
        return self._done or len(self._finished) >= self._n

    @property
    def error(self) -> bool:
        """The engine sent an error event."""
        return self._error

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the body as they come; return what the client gets now.

        An event is returned when it is whole, so a stream that breaks inside one never hands the
        client half an event.
        """
        whole = not self._held and not self._skipping
        if whole and self._n == 1 and self._take_plain(data):
            return data
        buffer = self._held + data if self._held else data
        look_from = max(len(self._held) - 3, 0)
        sent = self._held_sent
        begin = 0
        first = True
        pieces: list[bytes] = []
        while (end := _event_end(buffer, look_from)) > 0:
            if self._skipping or end - begin > MAX_EVENT_BYTES:
                self._skipping = False
                self._counted[0] += 1
            elif not self._forward(buffer[begin:end]):
                pieces.append(buffer[sent:begin])
                sent = end
            begin = look_from = end
            if first and len(buffer) - begin > PLAIN_BYTES and self._n == 1:
                begin = look_from = self._skip_plain(buffer, begin)
            first = False
        if self._skipping or len(buffer) - begin > MAX_EVENT_BYTES:
            self._skipping = True
            self._held = buffer[-3:] if begin < len(buffer) - 3 else buffer[begin:]
            self._held_sent = len(self._held)
            pieces.append(buffer[sent:])
            return b"".join(pieces)
        self._held = buffer[begin:]
        self._held_sent = 0
        if not pieces:
            return buffer[sent:begin]
        pieces.append(buffer[sent:begin])
        return b"".join(pieces)

    def _skip_plain(self, buffer: bytes, begin: int) -> int:
        """Account for the plain events from `begin` to the one that finishes; where they end."""
        finish = buffer.find(b'"finish_reason":"', begin)
        end = buffer.rfind(b"\n\n", begin, finish if finish >= 0 else len(buffer)) + 2
        return end if end > begin and self._take_plain(buffer[begin:end]) else begin

    def _take_plain(self, data: bytes) -> bool:
        """Account for a whole read at once, if each of its events is one line of text and nothing
        else, as nearly all are; False, with nothing done, when any of them needs a closer look."""
        events = data.count(self._text)
        if not (
            events > 0
            and len(data) <= MAX_EVENT_BYTES
            and data.startswith(b"data:")
            and data.endswith(b"\n\n")
            and b"\r" not in data
            and data.count(b"\n") == 2 * events
            and data.count(b'"finish_reason":null') == events
            and data.count(b'"finish_reason"') == events
            and self._text + b'"' not in data
            and b'"error"' not in data
        ):
            return False
        last = data[data.rfind(b"\n\n", 0, -2) + 2 : -2] if events > 1 else data[:-2]
        if b'"timings":{' in last or b'"usage":{' in last:
            self._counts_raw = last[5:]
        elif b'"timings"' in data or (b'"usage"' in data and _COUNTS.search(data)):
            return False
        self._counted[0] += events
        return True

    def end(self) -> bytes:
        """The stream ended in an orderly way: judge and return what was held back, if anything."""
        rest, self._held = self._held[self._held_sent :], b""
        self._held_sent = 0
        if self._skipping or not rest:
            self._skipping = False
            return b""
        return rest if self._forward(rest) else b""

    def tokens(self, prompt_bytes: int) -> Tokens:
        """Counts up to now; may be asked at any time, for progress as well as at the end."""
        if self._counts_raw is not None:
            event, self._counts_raw = read(self._counts_raw), None
            self._running[0] = (event.reported() if event else None) or self._running[0]
        running = of_choices(self._running, self._prompts)
        final = of_answers(self._finals, self._n, self._prompts)
        if final is None and len(self._ended) == self._n:
            final = running
        counted = sum(
            max(events, count.output if count else 0)
            for events, count in zip(self._counted, self._running, strict=True)
        )
        return settle(
            final, running, counted=counted, prompt_bytes=prompt_bytes, n_choices=self._n
        )

    # -- one event -------------------------------------------------------------------------------

    def _forward(self, event: bytes) -> bool:
        """Account for one whole event; False when it must not reach the client."""
        one_line = event.find(b"\n") == len(event) - 2 and b"\r" not in event
        if one_line and event.startswith(b"data:"):
            payload = event[5:-2]
        else:
            found = _payload(event)
            if found is None:
                return True
            payload, named_error = found
            self._error = self._error or named_error
        if len(payload) <= MOST_NULL_BYTES and payload.strip() == b"null":
            return False
        if payload.lstrip(b" ").startswith(b"[DONE]"):
            self._done = True
            return True
        if self._n > 1 or b'"error"' in payload:
            return self._read_whole(payload)
        counts = (b'"timings"' in payload or b'"usage"' in payload) and bool(
            _COUNTS.search(payload)
        )
        if counts and b'"choices":[{' not in payload and _NO_CHOICES.search(payload):
            return self._read_whole(payload)
        if b'"finish_reason":null' not in payload and _FINISH.search(payload):
            self._finished.add(0)
            if counts:
                return self._read_whole(payload)
        if counts:
            self._counts_raw = payload
        text = payload.find(self._text) + len(self._text)
        if text < len(self._text) or payload[text : text + 1] in (b'"', b""):
            self._counted[0] += _spoke(payload, read(payload))
        else:
            self._counted[0] += 1
        return True

    def _read_whole(self, payload: bytes) -> bool:
        event = read(payload)
        if event is None:
            self._counted[0] += _spoke(payload, None)
            return True
        self._error = self._error or event.is_error
        reported = event.reported()
        for choice in event.choices or ():
            index = choice.index if 0 <= choice.index < self._n else 0
            self._counted[index] += choice.carries_text
            if choice.finish_reason is not None:
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


def _spoke(payload: bytes, event: Event | None) -> bool:
    """True when the event carries output; one that we cannot read does if it has choices."""
    if event is None:
        return b'"choices"' in payload
    return any(choice.carries_text for choice in event.choices or ())


def _event_end(buffer: bytes, look_from: int) -> int:
    """Offset behind the next blank line, or -1."""
    if b"\r" not in buffer:
        found = buffer.find(b"\n\n", look_from)
        return found + 2 if found >= 0 else -1
    match = _BLANK_LINE.search(buffer, look_from)
    return match.end() if match else -1


def _payload(event: bytes) -> tuple[bytes, bool] | None:
    """(data of the event, it is named an error), or None when it carries no data."""
    data: list[bytes] = []
    named_error = False
    for line in event.splitlines():
        name, _, value = line.partition(b":")
        if name == b"data":
            data.append(value)
        elif name == b"error":  # older llama.cpp: a field of its own
            data.append(value)
            named_error = True
        elif name == b"event" and value.strip() == b"error":
            named_error = True
    if not data and not named_error:
        return None
    return b"\n".join(data), named_error

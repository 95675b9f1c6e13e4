"""Cuts a stream into its events as it comes, hands each to a meter, and lets it pass when whole.

Lines end in any of the three ways that server-sent events may; what is forwarded is what came.
"""

import re
from abc import ABC, abstractmethod
from typing import ClassVar, Final

import msgspec

# Two line ends of any of the three kinds. A carriage return at the end of what has arrived may be
# half of a line end, so it never ends an event by itself.
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?=\r))(?:\r\n|\n|\r(?=[^\n]))")
_BLANK_END = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}\Z")

# Python looks for a number in bytes at once; of bytes it first finds out that they are no number.
CARRIAGE_RETURN: Final = 13

# Enough of an event to see what it is called.
HEAD_BYTES = 128


class EventTee(ABC):
    """One stream. Memory is bounded by two events of `most_event_bytes`, whatever its length."""

    __slots__ = ("_held", "_held_sent", "_skipping")

    most_event_bytes: ClassVar[int] = 256 * 1024  # beyond it an event passes as it comes, unread

    def __init__(self) -> None:
        self._held = b""        # the event that has not ended yet
        self._held_sent = 0     # bytes of it that went out already (oversized events only)
        self._skipping = b""    # the beginning of the oversized event that is passing

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the body as they come; return what the client gets now.

        An event is returned when it is whole, so a stream that breaks inside one never hands the
        client half an event.
        """
        buffer = self._held + data if self._held else data
        look_from = max(len(self._held) - 3, 0)
        sent = self._held_sent
        begin = 0
        pieces: list[bytes] = []
        if not self._skipping:
            begin = self._take_ahead(buffer, 0)
            look_from = max(look_from, begin)
        while (end := event_end(buffer, look_from)) > 0:
            if self._skipping or end - begin > self.most_event_bytes:
                self._pass_by(self._skipping or buffer[begin : begin + HEAD_BYTES])
                self._skipping = b""
            elif not self._account(buffer[begin:end]):
                pieces.append(buffer[sent : max(sent, begin)])
                sent = end
            begin = look_from = self._take_ahead(buffer, end)
        if self._skipping or len(buffer) - begin > self.most_event_bytes:
            self._skipping = self._skipping or buffer[begin : begin + HEAD_BYTES]
            self._held = buffer[-3:] if begin < len(buffer) - 3 else buffer[begin:]
            self._held_sent = len(self._held)
            pieces.append(buffer[sent:])
            return b"".join(pieces)
        self._held = buffer[begin:]
        self._held_sent = 0
        if not pieces:
            whole = begin == len(buffer) and not sent
            return buffer if whole else buffer[sent : max(sent, begin)]
        pieces.append(buffer[sent : max(sent, begin)])
        return b"".join(pieces)

    def end(self) -> bytes:
        """The stream ended in an orderly way: judge and return what was held back, if anything.

        An event that lacks nothing but its blank line gets one; half an event is dropped.
        """
        rest, self._held = self._held[self._held_sent :], b""
        self._held_sent = 0
        if self._skipping or not rest:
            self._skipping = b""
            return b""
        if not _BLANK_END.search(rest):
            if not _is_whole(rest):
                return b""
            rest += b"\n" if rest.endswith((b"\n", b"\r")) else b"\n\n"
        return rest if self._account(rest) else b""

    @abstractmethod
    def _account(self, event: bytes) -> bool:
        """Account for one whole event; False when it must not reach the client."""

    @abstractmethod
    def _pass_by(self, head: bytes) -> None:
        """An event too large to be read went by; it began with `head`."""

    def _take_ahead(self, buffer: bytes, begin: int) -> int:
        """Account for events that are whole and go on, from `begin`, where one begins; where they
        end. What is left is told event by event."""
        return begin


def _is_whole(event: bytes) -> bool:
    """Whether an event that the end of its stream cut may be taken as it is."""
    found = payload_of(event)
    if found is None:
        return False
    payload, named_error = found
    if named_error or payload.strip() == b"[DONE]":
        return True
    try:
        msgspec.json.decode(payload, type=msgspec.Raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def event_end(buffer: bytes, look_from: int) -> int:
    """Offset behind the next blank line, or -1."""
    if CARRIAGE_RETURN not in buffer:
        found = buffer.find(b"\n\n", look_from)
        return found + 2 if found >= 0 else -1
    match = _BLANK_LINE.search(buffer, look_from)
    return match.end() if match else -1


def payload_of(event: bytes) -> tuple[bytes, bool] | None:
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

"""Keeps what a stream has delivered, as it was sent, and reads it only when the stream is lost.

The healthy path pays one list entry a write. A long stream is read and packed every FOLD_BYTES, so
that one stream costs at most that much raw data and MOST_TEXT_BYTES of text; past that bound
everything is dropped and the stream can no longer be continued.
"""

from dataclasses import dataclass, field
from typing import Final, Literal

from isochrone.core.continuation.plan import Progress
from isochrone.core.metering.tokens import Reported
from isochrone.gateway.continuation.events import (
    TEXT,
    TEXT_MARKS,
    Channel,
    Identity,
    Said,
    Unreadable,
    joined_text,
    payload_of,
    read_many,
    read_plain,
    split,
)

FOLD_BYTES = 64 * 1024
MOST_TEXT_BYTES = 64 * 1024
APART: Final = 4  # events at each end of what is read at once are read closely


@dataclass(slots=True, kw_only=True)
class Delivered:
    """What the client has of an answer, packed.

    `tokens` is the engine's count behind the last event with text, `last_piece` that text and
    `last_jump` its tokens. `tool_ids` are by the channel of the call. `ids` are the token ids of
    the answer where the engine shows them, up to the last event with text. `reported`: choices
    behind whose end a usage came, the last that ended before it. `outputs`: tokens of each choice,
    as its engine counted them behind its last event with text. `later_logprobs`: of how many tokens
    behind that event the client has them.
    """

    identity: Identity | None = None
    channels: dict[Channel, list[str]] = field(default_factory=dict)
    tool_ids: dict[Channel, str] = field(default_factory=dict)
    finished: dict[int, str] = field(default_factory=dict)
    roles: set[int] = field(default_factory=set)
    done: bool = False
    usage_sent: bool = False
    reported: set[int] = field(default_factory=set)
    failed: bool = False
    counts: Reported | None = None
    tokens: int | None = None
    events: int = 0
    text_bytes: int = 0
    outputs: dict[int, int] = field(default_factory=dict)
    last_piece: str = ""
    last_jump: int = 0
    prompt_ids: tuple[int, ...] = ()
    ids: list[int] = field(default_factory=list)
    later_ids: list[int] = field(default_factory=list)
    later_logprobs: dict[int, int] = field(default_factory=dict)
    _ended: int = -1

    def text(self, channel: Channel = (0, TEXT)) -> str:
        return "".join(self.channels.get(channel, ()))

    def has_begun(self, index: int) -> bool:
        """Whether anything of a choice was delivered, its role at least."""
        return index in self.roles or any(of == index for of, _ in self.channels)

    def has_call(self, call: Channel) -> bool:
        """Whether anything of a tool call was delivered."""
        index, name = call
        parts = ((index, f"{name}/name"), (index, f"{name}/arguments"))
        return call in self.tool_ids or any(part in self.channels for part in parts)

    @property
    def unreported(self) -> int | None:
        """Tokens of the choice that ended last, where each has a usage of its own and that one's
        did not come; None elsewhere, and where nobody counted them."""
        if len(self.finished) < 2 or not self.usage_sent or self._ended in self.reported:
            return None
        return self.outputs.get(self._ended)

    def pack(self) -> None:
        """Many small pieces cost ten times their text."""
        for channel, pieces in self.channels.items():
            self.channels[channel] = ["".join(pieces)]

    def add_plain(self, whole: str, events: int) -> None:
        """The joined text of so many events that had some, whose counts were not read."""
        if not whole:
            return
        self.events += events
        self.channels.setdefault((0, TEXT), []).append(whole)
        self.text_bytes += len(whole.encode("utf-8", "surrogatepass"))
        self.tokens = None

    def add(self, said: Said) -> None:
        """One more event."""
        if self.identity is None:
            self.identity = said.identity
        self.roles.update(said.roles)
        self.finished.update(said.finished)
        for index, _ in said.finished:
            self._ended = index
        if said.usage_only:
            self.usage_sent = True
            self.reported.add(self._ended)
        self.failed = self.failed or said.is_error
        self.counts = said.counts or self.counts
        self.prompt_ids = self.prompt_ids or said.prompt_ids
        self.later_ids += said.token_ids
        for index, count in said.logprobs:
            self.later_logprobs[index] = self.later_logprobs.get(index, 0) + count
        for channel, id_ in said.tool_ids:
            self.tool_ids.setdefault(channel, id_)
        if not said.pieces:
            return
        self.events += 1
        self.ids += self.later_ids
        self.later_ids.clear()
        for channel, piece in said.pieces:
            self.later_logprobs.pop(channel[0], None)
            self.channels.setdefault(channel, []).append(piece)
            self.text_bytes += len(piece.encode("utf-8", "surrogatepass"))
        tokens = None if said.counts is None else said.counts.output
        if tokens is not None:
            for (index, _), _ in said.pieces:
                self.outputs[index] = max(self.outputs.get(index, 0), tokens)
        self.last_piece = said.pieces[-1][1]
        unknown = tokens is None or (self.tokens is None and self.events > 1)
        self.last_jump = 0 if unknown else (tokens or 0) - (self.tokens or 0)
        self.tokens = tokens

    def progress(self, n_choices: int) -> Progress:
        """What deciding needs to know of it."""
        return Progress(
            tokens=self.tokens,
            events=self.events,
            nothing=not self.channels and not self.tool_ids,
            only_text=not self.tool_ids and self.channels.keys() <= {(0, TEXT)},
            finished=self.done or len(self.finished) >= n_choices,
            ids_complete=bool(self.prompt_ids) and len(self.ids) == self.tokens,
            held_back=self.last_jump > 1,
        )


class Retained:
    """The delivered bytes of one stream. `take` is all that happens while it is healthy."""

    __slots__ = ("_delivered", "_raw", "_raw_bytes", "unkept")

    def __init__(self) -> None:
        self._raw: list[bytes] = []
        self._raw_bytes = 0
        self._delivered = Delivered()
        self.unkept: Literal["not_retained", "unreadable"] | None = None

    def take(self, data: bytes) -> None:
        """Bytes that went to the client."""
        if self.unkept is None:
            self._raw.append(data)
            self._raw_bytes += len(data)
            if self._raw_bytes > FOLD_BYTES:
                self._fold()

    def delivered(self) -> Delivered | None:
        """Everything up to now; None when it is not kept or ends in half an event (`unkept`)."""
        self._fold()
        if self.unkept is None and self._raw_bytes:
            self._drop("unreadable")
        return None if self.unkept else self._delivered

    def _fold(self) -> None:
        reads, delivered = self._raw, self._delivered
        texts = plain_texts(reads)
        text = None if texts is None else joined_text(texts)
        try:
            if texts is None or text is None:
                rest = self._take_in(b"".join(reads))
            else:
                self._take_in(b"".join(reads[:APART]))
                delivered.add_plain(text, len(texts) - texts.count(b""))
                rest = self._take_in(b"".join(reads[-APART:]))
            self._raw, self._raw_bytes = ([rest], len(rest)) if rest else ([], 0)
            delivered.pack()
        except Unreadable:
            self._drop("unreadable")
        if self._delivered.text_bytes > MOST_TEXT_BYTES or self._raw_bytes > FOLD_BYTES:
            self._drop("not_retained")

    def _take_in(self, data: bytes) -> bytes:
        """Read what is whole of it, and return the rest."""
        if data.endswith(b"\r"):  # no half of a line end: what was sent are whole events
            data += b"\n"
        events, rest = split(data)
        payloads = []
        for event in events:
            payload = payload_of(event)
            if payload == b"[DONE]":
                self._delivered.done = True
            elif payload:
                payloads.append(payload)
        self._read(payloads)
        return rest

    def _read(self, payloads: list[bytes]) -> None:
        """Of a long run of text only its ends are read closely: the first for the answer's
        identity, the last for the counts."""
        delivered = self._delivered
        texts = read_plain(payloads[APART:-APART]) if len(payloads) > 2 * APART else None
        if texts is None:
            said = read_many(payloads)
        else:
            said = read_many(payloads[:APART] + payloads[-APART:])
        for each in said[:APART]:
            delivered.add(each)
        if texts:
            delivered.add_plain("".join(texts), len(texts) - texts.count(""))
        for each in said[APART:]:
            delivered.add(each)

    def _drop(self, why: Literal["not_retained", "unreadable"]) -> None:
        self.unkept = self.unkept or why
        self._raw, self._raw_bytes = [], 0
        self._delivered = Delivered()


def plain_texts(reads: list[bytes]) -> list[bytes] | None:
    """The texts of events that came one a read and differ in nothing else, as JSON has them; None
    where there are others. The first and last few reads are left alone.

    What stands before and behind the text of one is what the others are compared with, at a fifth
    of a microsecond each. The texts of others that are alike by chance have quotation marks or
    ends of lines, which no JSON string has: see `joined_text`.
    """
    if len(reads) <= 2 * APART or not reads[APART - 1].endswith(b"\n\n"):
        return None
    event = reads[APART]
    for mark in TEXT_MARKS:
        text = event.find(mark) + len(mark)
        if text >= len(mark):
            break
    else:
        return None
    close = event.find(b'"', text)
    if close < 0 or event.find(b"\n") != len(event) - 2 or not event.startswith(b"data:"):
        return None
    before, behind = event[:text], event[close:]
    # Whether that is where an only choice has its text, and all that it has.
    if not behind.endswith(b"\n\n") or read_plain([before[5:] + b"?" + behind]) != ["?"]:
        return None
    found: list[bytes] = []
    least = len(before) + len(behind)
    for i in range(APART, len(reads) - APART):
        event = reads[i]
        end = len(event) - len(behind)
        if len(event) < least or not (event.startswith(before) and event.endswith(behind)):
            return None
        found.append(event[text:end])
    return found

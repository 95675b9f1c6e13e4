"""What the engines of a site have to read of prompts, and whether they should be sent more.

An engine reads prompts in the order in which it gets them. Whoever is behind a long row of them has
his first token late, however many slots are free and whatever he was promised. So the row is kept
as short as keeps engines reading, and who is next in it is decided as late as possible.

A stream says by its first byte that its prompt was read. An answer that comes as a whole says it
too late: its prompt counts as read once engines somewhat faster than they were measured have had
the time for it, and not before the streams that were sent before it.
"""

from collections import deque

from isochrone.core.admission.class_line import NEVER_NS
from isochrone.core.admission.fair_order import Ticket

AHEAD_S = 0.25       # of prompts, that each engine is sent before it has read those it has
LEAST_TOKENS = 512   # and at least so much: engines read that in one step
STUCK_NS = 2_000_000_000  # a stream so late keeps nobody behind it any more
GROWTH = 1.25        # so much faster: else a speed that was guessed too low would stay so
_KEPT = 0.98         # of what was measured, with each prompt that was read
_LEAST_NS = 50_000_000
_UNBOUNDED = 1 << 62


class Speed:
    """Prompt tokens that were read, over the time in which there was something to read: at least
    so fast are the engines. `since_ns`: since when, as far as it is not counted yet."""

    __slots__ = ("_ns", "_tokens", "since_ns")

    def __init__(self) -> None:
        self.since_ns = 0
        self._ns = 0.0
        self._tokens = 0.0

    def take(self, tokens: int, now_ns: int) -> None:
        """So many more were read by now."""
        spent_ns = now_ns - self.since_ns
        if spent_ns > 0:
            self.since_ns = now_ns
            self._ns = self._ns * _KEPT + spent_ns
            self._tokens = self._tokens * _KEPT + tokens

    def tok_s(self) -> float:
        """0 before there is enough to go by."""
        return self._tokens / self._ns * 1e9 if self._ns > _LEAST_NS else 0.0


class Reading:
    """`tokens` are sent and not read; with `room_tokens` of them nothing more is sent. As long as
    nobody says how fast engines read, that is unbounded. `tok_s` of all engines together: what is
    said, or what answers have shown, if that is more: what is said may be a guess. Mutable, owned
    by its queue."""

    __slots__ = (
        "_busy_until_ns", "_replicas", "_sent", "_stated_tok_s", "_streams", "_whole",
        "_whole_running", "room_tokens", "tok_s", "tokens",
    )

    def __init__(self) -> None:
        self.tok_s = 0.0
        self.room_tokens = _UNBOUNDED
        self.tokens = 0
        self._stated_tok_s = 0.0
        self._replicas = 1
        self._busy_until_ns = 0  # until when the engines read what they were sent
        self._sent: deque[tuple[int, Ticket]] = deque()  # when each should have been read
        self._streams = Speed()
        self._whole = Speed()
        self._whole_running = 0

    def set_rate(self, tok_s: float, replicas: int) -> None:
        """As is said of all engines together; 0 while nobody knows."""
        self._stated_tok_s, self._replicas = tok_s, replicas
        self._judge()

    def is_full(self) -> bool:
        """Whether the engines have enough to read."""
        return self.tokens >= self.room_tokens

    def ahead_ns(self) -> int:
        """For how long they read what they were sent, by their measured speed."""
        return int(self.tokens / self.tok_s * 1e9) if self.tok_s > 0.0 else 0

    def begin(self, ticket: Ticket, now_ns: int) -> None:
        """A request is sent to an engine, with all of its prompt to be read."""
        tokens = ticket.prompt_tokens
        if tokens <= 0 or self.tok_s <= 0.0:
            return
        if self.tokens <= 0:
            self._streams.since_ns = now_ns
        if not ticket.tells:
            if not self._whole_running:
                self._whole.since_ns = now_ns
            self._whole_running += 1
        ticket.unread = tokens
        self.tokens += tokens
        if self._busy_until_ns < now_ns:
            self._busy_until_ns = now_ns
        self._busy_until_ns += int(tokens / (GROWTH * self.tok_s) * 1e9)
        self._sent.append((self._busy_until_ns, ticket))
        self.pass_to(now_ns)

    def correct(self, ticket: Ticket, tokens: int) -> None:
        """Of one that has just begun, only so much is to be read."""
        spared = ticket.unread - tokens
        if spared > 0:
            ticket.unread = tokens
            self.tokens -= spared
            self._busy_until_ns -= int(spared / (GROWTH * self.tok_s) * 1e9)

    def read(self, ticket: Ticket, now_ns: int) -> None:
        """The first byte of a stream has come: its prompt was read, and what does not tell and was
        sent before it. So fast are the engines."""
        tokens, sent = ticket.unread, self._sent
        self.end(ticket)
        while sent:
            first = sent[0][1]
            if first.unread:
                if first.tells:
                    break  # at another engine
                tokens += first.unread
                self.end(first)
            sent.popleft()
            if first is ticket:
                break
        self._streams.take(tokens, now_ns)
        self._judge()

    def over(self, ticket: Ticket, now_ns: int, *, served: bool) -> None:
        """A request that was sent to an engine has ended. `served`: its prompt was read."""
        self.end(ticket)
        if not ticket.tells and self._whole_running:
            self._whole_running -= 1
            self._whole.take(ticket.prompt_tokens if served else 0, now_ns)
            self._judge()

    def end(self, ticket: Ticket) -> None:
        """Its prompt was read, or will not be."""
        self.tokens -= ticket.unread
        ticket.unread = 0

    def pass_to(self, now_ns: int) -> None:
        """What should have been read by now of those that do not tell, has been."""
        sent = self._sent
        while sent:
            due_ns, ticket = sent[0]
            if ticket.unread:
                if now_ns < (due_ns + STUCK_NS if ticket.tells else due_ns):
                    return
                self.end(ticket)
            sent.popleft()

    def next_ns(self) -> int:
        """When that may make room; `NEVER_NS` if there is some."""
        if not self._sent or not self.is_full():
            return NEVER_NS
        due_ns, ticket = self._sent[0]
        return due_ns + STUCK_NS if ticket.tells else due_ns

    def _judge(self) -> None:
        tok_s = self._stated_tok_s
        if tok_s <= 0.0:
            self.tok_s, self.room_tokens = 0.0, _UNBOUNDED
            return
        self.tok_s = tok_s = max(tok_s, self._streams.tok_s(), self._whole.tok_s())
        self.room_tokens = max(int(tok_s * AHEAD_S), LEAST_TOKENS * self._replicas)

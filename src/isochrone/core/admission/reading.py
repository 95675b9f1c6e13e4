"""What the engines of a site have to read of prompts, and whether they should be sent more.

An engine reads prompts in the order in which it gets them. Whoever is behind a long row of them has
his first token late, however many slots are free and whatever he was promised. So the row is kept
as short as keeps engines reading, and who is next in it is decided as late as possible.

A stream says by its first byte that its prompt was read. An answer that comes as a whole says it
too late: its prompt counts as read when the engines, at their measured speed, should have done so.
"""

from collections import deque

from isochrone.core.admission.class_line import NEVER_NS
from isochrone.core.admission.fair_order import Ticket

AHEAD_S = 0.25       # of prompts, that each engine is sent before it has read those it has
LEAST_TOKENS = 512   # and at least so much: engines read that in one step
_UNBOUNDED = 1 << 62


class Reading:
    """`tokens` are sent and not read; with `room_tokens` of them nothing more is sent. As long as
    nobody knows how fast engines read, that is unbounded. Mutable, owned by its queue."""

    __slots__ = ("_busy_until_ns", "_untold", "room_tokens", "tok_s", "tokens")

    def __init__(self) -> None:
        self.tok_s = 0.0
        self.room_tokens = _UNBOUNDED
        self.tokens = 0
        self._busy_until_ns = 0  # until when the engines read what they were sent
        self._untold: deque[tuple[int, Ticket]] = deque()  # when each should have been read

    def set_rate(self, tok_s: float, replicas: int) -> None:
        """Of all engines together; 0 while nobody knows."""
        self.tok_s = tok_s
        if tok_s > 0.0:
            self.room_tokens = max(int(tok_s * AHEAD_S), LEAST_TOKENS * replicas)
        else:
            self.room_tokens = _UNBOUNDED

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
        ticket.unread = tokens
        self.tokens += tokens
        if self._busy_until_ns < now_ns:
            self._busy_until_ns = now_ns
        self._busy_until_ns += int(tokens / self.tok_s * 1e9)
        if not ticket.tells:
            self.pass_to(now_ns)
            self._untold.append((self._busy_until_ns, ticket))

    def correct(self, ticket: Ticket, tokens: int) -> None:
        """Of one that has just begun, only so much is to be read."""
        spared = ticket.unread - tokens
        if spared <= 0:
            return
        ticket.unread = tokens
        self.tokens -= spared
        if self.tok_s > 0.0:
            self._busy_until_ns -= int(spared / self.tok_s * 1e9)

    def end(self, ticket: Ticket) -> None:
        """Its prompt was read, or will not be."""
        self.tokens -= ticket.unread
        ticket.unread = 0

    def pass_to(self, now_ns: int) -> None:
        """What should have been read by now of those that do not tell, has been."""
        untold = self._untold
        while untold and untold[0][0] <= now_ns:
            self.end(untold.popleft()[1])

    def next_ns(self) -> int:
        """When the next of those should have been read; `NEVER_NS` if that makes no room."""
        return self._untold[0][0] if self._untold and self.is_full() else NEVER_NS

"""What the engines of a site have to read of prompts, and whether they should be sent more.

An engine reads prompts in the order in which it gets them. Whoever is behind a long row of them has
his first token late, however many slots are free and whatever he was promised. So the row is kept
as short as keeps engines reading, and who is next in it is decided as late as possible.

A stream says by its first byte that its prompt was read. An answer that comes as a whole says it
too late: its prompt counts as read once engines somewhat faster than they were measured have had
the time for it, and not before the streams that were sent before it.
"""

from collections import deque
from collections.abc import Collection

from isochrone.core.admission.class_line import NEVER_NS
from isochrone.core.admission.fair_order import Ticket

AHEAD_S = 0.5        # of prompts, that each engine is sent before it has read those it has
LEAST_TOKENS = 512   # and at least so much: engines read that in one step
STUCK_NS = 2_000_000_000  # a stream so late keeps nobody behind it any more
GROWTH = 1.25        # so much faster: else a speed that was guessed too low would stay so
_KEPT = 0.98         # of what was measured, with each prompt that was read
_LEAST_NS = 50_000_000


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


class Row:
    """What one engine was sent and has not read, in order. `is_listed`: it is ready. Of what was
    `sent`: when it should have been read, and the number under which it was placed; a request that
    has another one by now was sent elsewhere, or once more."""

    __slots__ = ("busy_until_ns", "is_listed", "sent", "tokens")

    def __init__(self) -> None:
        self.tokens = 0
        self.is_listed = False
        self.busy_until_ns = 0  # until when it reads, by its measured speed
        self.sent: deque[tuple[int, int, Ticket]] = deque()


class Reading:
    """An engine with `room_tokens` to read is sent nothing more; with all of them so, nobody is. As
    long as nobody says how fast engines read, that is unbounded. `tok_s` of each engine: what is
    said, or what answers have shown, if that is more: what is said may be a guess. `tokens` is what
    all of them were sent and have not read. Mutable, owned by its queue."""

    __slots__ = (
        "_openings", "_placed", "_rows", "_stated_tok_s", "_streams", "_unplaced", "_whole",
        "_whole_running", "engines", "room_tokens", "tok_s", "tokens",
    )

    def __init__(self) -> None:
        self.tok_s = 0.0
        self.tokens = 0
        self.engines = 0
        self.room_tokens = 0
        self._stated_tok_s = 0.0
        self._rows: dict[str, Row] = {}
        self._openings = 0  # engines that are listed and have less to read than that
        self._placed = 0    # requests that were sent to an engine, ever
        self._unplaced = 0  # requests that were started, and are at no engine yet
        self._streams = Speed()
        self._whole = Speed()
        self._whole_running = 0

    def set_engines(self, names: Collection[str], tok_s: float) -> None:
        """The ready ones, and how fast each is said to be; 0 while nobody knows."""
        rows = self._rows
        for row in rows.values():
            row.is_listed = False
        for name in names:
            known = rows.get(name)
            if known is None:
                known = rows[name] = Row()
            known.is_listed = True
        if len(rows) > len(names):
            self._rows = rows = {
                name: row for name, row in rows.items() if row.is_listed or row.tokens
            }
        self.engines = len(names)
        self._stated_tok_s = tok_s
        self._judge()

    def is_full(self) -> bool:
        """Whether all engines have enough to read."""
        return self.tok_s > 0.0 and self._openings <= self._unplaced

    def ahead_ns(self) -> int:
        """For how long the one that is soonest done reads what it was sent."""
        if self.tok_s <= 0.0:
            return 0
        least = -1
        for row in self._rows.values():
            if row.is_listed and (least < 0 or row.tokens < least):
                least = row.tokens
        return int(max(least, 0) / self.tok_s * 1e9)

    def takes_ns(self, tokens: int) -> int:
        """How long all engines together read so many."""
        return int(tokens / (self.tok_s * max(self.engines, 1)) * 1e9) if self.tok_s > 0.0 else 0

    def room_ns(self) -> int:
        """How long an engine reads what it has room for. For known speeds."""
        return int(self.room_tokens / self.tok_s * 1e9)

    def reads_in(self, ns: int) -> int:
        """How many tokens all engines together read in that time. For known speeds."""
        return int(self.tok_s * max(self.engines, 1) * ns / 1e9)

    def done_ns(self, tokens: int) -> int:
        """When the engine that is soonest done will have read all that it gets, where so many
        tokens more are sent to whichever has least to read. For known speeds."""
        rows = sorted([float(row.tokens) for row in self._rows.values() if row.is_listed])
        level, left = 0.0, float(tokens)
        for reading, row_tokens in enumerate(rows):
            more = (row_tokens - level) * reading
            if more >= left and reading:
                break
            level, left = row_tokens, left - more
        else:
            reading = len(rows)
        return int((level + left / max(reading, 1)) / self.tok_s * 1e9)

    def begin(self, ticket: Ticket, now_ns: int) -> None:
        """A request is started; to be followed by `place`."""
        if ticket.prompt_tokens <= 0 or self.tok_s <= 0.0:
            return
        ticket.unread = ticket.prompt_tokens
        ticket.engine, ticket.placed = "", 0
        self._unplaced += 1
        if not ticket.tells:
            if not self._whole_running:
                self._whole.since_ns = now_ns
            self._whole_running += 1

    def place(self, ticket: Ticket, tokens: int, engine: str, now_ns: int) -> None:
        """It is sent to this engine, which has so much of its prompt to read."""
        if not ticket.unread:
            return
        self.end(ticket)
        row = self._rows.get(engine)
        if row is None or tokens <= 0 or self.tok_s <= 0.0:
            return  # it is tried again, and nobody knows any more how fast who is left reads
        if not row.tokens:
            self._pass(row, now_ns)
            if not self.tokens:
                self._streams.since_ns = now_ns
        ticket.unread, ticket.engine = tokens, engine
        self._count(row, tokens)
        if row.busy_until_ns < now_ns:
            row.busy_until_ns = now_ns
        row.busy_until_ns += int(tokens / (GROWTH * self.tok_s) * 1e9)
        self._placed += 1
        ticket.placed = self._placed
        row.sent.append((row.busy_until_ns, ticket.placed, ticket))

    def read(self, ticket: Ticket, now_ns: int) -> None:
        """The first byte of a stream has come: its prompt was read, and what does not tell and was
        sent before it. So fast are the engines."""
        tokens, row = ticket.unread, self._rows.get(ticket.engine)
        self.end(ticket)
        while row is not None and row.sent:
            _, placed, first = row.sent[0]
            if first.unread and first.placed == placed:
                if first.tells:
                    break
                tokens += first.unread
                self.end(first)
            row.sent.popleft()
            if placed == ticket.placed:
                break
        self._streams.take(tokens, now_ns)
        self._judge()

    def over(self, ticket: Ticket, now_ns: int, *, served: bool) -> None:
        """A request that was sent to an engine has ended. `served`: its prompt was read."""
        if ticket.unread:
            self.end(ticket)
        if not ticket.tells and self._whole_running:
            self._whole_running -= 1
            self._whole.take(ticket.prompt_tokens if served else 0, now_ns)
            self._judge()

    def end(self, ticket: Ticket) -> None:
        """Its prompt was read, or will not be."""
        row = self._rows.get(ticket.engine) if ticket.engine else None
        if row is not None:
            self._count(row, -ticket.unread)
        elif not ticket.engine:
            self._unplaced -= 1
        ticket.unread = 0
        ticket.engine = ""

    def pass_to(self, now_ns: int) -> None:
        """What should have been read by now of those that do not tell, has been."""
        for row in self._rows.values():
            if row.sent:
                self._pass(row, now_ns)

    def next_ns(self) -> int:
        """When that may make room; `NEVER_NS` if there is some."""
        soonest_ns = NEVER_NS
        if self.is_full():
            for row in self._rows.values():
                if row.sent:
                    due_ns, _, ticket = row.sent[0]
                    soonest_ns = min(soonest_ns, due_ns + STUCK_NS if ticket.tells else due_ns)
        return soonest_ns

    # -- inside ----------------------------------------------------------------------------------

    def _pass(self, row: Row, now_ns: int) -> None:
        sent = row.sent
        while sent:
            due_ns, placed, ticket = sent[0]
            if ticket.unread and ticket.placed == placed:
                if now_ns < (due_ns + STUCK_NS if ticket.tells else due_ns):
                    return
                self.end(ticket)
            sent.popleft()

    def _count(self, row: Row, tokens: int) -> None:
        was_open = row.tokens < self.room_tokens
        row.tokens += tokens
        self.tokens += tokens
        if row.is_listed:
            self._openings += (row.tokens < self.room_tokens) - was_open

    def _judge(self) -> None:
        """How fast engines are, and so how much room and how many openings there are."""
        tok_s, engines = self._stated_tok_s, max(self.engines, 1)
        if tok_s > 0.0:
            shown = max(self._streams.tok_s(), self._whole.tok_s()) / engines
            tok_s = max(tok_s, shown)
        room_tokens = max(int(tok_s * AHEAD_S), LEAST_TOKENS)
        self.tok_s = tok_s
        self.room_tokens = room_tokens
        self._openings = 0
        for row in self._rows.values():
            if row.is_listed and row.tokens < room_tokens:
                self._openings += 1

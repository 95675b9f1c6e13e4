"""In which order the tenants of one class are served: token-weighted virtual time.

Each tenant has a counter of the tokens that it was served while there was a queue, and the tenant
with the lowest counter goes first. A tenant whose queue was empty starts at the counter of whoever
was served last, never below: nobody saves up credit by being away. After "Fairness in Serving Large
Language Models" (VTC, Sheng and others 2024) and start-time fair queueing (Goyal and others 1996).
"""

from collections import deque
from heapq import heapify, heappop, heappush
from typing import Literal

TicketState = Literal["queued", "running", "stopping", "over"]

LOOK_AHEAD = 32  # so many entries of tenants whose turn is sooner are looked at one by one
LOOK_PAST = 8  # so many tenants whose next request may not start yet are looked past
_SPARE_ENTRIES = 64
_SPARE_TENANTS = 1024


class Ticket:
    """One request at the queue of a site: the proof with which its driver says what became of it.

    `rank`: its class. `tokens`: weighted, an estimate; `prompt_tokens` of them are its prompt.
    `firm`: once begun it may run for longer than a reclaim takes, and nobody may stop it.
    `is_long`: the first half of that. `resumable`: it may be stopped at any time, since what it has
    done is kept. `charged`: what its tenant's counter has of it. `begun`: the first byte of its
    answer has come. `stops`: how often it was stopped. `unread`: of its prompt, what its `engine`
    (empty before that is picked) has still to read as far as known, and `placed` under which number
    it was sent there; `tells`: the first byte says that it was read.
    """

    __slots__ = (
        "begun",
        "charged",
        "deadline_ns",
        "engine",
        "firm",
        "is_long",
        "offered_ns",
        "placed",
        "prompt_tokens",
        "rank",
        "resumable",
        "started_ns",
        "state",
        "stops",
        "tells",
        "tenant",
        "tokens",
        "unread",
    )

    def __init__(
        self, rank: int, tenant: str, tokens: int, is_long: bool, resumable: bool, now_ns: int,
        prompt_tokens: int = 0, tells: bool = True,
    ) -> None:
        self.rank = rank
        self.tenant = tenant
        self.tokens = tokens
        self.prompt_tokens = prompt_tokens
        self.is_long = is_long
        self.resumable = resumable
        self.firm = is_long and not resumable
        self.charged = 0
        self.state: TicketState = "running"
        self.begun = False
        self.stops = 0
        self.unread = 0
        self.engine = ""
        self.placed = 0
        self.tells = tells
        self.offered_ns = now_ns
        self.started_ns = now_ns
        self.deadline_ns = 0


class TenantLine:
    """What one tenant has waiting. `served`: its counter. `entry`: its one valid heap entry."""

    __slots__ = ("entry", "name", "served", "tokens", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting: deque[Ticket] = deque()
        self.tokens = 0
        self.served = 0
        self.entry = 0


class FairOrder:
    """The queue of one class. `queued` requests wait, with `tokens` in sum and `prompt_tokens` of
    them in prompts, of `tenants` tenants; `start` is the counter at which the last one was taken.
    """

    def __init__(self) -> None:
        self.queued = 0
        self.tokens = 0
        self.prompt_tokens = 0
        self.tenants = 0
        self.start = 0
        self._lines: dict[str, TenantLine] = {}
        self._heap: list[tuple[int, int, TenantLine]] = []
        self._entries = 0
        self._prune_at = _SPARE_TENANTS
        self._having: list[int] = []  # how many tenants have one, two, ... requests waiting or more

    def served(self, tenant: str) -> int:
        """The counter of a tenant; one that is not known starts where the others are."""
        line = self._lines.get(tenant)
        return self.start if line is None else max(line.served, self.start)

    def waiting(self, tenant: str) -> tuple[int, int]:
        """How many requests of the tenant wait, and their tokens."""
        line = self._lines.get(tenant)
        return (0, 0) if line is None else (len(line.waiting), line.tokens)

    def ahead(self, tenant: str) -> int:
        """The tokens that begin before a request of this tenant that comes now, as things are: all
        that it has waiting itself, and of each other tenant what brings its counter beyond what
        that makes of its own. Apart from that by less than a request of each such tenant; beyond
        `LOOK_AHEAD` of them the rest is taken to be as those are, which is too much, if anything.
        """
        line = self._lines.get(tenant)
        own = 0 if line is None else line.tokens
        if self.tokens == own:
            return own
        counter = own + (line.served if line is not None and own else self.served(tenant))
        looked = seen = tokens = seen_tokens = 0
        heap = self._heap
        size, places = len(heap), [0] if heap else []
        while places and looked < LOOK_AHEAD:
            place = places.pop()
            served, entry, other = heap[place]
            if served > counter:
                continue  # nor is anything below it sooner
            looked += 1
            place += place + 1
            if place < size:
                places.append(place)
                if place + 1 < size:
                    places.append(place + 1)
            if other.entry != entry or other is line:
                continue
            brings, next_tokens = counter - served, other.waiting[0].tokens
            if brings < next_tokens:
                brings = next_tokens
            else:
                brings += other.tokens // len(other.waiting) // 2
            seen += 1
            seen_tokens += other.tokens
            tokens += brings if brings < other.tokens else other.tokens
        if looked == LOOK_AHEAD:
            rest = self.tenants - seen - (own > 0)
            tokens += min(rest * tokens // max(seen, 1), self.tokens - own - seen_tokens)
        return own + tokens

    def put(self, ticket: Ticket, *, first: bool = False) -> None:
        """Queue it behind, or before, whatever else its tenant has waiting."""
        line = self._lines.get(ticket.tenant)
        if line is None:
            line = self._line(ticket.tenant)
        if not line.waiting:
            self.tenants += 1
            if line.served < self.start:
                line.served = self.start
            self._enter(line)
        if first:
            line.waiting.appendleft(ticket)
        else:
            line.waiting.append(ticket)
        has = len(line.waiting)
        if has > len(self._having):
            self._having.append(1)
        else:
            self._having[has - 1] += 1
        line.tokens += ticket.tokens
        self.queued += 1
        self.tokens += ticket.tokens
        self.prompt_tokens += ticket.prompt_tokens
        ticket.state = "queued"

    def take(self, firm_too: bool) -> Ticket | None:
        """The next request, charged to its tenant. None when there is none; or when the next of
        the first tenants are all firm and `firm_too` is False."""
        past: list[TenantLine] = []
        found: Ticket | None = None
        while found is None and len(past) < LOOK_PAST:
            line = self._first()
            if line is None:
                break
            if firm_too or not line.waiting[0].firm:
                found = self._serve(line)
            else:
                past.append(line)
        for line in past:
            self._enter(line)
        return found

    def charge(self, tenant: str, tokens: int) -> None:
        """What a request used was more, or less (negative), than it was charged."""
        line = self._lines.get(tenant)
        if line is None or tokens == 0:
            return
        line.served += tokens
        if line.waiting:
            self._enter(line)

    def drop(self, ticket: Ticket) -> None:
        """A request that waits will not be served."""
        line = self._lines[ticket.tenant]
        line.waiting.remove(ticket)
        self._count_out(line, ticket)
        if not line.waiting:
            self.tenants -= 1
            line.entry = 0

    def crowder(self, tenant: str) -> Ticket | None:
        """The last request of whoever has most waiting, if that is at least two more than
        `tenant` has: in a full queue it makes room for one of `tenant`; unless it was stopped, as
        all before it were then: some of them have begun to answer."""
        own = len(self._lines[tenant].waiting) if tenant in self._lines else 0
        if len(self._having) < own + 2:
            return None
        last = self._longest().waiting[-1]
        return None if last.stops else last

    # -- inside ----------------------------------------------------------------------------------

    def _longest(self) -> TenantLine:
        most: TenantLine | None = None
        for line in self._lines.values():
            if most is None or len(line.waiting) > len(most.waiting):
                most = line
        assert most is not None, "something is queued, so somebody queued it"
        return most

    def _line(self, name: str) -> TenantLine:
        if len(self._lines) >= self._prune_at:
            # Whoever is not ahead of the others is as good as unknown.
            self._lines = {
                line.name: line
                for line in self._lines.values()
                if line.waiting or line.served > self.start
            }
            self._prune_at = max(2 * len(self._lines), _SPARE_TENANTS)
        line = self._lines[name] = TenantLine(name)
        return line

    def _serve(self, line: TenantLine) -> Ticket:
        ticket = line.waiting.popleft()
        self._count_out(line, ticket)
        if line.served > self.start:
            self.start = line.served
        line.served += ticket.tokens
        ticket.charged = ticket.tokens
        if line.waiting:
            self._enter(line)
        else:
            self.tenants -= 1
        return ticket

    def _count_out(self, line: TenantLine, ticket: Ticket) -> None:
        had = len(line.waiting)
        self._having[had] -= 1
        if not self._having[had]:
            self._having.pop()  # it had most
        line.tokens -= ticket.tokens
        self.queued -= 1
        self.tokens -= ticket.tokens
        self.prompt_tokens -= ticket.prompt_tokens

    def _enter(self, line: TenantLine) -> None:
        """A valid entry at the tenant's present counter; the one before it is void."""
        self._entries += 1
        line.entry = self._entries
        heappush(self._heap, (line.served, self._entries, line))
        if len(self._heap) > 2 * self.tenants + _SPARE_ENTRIES:
            self._heap = [each for each in self._heap if each[2].entry == each[1]]
            heapify(self._heap)

    def _first(self) -> TenantLine | None:
        """The tenant with the lowest counter, out of the heap."""
        heap = self._heap
        while heap:
            _, entry, line = heappop(heap)
            if line.entry == entry and line.waiting:
                line.entry = 0
                return line
        return None

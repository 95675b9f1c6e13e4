"""Decides which request runs next at a site, for one model: classes, tenants, queues, refusals.

Requests are offered; each starts at once, waits, or is refused with the time after which it would
be taken. What was sold and is in force here goes first (`promise.py`), then floors, then the class
that had least for its share, then the tenant that had least of its class. Engines read prompts as
they come, whatever their class: so they are sent no more than keeps them reading (`reading.py`),
and the rest waits here. What a floor lends comes back within the policy's `reclaim_ms`: long
requests that nobody may stop never take a floor's slot. Mutable, owned by one event loop; time is
an argument; what the driver has to do is put into `outbox`. See docs/admission.md.
"""

from collections.abc import Collection

from isochrone.core.admission import told
from isochrone.core.admission.class_line import NEVER_NS, ClassLine, least_served, victim_of
from isochrone.core.admission.classes import BATCH, RANK, RESERVED, divide, sold_slots
from isochrone.core.admission.deadlines import Deadlines
from isochrone.core.admission.fair_order import Ticket
from isochrone.core.admission.promise import Promise
from isochrone.core.admission.queue_commands import (
    Command,
    RefusalReason,
    Refused,
    Start,
    Stop,
    TurnAway,
)
from isochrone.core.admission.reading import Reading
from isochrone.core.admission.slot_ends import SlotEnds
from isochrone.core.estimate.service import Work
from isochrone.core.world.site_policy import SitePolicy
from isochrone.core.world.tenant import Class

_LEAST_MEASURED = 50     # of the last requests say how long a token takes; of all slots where those
_MOST_MEASURED = 1_000   # are more, up to so many
OTHERS_PART = 20  # where what was promised takes all, one token in so many is for the others
_SEED_TOKENS = 1000.0


class SiteQueue:
    """`slots`: how many requests its engines, or its part of them, take at once. `slot_ns`: how
    long a slot is busy for one weighted token, until that is measured; `asked_ns`: for one that was
    expected, used or not. `guessed`: nobody is refused for a wait by them until then."""

    def __init__(
        self, policy: SitePolicy, slots: int, slot_ns: float, *, guessed: bool = False
    ) -> None:
        self.policy = policy
        self.guessed = guessed
        self.slots = 0
        self.running = 0
        self.queued = 0
        self.slot_ns = self.asked_ns = slot_ns
        self.reading = Reading()
        self.promise = Promise()  # to `reserved`
        self.outbox: list[Command] = []
        self._lines = [ClassLine(rule) for rule in policy.rules()]
        self._reclaim_ns = policy.reclaim_ms * 1e6
        self._measured_ns = slot_ns * _SEED_TOKENS
        self._measured_tokens = self._measured_asked = _SEED_TOKENS
        self._loose_tokens = int(self._reclaim_ns / slot_ns)
        self._committed = 0  # sum over the classes of floor, or firm requests where those are more
        self._stopping = 0
        self._sold_slots = 0
        self._owed = 0  # tokens that the others should have had beside what was promised
        self._virtual = 0
        self._deadlines = Deadlines()
        self._ends = SlotEnds()
        self.resize(slots, now_ns=0)

    def line(self, class_: Class) -> ClassLine:
        """What one class has now; to be read only."""
        return self._lines[RANK[class_]]

    # -- events ----------------------------------------------------------------------------------

    def offer(
        self, class_: Class, tenant: str, tokens: int, *, most_tokens: int, now_ns: int,
        prompt_tokens: int = 0, wait_ns: int = 0, resumable: bool = True, tells: bool = True,
    ) -> Ticket | Refused:
        """A request has come. The ticket says whether it is running or queued.

        `tokens`: weighted, as expected; `most_tokens`: what it may reach; `prompt_tokens`: of those
        expected. `wait_ns`: the longest that it may wait; 0, or more than its class allows: as long
        as that. `resumable`: of the class `batch`, it can be stopped in its answer and go on later.
        `tells`: the first byte of its answer says that its prompt was read.
        """
        rank = RANK[class_]
        line = self._lines[rank]
        is_long = most_tokens > self._loose_tokens
        ticket = Ticket(
            rank, tenant, tokens, is_long, resumable and rank == BATCH, now_ns, prompt_tokens, tells
        )
        if rank == RESERVED:
            self.promise.ask(tokens)
        reading = self.reading
        if reading.is_full():
            reading.pass_to(now_ns)
        if self.queued and reading.tok_s > 0.0 and self.running < self.slots:
            self._dispatch(now_ns)  # room that has just come is for those who wait
        if (
            self.running < self.slots
            and line.running < line.ceiling
            and line.order.queued == 0
            and not reading.is_full()
            and (not ticket.firm or line.firm < line.floor or self._committed < self.slots)
        ):
            self._begin(line, ticket, now_ns)
            return ticket
        if (refused := self._refusal(line, ticket, wait_ns, now_ns)) is not None:
            return refused
        self._enqueue(line, ticket, wait_ns or line.wait_ns, now_ns, first=False)
        self._dispatch(now_ns)
        if ticket.state == "running":  # the ticket says so: no command is needed
            self.outbox = [each for each in self.outbox if each.ticket is not ticket]
        return ticket

    def first_byte(self, ticket: Ticket, *, now_ns: int = 0, resumable: bool = True) -> None:
        """The answer has begun: from now on it is stopped only if it is resumable, which may turn
        out not to be so. An engine has read its prompt: to be followed by `tick` if anybody waits.
        """
        ticket.begun = True
        if ticket.unread and ticket.tells:
            self.reading.read(ticket, now_ns)
        if ticket.resumable and not resumable:
            self._settle_down(ticket)

    def reads(self, ticket: Ticket, tokens: int, engine: str, now_ns: int) -> None:
        """A request that has begun is sent to this engine, which has so many tokens of its prompt
        to read: the rest is in its cache. To be followed by `tick` if anybody waits."""
        self.reading.place(ticket, tokens, engine, now_ns)

    def paid(self, ticket: Ticket, now_ns: int, wait_ns: int = NEVER_NS) -> None:
        """A request that has come on demand is `reserved`, as it is paid for now: it waits there if
        it waits, for `wait_ns` at most, or keeps its slot."""
        reserved = self._lines[RESERVED]
        takes = reserved.ceiling > 0 and reserved.order.queued < reserved.queue_most
        if ticket.state == "running":
            ticket.begun = True
        elif ticket.state == "stopping":
            self.unstoppable(ticket)
        elif ticket.state == "queued" and takes:
            self.promise.ask(ticket.tokens)
            self._unqueue(ticket)
            ticket.rank = RESERVED
            left_ns = max(min(reserved.wait_ns - now_ns + ticket.offered_ns, wait_ns), 1)
            self._enqueue(reserved, ticket, left_ns, now_ns, first=False)
            self._dispatch(now_ns)

    def unstoppable(self, ticket: Ticket) -> None:
        """A request that had to stop cannot, after all: it goes on to its end, and another one may
        have to stop instead."""
        assert ticket.state == "stopping", f"nobody asked to stop a {ticket.state} request"
        ticket.state = "running"
        ticket.begun = True
        self._lines[ticket.rank].stopping -= 1
        self._stopping -= 1
        self._settle_down(ticket)
        self._reclaim()

    def finished(self, ticket: Ticket, tokens: int, now_ns: int) -> None:
        """A running request is over, in whatever way. `tokens`: weighted, as it used; 0 says
        nothing about the engines' speed."""
        self._release(self._lines[ticket.rank], ticket, tokens, now_ns)
        ticket.state = "over"
        if self.queued:
            self._dispatch(now_ns)

    def stopped(self, ticket: Ticket, tokens: int, now_ns: int) -> None:
        """A request that had to stop has; what is left of it waits before all else of its
        tenant, for as long as a new one may."""
        assert ticket.state == "stopping", f"nobody asked to stop a {ticket.state} request"
        line = self._lines[ticket.rank]
        self._release(line, ticket, tokens, now_ns)
        ticket.tokens = max(ticket.tokens - tokens, 1)
        ticket.prompt_tokens = min(ticket.prompt_tokens, ticket.tokens)
        ticket.charged = 0
        ticket.begun = False
        ticket.stops += 1
        self._enqueue(line, ticket, line.wait_ns, now_ns, first=True)
        self._dispatch(now_ns)

    def withdrawn(self, ticket: Ticket, now_ns: int) -> None:
        """The client of a request that waits has left."""
        assert ticket.state == "queued", f"a {ticket.state} request cannot be withdrawn"
        self._unqueue(ticket)
        self._dispatch(now_ns)

    def tick(self, now_ns: int) -> None:
        """Time has passed: turn away what has waited for too long, and start what may."""
        while (ticket := self._deadlines.take(now_ns)) is not None:
            self._turn_away(ticket, "expired", now_ns)
        if self.queued:
            self.reading.pass_to(now_ns)
            self._dispatch(now_ns)

    def next_tick_ns(self) -> int:
        """When `tick` has something to do, at the earliest; `NEVER_NS` if nothing waits."""
        if not self.queued:
            return NEVER_NS
        return min(self._deadlines.next_ns(), self.reading.next_ns())

    def adopt(self, policy: SitePolicy) -> None:
        """Go by this policy from now on; to be followed by `resize`."""
        self.policy = policy
        self._reclaim_ns = policy.reclaim_ms * 1e6
        self._loose_tokens = int(self._reclaim_ns / self.slot_ns)
        for line, rule in zip(self._lines, policy.rules(), strict=True):
            line.adopt(rule)

    def promises(self, tok_s: float, now_ns: int) -> None:
        """About once a second: what was sold, and is in force here now, in weighted tokens/s."""
        self.promise.renew(tok_s, now_ns)
        slots = sold_slots(self.promise.tok_s, self.slot_ns)
        if slots != self._sold_slots:
            self._sold_slots = slots
            self.resize(self.slots, now_ns)

    def resize(self, slots: int, now_ns: int) -> None:
        """Engines came or went; with the last of them all that wait are turned away, to others."""
        self.slots = slots
        self._ends.forget()
        committed, parts = 0, divide(self.policy, slots, self._sold_slots)
        has_changed = False
        for line, part in zip(self._lines, parts, strict=True):
            has_changed |= (line.floor, line.ceiling) != (part.floor, part.ceiling)
            line.floor, line.ceiling = part.floor, part.ceiling
            line.ends.forget()
            committed += max(line.floor, line.firm)
        if has_changed:
            # What a class had by another rule, or had not, is not owed by this one. Whose turn it
            # is stays: what was sold, and slots, may change with every second.
            for line in self._lines:
                line.draw_to(self._virtual)
        self._committed = committed
        if self.queued:
            self._dispatch(now_ns)

    def engines_read(self, names: Collection[str], tok_s: float) -> None:
        """Which engines are ready, and how fast each reads; 0 while unknown. Then comes `tick`."""
        self.reading.set_engines(names, tok_s)

    # -- what is said of waiting -----------------------------------------------------------------

    def expected_wait_ns(self, class_: Class, tenant: str, now_ns: int) -> int:
        """How long a request would wait that came now and could not start at once: until what
        begins before it in its class has begun, by what each is expected to take, beside the other
        classes that wait."""
        line = self.line(class_)
        return self._wait_ns(line, line.order.ahead(tenant), now_ns)

    def waiting(self) -> Work:
        """All that waits here, and that no engine knows of."""
        work, weight = Work(requests=self.queued), self.policy.output_weight
        if self.queued:
            for line in self._lines:
                order = line.order
                work.prompt_tokens += order.prompt_tokens
                work.output_tokens += (order.tokens - order.prompt_tokens) // weight
        return work

    # -- inside ----------------------------------------------------------------------------------

    def _wait_ns(self, line: ClassLine, ahead: int, now_ns: int) -> int:
        """Until so many tokens of what waits in the class have begun."""
        reading, read_ns, free = self.reading, 0, 0
        if reading.is_full():
            promised, part = self.promise.tok_s > 0.0, ahead / max(line.order.tokens, 1)
            read_ns = told.sent_in_ns(self._lines, line, part, reading, promised, now_ns)
            if self.running + self.queued < self.slots and line.running < line.ceiling:
                return read_ns
            free = max(self.slots - self.running, 0)
        turn_ns = told.turn_in_ns(
            self._lines, line, self._ends, ahead, self.asked_ns, self.slots, free, now_ns
        )
        return max(read_ns, turn_ns)

    def _refusal(
        self, line: ClassLine, ticket: Ticket, wait_ns: int, now_ns: int
    ) -> Refused | None:
        """Why a request that cannot start may not wait either."""
        if self.slots == 0:
            return Refused("no_capacity", None)
        if line.ceiling == 0:
            return Refused("class_closed", None)
        order = line.order
        if not self.guessed and line.running + order.queued >= line.floor:
            most_ns = min(wait_ns or line.wait_ns, line.wait_ns)
            slots_ns = told.all_done_ns(self._lines, line, self.asked_ns, self.slots)
            # Where there is time for all of it, nobody need know what of it goes before.
            if (self.reading.is_full() or slots_ns > most_ns) and (
                self._wait_ns(line, order.ahead(ticket.tenant), now_ns) > most_ns
            ):
                return self._refused(line, ticket, "would_expire", now_ns)
        if order.queued >= line.queue_most:
            crowder = order.crowder(ticket.tenant)
            if crowder is None:
                return self._refused(line, ticket, "queue_full", now_ns)
            self._turn_away(crowder, "queue_full", now_ns)
        return None

    def _refused(
        self, line: ClassLine, ticket: Ticket, reason: RefusalReason, now_ns: int
    ) -> Refused:
        """With the instant at which all that runs or waits before it will have begun; behind that
        of whoever was told one before, so that they do not all come back at once."""
        if line.ceiling == 0:
            return Refused("class_closed", None)  # while it waited
        free_ns, own_ns, reading = now_ns, 0, self.reading
        if reading.tok_s > 0.0:  # even if there is room now: those that wait will fill it
            prompt_tokens, promised = ticket.prompt_tokens, self.promise.tok_s > 0.0
            ahead_ns, own_ns = told.read_times_ns(
                self._lines, line, prompt_tokens, reading, promised, now_ns
            )
            free_ns += ahead_ns
        if reading.tok_s <= 0.0 or self._lacks_slots(line, ticket):
            pace_ns = self.asked_ns / told.slots_for(self._lines, line, self.slots)
            free_ns = max(free_ns, now_ns + line.ahead_ns(pace_ns, now_ns))
            own_ns = max(own_ns, int(ticket.tokens * pace_ns))
        return Refused(reason, told.back_ns(line, free_ns, own_ns, now_ns))

    def _lacks_slots(self, line: ClassLine, ticket: Ticket) -> bool:
        """Whether it is slots that such a request waits for, whatever engines can read."""
        return (
            self.running + self.queued >= self.slots or line.running >= line.ceiling
            or (ticket.firm and line.firm >= line.floor and self._committed >= self.slots)
        )

    def _turn_away(self, ticket: Ticket, reason: RefusalReason, now_ns: int) -> None:
        self._unqueue(ticket)
        refused = self._refused(self._lines[ticket.rank], ticket, reason, now_ns)
        self.outbox.append(TurnAway(ticket, refused))

    def _turn_all_away(self) -> None:
        for line in self._lines:
            while (ticket := line.order.take(firm_too=True)) is not None:
                self.queued -= 1
                ticket.state = "over"
                self.outbox.append(TurnAway(ticket, Refused("no_capacity", None)))

    def _settle_down(self, ticket: Ticket) -> None:
        """A running request turned out not to be resumable."""
        ticket.resumable = False
        if ticket.is_long and not ticket.firm:
            self._count_firm(self._lines[ticket.rank])
            ticket.firm = True

    def _count_firm(self, line: ClassLine) -> None:
        if line.firm >= line.floor:
            self._committed += 1
        line.firm += 1

    def _enqueue(
        self, line: ClassLine, ticket: Ticket, wait_ns: int, now_ns: int, *, first: bool
    ) -> None:
        if line.order.queued == 0 and line.virtual < self._virtual:
            line.virtual = self._virtual
        line.put(ticket, now_ns + min(wait_ns, line.wait_ns), first=first)
        self.queued += 1
        self._deadlines.put(ticket, self.queued)

    def _unqueue(self, ticket: Ticket) -> None:
        self._lines[ticket.rank].order.drop(ticket)
        self.queued -= 1
        ticket.state = "over"

    def _begin(self, line: ClassLine, ticket: Ticket, now_ns: int) -> None:
        if ticket.firm:
            self._count_firm(line)
        self.running += 1
        line.running += 1
        line.tokens += ticket.tokens
        line.tickets[ticket] = None
        ticket.started_ns = now_ns
        ticket.state = "running"
        self.reading.begin(ticket, now_ns)
        if ticket.rank == RESERVED:
            self.promise.begin(ticket.tokens, now_ns)

    def _release(self, line: ClassLine, ticket: Ticket, tokens: int, now_ns: int) -> None:
        """The slot is free; charge what was used, and learn how long a token takes."""
        del line.tickets[ticket]
        self.running -= 1
        line.running -= 1
        line.tokens -= ticket.tokens
        if ticket.firm:
            line.firm -= 1
            if line.firm >= line.floor:
                self._committed -= 1
        self.reading.over(ticket, now_ns, served=tokens > 0)
        if ticket.rank == RESERVED:
            self.promise.settle(ticket.tokens, tokens)
        if ticket.state == "stopping":
            line.stopping -= 1
            self._stopping -= 1
        if ticket.charged:
            over = tokens - ticket.charged
            line.virtual += over * line.per_token
            line.order.charge(ticket.tenant, over)
        if tokens > 0:
            # A guess is of nobody's engines: the first request that ends says more.
            last = 1.0 if self.guessed else min(max(self.slots, _LEAST_MEASURED), _MOST_MEASURED)
            kept = 1.0 - 1.0 / last
            self._measured_ns = self._measured_ns * kept + (now_ns - ticket.started_ns)
            self._measured_tokens = self._measured_tokens * kept + tokens
            asked = tokens if ticket.state == "stopping" else ticket.tokens
            self._measured_asked = self._measured_asked * kept + asked
            self.guessed = False
            if self._measured_ns > 0:
                self.asked_ns = self._measured_ns / self._measured_asked
                self.slot_ns = self._measured_ns / self._measured_tokens
                self._loose_tokens = int(self._reclaim_ns / self.slot_ns)

    def _dispatch(self, now_ns: int) -> None:
        if not self.slots:
            self._turn_all_away()
        while self.queued and self.running < self.slots and not self.reading.is_full():
            ticket = self._next(now_ns)
            if ticket is None:
                break
            line = self._lines[ticket.rank]
            self.queued -= 1
            line.last_cost = ticket.tokens * line.per_token
            line.virtual += line.last_cost
            self._begin(line, ticket, now_ns)
            self._ends.began(ticket.tokens)
            line.ends.began(ticket.tokens)
            self.outbox.append(Start(ticket, max(now_ns - line.short_ns, 0)))
        for line in self._lines:
            if line.running >= line.floor or not line.order.queued:
                line.short_ns = NEVER_NS
            elif line.short_ns == NEVER_NS:
                line.short_ns = now_ns
        if self.queued and self.running >= self.slots:
            self._reclaim()

    def _next(self, now_ns: int) -> Ticket | None:
        """Whose turn it is, a slot being free: a floor that is not reached or a promise, else the
        class that had least for its share and has a request that may start."""
        ticket = self._first(now_ns)
        if ticket is not None:
            return ticket
        if self._owed <= 0:
            return self._by_share()
        # The others first, however large the share of `reserved`.
        ticket = self._by_share(1 << RESERVED) or self._by_share()
        self._owed -= 0 if ticket is None else ticket.tokens
        return ticket

    def _first(self, now_ns: int) -> Ticket | None:
        """What goes before all shares. As long as slots are free floors never take them all, and
        where engines cannot read all that comes, others would get nothing: some of it is theirs.
        """
        for line in self._lines:
            queued = line.order.queued
            if not queued or line.running >= line.ceiling:
                continue
            lacks = line.running < line.floor
            if not lacks and not (
                line is self._lines[RESERVED] and self.promise.goes_first(now_ns)
            ):
                continue
            others = self.queued > queued
            bound = others and (not lacks or self.running + 1 < self.slots)
            if bound and self._owed > 0:
                continue
            ticket = line.order.take(lacks or self._committed < self.slots)
            if ticket is None:
                continue
            self._owed += ticket.tokens // OTHERS_PART + 1
            self._owed = self._owed if bound else min(self._owed, 0)  # what they had ahead stays
            return ticket
        return None

    def _by_share(self, past: int = 0) -> Ticket | None:
        while (rank := least_served(self._lines, past)) >= 0:
            best = self._lines[rank]
            firm_too = best.firm < best.floor or self._committed < self.slots
            ticket = best.order.take(firm_too)
            if ticket is not None:
                self._virtual = max(self._virtual, best.virtual)
                return ticket
            past |= 1 << rank
        return None

    def _reclaim(self) -> None:
        """No slot is free: have as many requests stopped as floors lack slots, of less firm
        classes that have more than their own floor."""
        lacking = 0
        for rank, line in enumerate(self._lines):
            if line.running < line.floor:
                lacking += min(line.floor - line.running, line.order.queued)
                while self._stopping < lacking:
                    victim = victim_of(self._lines, rank)
                    if victim is None:
                        break
                    victim.state = "stopping"
                    self._lines[victim.rank].stopping += 1
                    self._stopping += 1
                    self.outbox.append(Stop(victim, rank))

"""The queues of the sites whose engines this gateway asks itself: one for each site and model.

`core/admission/site_queue.py` decides; here its inputs are kept up to date (slots, policy, what is
sold), its commands are carried out, and its clock is watched. Commands are carried out in a turn of
the event loop of their own, so that none meets a request in the middle of something else.
"""

import asyncio
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING, Final

from isochrone.core.admission.class_line import NEVER_NS
from isochrone.core.admission.classes import (
    CLASSES,
    UNBOUNDED_SLOTS,
    own_slots,
    weighted_tokens,
)
from isochrone.core.admission.fair_order import Ticket
from isochrone.core.admission.queue_commands import Command, Refused, Start, Stop
from isochrone.core.admission.sent_back import begins_in_ms, costs_others, leave
from isochrone.core.admission.site_queue import SiteQueue
from isochrone.core.estimate.hardware import SLOW
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.metering.event import Tokens
from isochrone.core.routing.patience import MARGIN_MS
from isochrone.core.world.tenant import Class
from isochrone.gateway.entitled import Entitled
from isochrone.gateway.metrics import LATENCY_S
from isochrone.gateway.replies import Refusal
from isochrone.gateway.request import InferenceRequest
from isochrone.gateway.view_cache import ViewCache
from isochrone.gateway.waiting import is_pushed, may_wait_ms
from isochrone.ports.clock import Clock

if TYPE_CHECKING:
    from isochrone.gateway.tries import Tries

_SAID: Final = {
    "would_expire": "would have to wait for longer than they may",
    "queue_full": "wait in such a number that no more may",
    "expired": "waited for as long as they may",
    "class_closed": "are not taken",
    "no_capacity": "cannot be taken, since no engine is ready",
    "busy": "wait for longer than until they are answered elsewhere",
}
BUSY: Final = "busy"
LONG_OUTPUT_TOKENS: Final = 4096  # less than the context of any model has besides
QUEUE_REASONS: Final = frozenset(_SAID)


class Waiter(ABC):
    """Who stands in a queue: what it is told. `now_ns` is monotonic."""

    @abstractmethod
    def its_turn(self, now_ns: int) -> None:
        """It has waited, and has a slot from now on."""

    @abstractmethod
    def must_stop(self, now_ns: int, for_class: Class) -> None:
        """It has to give its slot back, to this class; its turn takes `stopped` or `unstoppable`
        for an answer."""

    @abstractmethod
    def turned_away(self, refusal: Refusal) -> None:
        """It has waited, and will not have a slot here."""


class Turn:
    """One request at the queue of a site, from its being taken in until it leaves.

    `since_ns`: when it began to wait the last time. `used`: weighted tokens that earlier runs of it
    were charged.
    """

    __slots__ = ("place", "rtt_ms", "since_ns", "ticket", "used")

    def __init__(self, place: "Place", ticket: Ticket, rtt_ms: float, now_ns: int) -> None:
        self.place = place
        self.ticket = ticket
        self.rtt_ms = rtt_ms
        self.since_ns = now_ns
        self.used = 0

    @property
    def waits(self) -> bool:
        return self.ticket.state == "queued"

    def runs_behind(self, tokens: Tokens) -> None:
        """So much of its answer was made elsewhere, and cost nothing here."""
        self.used = self._used_since(tokens)

    def first_byte(self, resumable: bool) -> None:
        """The answer has begun. `resumable`: it could be stopped from now on and continued."""
        place, ticket = self.place, self.ticket
        now_ns = place.now_ns() if ticket.unread else 0
        place.queue.first_byte(ticket, now_ns=now_ns, resumable=resumable)
        if place.queue.queued:
            place.settle_soon()

    def reads(self, tokens: int, engine: str, now_ns: int) -> None:
        """So much of its prompt the engine that it is sent to has to read."""
        if self.ticket.unread:
            self.place.queue.reads(self.ticket, tokens, engine, now_ns)
            if self.place.queue.queued:
                self.place.settle_soon()

    def paid(self, now_ns: int, wait_ns: int) -> None:
        """It has come on demand, and is `reserved` from now on. `wait_ns`: as long as it may wait.
        """
        place = self.place
        place.queue.paid(self.ticket, now_ns, wait_ns)
        place.settle_soon()

    def stopped(self, tokens: Tokens, now_ns: int) -> None:
        """It has given its slot back, and waits for another. `tokens`: of all its runs."""
        used = self._used_since(tokens)
        self.used += used
        self.since_ns = now_ns
        self.place.queue.stopped(self.ticket, used, now_ns)
        self.place.settle_soon()

    def unstoppable(self) -> None:
        """It cannot be stopped without a loss to its client."""
        self.place.queue.unstoppable(self.ticket)
        self.place.settle_soon()

    def leave(self, tokens: Tokens, now_ns: int) -> None:
        """The request is over, or goes on elsewhere. `tokens`: of all its runs."""
        place, ticket = self.place, self.ticket
        del place.waiters[ticket]
        queue = place.queue
        if ticket.state == "queued":
            queue.withdrawn(ticket, now_ns)
        elif ticket.state != "over":  # turned away, and not told yet
            queue.finished(ticket, self._used_since(tokens), now_ns)
        if queue.outbox:
            place.settle_soon()

    def _used_since(self, tokens: Tokens) -> int:
        """Weighted tokens since the last stop."""
        used = weighted_tokens(
            tokens.input_uncached + tokens.input_cached, tokens.output,
            self.place.queue.policy.output_weight,
        )
        return used - self.used if used > self.used else 0


class Place:
    """One model at one site. `waiters`: who has a ticket of its queue; `pushed`: how many came past
    a nearer site."""

    def __init__(
        self, queues: "SiteQueues", site: SiteName, model: ModelName, queue: SiteQueue
    ) -> None:
        self.site = site
        self.model = model
        self.queue = queue
        self.pushed = 0
        self.waiters: dict[Ticket, Waiter] = {}
        self._queues = queues
        self._due = False

    def now_ns(self) -> int:
        """Monotonic."""
        return self._queues.clock.monotonic_ns()

    def settle_soon(self) -> None:
        """Carry out what the queue says, when nobody is in the middle of something."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._settle)

    def _settle(self) -> None:
        self._due = False
        queue, now_ns = self.queue, self._queues.clock.monotonic_ns()
        if queue.queued:
            queue.tick(now_ns)
        while queue.outbox:
            commands, queue.outbox = queue.outbox, []
            for command in commands:
                self._obey(command, now_ns)
        self._queues.watch(queue.next_tick_ns(), now_ns)

    def _obey(self, command: Command, now_ns: int) -> None:
        ticket = command.ticket
        waiter = self.waiters.get(ticket)
        if waiter is None:
            return  # it left meanwhile
        class_ = CLASSES[ticket.rank]
        if isinstance(command, Start):
            self._queues.count_start(class_, command.reclaimed_ns)
            waiter.its_turn(now_ns)
        elif isinstance(command, Stop):
            if ticket.state == "stopping":
                self._queues.stops[class_] += 1
                waiter.must_stop(now_ns, CLASSES[command.for_rank])
        else:
            del self.waiters[ticket]
            waiter.turned_away(self._queues.refusal(self, class_, command.refused))


class SiteQueues:
    """Mutable, owned by the event loop. Of several workers on one port, each has its part of the
    slots. What is counted (`refusals` by class and reason, `stops`, `waits` and `reclaims` as
    histograms by class) is read by `queue_gauges.py`."""

    def __init__(
        self, clock: Clock, view: ViewCache, entitled: Entitled, *, worker: int, workers: int
    ) -> None:
        self.clock = clock
        self.places: dict[tuple[SiteName, ModelName], Place] = {}
        self.refusals: Counter[tuple[str, str]] = Counter()
        self.stops: Counter[str] = Counter()
        self.waits: dict[str, list[int]] = {}
        self.waited_s: dict[str, float] = {}
        self.reclaims: dict[str, list[int]] = {}
        self.reclaimed_s: dict[str, float] = {}
        self._view = view
        self._entitled = entitled
        self._worker = worker
        self._workers = workers
        self._timer: asyncio.TimerHandle | None = None
        self._due_ns = NEVER_NS
        view.replicas.on_change = self._replicas_changed

    def enter(
        self, waiter: "Tries", site: SiteName, rtt_ms: float, now_ns: int
    ) -> Turn | Refusal | None:
        """Offer a request at a site: its turn, which says whether it may run at once; why it is not
        taken; or None where no engine is ready, which is not the queue's to judge."""
        request = waiter.request
        place = self.places.get((site, request.model))
        if place is None:
            place = self._open(site, request.model, now_ns)
        queue = place.queue
        if queue.slots == 0:
            return None
        weight = queue.policy.output_weight
        prompt_tokens = request.prompt_tokens
        tokens, most_tokens = self._expected(request, weight)
        wait_ms = begins_in_ms(
            queue, waiter.class_, waiter.key.org_id,
            self._view.replicas.soonest_ms(site, request.model), now_ns,
        )
        is_busy = wait_ms > MARGIN_MS and wait_ms > may_wait_ms(waiter)
        if is_busy and costs_others(queue, waiter.class_, waiter.key.org_id):
            return self._busy(place, waiter.class_, wait_ms)
        ticket = queue.offer(
            waiter.class_, waiter.key.org_id, tokens, most_tokens=most_tokens, now_ns=now_ns,
            prompt_tokens=prompt_tokens, wait_ns=waiter.patience_ns(now_ns),
            resumable=waiter.is_resumable, tells=request.stream,
        )
        if isinstance(ticket, Refused):
            if queue.outbox:
                place.settle_soon()
            return self.refusal(place, waiter.class_, ticket)
        if is_busy:
            leave(queue, ticket, now_ns)
            if queue.outbox:
                place.settle_soon()
            return self._busy(place, waiter.class_, wait_ms)
        place.waiters[ticket] = waiter
        if is_pushed(waiter):
            place.pushed += 1
        if queue.queued or queue.outbox:
            place.settle_soon()
        turn = Turn(place, ticket, rtt_ms, now_ns)
        if waiter.continuation is not None:
            turn.runs_behind(waiter.continuation.tokens())
        return turn

    def sweep(self, now_ns: int) -> None:
        """About once a second: policies, how fast engines read, and what was sold and is in force
        here. A site that is reached without a gateway of its own has nothing of that."""
        view, site = self._view, self._view.own_site
        in_force = self._entitled.in_force(site, now_ns) if self.places else {}
        for place in self.places.values():
            queue = place.queue
            policy = view.admission_of(place.site, place.model)
            if policy != queue.policy:
                queue.adopt(policy)
                self._resize(place, now_ns)
            self._hear_speed(place)
            if place.site == site:
                queue.promises(float(in_force.get(place.model, 0)), now_ns)
            if queue.queued:
                queue.tick(now_ns)
            if queue.outbox:
                place.settle_soon()

    def count_wait(self, class_: str, waited_ns: int) -> None:
        """A request had its turn, or gave up waiting for it."""
        _tally(self.waits, self.waited_s, class_, waited_ns)

    def count_start(self, class_: str, reclaimed_ns: int) -> None:
        """A request that waited starts; `reclaimed_ns` as its command says."""
        if reclaimed_ns:
            _tally(self.reclaims, self.reclaimed_s, class_, reclaimed_ns)

    def refusal(self, place: Place, class_: str, refused: Refused) -> Refusal:
        """What a client is told, and a peer."""
        self.refusals[class_, refused.reason] += 1
        after_ns = refused.retry_after_ns
        return Refusal(
            status=429, reason=refused.reason,
            message=f"Requests of class {class_} for '{place.model}' {_SAID[refused.reason]} at "
            f"site {place.site}.",
            retry_after_s=None if after_ns is None else max(-(-after_ns // 1_000_000_000), 1),
        )

    def watch(self, due_ns: int, now_ns: int) -> None:
        """Look at the queues again at this instant, if not before."""
        if due_ns >= self._due_ns:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due_ns = due_ns
        delay_s = max(due_ns - now_ns, 0) / 1e9
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- inside ----------------------------------------------------------------------------------

    def _busy(self, place: Place, class_: str, wait_ms: float) -> Refusal:
        return self.refusal(place, class_, Refused(BUSY, int(wait_ms * 1e6)))

    def _tick(self) -> None:
        self._timer, self._due_ns = None, NEVER_NS
        now_ns, due_ns = self.clock.monotonic_ns(), NEVER_NS
        for place in self.places.values():
            queue = place.queue
            if queue.queued:
                queue.tick(now_ns)
                if queue.outbox:
                    place.settle_soon()
                due_ns = min(due_ns, queue.next_tick_ns())
        self.watch(due_ns, now_ns)

    def _open(self, site: SiteName, model: ModelName, now_ns: int) -> Place:
        policy = self._view.admission_of(site, model)
        slot_ns = 1e9 / (policy.output_weight * SLOW.decode_tok_s)
        queue = SiteQueue(policy, 0, slot_ns, guessed=True)
        place = self.places[site, model] = Place(self, site, model, queue)
        self._resize(place, now_ns)
        return place

    def _replicas_changed(self, site: SiteName, model: ModelName) -> None:
        place = self.places.get((site, model))
        if place is not None:
            self._resize(place, self.clock.monotonic_ns())

    def _resize(self, place: Place, now_ns: int) -> None:
        slots = self._view.replicas.slots(place.site, place.model)
        if slots < UNBOUNDED_SLOTS:
            slots = own_slots(slots, self._worker, self._workers)
        self._hear_speed(place)
        place.queue.resize(slots, now_ns)
        if place.queue.outbox:
            place.settle_soon()

    def _expected(self, request: InferenceRequest, weight: int) -> tuple[int, int]:
        """Weighted tokens of a request: as expected, and at most. No answer is longer than the
        context of its model, whatever its client allows."""
        output_tokens, prompt_tokens = request.output_tokens, request.prompt_tokens
        if request.is_limited and output_tokens <= LONG_OUTPUT_TOKENS:
            tokens = weighted_tokens(prompt_tokens, output_tokens, weight)
            return tokens, tokens
        model = self._view.table.view.models.get(request.model)
        context_tokens = 0 if model is None else model.context_tokens
        if context_tokens:
            output_tokens = min(output_tokens, context_tokens * request.choices)
        tokens = weighted_tokens(prompt_tokens, output_tokens, weight)
        if request.is_limited:
            return tokens, tokens
        return tokens, max(prompt_tokens + weight * (context_tokens - prompt_tokens), tokens)

    def _hear_speed(self, place: Place) -> None:
        """Tell the queue how fast its part of each engine reads. Where nobody says how many
        requests they take, nobody is held back."""
        names, tok_s = self._view.replicas.read(place.site, place.model)
        if place.queue.slots >= UNBOUNDED_SLOTS:
            tok_s = 0.0
        place.queue.engines_read(names, tok_s / self._workers)


def _tally(
    histograms: dict[str, list[int]], sums_s: dict[str, float], class_: str, took_ns: int
) -> None:
    counts = histograms.get(class_)
    if counts is None:
        counts = histograms[class_] = [0] * (len(LATENCY_S) + 1)
    counts[bisect_left(LATENCY_S, took_ns / 1e9)] += 1
    sums_s[class_] = sums_s.get(class_, 0.0) + took_ns / 1e9

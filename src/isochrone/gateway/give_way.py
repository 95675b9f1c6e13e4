"""Gives the slot of a request back to a class whose floor is short, and goes on when it has one.

Before the first byte of its answer a request begins anew. A stream of the class `batch` is stopped
in its middle and goes on as if its engine had been lost, at the next token; one that cannot be
continued so, or is complete, keeps its slot.
"""

from isochrone.core.continuation.plan import FinishLocally, Lost, Replay
from isochrone.core.ids import SiteName
from isochrone.core.metering.event import Tokens
from isochrone.core.routing.choice import Stopped
from isochrone.core.world.tenant import Class
from isochrone.gateway.attempt import Attempt
from isochrone.gateway.carry_on import CarryingOn
from isochrone.gateway.continuation.coordinator import Loss
from isochrone.gateway.replies import Refusal
from isochrone.gateway.stops import MOST_KEPT, parse_stops, with_last, with_one_more

_NOTHING = Tokens()


class GivingWay(CarryingOn):
    """The part of an exchange that can be told to stop by the queue of its site. `_stopped_ns`:
    since when it waits for a slot again, 0 where it does not."""

    _stopped_ns = 0

    @property
    def is_resumable(self) -> bool:
        """Whether, as far as is known before it begins, its answer can be stopped and continued."""
        return self.request.stream and self._may_continue

    def must_stop(self, now_ns: int, for_class: Class) -> None:
        turn, attempt = self.turn, self.attempt
        assert turn is not None, "only what has a slot is told to stop"
        metered: Tokens | None = _NOTHING
        begun = self.reply.head_sent
        if not begun:
            self._begin_anew(now_ns)
        elif attempt is None or not turn.ticket.resumable:
            metered = None
        else:
            metered = self._pause(attempt, now_ns)
        if metered is None:
            turn.unstoppable()
            return
        self._stopped_ns = now_ns
        self.stops = with_one_more(self.stops, Stopped(
            site=turn.place.site,
            replica=None if attempt is None else attempt.replica_id,
            for_class=for_class,
            since_ms=(now_ns - self.received_ns) / 1e6,
            output=metered.output if begun else None,
        ))
        turn.stopped(metered, now_ns)

    def its_turn(self, now_ns: int) -> None:
        stopped_ns, before = self._stopped_ns, self.attempt
        if not stopped_ns:
            super().its_turn(now_ns)
            return
        self._stopped_ns = 0
        after_ms = (now_ns - stopped_ns) / 1e6
        self.stops = with_last(self.stops, after_ms, None, None)
        super().its_turn(now_ns)
        self.stops = with_last(self.stops, after_ms, self._sent_on(before), None)

    def turned_away(self, refusal: Refusal) -> None:
        stopped_ns, before = self._stopped_ns, self.attempt
        if not stopped_ns:
            super().turned_away(refusal)
            return
        self._stopped_ns = 0
        after_ms, why = (self.context.clock.monotonic_ns() - stopped_ns) / 1e6, refusal.reason
        self.stops = with_last(self.stops, after_ms, None, why)
        super().turned_away(refusal)
        self.stops = with_last(self.stops, after_ms, self._sent_on(before), why)

    def refused_by_peer(self, attempt: Attempt, rule: str, retry_after_s: int | None) -> None:
        said = attempt.said_of_stops
        there = () if said is None else parse_stops(said, attempt.target.site)
        if not there:
            super().refused_by_peer(attempt, rule, retry_after_s)
            return
        self.stops = (*self.stops, *there)[-MOST_KEPT:]
        super().refused_by_peer(attempt, rule, retry_after_s)
        last = self.stops[-1]
        if last.after_ms is not None and last.at is None:
            self.stops = with_last(
                self.stops, last.after_ms, self._sent_on(attempt), last.refused
            )

    def _sent_on(self, before: Attempt | None) -> SiteName | None:
        """Where it is now, if anywhere: at an engine or a site, or in the queue of one."""
        if self.attempt is not None and self.attempt is not before:
            return self.attempt.target.site
        return None if self.turn is None else self.turn.place.site

    def _begin_anew(self, now_ns: int) -> None:
        """Forget the present try: nothing of it has reached the client, and it costs no try."""
        attempt = self.attempt
        if attempt is None:
            return
        attempt.cancel()
        if self.affinity is not None:
            self.affinity.failed(self.context)
        self.release(attempt, None, now_ns)
        self.attempt = None
        self._tries_before += 1
        if attempt.target.replica is not None and self._tried_replicas is not None:
            self._tried_replicas.discard(attempt.target.replica.id)

    def _pause(self, attempt: Attempt, now_ns: int) -> Tokens | None:
        """Stop the stream where it is, ready to be continued, and return what was metered; None
        where it has to go on as it is."""
        meter = attempt.meter
        goes_on_already = self._lost_ns is None or self._method == "stopped"
        if meter is None or self.retained is None or not goes_on_already:
            return None
        metered, is_first = meter.tokens(self.request.prompt_bytes), self.continuation is None
        continuation = self._begin_continuation(metered, now_ns)
        plan = continuation.plan(Loss(
            kin=attempt.kin, metered=metered, usual_gap_ms=self._usual_gap_ms, stopped=True,
        ))
        if isinstance(plan, Lost | FinishLocally | Replay):
            if is_first:
                self.continuation = None
            return None
        attempt.cancel()
        self.asking = continuation.ask(plan)
        continuation.stops += 1
        self.want_alike(plan)
        self._method = "stopped"
        self.release(attempt, None, now_ns)
        self._tries_before, self._tried_replicas = self.attempts, set()
        self.begin_gap(now_ns)
        return metered

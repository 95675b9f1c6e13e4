"""Gives the slot of a request back to a class whose floor is short, and goes on when it has one.

Before the first byte of its answer a request begins anew. A stream of the class `batch` is stopped
in its middle and goes on as if its engine had been lost, at the next token; one that cannot be
continued so, or is complete, keeps its slot.
"""

from isochrone.core.continuation.plan import FinishLocally, Lost, Replay, Retry
from isochrone.core.metering.event import Tokens
from isochrone.gateway.attempt import Attempt
from isochrone.gateway.carry_on import CarryingOn
from isochrone.gateway.continuation.coordinator import Loss

_NOTHING = Tokens()


class GivingWay(CarryingOn):
    """The part of an exchange that can be told to stop by the queue of its site."""

    @property
    def is_resumable(self) -> bool:
        """Whether, as far as is known before it begins, its answer can be stopped and continued."""
        return self.request.stream and self._may_continue

    def must_stop(self, now_ns: int) -> None:
        turn = self.turn
        assert turn is not None, "only what has a slot is told to stop"
        if not self.reply.head_sent:
            self._begin_anew(now_ns)
            turn.stopped(_NOTHING, now_ns)
            return
        attempt = self.attempt
        metered = None if attempt is None else self._pause(attempt, now_ns)
        if metered is None:
            turn.unstoppable()
        else:
            turn.stopped(metered, now_ns)

    def _begin_anew(self, now_ns: int) -> None:
        """Forget the present try: nothing of it has reached the client, and it costs no try."""
        attempt = self.attempt
        if attempt is None:
            return
        attempt.cancel()
        self.release(attempt, None, now_ns)
        self.attempt = None
        self._tries_before += 1
        if attempt.target.replica is not None and self._tried_replicas is not None:
            self._tried_replicas.discard(attempt.target.replica.id)

    def _pause(self, attempt: Attempt, now_ns: int) -> Tokens | None:
        """Stop the stream where it is, ready to be continued, and return what was metered; None
        where it has to go on as it is."""
        meter = attempt.meter
        if meter is None or self.retained is None or self._lost_ns is not None:
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
        if not isinstance(plan, Retry):
            self.wanted = continuation.kin
        self._method = "stopped"
        self.release(attempt, None, now_ns)
        self._tries_before, self._tried_replicas = self.attempts, set()
        self._lost_ns = self._waiting_ns = now_ns
        self._silent, self._last_ns, self._last_progress = True, now_ns, None
        return metered

"""Keeps a stream alive that has begun: where its engine or its site is lost, another goes on.

`core/continuation` decides what is honest, `gateway/continuation` knows what to ask and how the
second answer is joined to the first. Here a loss is noticed, the next target is tried, and where
nobody goes on the stream ends with the reason. A serving gateway goes on at its own site only; else
it breaks the hop without a word, so that the ingress can go on elsewhere.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

from isochrone.core.continuation.plan import (
    ContinueIds,
    ContinueText,
    FinishLocally,
    Lost,
    Replay,
    Retry,
)
from isochrone.core.ids import SiteName
from isochrone.core.metering.event import Endpoint, Outcome, Tokens
from isochrone.core.routing.choice import Refused
from isochrone.core.routing.chosen import Choice
from isochrone.gateway import judged
from isochrone.gateway.attempt import Attempt
from isochrone.gateway.continuation.coordinator import (
    Continuation,
    Loss,
    StreamRequest,
    message_of,
)
from isochrone.gateway.continuation.events import DONE, WAITING, before_error
from isochrone.gateway.continuation.retained import Retained
from isochrone.gateway.surface import error_event_for
from isochrone.gateway.tries import Tries
from isochrone.wire.peer import TURNED_AWAY

CONTINUED: frozenset[Endpoint] = frozenset(("chat.completions", "completions"))
WAITING_NS = 1_000_000_000  # between comments to a client that waits in a gap

Method = Literal["retry", "continue_ids", "continue_text", "replay", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Continued:
    """A continuation whose answer reached the client: the `nth` of its stream, from 1, and how long
    nothing came between the loss and its first bytes. By `stopped` nothing was lost: it had given
    its slot back."""

    method: Method
    nth: int
    gap_ms: float


@dataclass(frozen=True, slots=True)
class Began:
    """A choice whose site began to answer: the instants of the choice and of its first bytes."""

    choice: Choice
    since_ns: int
    first_ns: int


class CarryingOn(Tries):
    """The part of an exchange that has a stream to lose. `lost_why` once it was given up. `began`:
    once it was lost, every choice whose site began to answer, in order."""

    first_ns: int | None = None
    continued: tuple[Continued, ...] = ()
    began: tuple[Began, ...] = ()
    lost_why: Lost | None = None
    _silent = True
    _last_progress: Tokens | None = None
    _noted_ns = 0  # when its progress was last looked at
    _last_ns: int | None = None  # when the sweep last saw the stream move
    _lost_ns: int | None = None  # since when the client waits for a continuation
    _waiting_ns = 0  # when it was last told so
    _losses: tuple[tuple[int, Refused], ...] = ()  # with their places among all that was tried
    _method: Method = "retry"
    _usual_gap_ms = 0.0
    _engine_error = b""  # what the client gets if nobody goes on where an engine sent an error
    _silence: str | None = None  # the same, where one said nothing more

    @abstractmethod
    def _end(self, outcome: Outcome, *, status: int, reason: str | None, tokens: Tokens) -> None:
        """The one way out."""

    def stream_ended(self, attempt: Attempt) -> None:
        """The stream came to an orderly end; whether it was complete, its events tell."""
        meter = attempt.meter
        assert meter is not None
        if not self.reply.head_sent:
            why = "the engine sent a stream without an event"
            self.attempt_failed(attempt, why, unreachable=False)
        elif meter.error:
            self.reply.end_stream()
            tokens = meter.tokens(self.request.prompt_bytes)
            self._end("engine_error", status=200, reason="engine_error", tokens=tokens)
        else:
            self.stream_broken(attempt, "the stream ended without its last event")

    def stream_broken(self, attempt: Attempt, why: str) -> None:
        """The stream stopped, after its first byte went to the client."""
        meter = attempt.meter
        assert meter is not None
        complete = meter.finished and not meter.error
        has_end = complete and (meter.done or self.retained is None)
        if not has_end and self.retained is not None and self.carry_on(attempt):
            return
        if complete:
            if not has_end:  # but more than is kept of it was said
                self.reply.stream(DONE)
            self.reply.end_stream()
            tokens = meter.tokens(self.request.prompt_bytes)
            self._end("finished", status=200, reason=None, tokens=tokens)
        else:
            self.give_up_stream(why)

    def engine_failed(self, attempt: Attempt, data: bytes) -> bool:
        """The engine sent an error event in `data`: it is kept back while another may go on. False
        where that is out of the question, and for an answer that begins with its error."""
        before = before_error(data)
        if self.retained is None:
            if self.reply.head_sent or not before or not self._may_continue:
                return False
            self.retained = Retained()
        self._engine_error = data[len(before) :]
        attempt.cancel()
        if before:
            self.stream(attempt, before)
        self.stream_broken(attempt, "the engine sent an error")
        return True

    @property
    def tried_now(self) -> list[Refused]:
        """Who lost its stream, and who refused it in this gap: in the next one he may take it."""
        tried = self.tried[self._tried_before :] if self._tried_before else self.tried
        if not self._losses:
            return tried
        return [each for at, each in self._losses if at < self._tried_before] + tried

    @property
    def choice_since_ns(self) -> int:
        """From when the prediction of the last choice counts: of the first one, which was made for
        a request as it came in, since then."""
        is_first = self.chosen_ns is None or self.choice_ns == self.chosen_ns
        return self.received_ns if is_first else self.choice_ns

    @property
    def _may_continue(self) -> bool:
        """Whether a stream of this request can be gone on with, should its engine be lost."""
        return self.endpoint in CONTINUED and self.request.prompts == 1

    def give_up_stream(self, why: str) -> None:
        """Nobody goes on: end with an error event and without an end of the body."""
        attempt = self.attempt
        if self.continuation is not None:
            tokens = self.continuation.tokens()
        elif attempt is None or attempt.meter is None:
            tokens = Tokens()
        else:
            tokens = attempt.meter.tokens(self.request.prompt_bytes)
        if self._engine_error:
            self.reply.stream(self._engine_error)
            self.reply.end_stream()
            self._end("engine_error", status=200, reason="engine_error", tokens=tokens)
            return
        text, reason = f"The engine was lost during the answer: {why}.", "engine_lost"
        if self._silence is not None:
            text, reason = self._silence, "between_events_timeout"
        elif self.lost_why is not None:
            text = message_of(self.lost_why)
        event = error_event_for(self.endpoint, reason, text)
        said = attempt is not None and attempt.meter is not None and attempt.meter.error
        if self.leaves_it_to_the_ingress:
            event = TURNED_AWAY if self.was_turned_away else b""
        self.reply.cut_stream(b"" if said else event)
        outcome: Outcome = "engine_lost" if self._silence is None else "timed_out"
        self._end(outcome, status=200, reason=reason, tokens=tokens)

    @property
    def was_turned_away(self) -> bool:
        """Whether it gave its slot back, and its queue had no place for it again."""
        return bool(self.stops) and self.stops[-1].refused is not None and self.stops[-1].at is None

    @property
    def leaves_it_to_the_ingress(self) -> bool:
        """Whether a peer asked that can go on with the stream, if it just breaks."""
        return self.reply.hop is not None and self.retained is not None

    @property
    def waits_elsewhere(self) -> bool:
        """Whether another site was asked to go on and may have it in its queue, for minutes."""
        attempt = self.attempt
        return (
            self._lost_ns is not None and self.class_ == "batch" and attempt is not None
            and attempt.target.replica is None and attempt.status == 0
        )

    def nobody_goes_on(self) -> None:
        """No target is left for a continuation, or none may be asked."""
        self.lost_why = Lost(why="no_replica")
        self.give_up_stream("no other replica takes it")

    def fell_silent(self, message: str) -> bool:
        """The stream has said nothing for too long: go on without its engine, if possible. Where it
        had said its last, nothing is missing but the end of its body."""
        attempt = self.attempt
        if attempt is None or attempt.meter is None:
            return False
        if self.retained is None:
            if not attempt.meter.finished or attempt.meter.error:
                return False
            attempt.cancel()
            self.stream_broken(attempt, message)
            return True
        self._silence = message
        return self.carry_on(attempt)

    # -- going on --------------------------------------------------------------------------------

    def carry_on(self, attempt: Attempt) -> bool:
        """Go on without `attempt`; False when that is not honest, and `lost_why` says why."""
        assert attempt.meter is not None
        now_ns = self.context.clock.monotonic_ns()
        metered = attempt.meter.tokens(self.request.prompt_bytes)
        continuation = self._begin_continuation(metered, now_ns)
        total_ns = self.context.deadlines[self.class_].total_ns
        plan = continuation.plan(Loss(
            kin=attempt.kin, metered=metered, usual_gap_ms=self._usual_gap_ms,
            deadline_passed=now_ns - self.started_ns > total_ns, stopped=attempt.turned_away,
        ))
        if isinstance(plan, Lost):
            self.lost_why = plan
            return False
        attempt.cancel()
        if isinstance(plan, FinishLocally):
            rest = continuation.closing(plan)
            if rest:
                self.reply.stream(rest)
            self.reply.end_stream()
            self._end("finished", status=200, reason=None, tokens=continuation.tokens())
            return True
        self._ask(attempt, plan, now_ns)
        return True

    def _begin_continuation(self, metered: Tokens, now_ns: int) -> Continuation:
        """The first loss begins it; from then on tries are counted anew."""
        if self.continuation is None:
            assert self.retained is not None
            self.continuation = Continuation(
                StreamRequest(
                    endpoint=self.endpoint, body=self.body, n_choices=self.request.choices,
                    client_gets_usage=self.client_gets_usage,
                ),
                self.retained,
            )
            since_ns = self.first_ns or now_ns
            last_ns = now_ns if not self._silent else self._last_ns or since_ns
            self._usual_gap_ms = (last_ns - since_ns) / 1e6 / max(metered.output - 1, 1)
            if self.choice is not None and self.first_ns is not None:
                self.began = (Began(self.choice, self.choice_since_ns, self.first_ns),)
            self._tried_before, self._tried_replicas = len(self.tried), set()
        return self.continuation

    def _ask(
        self, attempt: Attempt, plan: Retry | ContinueIds | ContinueText | Replay, now_ns: int
    ) -> None:
        """Ask the next target as planned: another replica of the same site, then another site."""
        continuation, target = self.continuation, attempt.target
        assert continuation is not None
        seam, replica = continuation.seam, target.replica
        differed = seam is not None and seam.outcome == "differs"  # so it lives, and may continue
        self.asking = continuation.ask(plan)
        self.want_alike(plan)
        self._method = _method_of(plan)
        if attempt.turned_away:
            self._method, continuation.stops = "stopped", continuation.stops + 1
        self.release(attempt, None if differed or attempt.turned_away else False, now_ns)
        self._tries_before, self._tries_began_ns = self.attempts, now_ns
        self.begin_gap(now_ns)
        where = "" if replica is None else f"replica {replica.id}: "
        lost = _lost_at(target.site, where, attempt.turned_away)
        if not (differed or attempt.turned_away):
            self._losses += ((len(self.tried), lost),)
        if replica is not None:
            tried = self._tried_replicas = self._tried_replicas or set()
            if differed:
                tried.discard(replica.id)
            else:
                tried.add(replica.id)
            self.tried.append(lost)
            if not self.try_again_at(target.site, target.rtt_ms, now_ns):
                self._go_elsewhere()
        elif differed:
            self.choose(now_ns)
        else:
            self._refused(lost)

    def begin_gap(self, now_ns: int) -> None:
        """From now on the client waits, unless it does already."""
        if self._lost_ns is None:
            self._lost_ns = self._waiting_ns = now_ns
            self._tried_before, self.passed_over = len(self.tried), ()
        self._silent, self._last_ns, self._last_progress = True, now_ns, None

    def want_alike(self, plan: Retry | ContinueIds | ContinueText | Replay) -> None:
        """Whoever goes on has the weights of the answer so far; or, before there is any, those that
        an ingress has read of in its head."""
        assert self.continuation is not None
        kin = self.continuation.kin
        named = self.reply.hop is not None and kin is not None and kin.revision is not None
        if named or not isinstance(plan, Retry):
            self.wanted = kin

    def went_on(self, attempt: Attempt) -> None:
        """The first bytes of a continuation are there."""
        if self._lost_ns is None or self.continuation is None:
            return
        gap_ns = self.context.clock.monotonic_ns() - self._lost_ns
        self._lost_ns, self._engine_error, self._silence = None, b"", None
        self.continued += (
            Continued(
                method=self._method, nth=self.continuation.continuations, gap_ms=gap_ns / 1e6
            ),
        )

    def began_again(self) -> None:
        """The first bytes of a continuation have come, be they such as the client has already."""
        choice, attempt, now_ns = self.choice, self.attempt, self.context.clock.monotonic_ns()
        if attempt is not None:
            judged.first_byte(self, attempt, now_ns)
        if self.turn is not None:
            self.turn.first_byte(resumable=True)
        if self.began and choice is not None and self.began[-1].choice is not choice:
            self.began += (Began(choice, self.choice_since_ns, now_ns),)

    def wait_audibly(self, now_ns: int) -> None:
        """Now and then tell a client that waits for a continuation that it is not forgotten."""
        if self._lost_ns is None or self.client_is_slow:
            return
        if now_ns - self._waiting_ns >= WAITING_NS:
            self._waiting_ns = now_ns
            self.reply.stream(WAITING)

    def _tokens(self) -> Tokens:
        """Counts of the stream so far; nothing is counted before an engine's first byte."""
        if not self.reply.head_sent:
            return Tokens()
        attempt = self.attempt
        if attempt is None or attempt.meter is None:
            return Tokens() if self.continuation is None else self.continuation.tokens()
        return attempt.meter.tokens(self.request.prompt_bytes)


def _lost_at(site: SiteName, where: str, turned_away: bool) -> Refused:
    how = "it gave way there, and had no place again" if turned_away else "lost during the answer"
    return Refused(site=site, rule="tried_before", detail=where + how)


def _method_of(plan: Retry | ContinueIds | ContinueText | Replay) -> Method:
    if isinstance(plan, Retry):
        return "retry"
    if isinstance(plan, Replay):
        return "replay"
    return "continue_ids" if isinstance(plan, ContinueIds) else "continue_text"

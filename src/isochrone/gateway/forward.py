"""The life of one request: admit, try (see `tries`), answer, account.

An exchange is driven by callbacks: of its client connection, of its attempt, and of the sweep that
watches deadlines. It ends exactly once, in `_end`, which writes its usage record.
"""

from typing import Final

from isochrone.core.admission.classes import clamp, wanted_class
from isochrone.core.ids import RequestId
from isochrone.core.metering.event import Endpoint, Outcome, Tokens
from isochrone.core.world.model import COMMON_ENDPOINTS
from isochrone.core.world.tenant import NO_LIMITS, ApiKey
from isochrone.gateway import admission, judged, timeouts
from isochrone.gateway.account import closing_of, logged_reference, references_leave
from isochrone.gateway.attempt import Attempt
from isochrone.gateway.context import Context
from isochrone.gateway.continuation.body import with_seed
from isochrone.gateway.continuation.hop import parse_kin
from isochrone.gateway.continuation.retained import Retained
from isochrone.gateway.counts import tokens_of_answer
from isochrone.gateway.give_way import GivingWay
from isochrone.gateway.incoming import Fault, Incoming
from isochrone.gateway.journal import PROGRESS_S
from isochrone.gateway.message_meter import meter_for
from isochrone.gateway.peer_hop import Hop
from isochrone.gateway.recount import recount
from isochrone.gateway.replicas import verdict
from isochrone.gateway.replies import Refusal
from isochrone.gateway.reply import Reply
from isochrone.gateway.request import BadRequest, InferenceRequest, parse_request
from isochrone.gateway.server import ClientConnection
from isochrone.gateway.stops import stopped_line
from isochrone.gateway.surface import engine_error_body_for, error_event_for

CLIENT_GONE_STATUS: Final = 499
NO_TOKENS: Final = Tokens()
_NOTED_NS: Final = int(0.9 * PROGRESS_S * 1e9)  # and the journal sees to the rest
_SHORT_US: Final = 5_000  # how long choosing and sending take, and many a short answer
_THOUSANDTHS: Final = [f"{number:03d}" for number in range(1000)]
_SHORT_MS: Final = [f"{us // 1000}.{_THOUSANDTHS[us % 1000]}" for us in range(_SHORT_US)]


class Exchange(GivingWay):
    """One request of one client, or of one peer when `reply.hop` is set."""

    _over = False
    _held_tokens: int | None = None  # claimed from the limits of its key
    _whole_tokens: Tokens = NO_TOKENS  # of a whole answer whose choices are still being counted

    def __init__(
        self,
        context: Context,
        connection: ClientConnection,
        incoming: Incoming,
        *,
        key: ApiKey,
        endpoint: Endpoint,
        request_id: RequestId,
        received_at: int,
        hop: Hop | None = None,
    ) -> None:
        self.context = context
        self.key = key
        self.endpoint = endpoint
        self.request_id = request_id
        self.head = incoming.head
        self.tried = []
        self.received_at = received_at
        self.received_ns = incoming.began_ns
        self.started_ns = incoming.ended_ns
        self.reply = Reply(connection, incoming, request_id, hop)
        self._connection = connection
        self._incoming = incoming

    @property
    def client_is_slow(self) -> bool:
        """Whether the client has still to take what it was sent, perhaps by an earlier answer."""
        return self._connection.paused

    @property
    def client_gets_usage(self) -> bool:
        """A peer always gets the usage event: it meters too, and withholds it from its client."""
        return self.reply.hop is not None or self.request.wants_usage

    # -- admission -------------------------------------------------------------------------------

    def serve(self) -> None:
        """The whole request is there."""
        incoming, context, hop = self._incoming, self.context, self.reply.hop
        self.started_ns = incoming.ended_ns
        self.body = incoming.body
        incoming.pieces = []
        self._connection.listener = self
        context.begun(self)
        try:
            parsed = self.parsed = self.request = parse_request(self.endpoint, self.body)
        except BadRequest as error:
            self.refuse(
                Refusal(
                    status=400, reason="bad_request", message=error.message, param=error.param
                )
            )
            return
        if hop is None:
            self.class_ = clamp(wanted_class(parsed.service_tier), self.key.classes)
            refusal = admission.refuse_request(context, parsed, self.head.path)
            if refusal is None and self.key.limits is not NO_LIMITS:
                estimate = parsed.prompt_tokens + parsed.output_tokens
                refusal = context.limits.admit(self.key, estimate, self.started_ns)
                self._held_tokens = estimate if refusal is None else None
                self.reply.extra = context.limits.headers(self.key, self.started_ns)
            if refusal is None and context.shared_limits.is_on:
                refusal = context.shared_limits.admit(self, parsed)
                if self.limited is not None and self.limited.waits:
                    return  # for a grant
            self.limits_decided(refusal, self.started_ns)
            return
        self.class_ = hop.entrant.class_
        refusal = admission.refuse_hop(context, self.key, self.class_, self.narrowing)
        if refusal is not None:
            self.refuse(refusal)
        else:
            self.wanted = parse_kin(self.head.headers)
            refusal = admission.refuse_circling(self.head.headers, context.site)
            if refusal is not None:
                self.refuse(refusal)
            else:
                if hop.unpaid:
                    self._pay(parsed)
                self.serve_at(context.site, 0.0, self.started_ns)

    def _pay(self, parsed: InferenceRequest) -> None:
        """For what a peer sends and cannot pay for."""
        context = self.context
        self.claim = context.entitled.claim(self.key, parsed, self.class_, "")
        if self.claim is not None:
            context.paying.claim(self, context.site, self.started_ns, another=False)

    def limits_decided(self, refusal: Refusal | None, now_ns: int) -> None:
        """No limit keeps the request from being served, or one does."""
        context, parsed = self.context, self.request
        if self.limited is not None:
            self.reply.extra = context.shared_limits.headers(self.limited, now_ns)
        self.claim = context.entitled.claim(self.key, parsed, self.class_, self.reply.extra)
        if refusal is not None:
            self.refuse(refusal)
            return
        if self.endpoint not in COMMON_ENDPOINTS:
            self.passed_over = context.endpoints.lacking(self.endpoint, parsed.model)
        if parsed.stream and self._may_continue:
            self.body = with_seed(self.body, context.rng)
        self.choose(now_ns)

    def fail(self, fault: Fault) -> None:
        """The request could not be read to its end."""
        self.context.begun(self)
        self.refuse(Refusal(status=fault.status, reason=fault.reason, message=fault.message))

    # -- answering -------------------------------------------------------------------------------

    def answer_whole(self, attempt: Attempt, body: bytes) -> None:
        """An answer that is not a stream has come in whole."""
        request, replica = self.request, attempt.target.replica
        if self.turn is not None:
            self.turn.first_byte(resumable=False)
        if attempt.status >= 400:
            error = engine_error_body_for(self.endpoint, body, attempt.status)
            self._send_whole(attempt, error, NO_TOKENS)
            return
        if attempt.stated_tokens is not None:
            self._send_whole(attempt, body, attempt.stated_tokens)
            return
        if attempt.has_events:  # though nobody asked for a stream
            meter = meter_for(self.endpoint, request.choices, True, prompts=request.prompts)
            meter.feed(body)
            meter.end()
            self._send_whole(attempt, body, meter.tokens(request.prompt_bytes))
            return
        one_choice = replica is not None and replica.usage_counts_one_choice
        tokens = tokens_of_answer(
            body, self.endpoint, request.choices, prompt_bytes=request.prompt_bytes,
            usage_counts_one_choice=one_choice, prompts=request.prompts,
        )
        if one_choice and request.choices > 1:
            self._whole_tokens = tokens
            self.context.spawn(self._recount(attempt, body, tokens))
        else:
            self._send_whole(attempt, body, tokens)

    async def _recount(self, attempt: Attempt, body: bytes, estimate: Tokens) -> None:
        assert attempt.target.replica is not None
        tokens = await recount(
            self.context.pool, attempt.target.replica, body, estimate, request_body=self.body
        )
        if not self._over:
            self._send_whole(attempt, body, tokens)

    def _send_whole(self, attempt: Attempt, body: bytes, tokens: Tokens) -> None:
        now_ns = self.first_ns = self.context.clock.monotonic_ns()
        status = attempt.status
        self.reply.whole(
            status, where=attempt.target.where, timing=self._timing(now_ns),
            content_type=attempt.content_type, body=body, replica=attempt.replica_id,
            tokens=tokens, retry_after=attempt.retry_after,
        )
        if status >= 400:
            self._end("engine_error", status=status, reason="engine_error", tokens=tokens)
        else:
            self._end("finished", status=status, reason=None, tokens=tokens, now_ns=now_ns)

    def stream(self, attempt: Attempt, data: bytes) -> None:
        """More of a stream for the client; the head goes out with its first byte."""
        self._silent = False
        retained = self.retained
        if self.reply.head_sent:
            if retained is not None:
                retained.take(data)
            self.reply.stream(data)
        else:
            meter = attempt.meter
            if retained is None and self._may_continue and meter is not None and not meter.error:
                retained = self.retained = Retained()
            if retained is not None:
                retained.take(data)
            now_ns = self.first_ns = self.context.clock.monotonic_ns()
            judged.first_byte(self, attempt, now_ns)
            if self.turn is not None:
                self.turn.first_byte(resumable=retained is not None)
            self.reply.begin_stream(
                where=attempt.target.where, timing=self._timing(now_ns),
                replica=attempt.replica_id, kin=None if self.reply.hop is None else attempt.kin,
                data=data,
            )

    def refuse(self, refusal: Refusal, outcome: Outcome = "refused") -> None:
        """Answer with an error of our own."""
        if self.reply.head_sent:
            self.nobody_goes_on()
            return
        if outcome == "refused" and self.attempt is not None:
            # Nothing was served anywhere, so the answer names the site that refuses.
            self.release(self.attempt, None, self.context.clock.monotonic_ns())
            self.attempt = None
        typed = outcome == "refused" and refusal.status != 400
        if self.stops and self.reply.hop is not None:
            self.reply.extra += stopped_line(self.stops)
        where = self.context.where if self.attempt is None else self.attempt.target.where
        timing = self._timing(self.context.clock.monotonic_ns())
        self.reply.refuse(refusal, where=where, timing=timing, typed=typed)
        self._end(outcome, status=refusal.status, reason=refusal.reason, tokens=NO_TOKENS)

    def _timing(self, now_ns: int) -> str:
        """What `server-timing` says: milliseconds since the request began to arrive. A peer is told
        nothing: it measures itself."""
        if self.reply.hop is not None:
            return ""
        since_ns = self.received_ns
        total_us = (now_ns - since_ns) // 1000
        if self.first_ns is not None and self.sent_ns is not None and self.chosen_ns is not None:
            chosen_us = (self.chosen_ns - since_ns) // 1000
            sent_us = (self.sent_ns - since_ns) // 1000
            first_us = (self.first_ns - since_ns) // 1000
            timing = (
                f"choose;dur={_ms(chosen_us)}, send;dur={_ms(sent_us)}, "
                f"first;dur={_ms(first_us)}, total;dur={_ms(total_us)}"
            )
            if self.affinity is not None:
                timing += self.affinity.timing()
            return f"{timing}, queue;dur={self.queued_ns / 1e6:.3f}" if self.queued_ns else timing
        stages = (("choose", self.chosen_ns), ("send", self.sent_ns), ("total", now_ns))
        return ", ".join(
            [f"{name};dur={(at - since_ns) / 1e6:.3f}" for name, at in stages if at is not None]
        )

    # -- the client and the clock ----------------------------------------------------------------

    def client_gone(self) -> None:
        """The client closed: whatever works for it stops at once."""
        meter = None if self.attempt is None else self.attempt.meter
        if self.attempt is not None:
            self.attempt.cancel()
        if meter is not None and meter.finished and not meter.error and not self._connection.paused:
            # It has the last event of its answer and did not wait for the end of the stream.
            self._end("finished", status=200, reason=None, tokens=self._tokens())
            return
        sent = self.reply.head_sent
        tokens = self._tokens() if sent else self._whole_tokens
        self._end(
            "client_gone", status=200 if sent else CLIENT_GONE_STATUS, reason=None, tokens=tokens
        )

    def client_paused(self) -> None:
        if self.attempt is not None:
            self.attempt.set_reading(False)

    def client_resumed(self) -> None:
        if self.attempt is not None:
            self.attempt.set_reading(True)

    def tick(self, now_ns: int) -> None:
        """Called a few times a second: deadlines, and progress of open streams."""
        waits = self.waits_elsewhere if self.turn is None else self.turn.waits
        if not self._silent or self._connection.paused or waits:
            self._silent = True
            self._last_ns = now_ns
        expired = timeouts.expired(
            self.started_ns, None if waits else self._asked_ns(), self.first_ns, self._last_ns,
            now_ns, self.context.deadlines[self.class_],
        )
        if expired is not None:
            silent = expired.reason == "between_events_timeout"
            if not silent or not self.fell_silent(expired.message):
                self.stop(expired)
        elif self.reply.head_sent:
            if self.opened:
                self._note_progress(now_ns)
            self.wait_audibly(now_ns)
        elif self.attempt is not None and self.request.stream and not waits:
            judged.look_for_lateness(self, self.attempt, now_ns)

    def _asked_ns(self) -> int | None:
        """When an engine of this site was asked; None while another site has the request."""
        if self.attempt is None or self.attempt.target.replica is None:
            return None
        return self._tries_began_ns or self.started_ns

    def _note_progress(self, now_ns: int) -> None:
        if now_ns - self._noted_ns < _NOTED_NS:
            return
        self._noted_ns = now_ns
        tokens = self._tokens()
        if tokens != self._last_progress:
            self._last_progress = tokens
            self.context.journal.progress(self.request_id, tokens)

    def stop(self, why: Refusal) -> None:
        """End the request from our side."""
        if self.attempt is not None:
            self.attempt.cancel()
        if self.reply.head_sent:
            event = error_event_for(self.endpoint, why.reason, why.message)
            self.reply.cut_stream(b"" if self.leaves_it_to_the_ingress else event)
            self._end("timed_out", status=200, reason=why.reason, tokens=self._tokens())
        else:
            if self.affinity is not None and self._ticket is not None:  # a try that was sent
                self.affinity.failed(self.context)
            self.refuse(why, outcome="timed_out")

    # -- accounting ------------------------------------------------------------------------------

    def _end(
        self, outcome: Outcome, *, status: int, reason: str | None, tokens: Tokens,
        now_ns: int | None = None,
    ) -> None:
        """The one way out: settle every count, write the usage record, free the connection."""
        if self._over:
            return
        self._over = True
        context = self.context
        context.over(self)
        if now_ns is None:
            now_ns = context.clock.monotonic_ns()
        if self.attempt is not None:
            ok = verdict(outcome, status, reason)
            if ok is False and judged.is_no_fault(self, self.attempt, reason):
                ok = None
            fault = f"{reason or outcome}, status {status}" if ok is False else ""
            self.release(self.attempt, ok, now_ns, fault)
        if self.affinity is not None and self.attempt is not None:
            self.affinity.ended(context, tokens, self.attempt.replica_id)
        if self.turn is not None:
            self.leave_queue(tokens, now_ns)
        if self._held_tokens is not None:
            counted = self._counted(outcome, tokens)
            context.limits.settle(self.key, self._held_tokens, counted, now_ns)
        if self.limited is not None:
            context.shared_limits.settle(self, tokens, self._counted(outcome, tokens), now_ns)
        if self.claim is not None:
            self.claim.settle(tokens, now_ns)
        # A peer's request that was refused here leaves no trace: nothing was processed, and the
        # ingress says what came of it.
        if self.reply.hop is None or outcome != "refused":
            record = closing_of(
                self, now_ns, outcome=outcome, status=status, reason=reason, tokens=tokens
            )
            if self.opened or reason != "journal":
                context.journal.closed(record, None if self.choice is None else self.choice.ground)
                if context.outbox.quiet:
                    context.outbox.flush()  # the client need not wait for what follows
            context.log.request(
                record, len(self.continued), logged_reference(self), self.queued_ns / 1e6
            )
            context.metrics.ended(record)
            if self.reply.hop is None:
                answers = 1 if self.parsed is None else self.parsed.choices
                context.outcomes.ended(record, answers)
            if self.continuation is not None:
                why = None if self.lost_why is None else self.lost_why.why
                context.metrics.lost_engine(record, self.continued, why)
            if context.spans is not None:
                headers = self.head.headers if references_leave(self) else {}
                context.spans.ended(record, headers, len(self.continued))
        else:
            context.metrics.answered(status, reason or outcome)
        self.attempt = None  # breaks the cycle with it, so that no collection is needed
        if outcome != "client_gone":
            self.reply.close()

    def _counted(self, outcome: Outcome, tokens: Tokens) -> int:
        """What counts against limits of tokens. What an engine did for a client that left before
        its answer began nobody has told, so nothing is charged; but it did something, and limits
        that took it for nothing would be none for whoever always leaves: the prompt as estimated
        counts, and where the answer was to come whole, all that it might have had."""
        if outcome != "client_gone" or tokens.source != "none" or self.sent_ns is None:
            return tokens.total
        request = self.request
        return request.prompt_tokens + (0 if request.stream else request.output_tokens)


def _ms(duration_us: int) -> str:
    """Microseconds as milliseconds with three decimals."""
    if 0 <= duration_us < _SHORT_US:
        return _SHORT_MS[duration_us]
    return f"{duration_us // 1000}.{_THOUSANDTHS[duration_us % 1000]}"

"""The life of one request: admit, choose, try, answer, account.

An exchange is driven by callbacks: of its client connection, of its attempt, and of the sweep that
watches deadlines. It ends exactly once, in `_end`, which writes its usage record. Before the first
byte of an answer it may try up to three targets; it never leaves the set of allowed sites, because
every target comes from a choice within it.

Every request makes one exchange, so what most requests leave alone is a default of the class.
"""

from isochrone.core.errors import Unavailable
from isochrone.core.ids import ReplicaId, RequestId, SiteName
from isochrone.core.metering.event import Endpoint, Outcome, Tokens
from isochrone.core.routing.choice import Choice, Refused, Rule
from isochrone.core.routing.choose import choose
from isochrone.core.routing.loads import Dispatch
from isochrone.core.world.tenant import ApiKey, Class
from isochrone.gateway import admission
from isochrone.gateway.access import class_of
from isochrone.gateway.account import closing_of, opening_of
from isochrone.gateway.attempt import Attempt
from isochrone.gateway.context import Context
from isochrone.gateway.counts import tokens_of_answer
from isochrone.gateway.incoming import Fault, Incoming
from isochrone.gateway.peer_hop import Hop
from isochrone.gateway.recount import recount
from isochrone.gateway.replies import Refusal, engine_error_body, error_event
from isochrone.gateway.reply import Reply
from isochrone.gateway.request import BadRequest, InferenceRequest, parse_request
from isochrone.gateway.server import ClientConnection
from isochrone.gateway.target import Target

MOST_TRIES = 3
CLIENT_GONE_STATUS = 499
LEAST_CONNECT_S = 0.25
NO_TOKENS = Tokens()


class Exchange:
    """One request of one client, or of one peer when `hop` is set."""

    class_: Class = "on_demand"
    body = b""
    parsed: InferenceRequest | None = None
    choice: Choice | None = None
    attempt: Attempt | None = None
    attempts = 0
    chosen_ns: int | None = None
    sent_ns: int | None = None
    first_ns: int | None = None
    _tried_replicas: set[ReplicaId] | None = None
    _ticket: Dispatch | None = None
    _opened = False
    _over = False
    _last_progress: Tokens | None = None

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
        self.tried: list[Refused] = []
        self.received_at = received_at
        self.received_ns = incoming.began_ns
        self._started_ns = incoming.ended_ns
        self.reply = Reply(connection, incoming, request_id, hop)
        self._connection = connection
        self._incoming = incoming

    @property
    def request(self) -> InferenceRequest:
        assert self.parsed is not None, "nothing is tried before the body was parsed"
        return self.parsed

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
        self._started_ns = incoming.ended_ns
        self.body = incoming.body
        incoming.pieces = []
        self._connection.listener = self
        context.begun(self)
        try:
            parsed = self.parsed = parse_request(self.endpoint, self.body)
        except BadRequest as error:
            self.refuse(
                Refusal(
                    status=400, reason="bad_request", message=error.message, param=error.param
                )
            )
            return
        if hop is None:
            self.class_ = class_of(parsed.service_tier, self.key.classes)
            refusal = admission.refuse_request(context, parsed, self.head.path)
        else:
            self.class_ = hop.class_
            refusal = admission.refuse_hop(context, self.key, self.class_)
        if refusal is not None:
            self.refuse(refusal)
        elif hop is None:
            self._choose(self._started_ns)
        elif not self._try_replica(context.site, 0.0, self._started_ns):
            self._refuse_hop_without_replica()

    def fail(self, fault: Fault) -> None:
        """The request could not be read to its end."""
        self.context.begun(self)
        self.refuse(Refusal(status=fault.status, reason=fault.reason, message=fault.message))

    # -- choosing and trying ---------------------------------------------------------------------

    def _choose(self, now_ns: int) -> None:
        """Choose among the allowed sites and try the best one."""
        context, request = self.context, self.request
        if self.attempts >= MOST_TRIES or (self.attempts and self.connect_time_left_s() <= 0):
            self._refuse_nobody()
            return
        choice = self.choice = choose(
            context.view.table,
            context.loads,
            context.prefixes,
            model=request.model,
            policy_id=self.key.policy_id,
            class_=self.class_,
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            blocks=(),
            tried=self.tried,
            now_ns=now_ns,
            rng=context.rng,
        )
        site = choice.site
        if site is None:
            self._refuse_nobody()
            return
        if self.chosen_ns is None:
            self.chosen_ns = now_ns
        if site == context.site or context.view.replicas.reaches(site):
            if not self._try_replica(site, choice.rtt_ms, now_ns):
                self._refused(Refused(
                    site=site, rule="no_ready_replica",
                    detail="none of the site's replicas is ready",
                ))
            return
        noun = context.view.site(site)
        key = None if noun is None else context.peers.key_for(noun)
        if noun is None or key is None:
            detail = "the site left the view"
            self._refused(Refused(site=site, rule="not_joined", detail=detail))
            return
        emulated_rtt_ms = context.view.emulated_rtt_ms(site)
        self._try(context.targets.peer(noun, key, emulated_rtt_ms, choice.rtt_ms), now_ns)

    def _try_replica(self, site: SiteName, rtt_ms: float, now_ns: int) -> bool:
        """Try a replica that this gateway reaches itself; False when none is left."""
        context = self.context
        while True:
            replica = context.view.replicas.pick(
                site, self.request.model, self._tried_replicas or (), now_ns=now_ns,
                rng=context.rng,
            )
            if replica is None:
                return False
            if self._tried_replicas is None:
                self._tried_replicas = set()
            self._tried_replicas.add(replica.id)
            try:
                target = context.targets.engine(replica, context.country_of(site), now_ns)
            except (Unavailable, ValueError) as error:
                detail = f"replica {replica.id}: {error}"
                self.tried.append(Refused(site=site, rule="no_ready_replica", detail=detail))
                continue
            if self.chosen_ns is None:
                self.chosen_ns = now_ns
            target.rtt_ms = rtt_ms
            self._try(target, now_ns)
            return True

    def _try(self, target: Target, now_ns: int) -> None:
        context, request = self.context, self.request
        attempt = self.attempt = Attempt(self, target)
        if self.reply.hop is None:
            why = context.journal.opened(opening_of(self))
            if why is not None:
                self.attempt = None
                self.refuse(admission.unrecorded(why))
                return
            self._opened = True
        self.attempts += 1
        if target.replica is not None:
            context.view.replicas.started(target.replica.id)
        self._ticket = context.loads.dispatched(
            target.site, request.model, request.prompt_tokens, request.output_tokens,
            now_ns, rtt_ms=target.rtt_ms,
        )
        attempt.start(now_ns)

    def connect_share_s(self, target: Target) -> float:
        """How long this try may take to connect, so that the next ones have time, too."""
        candidates = 1 if self.choice is None else self.choice.eligible
        tries = 1 if target.replica is not None else min(MOST_TRIES + 1 - self.attempts, candidates)
        share_s = self.connect_time_left_s() / max(tries, 1)
        return max(share_s, LEAST_CONNECT_S + target.rtt_ms / 1000)

    def connect_time_left_s(self) -> float:
        """What is left of the time for connections; a tenth is kept for the answer itself."""
        spent_ns = self.context.clock.monotonic_ns() - self._started_ns
        return 0.9 * self.context.settings.connect_timeout_s - spent_ns / 1e9

    def attempt_failed(self, attempt: Attempt, why: str, *, unreachable: bool) -> None:
        """Nothing reached the client yet: try elsewhere."""
        context, target = self.context, attempt.target
        now_ns = context.clock.monotonic_ns()
        self._release(attempt)
        if target.replica is not None:
            if unreachable:
                context.view.replicas.lost(target.replica, now_ns)
            if self.attempts < MOST_TRIES and self._try_replica(
                target.site, target.rtt_ms, now_ns
            ):
                return
            detail = f"replica {target.replica.id}: {why}"
            self._refused(Refused(site=target.site, rule="no_ready_replica", detail=detail))
            return
        if unreachable:
            context.loads.lost(target.site, now_ns)
        rule: Rule = "unreachable" if unreachable else "tried_before"
        self._refused(Refused(site=target.site, rule=rule, detail=why))

    def refused_by_peer(self, attempt: Attempt, rule: str) -> None:
        """The destination refused with a typed reason: try another allowed site."""
        self._release(attempt)
        refused = Refused(site=attempt.target.site, rule="tried_before", detail=f"refused: {rule}")
        self._refused(refused)

    def _refused(self, refused: Refused) -> None:
        self.tried.append(refused)
        if self.reply.hop is None:
            self._choose(self.context.clock.monotonic_ns())
        else:
            self._refuse_hop_without_replica()

    def _refuse_nobody(self) -> None:
        choice, model = self.choice, self.request.model
        if choice is not None and not choice.allowed_exists and not self.tried:
            self.refuse(admission.no_site_allowed(self.context, self.key, model))
        else:
            self.refuse(admission.no_site_healthy(model))

    def _refuse_hop_without_replica(self) -> None:
        why = self.tried[-1].detail if self.tried else "none of the site's replicas is ready"
        self.refuse(admission.no_replica(why))

    def _release(self, attempt: Attempt) -> None:
        if self._ticket is not None:
            self.context.loads.finished(self._ticket)
            self._ticket = None
            if attempt.target.replica is not None:
                self.context.view.replicas.finished(attempt.target.replica.id)

    # -- answering -------------------------------------------------------------------------------

    @property
    def head_sent(self) -> bool:
        return self.reply.head_sent

    def answer_whole(self, attempt: Attempt, body: bytes) -> None:
        """An answer that is not a stream has come in whole."""
        request, replica = self.request, attempt.target.replica
        if attempt.status >= 400:
            self._send_whole(attempt, engine_error_body(body, attempt.status), NO_TOKENS)
            return
        if attempt.stated_tokens is not None:
            self._send_whole(attempt, body, attempt.stated_tokens)
            return
        one_choice = replica is not None and replica.usage_counts_one_choice
        tokens = tokens_of_answer(
            body, self.endpoint, request.choices, prompt_bytes=request.prompt_bytes,
            usage_counts_one_choice=one_choice, prompts=request.prompts,
        )
        if one_choice and request.choices > 1:
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
            self._end("finished", status=status, reason=None, tokens=tokens)

    def stream(self, attempt: Attempt, data: bytes) -> None:
        """More of a stream for the client; the head goes out with its first byte."""
        if self.reply.head_sent:
            self.reply.stream(data)
        else:
            now_ns = self.first_ns = self.context.clock.monotonic_ns()
            self.reply.begin_stream(
                where=attempt.target.where, timing=self._timing(now_ns),
                replica=attempt.replica_id, data=data,
            )

    def stream_ended(self, attempt: Attempt) -> None:
        """The stream came to an orderly end; whether it was complete, its events tell."""
        assert attempt.meter is not None
        if not self.reply.head_sent:
            why = "the engine sent a stream without an event"
            self.attempt_failed(attempt, why, unreachable=False)
        elif attempt.meter.error:
            self.reply.end_stream()
            self._end("engine_error", status=200, reason="engine_error", tokens=self._tokens())
        elif attempt.meter.finished:
            self.reply.end_stream()
            self._end("finished", status=200, reason=None, tokens=self._tokens())
        else:
            self.stream_broken(attempt, "the stream ended without its last event")

    def stream_broken(self, attempt: Attempt, why: str) -> None:
        """The stream stopped in the middle, after its first byte went to the client."""
        meter = attempt.meter
        assert meter is not None
        if meter.finished and not meter.error:
            self.reply.end_stream()
            self._end("finished", status=200, reason=None, tokens=self._tokens())
            return
        event = error_event("engine_lost", f"The engine was lost during the answer: {why}.")
        self.reply.cut_stream(b"" if meter.error else event)
        self._end("engine_lost", status=200, reason="engine_lost", tokens=self._tokens())

    def refuse(self, refusal: Refusal, outcome: Outcome = "refused") -> None:
        """Answer with an error of our own."""
        if outcome == "refused" and self.attempt is not None:
            # Nothing was served anywhere, so the answer names the site that refuses.
            self._release(self.attempt)
            self.attempt = None
        typed = outcome == "refused" and refusal.status != 400
        where = self.context.where if self.attempt is None else self.attempt.target.where
        timing = self._timing(self.context.clock.monotonic_ns())
        self.reply.refuse(refusal, where=where, timing=timing, typed=typed)
        self._end(outcome, status=refusal.status, reason=refusal.reason, tokens=NO_TOKENS)

    def _timing(self, now_ns: int) -> str:
        """What `server-timing` says: milliseconds since the request began to arrive."""
        since_ns = self.received_ns
        if self.first_ns is not None and self.sent_ns is not None and self.chosen_ns is not None:
            first_ms = (self.first_ns - since_ns) / 1e6
            return (
                f"choose;dur={(self.chosen_ns - since_ns) / 1e6:.3f}, "
                f"send;dur={(self.sent_ns - since_ns) / 1e6:.3f}, first;dur={first_ms:.3f}, "
                f"total;dur={(now_ns - since_ns) / 1e6:.3f}"
            )
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
        status = 200 if self.reply.head_sent else CLIENT_GONE_STATUS
        self._end("client_gone", status=status, reason=None, tokens=self._tokens())

    def client_paused(self) -> None:
        if self.attempt is not None:
            self.attempt.set_reading(False)

    def client_resumed(self) -> None:
        if self.attempt is not None:
            self.attempt.set_reading(True)

    def tick(self, now_ns: int) -> None:
        """Called a few times a second: deadlines, and progress of open streams."""
        settings, since_s = self.context.settings, (now_ns - self._started_ns) / 1e9
        waiting = self.first_ns is None and since_s > settings.first_byte_timeout_s
        if waiting or since_s > settings.total_timeout_s:
            self.stop("timeout", f"The answer was not complete after {since_s:.0f} s.")
        elif self.reply.head_sent and self._opened:
            tokens = self._tokens()
            if tokens != self._last_progress:
                self._last_progress = tokens
                self.context.journal.progress(self.request_id, tokens)

    def stop(self, reason: str, message: str) -> None:
        """End the request from our side."""
        if self.attempt is not None:
            self.attempt.cancel()
        if self.reply.head_sent:
            self.reply.cut_stream(error_event(reason, message))
            self._end("timed_out", status=200, reason=reason, tokens=self._tokens())
        else:
            refusal = Refusal(status=504, reason=reason, message=message)
            self.refuse(refusal, outcome="timed_out")

    # -- accounting ------------------------------------------------------------------------------

    def _tokens(self) -> Tokens:
        """Counts of the stream so far; nothing is counted before an engine's first byte."""
        if self.attempt is None or self.attempt.meter is None or not self.reply.head_sent:
            return NO_TOKENS
        return self.attempt.meter.tokens(self.request.prompt_bytes)

    def _end(self, outcome: Outcome, *, status: int, reason: str | None, tokens: Tokens) -> None:
        """The one way out: settle every count, write the usage record, free the connection."""
        if self._over:
            return
        self._over = True
        context = self.context
        context.over(self)
        if self.attempt is not None:
            self._release(self.attempt)
        # A peer's request that was refused here leaves no trace: nothing was processed, and the
        # ingress says what came of it.
        if self.reply.hop is None or outcome != "refused":
            record = closing_of(self, outcome=outcome, status=status, reason=reason, tokens=tokens)
            if self._opened or reason != "journal":
                context.journal.closed(record, None if self.choice is None else self.choice.ground)
            context.log.request(record)
        self.attempt = None  # breaks the cycle with it, so that no collection is needed
        if outcome != "client_gone":
            self.reply.close()

"""Finding who serves one request: choose a site, try it, and go on where that failed.

Nothing is tried outside the set of allowed sites, because every target comes from a choice within
it; tries are bounded in number, in time, and by the gateway's retry budget.
"""

from abc import abstractmethod
from typing import Final

from isochrone.core.continuation.kin import Kin, kin_of
from isochrone.core.errors import Unavailable
from isochrone.core.ids import ReplicaId, RequestId, SiteName
from isochrone.core.metering.event import Endpoint, Outcome, Tokens
from isochrone.core.residency.bounds import Narrowing
from isochrone.core.routing.choice import Refused, Rule, Stopped
from isochrone.core.routing.choose import choose
from isochrone.core.routing.chosen import Choice
from isochrone.core.routing.loads import Dispatch
from isochrone.core.world.tenant import ApiKey, Class
from isochrone.gateway import admission, judged, timeouts
from isochrone.gateway.account import opening_of
from isochrone.gateway.affinity import Affinity, affinity_of
from isochrone.gateway.attempt import Attempt
from isochrone.gateway.choosing import Choosing
from isochrone.gateway.context import Context
from isochrone.gateway.continuation.coordinator import Continuation
from isochrone.gateway.continuation.retained import Retained
from isochrone.gateway.entitled import Claim
from isochrone.gateway.heads import RequestHead
from isochrone.gateway.replies import Refusal
from isochrone.gateway.reply import Reply
from isochrone.gateway.request import InferenceRequest
from isochrone.gateway.resumed import Resumed
from isochrone.gateway.shared_limits import SharedClaim
from isochrone.gateway.site_queues import BUSY, QUEUE_REASONS, Turn
from isochrone.gateway.target import Target
from isochrone.gateway.waiting import counted
from isochrone.wire import peer

MOST_TRIES: Final = 3
LEAST_CONNECT_S: Final = 0.25
CLOSING_NS: Final = 200_000_000  # and a round trip: a connection that was closing is lost by then
_NO_TOKENS: Final = Tokens()
_NONE_READY: Final = "none of the site's replicas is ready"


class Tries(Choosing):
    """What an exchange knows of its request, and how it finds who serves it.

    Every request makes one, so what most requests leave alone is a default of the class. `tried`
    says where it was refused or lost, with the rule or failure that ended each try, `passed_over`
    who is not asked; `opened`: the journal knows of it; instants (`_ns`) are monotonic. `affinity`
    is what it has to do with the requests before it, None where that is nothing.

    `retained` is what a stream has delivered, `continuation` there is once it was lost, and then
    tries are counted anew. `asking` takes the place of the body, `wanted` is what its replica must
    be, None where any will do. `turn` is its place in the queue of the site that it is sent to,
    where this gateway keeps that, and `waiting` counts it as work there; `saturated`: the refusal
    of a queue that it may come back to soonest; `bounces`: how many were busy; `queued_ns`: how
    long it has waited for its turn; `stops`: how often it gave its slot back meanwhile.
    """

    context: Context
    key: ApiKey
    endpoint: Endpoint
    request_id: RequestId
    head: RequestHead
    reply: Reply
    tried: list[Refused]
    received_at: int
    received_ns: int
    started_ns: int
    class_: Class = "on_demand"
    claim: Claim | None = None  # what it takes of what was sold
    limited: SharedClaim | None = None  # and of limits over all sites
    body = b""
    parsed: InferenceRequest | None = None
    request: InferenceRequest  # the same, once there is one: nothing is tried before
    choice: Choice | None = None
    attempt: Attempt | None = None
    attempts = 0
    bounces = 0
    opened = False
    chosen_ns: int | None = None
    choice_ns = 0  # when the last choice was made
    sent_ns: int | None = None
    retained: Retained | None = None
    continuation: Continuation | None = None
    narrowing: Narrowing | None = None  # what the client's headers ask for beyond the policy
    asking: bytes | None = None
    wanted: Kin | None = None
    affinity: Affinity | None = None
    turn: Turn | None = None
    waiting: Dispatch | None = None
    saturated: Refusal | None = None
    queued_ns = 0
    stops: tuple[Stopped, ...] = ()
    passed_over: tuple[Refused, ...] = ()
    _tries_before = 0  # those before the stream was lost
    _tried_before = 0
    _tries_began_ns: int | None = None
    _tried_replicas: set[ReplicaId] | None = None
    _ticket: Dispatch | None = None

    @abstractmethod
    def refuse(self, refusal: Refusal, outcome: Outcome = "refused") -> None:
        """Answer with an error of our own."""

    # What an attempt tells of its answer, and asks.

    @property
    @abstractmethod
    def client_is_slow(self) -> bool: ...

    @property
    @abstractmethod
    def client_gets_usage(self) -> bool: ...

    @property
    def head_sent(self) -> bool:
        return self.reply.head_sent

    @abstractmethod
    def answer_whole(self, attempt: Attempt, body: bytes) -> None: ...

    @abstractmethod
    def stream(self, attempt: Attempt, data: bytes) -> None: ...

    @abstractmethod
    def stream_ended(self, attempt: Attempt) -> None: ...

    @abstractmethod
    def stream_broken(self, attempt: Attempt, why: str) -> None: ...

    @abstractmethod
    def engine_failed(self, attempt: Attempt, data: bytes) -> bool: ...

    @abstractmethod
    def went_on(self, attempt: Attempt) -> None: ...

    @abstractmethod
    def began_again(self) -> None: ...

    @property
    def tried_now(self) -> list[Refused]:
        """The sites that may not be asked again: those that refused or lost it, since its stream
        was lost if it was."""
        return self.tried[self._tried_before :] if self._tried_before else self.tried

    def choose_one(self, now_ns: int) -> None:
        """Choose among the allowed sites and try the best one."""
        context, request, view = self.context, self.request, self.context.view
        tries = self.attempts - self._tries_before
        if tries and self.connect_time_left_s() <= 0:
            self.refuse(timeouts.refusal("connect_timeout", context.settings.connect_timeout_s))
            return
        if tries >= MOST_TRIES:
            self._refuse_nobody()
            return
        affinity = self.affinity = self.affinity or affinity_of(self)
        choice = self.choice = choose(
            view.table, context.loads, context.prefixes,
            model=request.model, policy_id=self.key.policy_id, class_=self.class_,
            prompt_tokens=request.prompt_tokens, output_tokens=request.output_tokens,
            blocks=() if affinity is None else affinity.blocks,
            tried=self.tried_now, now_ns=now_ns, rng=context.rng, narrowing=self.narrowing,
            home=None if affinity is None else affinity.find_home(context, now_ns),
            body_bytes=len(self.asking or self.body), target_ms=context.settings.ttft_target_ms,
            passed_over=self.passed_over, closed=view.closed_to(self.class_, request.model),
        )
        self.choice_ns, site = now_ns, choice.site
        if site is None:
            self._refuse_nobody()
            return
        if context.loads.health.ailing and not context.loads.health.may_ask(
            site, request.model, self.key.org_id, now_ns
        ):
            why = "requests of this organisation failed there while others were served"
            self._pass_over(site, "ejected", why)
            return
        near = site == context.site or view.replicas.reaches(site)
        if self.claim is not None:
            context.paying.claim(self, site, now_ns, another=not near)
        if affinity is not None:
            affinity.chosen(context, choice, now_ns)
        if self.chosen_ns is None:
            self.chosen_ns = now_ns
        if near:
            self.serve_at(site, choice.rtt_ms, now_ns)
            return
        noun = view.site(site)
        key = None if noun is None else context.peers.key_for(noun)
        if noun is None or key is None:
            self._pass_over(site, "not_joined", "the site left the view")
            return
        emulated_rtt_ms = view.emulated_rtt_ms(site)
        self._try(context.targets.peer(noun, key, emulated_rtt_ms, choice.rtt_ms), now_ns)

    # At a site that this gateway reaches itself.

    @property
    @abstractmethod
    def is_resumable(self) -> bool: ...

    def patience_ns(self, now_ns: int) -> int:
        """How long it may wait for its turn, of the time that its class has for that."""
        return max(self.context.deadlines[self.class_].turn_ns - (now_ns - self.started_ns), 1)

    def serve_at(self, site: SiteName, rtt_ms: float, now_ns: int) -> None:
        """Serve it at a site that this gateway reaches itself: now, or when it is its turn."""
        turn = self.context.queues.enter(self, site, rtt_ms, now_ns)
        if isinstance(turn, Refusal):
            if not self.context.paying.keeps(self, site, rtt_ms, turn):
                self.saturated_at(site, turn)
            return
        self.turn = turn
        if turn is not None and turn.waits:
            self.waiting = counted(self, site, now_ns)
        elif not self.try_replica(site, rtt_ms, now_ns):
            self._none_ready(site)

    def its_turn(self, now_ns: int) -> None:
        turn = self.turn
        assert turn is not None, "it has waited for its turn"
        self._count_wait(turn, now_ns)
        if not self.try_again_at(turn.place.site, turn.rtt_ms, now_ns):
            self._none_ready(turn.place.site)

    def turned_away(self, refusal: Refusal) -> None:
        turn, self.turn = self.turn, None
        assert turn is not None, "it has waited for its turn"
        self._waits_no_more()
        self._count_wait(turn, self.context.clock.monotonic_ns())
        self.saturated_at(turn.place.site, refusal)

    def leave_queue(self, tokens: Tokens, now_ns: int) -> None:
        """Give back its slot, or its place in the queue, if it has one."""
        turn = self.turn
        if turn is not None:
            self.turn = None
            self._waits_no_more()
            if turn.waits:
                self._count_wait(turn, now_ns)
            turn.leave(tokens, now_ns)

    def _waits_no_more(self) -> None:
        if self.waiting is not None:
            self.context.loads.finished(self.waiting)
            self.waiting = None

    def _count_wait(self, turn: Turn, now_ns: int) -> None:
        waited_ns = now_ns - turn.since_ns
        self.queued_ns += waited_ns
        self._tries_began_ns = now_ns  # what it waited for its turn is no time of a target
        self.context.queues.count_wait(self.class_, waited_ns)
        if self.reply.hop is not None:
            self.reply.extra = f"{peer.QUEUED}: {self.queued_ns // 1_000_000}\r\n"

    def saturated_at(self, site: SiteName, refusal: Refusal) -> None:
        """The queue of a site has refused it: keep the refusal that it may come back to soonest."""
        known, after_s = self.saturated, refusal.retry_after_s
        self.bounces += refusal.reason == BUSY
        if known is None or known.retry_after_s is None or (
            after_s is not None and after_s < known.retry_after_s
        ):
            self.saturated = refusal
        detail = refusal.reason if after_s is None else f"{refusal.reason}, {after_s} s"
        self._refused(Refused(site=site, rule="saturated", detail=detail))

    def _none_ready(self, site: SiteName) -> None:
        if self.reply.hop is not None and self.tried:
            self.refuse_hop_without_replica()
        else:
            self._refused(Refused(site=site, rule="no_ready_replica", detail=_NONE_READY))

    def try_again_at(self, site: SiteName, rtt_ms: float, now_ns: int) -> bool:
        """Try another replica of a site that was tried before, if the view still allows it."""
        may = self.context.view.table.may_process(site, self.key.policy_id, self.narrowing)
        return may and self.try_replica(site, rtt_ms, now_ns)

    def try_replica(self, site: SiteName, rtt_ms: float, now_ns: int) -> bool:
        """Try a replica that this gateway reaches itself; False when none is left."""
        context, wanted, affinity = self.context, self.wanted, self.affinity
        if affinity is None and self.choice is None:
            affinity = self.affinity = affinity_of(self)
        cached = None
        if affinity is not None and (
            self.choice is None or context.view.replicas.are_several(site, self.request.model)
        ):
            cached = affinity.cached_at(context, site, now_ns)
        while True:
            replica = context.view.replicas.pick(
                site, self.request.model, self._tried_replicas or (), now_ns=now_ns,
                rng=context.rng, endpoint=self.endpoint,
                revision=None if wanted is None else wanted.revision, cached=cached,
                organisation=self.key.org_id, last_resort=self._is_last_resort,
            )
            if replica is None:
                return False
            if self._tried_replicas is None:
                self._tried_replicas = set()
            self._tried_replicas.add(replica.id)
            if wanted is not None and not kin_of(replica).may_follow(wanted):
                continue
            try:
                target = context.targets.engine(replica, context.country_of(site), now_ns)
            except (Unavailable, ValueError):  # a file or an address: for its operator's log alone
                detail = f"replica {replica.id}: its gateway cannot use it; its log says why"
                self.tried.append(Refused(site=site, rule="no_ready_replica", detail=detail))
                continue
            if self.chosen_ns is None:
                self.chosen_ns = now_ns
            target.rtt_ms = rtt_ms
            self._try(target, now_ns)
            return True

    def _try(self, target: Target, now_ns: int) -> None:
        context, request = self.context, self.request
        seam = None if self.continuation is None else self.continuation.seam
        before = self.attempt
        attempt = Attempt(self, target) if seam is None else Resumed(self, target, seam)
        self.attempt = attempt
        if self.reply.hop is None:
            why = context.journal.opened(opening_of(self))
            if why is not None and not self.opened:  # else it is on record, with room to close it
                self.attempt = before
                self.refuse(admission.unrecorded(why))
                return
            self.opened = True
        if not self.attempts:
            context.retries.deposit(now_ns)
        self.attempts += 1
        prompt_tokens, affinity = request.prompt_tokens, self.affinity
        if affinity is not None:
            affinity.sent(context, target, now_ns)
            prompt_tokens -= affinity.believed_tokens
        if target.replica is not None:
            attempt.unread_tokens = prompt_tokens
            if self.turn is not None:
                self.turn.reads(prompt_tokens, target.replica.id, now_ns)
            attempt.expected_ms = context.view.replicas.started(
                target.replica.id, prompt_tokens, request.output_tokens
            )
        elif self.choice is not None:
            attempt.expected_ms = self.choice.predicted_ttft_ms or 0.0
        self._ticket, self.waiting = self.waiting, None
        if self._ticket is None:
            self._ticket = context.loads.dispatched(
                target.site, request.model, prompt_tokens, request.output_tokens, now_ns,
                rtt_ms=target.rtt_ms,
            )
        attempt.start(now_ns)

    def connect_share_s(self, target: Target) -> float:
        """How long this try may take to connect, so that the next ones have time, too."""
        candidates = 1 if self.choice is None else self.choice.eligible
        left = MOST_TRIES + 1 - (self.attempts - self._tries_before)
        tries = 1 if target.replica is not None else max(min(left, candidates), 1)
        return max(self.connect_time_left_s() / tries, LEAST_CONNECT_S + target.rtt_ms / 1000)

    def connect_time_left_s(self) -> float:
        """What is left of the time for connections; a tenth is kept for the answer itself."""
        spent_ns = self.context.clock.monotonic_ns() - (self._tries_began_ns or self.started_ns)
        return 0.9 * self.context.settings.connect_timeout_s - spent_ns / 1e9

    def attempt_failed(self, attempt: Attempt, why: str, *, unreachable: bool) -> None:
        """Nothing of it reached the client: try elsewhere."""
        context, target = self.context, attempt.target
        now_ns = context.clock.monotonic_ns()
        if self.affinity is not None:
            self.affinity.failed(self.context)
        if target.replica is not None and unreachable:
            context.view.replicas.lost(
                target.replica, now_ns, context.rng, organisation=self.key.org_id, why=why,
                under_request=attempt.connected, sent_ns=attempt.last_ns,
            )
        busy = 400 <= attempt.status < 500  # says nothing of its health
        if attempt.status == 429:
            judged.engine_is_full(self, attempt)
        self.release(attempt, None if unreachable or busy else False, now_ns, why)
        if not self._may_retry(now_ns, self.saturated if attempt.status == 429 else None):
            return
        tries = self.attempts - self._tries_before
        if attempt.last_ns:
            self._tries_began_ns = now_ns  # it was connected: the time went into its answer
        tries += self.continuation is not None  # the last one is for another site
        if target.replica is not None:
            detail = f"replica {target.replica.id}: {why}"
            self.tried.append(Refused(site=target.site, rule="no_ready_replica", detail=detail))
            if tries >= MOST_TRIES or not self.try_again_at(target.site, target.rtt_ms, now_ns):
                self._go_elsewhere()
            return
        if unreachable:
            context.loads.lost(target.site, now_ns)
        rule: Rule = "unreachable" if unreachable else "tried_before"
        self._refused(Refused(site=target.site, rule=rule, detail=why))

    def refused_by_peer(self, attempt: Attempt, rule: str, retry_after_s: int | None) -> None:
        """The destination refused with a typed reason: try another allowed site."""
        now_ns = self.context.clock.monotonic_ns()
        if self.affinity is not None:
            self.affinity.failed(self.context)
        self.release(attempt, judged.said_by_refusal(self, rule), now_ns, f"it refuses: {rule}")
        saturated, site = None, attempt.target.site
        if rule in QUEUE_REASONS:
            saturated = admission.saturated_elsewhere(site, self.request.model, rule, retry_after_s)
        if rule != BUSY and not self._may_retry(now_ns, saturated):
            return  # one that is busy refuses as it was asked to, and without work
        self._tries_began_ns = now_ns
        if self.continuation is not None:
            self._tries_before += 1  # said at once and without work: it costs no try
        if saturated is not None:
            self.saturated_at(site, saturated)
            return
        self._refused(Refused(site=site, rule="tried_before", detail=f"refused: {rule}"))

    def was_closing(self, attempt: Attempt) -> bool:
        """Whether an idle connection had been closing when the request was sent on it."""
        spent_ns = self.context.clock.monotonic_ns() - attempt.last_ns
        return spent_ns <= CLOSING_NS + int(attempt.target.rtt_ms * 1e6)

    def may_ask_anew(self) -> bool:
        """Whether the budget lets the target be asked once more; the request is refused if not."""
        now_ns = self.context.clock.monotonic_ns()
        if self.continuation is None and not self.context.retries.try_spend(now_ns):
            self.refuse(admission.no_retry_left())
            return False
        self.attempts += 1
        return True

    def _may_retry(self, now_ns: int, saturated: Refusal | None = None) -> bool:
        """Whether the budget has a retry for this request; else it is refused, as `saturated` says
        where that just happened. Streams that have begun are tried anyway; of one alone none is."""
        most = MOST_TRIES + self._tries_before
        if self.continuation is not None or self.attempts >= most or self._was_alone:
            return True
        if self.context.retries.try_spend(now_ns):
            return True
        self.refuse(saturated or admission.no_retry_left())
        return False

    def _pass_over(self, site: SiteName, rule: Rule, detail: str) -> None:
        """The site that was chosen is not asked."""
        self.passed_over += (Refused(site=site, rule=rule, detail=detail),)
        self._go_elsewhere()

    def _refused(self, refused: Refused) -> None:
        self.tried.append(refused)
        self._go_elsewhere()

    def _go_elsewhere(self) -> None:
        """Its last site is among those that were tried or passed over: choose another one."""
        if self.turn is not None:
            self.leave_queue(_NO_TOKENS, self.context.clock.monotonic_ns())
        if self.reply.hop is None:
            self.choose(self.context.clock.monotonic_ns())
        else:
            self.refuse_hop_without_replica()

    def _refuse_nobody(self) -> None:
        choice, model = self.choice, self.request.model
        if choice is not None and not choice.allowed_exists and not self.attempts:
            self.refuse(admission.no_site_allowed(self.context, self.key, model, self.narrowing))
        else:
            self.refuse(self.saturated or admission.no_site_healthy(self.context, choice, model))

    def refuse_hop_without_replica(self) -> None:
        why = self.tried[-1].detail if self.tried else _NONE_READY
        self.refuse(self.saturated or admission.no_replica(why))

    @property
    def _is_last_resort(self) -> bool:
        """Whether nobody but the site that it is at can serve it."""
        return self.reply.hop is None and (self.choice is None or self.choice.eligible < 2)

    @property
    def _was_alone(self) -> bool:
        """Whether whoever was tried last is the only one."""
        choice, attempt, replicas = self.choice, self.attempt, self.context.view.replicas
        return (choice is None or choice.eligible < 2) and attempt is not None and not (
            replicas.are_several(attempt.target.site, self.request.model)
        )

    def release(
        self, attempt: Attempt, ok: bool | None, now_ns: int, why: str = "a request failed"
    ) -> None:
        """`ok`: what this attempt says of whom it was sent to, if anything; False for `why`."""
        if self._ticket is not None:
            context = self.context
            context.loads.finished(self._ticket)
            self._ticket = None
            attempt.leave()
            if (replica := attempt.target.replica) is not None:
                context.view.replicas.finished(
                    replica.id, None if ok and attempt.praised else ok, now_ns, context.rng,
                    attempt.unread_tokens, self.request.output_tokens,
                    organisation=self.key.org_id, why=why, sent_ns=attempt.last_ns,
                )
            else:
                judged.peer_ended(self, attempt, ok, now_ns, why)

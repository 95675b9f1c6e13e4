"""Requests that their site cannot pay for, while the cashier of what was sold is asked to.

They go on meanwhile, on demand. A payment that comes before the head of the answer has gone out
makes one `reserved`: in the queue, in its answer, in what is metered. One that the queue would have
turned away as on demand waits for it, for a second at most, or two where the first cashier refuses
and that of another entitlement is asked. What is asked, and of whom, is decided
in `core/admission/payments.py`.
"""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from isochrone.core.admission.commitments import Commitments
from isochrone.core.admission.payments import Payment
from isochrone.core.ids import SiteName
from isochrone.core.metering.event import Tokens
from isochrone.gateway.entitled import Claim
from isochrone.gateway.replies import Refusal
from isochrone.wire import peer

if TYPE_CHECKING:
    from isochrone.gateway.tries import Tries

_NO_TOKENS: Final = Tokens()

# Refusals of a queue that might not be one of the class `reserved`.
_OF_THE_CLASS: Final = frozenset(("would_expire", "queue_full", "class_closed", "busy"))


class Paying:
    """Mutable, owned by the event loop. `outcomes` counts payments: asked for, and what became of
    them. `send` sends what is due; it is set, with `commitments`, by whoever keeps the letters.
    `stopped`: another process takes over, and answers would come to that."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.commitments: Commitments | None = None
        self.send: Callable[[], None] = lambda: None
        self.stopped = False
        self._waiting: dict[Payment, Tries] = {}
        self._turned_away: dict[Payment, tuple[SiteName, float, Refusal]] = {}

    def claim(self, exchange: "Tries", site: SiteName, now_ns: int, *, another: bool) -> None:
        """Settle in which class a request is served at a site, or begins to be. `another`: a
        gateway stands there that may pay for it."""
        claim = exchange.claim
        assert claim is not None, "somebody has made one"
        begun, continuation = None, exchange.continuation
        if exchange.head_sent:
            begun = _NO_TOKENS if continuation is None else continuation.tokens()
        exchange.class_ = claim.at(site, now_ns, another, begun=begun)
        self._say_class(exchange)
        self._ask(exchange, claim, now_ns)

    def _ask(self, exchange: "Tries", claim: Claim, now_ns: int) -> Payment | None:
        """Have a cashier pay for what is not paid for, where one may."""
        if self.commitments is None or self.stopped or exchange.head_sent:
            return None
        payment = claim.ask(now_ns)
        if payment is not None:
            self.outcomes["asked"] += 1
            self._waiting[payment] = exchange
            self.send()
        return payment

    def keeps(self, exchange: "Tries", site: SiteName, rtt_ms: float, refusal: Refusal) -> bool:
        """Whether a request that a queue has refused is kept until it is known if it is paid for.
        """
        payment = None if exchange.claim is None else exchange.claim.payment
        if payment is None or payment.state != "asked" or refusal.reason not in _OF_THE_CLASS:
            return False
        self._turned_away[payment] = (site, rtt_ms, refusal)
        return True

    def decide(self, now_ns: int) -> None:
        """Whatever has become known of payments."""
        if self.commitments is None:
            return
        payments = self.commitments.payments
        decided, payments.decided = payments.decided, []
        for payment in decided:
            exchange = self._waiting.pop(payment, None)
            kept = self._turned_away.pop(payment, None)
            if exchange is not None:
                then = self._decide(exchange, payment, now_ns)
                if kept is not None:
                    exchange.queued_ns += now_ns - payment.asked_ns
                    if then is None:
                        self._go_on(exchange, *kept, now_ns)
                    else:
                        self._turned_away[then] = kept

    def sweep(self, now_ns: int) -> None:
        """A few times a second: forget requests that ask for nothing any more."""
        self.decide(now_ns)
        for payment in [each for each in self._waiting if each.state == "over"]:
            del self._waiting[payment]
            self._turned_away.pop(payment, None)
            self.outcomes["given_up"] += 1

    def _decide(self, exchange: "Tries", payment: Payment, now_ns: int) -> Payment | None:
        """What becomes of the request; what it waits for now, if anything."""
        claim = exchange.claim
        assert claim is not None, "it has asked"
        if payment.state != "paid":
            claim.give_up(now_ns)
            self.outcomes[payment.state] += 1
            return self._ask(exchange, claim, now_ns)
        if exchange.head_sent:
            claim.give_up(now_ns, late=True)
            self.outcomes["late"] += 1
        else:
            self.outcomes["paid"] += 1
            exchange.class_ = claim.paid()
            self._say_class(exchange)
            if exchange.turn is not None:
                exchange.turn.paid(now_ns, exchange.patience_ns(now_ns))
        return None

    def _go_on(
        self, exchange: "Tries", site: SiteName, rtt_ms: float, refusal: Refusal, now_ns: int
    ) -> None:
        """One that was kept: where it was turned away, if that may still serve it."""
        table, policy_id = exchange.context.view.table, exchange.key.policy_id
        if exchange.reply.hop is not None:
            exchange.reply.extra = f"{peer.QUEUED}: {exchange.queued_ns // 1_000_000}\r\n"
        may_still = table.may_process(site, policy_id, exchange.narrowing)
        if may_still and exchange.class_ == "reserved":
            exchange.serve_at(site, rtt_ms, now_ns)
        else:
            exchange.saturated_at(site, refusal)

    def _say_class(self, exchange: "Tries") -> None:
        """In the head of the answer, to whoever asks."""
        reply, claim = exchange.reply, exchange.claim
        if reply.hop is not None:
            reply.class_said = exchange.class_
        elif claim is not None:
            reply.extra = claim.lines

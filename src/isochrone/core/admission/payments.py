"""How a site has requests paid for by the cashier of an entitlement (`cashier.py`).

The site asks while the request goes on, waits for nothing, and takes a payment that comes in time.
A payment is used once or given back; what a request used beyond it is asked for with the next one.
A cashier that is silent, or answers later than this site's engines, is passed by for a while.
Mutable, owned by one event loop; time is an argument; messages may be lost, doubled or late.
"""

from typing import Final, Literal

from isochrone.core.admission.allowance import BURST_S, Allowance, Coming
from isochrone.core.admission.cashier import Back, Paid, Pay, cashiers_of
from isochrone.core.ids import EntitlementId, SiteName
from isochrone.core.world.entitlement import Entitlement

PAY_NS: Final = 1_000_000_000  # a payment that comes later than this is given back
BROKE_NS: Final = 500_000_000  # what a cashier has refused it is not asked for again before this
MOST_ASKED: Final = 64  # payments of one entitlement that are not answered
PASSED_BY_NS: Final = 60_000_000_000  # a silent one is asked again after this, then twice as long
POOR_NS: Final = 60_000_000_000  # one that has nothing for so long, as after an election, is silent
KEPT_NS: Final = 10_000_000_000  # what is answered later than this is lost
MOST_DOUBLED: Final = 5
TOO_FAR_NS: Final = 300_000_000_000  # one whose answers come too late
MOST_LATE: Final = 3  # of them in a row

PaymentState = Literal["asked", "paid", "refused", "silent", "over"]


class Payment:
    """What was asked for one request: `tokens` for itself, and `owed` by requests before it."""

    __slots__ = ("asked_ns", "cashier", "number", "owed", "purse", "state", "tokens")

    def __init__(
        self, purse: "Purse", cashier: SiteName, number: int, tokens: int, owed: int, now_ns: int
    ) -> None:
        self.purse = purse
        self.cashier = cashier
        self.number = number
        self.tokens = tokens
        self.owed = owed
        self.asked_ns = now_ns
        self.state: PaymentState = "asked"


class Cashiers:
    """What this site knows of the others as cashiers."""

    def __init__(self, site: SiteName) -> None:
        self.site = site
        self._until_ns: dict[SiteName, int] = {}  # who is passed by, until this at least
        self._times: dict[SiteName, int] = {}  # how often in a row
        self._late: dict[SiteName, int] = {}
        self._poor_since_ns: dict[SiteName, int] = {}
        self._probed: set[SiteName] = set()

    def first(self, ranked: tuple[SiteName, ...], now_ns: int) -> SiteName | None:
        """Who is to be asked; None where that is this site, or nobody."""
        for each in ranked:
            if each == self.site:
                return None
            until_ns = self._until_ns.get(each)
            if until_ns is None or (now_ns >= until_ns and self._is_far(each)):
                return each
        return None

    def to_probe(self, ranked: tuple[SiteName, ...], now_ns: int) -> SiteName | None:
        """One that was silent, and may be back: no request is to find out."""
        for each in ranked if self._until_ns else ():
            until_ns = self._until_ns.get(each)
            if each == self.site or until_ns is None:
                return None
            if now_ns >= until_ns and each not in self._probed and not self._is_far(each):
                self._probed.add(each)
                return each
        return None

    def answers(self, site: SiteName, has_some: bool, now_ns: int) -> None:
        """It stands. One that has nothing to pay with for long is as good as silent: it may be cut
        off from those who would lend it something."""
        self._probed.discard(site)
        if has_some:
            self._poor_since_ns.pop(site, None)
        elif now_ns - self._poor_since_ns.setdefault(site, now_ns) > POOR_NS:
            del self._poor_since_ns[site]
            self.silent(site, now_ns)
            return
        if not self._is_far(site):
            self._until_ns.pop(site, None)
            self._times.pop(site, None)

    def in_time(self, site: SiteName) -> None:
        """Its answer was of use."""
        if self._is_far(site):
            self._until_ns.pop(site, None)
            self._times.pop(site, None)
        self._late.pop(site, None)

    def silent(self, site: SiteName, now_ns: int) -> None:
        """It has not answered."""
        self._probed.discard(site)
        self._pass_by(site, PASSED_BY_NS, now_ns)

    def late(self, site: SiteName, now_ns: int) -> None:
        """An answer of this site's engines was sooner."""
        self._late[site] = self._late.get(site, 0) + 1
        if self._is_far(site):
            self._pass_by(site, TOO_FAR_NS, now_ns)

    def _is_far(self, site: SiteName) -> bool:
        return self._late.get(site, 0) >= MOST_LATE

    def _pass_by(self, site: SiteName, for_ns: int, now_ns: int) -> None:
        if now_ns < self._until_ns.get(site, 0):
            return
        times = self._times.get(site, 0)
        self._times[site] = times + 1
        self._until_ns[site] = now_ns + (for_ns << min(times, MOST_DOUBLED))


class Purse:
    """One entitlement as requests at this site pay with it: from the allowance of the site, or by
    its cashier. `owed`: what requests that were paid for used beyond that. `is_open`: it is in its
    window."""

    def __init__(
        self, entitlement: Entitlement, allowance: Allowance, payments: "Payments"
    ) -> None:
        self.id: EntitlementId = entitlement.id
        self.allowance = allowance
        self.owed = 0
        self.asked = 0
        self.is_open = True
        self.ranked: tuple[SiteName, ...] | None = None  # worked out when it is asked for
        self._homes = tuple([each.site for each in entitlement.slices])
        self._most_tokens = entitlement.tok_s * BURST_S
        self._payments = payments
        self._coming = Coming()
        self._broke_until_ns = 0
        self._broke_tokens = 0

    def counts(self, tokens: int, now_ns: int) -> bool:
        """A request has come: whether it is demand of this site, which borrows for it. Where few
        come it is demand of the cashier, who collects for all such sites; and what this site has
        it keeps only until others ask for it."""
        thin = self._coming.is_thin(tokens, now_ns)
        return not (thin and self._cashier(now_ns) is not None)

    def ask(self, tokens: int, counts: bool, now_ns: int) -> Payment | None:
        """Have the cashier pay, as the allowance cannot; None where it is not asked. `counts`: it
        is demand of this site, as said before."""
        cashier = self._cashier(now_ns)
        self._payments.probe(self, now_ns)
        if cashier is None or self.asked >= MOST_ASKED:
            return None
        if now_ns < self._broke_until_ns and tokens >= self._broke_tokens:
            return None
        most_owed, owed = self._most_tokens - tokens, self.owed
        if owed > most_owed:  # first of all, in parts that are as soon there as what it asks for
            owed = min(owed, max(tokens, 1))
            self.owed -= owed
            self._payments.ask(self, cashier, 0, owed, counts, now_ns)
            return None
        self.owed = 0
        return self._payments.ask(self, cashier, tokens, owed, counts, now_ns)

    def settle(self, payment: Payment, used_tokens: int) -> None:
        """The request that it has paid for is over."""
        self._payments.settle(payment, used_tokens)

    def give_up(self, payment: Payment, now_ns: int, *, late: bool) -> None:
        """The request is not paid for by it: it is over or served elsewhere, or its answer has
        begun before the payment was there (`late`)."""
        self._payments.give_up(payment, now_ns, late=late)

    def refused(self, tokens: int, now_ns: int) -> None:
        """The cashier has refused so many."""
        self._broke_until_ns, self._broke_tokens = now_ns + BROKE_NS, tokens

    def _cashier(self, now_ns: int) -> SiteName | None:
        ranked = self.ranked
        if ranked is None:
            ranked = self.ranked = cashiers_of(self.id, self._homes, self._payments.voters)
        return self._payments.cashiers.first(ranked, now_ns)


class Payments:
    """Those that this site has asked for, of all entitlements. `decided`: those of which it is
    known what became, for the driver to take. `due`: asked for, and not yet sent."""

    def __init__(self, site: SiteName, life: int) -> None:
        self.cashiers = Cashiers(site)
        self.voters: tuple[SiteName, ...] = ()
        self.decided: list[Payment] = []
        self.due: list[tuple[SiteName, Pay]] = []
        self._life = life
        self._numbers = 0
        self._asked: dict[int, Payment] = {}
        self._backs: list[tuple[SiteName, Back]] = []

    @property
    def has_to_tell(self) -> bool:
        """Whether anything was asked for or comes back of which a cashier may not know."""
        return bool(self._asked or self._backs)

    def ask(
        self, purse: Purse, cashier: SiteName, tokens: int, owed: int, counts: bool, now_ns: int
    ) -> Payment:
        self._numbers += 1
        payment = Payment(purse, cashier, self._numbers, tokens, owed, now_ns)
        self._asked[payment.number] = payment
        purse.asked += 1
        self.due.append((cashier, Pay(
            entitlement=purse.id, payer=self.cashiers.site, life=self._life,
            number=payment.number, tokens=tokens + owed, counts=not counts,
        )))
        return payment

    def probe(self, purse: Purse, now_ns: int) -> None:
        """Ask a cashier that was silent to pay nothing."""
        site = self.cashiers.to_probe(purse.ranked or (), now_ns)
        if site is not None:
            self.ask(purse, site, 0, 0, True, now_ns)

    def hear(self, sender: SiteName, paid: Paid, now_ns: int) -> None:
        """A cashier has answered. One answer counts, and only in time."""
        payment = self._asked.get(paid.number)
        if payment is None or paid.life != self._life or sender != payment.cashier:
            return
        del self._asked[paid.number]
        in_time = now_ns - payment.asked_ns <= PAY_NS
        if in_time:
            self.cashiers.answers(sender, paid.has_tok_s > 0, now_ns)
        if payment.state != "asked":
            if paid.paid:
                self._give_back(payment)
        elif not paid.paid:
            if payment.tokens or payment.owed:
                payment.purse.refused(payment.tokens or payment.owed, now_ns)
            self._close(payment, "refused")
        elif not in_time:
            self._close(payment, "silent")
            self._give_back(payment)
        else:
            payment.purse.asked -= 1
            payment.state = "paid"
            self.decided.append(payment)

    def settle(self, payment: Payment, used_tokens: int) -> None:
        """As `Purse.settle`."""
        assert payment.state == "paid", f"a {payment.state} payment pays for nothing"
        payment.state = "over"
        self.cashiers.in_time(payment.cashier)
        unused = payment.tokens - used_tokens
        if unused < 0:
            payment.purse.owed -= unused
        elif unused:
            self._send_back(payment, unused, honoured=True)

    def give_up(self, payment: Payment, now_ns: int, *, late: bool) -> None:
        """As `Purse.give_up`; of one that is decided otherwise, nothing."""
        if late:
            self.cashiers.late(payment.cashier, now_ns)
        if payment.state == "paid":
            payment.state = "over"
            payment.purse.owed += payment.owed
            self._send_back(payment, payment.tokens + payment.owed, honoured=False)
        elif payment.state == "asked":
            self._close(payment, "over")

    def leave(self) -> list[tuple[SiteName, Back]]:
        """Nothing is heard any more: what comes back to whom, of payments that nobody will know to
        be made, too. No request is paid for by one of those. To be sent behind what was `due`."""
        for payment in self._asked.values():
            if payment.state == "asked":
                self._close(payment, "over")
            if payment.tokens or payment.owed:
                self._give_back(payment)
        self._asked = {}
        backs, self._backs = self._backs, []
        return backs

    def tick(self, now_ns: int) -> list[tuple[SiteName, Back]]:
        """About every half second: give up what is not answered; what comes back to whom."""
        for number, payment in list(self._asked.items()):
            age_ns = now_ns - payment.asked_ns
            if age_ns <= PAY_NS:
                break  # they are in the order in which they were asked
            if payment.state == "asked":
                self.cashiers.silent(payment.cashier, now_ns)
                self._close(payment, "silent")
            if age_ns > KEPT_NS:
                del self._asked[number]
        backs, self._backs = self._backs, []
        return backs

    def _close(self, payment: Payment, state: PaymentState) -> None:
        """Nothing is expected of it any more; what it was to pay besides is still owed."""
        payment.purse.asked -= 1
        payment.purse.owed += payment.owed
        if state != "over":
            self.decided.append(payment)
        payment.state = state

    def _give_back(self, payment: Payment) -> None:
        self._send_back(payment, payment.tokens + payment.owed, honoured=False)

    def _send_back(self, payment: Payment, tokens: int, *, honoured: bool) -> None:
        self._backs.append((payment.cashier, Back(
            entitlement=payment.purse.id, payer=self.cashiers.site, life=self._life,
            number=payment.number, tokens=tokens, honoured=honoured,
        )))

"""What one site may honour of every entitlement, and what it asks other sites for: no control.

Each slice has a steward (`stewards.py`), who uses it or lends it (`loans.py`); a site that has more
demand than slice asks the stewards of the others. When a home is silent, whoever needs its slices
stands for it. Mutable, owned by one event loop; monotonic time, wall time and chance are arguments;
messages go out as `Letter`s and may be lost, doubled or late. See docs/entitlements.md.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from isochrone.core.admission.allowance import BURST_S, Allowance
from isochrone.core.admission.cashier import Back, Paid, Pay, Till
from isochrone.core.admission.entitlement import is_open
from isochrone.core.admission.loans import LOAN_NS, Ask, BorrowedSlice, LentSlice, Loan
from isochrone.core.admission.payments import Payments, Purse
from isochrone.core.admission.stewards import (
    RENEW_NS,
    TERM_NS,
    Candidate,
    HandBack,
    Stand,
    StandDown,
    Vote,
    Voter,
)
from isochrone.core.ids import EntitlementId, SiteName
from isochrone.core.rng import Random
from isochrone.core.world.entitlement import Entitlement, Voters

HEADROOM = 1.2  # a site wants this much more than is asked of it
RETRY_NS = 1_000_000_000
SILENT_NS = 10_000_000_000  # a steward that answers nothing for so long is taken for gone
SPLIT_NS = 2_000_000_000  # votes that come at all have come by then
IDLE_TICKS = 8  # an entitlement that nobody here asks for is looked at so seldom
NOBODY = Voters(sites=())

Message = Stand | Vote | StandDown | HandBack | Ask | Loan | Pay | Paid | Back


@dataclass(frozen=True, slots=True)
class Letter:
    """A message for the gateway of a site; perhaps the own one."""

    to: SiteName
    message: Message


@dataclass(frozen=True, slots=True)
class Standing:
    """How an entitlement stands at this site, in tokens/s: what it may honour, what of that is
    borrowed, and what it has lent to others besides."""

    usable_tok_s: int
    borrowed_tok_s: int
    lent_tok_s: int


class _Held:
    """One entitlement as this site sees it. `slices`: home -> tokens/s; `mine`: those that it can
    look after; `borrowed`: those that it has asked for. `purse`: what requests here pay with;
    `till`: what was paid for those of other sites."""

    def __init__(self, entitlement: Entitlement, payments: Payments, now_ns: int) -> None:
        self.entitlement = entitlement
        self.allowance = Allowance(now_ns)
        self.purse = Purse(entitlement, self.allowance, payments)
        self.till = Till()
        self.slices = {each.site: each.tok_s for each in entitlement.slices}
        self.mine: dict[SiteName, LentSlice] = {}
        self.borrowed: dict[SiteName, BorrowedSlice] = {}

    def need_tok_s(self, now: int) -> int:
        """What this site wants to have of it."""
        if not is_open(self.entitlement, now):
            return 0
        return min(int(self.allowance.demand_tok_s * HEADROOM), self.entitlement.tok_s)


class Commitments:
    """All of one site. `life` tells this life of its gateway from earlier ones."""

    def __init__(self, site: SiteName, life: int, now_ns: int) -> None:
        self.site = site
        self.payments = Payments(site, life)
        self._life = life
        self._voter = Voter(site, now_ns)
        self._voters = NOBODY
        self._held: dict[EntitlementId, _Held] = {}
        self._dropped: dict[EntitlementId, tuple[int, _Held]] = {}  # since when
        self._stands: dict[SiteName, Candidate] = {}
        self._leaving: set[SiteName] = set()  # homes that are back: no further term
        self._stewards: dict[SiteName, SiteName] = {}  # who was said to look after a home
        self._rest_until_ns: dict[SiteName, int] = {}  # no new stand for a home before this
        self._numbers = 0  # of everything that is asked in this life
        self._ticks = 0

    # -- what is known ---------------------------------------------------------------------------

    def take(self, entitlement: Entitlement, now_ns: int) -> None:
        """Sold, or known again."""
        held = self._held.get(entitlement.id)
        if held is None:
            _, held = self._dropped.pop(entitlement.id, (0, None))
        if held is None:
            held = _Held(entitlement, self.payments, now_ns)
        self._held[entitlement.id] = held
        held.entitlement = entitlement

    def drop(self, entitlement_id: EntitlementId, now_ns: int) -> None:
        """Revoked, or lost from the view: nothing of it is honoured any more. What is lent is
        remembered to its end, in case that it comes back."""
        held = self._held.pop(entitlement_id, None)
        if held is not None:
            held.allowance.set_slice(0, now_ns, now_ns)
            self._dropped[entitlement_id] = (now_ns, held)

    def set_voters(self, voters: Voters) -> None:
        """Those of an earlier epoch than the known ones change nothing."""
        if voters.epoch >= self._voters.epoch and voters != self._voters:
            self._voters = voters
            self.payments.voters = self._electorate()
            for held in self._held.values():
                held.purse.ranked = None

    def entitlements(self) -> Iterator[Entitlement]:
        for held in self._held.values():
            yield held.entitlement

    def allowance(self, entitlement_id: EntitlementId) -> Allowance | None:
        """The bucket to spend from; None for an entitlement that is not known."""
        held = self._held.get(entitlement_id)
        return None if held is None else held.allowance

    def purse(self, entitlement_id: EntitlementId) -> Purse | None:
        """What requests pay with; None for an entitlement that is not known."""
        held = self._held.get(entitlement_id)
        return None if held is None else held.purse

    def usable_tok_s(self, entitlement_id: EntitlementId, now_ns: int, now: int) -> int:
        """What this site may honour of it now, in tokens/s."""
        held = self._held.get(entitlement_id)
        return 0 if held is None else self._usable(held, now_ns, now)[0]

    def standing(self, entitlement_id: EntitlementId, now_ns: int, now: int) -> Standing:
        """For whoever watches; an entitlement that is not known stands at nothing."""
        held = self._held.get(entitlement_id)
        if held is None:
            return Standing(0, 0, 0)
        mine = [home for home in held.mine if self.is_steward(home, now_ns)]
        return Standing(
            self._usable(held, now_ns, now)[0],
            sum(each.tok_s(now_ns) for home, each in held.borrowed.items() if home not in mine),
            sum(held.slices[home] - held.mine[home].own_tok_s(now_ns) for home in mine),
        )

    def is_steward(self, home: SiteName, now_ns: int) -> bool:
        """Whether this site looks after the slices of a home now."""
        stand = self._stands.get(home)
        return stand is not None and now_ns < stand.until_ns

    # -- events ----------------------------------------------------------------------------------

    def tick(self, now_ns: int, now: int, rng: Random) -> list[Letter]:
        """About every half second: renew terms, ask for what is lacking, follow the time."""
        letters = [Letter(cashier, back) for cashier, back in self.payments.tick(now_ns)]
        if any(self.site in held.slices for held in self._held.values()):
            self._stand(self.site)
        for home in list(self._stands):
            self._renew(home, now_ns, rng, letters)
        self._ticks += 1
        for number, held in enumerate(self._held.values(), self._ticks):
            held.purse.is_open = is_open(held.entitlement, now)
            if number % IDLE_TICKS and held.allowance.is_idle:
                continue
            held.allowance.measure(now_ns)
            self._borrow(held, now_ns, now, letters)
            self._refresh(held, now_ns, now)
        for id_, (since_ns, _) in list(self._dropped.items()):
            if now_ns - since_ns > TERM_NS:
                del self._dropped[id_]
        return letters

    def hear(
        self, sender: SiteName, message: Message, now_ns: int, now: int
    ) -> list[Letter]:
        """A message whose sender is proven. What it says of others than its sender is ignored."""
        if isinstance(message, Stand):
            if message.site != sender or self.site not in self._electorate():
                return []
            if message.epoch < self._voters.epoch:
                return []  # others may win by voters that it does not know yet
            vote = self._voter.hear(message, now_ns)
            return [] if vote is None else [Letter(sender, vote)]
        if isinstance(message, Vote):
            self._count(sender, message, now_ns, now)
        elif isinstance(message, StandDown):
            if message.site == sender:
                self._voter.release(message)
        elif isinstance(message, HandBack):
            if message.home == sender and sender != self.site and sender in self._stands:
                self._leaving.add(sender)
        elif isinstance(message, Ask):
            return self._lend(sender, message, now_ns, now)
        elif isinstance(message, Loan):
            self._take_loan(sender, message, now_ns, now)
        elif isinstance(message, Paid):
            self.payments.hear(sender, message, now_ns)
        elif message.payer == sender:
            return self._pay(sender, message, now_ns)
        return []

    def take_due(self) -> list[Letter]:
        """What is asked of cashiers, to be sent at once: requests are under way."""
        due, self.payments.due = self.payments.due, []
        return [Letter(cashier, pay) for cashier, pay in due]

    # -- stewards --------------------------------------------------------------------------------

    def _stand(self, home: SiteName) -> None:
        if home not in self._stands:
            self._stands[home] = Candidate(home, self.site, self._life)

    def _renew(self, home: SiteName, now_ns: int, rng: Random, letters: list[Letter]) -> None:
        """Ask for a term when it is time; see whether a stand has failed."""
        stand = self._stands[home]
        ruling = now_ns < stand.until_ns
        if home in self._leaving:
            if not ruling:
                self._give_up(home, now_ns, now_ns, letters)
            return
        asked_ago_ns = now_ns - stand.asked_ns if stand.asked_ns else None
        if not ruling and asked_ago_ns is not None and asked_ago_ns >= RETRY_NS:
            holders = Counter(stand.refused_by.values())
            if home == self.site:
                letters.extend(Letter(each, HandBack(home=home)) for each in sorted(holders))
            elif holders or asked_ago_ns >= SPLIT_NS:
                if holders:
                    self._stewards[home] = max(sorted(holders), key=lambda name: holders[name])
                rest_ns = now_ns + SPLIT_NS + int(rng.random() * RENEW_NS)
                self._give_up(home, now_ns, rest_ns, letters)
                return
        every_ns = RENEW_NS if ruling else RETRY_NS
        if asked_ago_ns is None or asked_ago_ns >= every_ns:
            self._numbers += 1
            ask = stand.stand(self._numbers, now_ns, self._voters.epoch)
            letters.extend(Letter(voter, ask) for voter in self._electorate())

    def _give_up(
        self, home: SiteName, now_ns: int, rest_until_ns: int, letters: list[Letter]
    ) -> None:
        down = self._stands[home].stand_down(now_ns)
        if down is not None:
            letters.extend(Letter(voter, down) for voter in self._electorate())
        del self._stands[home]
        self._leaving.discard(home)
        self._rest_until_ns[home] = rest_until_ns
        if self._stewards.get(home) == self.site:
            del self._stewards[home]
        # Who has the votes is asked meanwhile, if anybody; without an answer the next stand is due
        # when the rest is over. It is over at different times for those who stood together.
        silent_since_ns = rest_until_ns - SILENT_NS if rest_until_ns > now_ns else None
        for held in self._held.values():
            if home in held.borrowed:
                held.borrowed[home].unanswered_since_ns = silent_since_ns

    def _count(self, sender: SiteName, vote: Vote, now_ns: int, now: int) -> None:
        stand = self._stands.get(vote.home)
        if stand is None or vote.voter != sender:
            return
        ruled = now_ns < stand.until_ns
        stand.hear(vote, self._voters)
        if now_ns < stand.until_ns and not ruled:  # a longer term is noticed at the next look
            self._stewards[vote.home] = self.site
            for held in self._held.values():
                if vote.home in held.slices:
                    self._refresh(held, now_ns, now)

    # -- lending and borrowing -------------------------------------------------------------------

    def _lend(self, sender: SiteName, ask: Ask, now_ns: int, now: int) -> list[Letter]:
        held = self._held.get(ask.entitlement)
        if ask.borrower != sender or held is None or ask.home not in held.slices:
            return []
        stand = self._stands.get(ask.home)
        if stand is None or now_ns >= stand.until_ns:
            refusal = Loan(
                entitlement=ask.entitlement, home=ask.home, borrower=sender, life=ask.life,
                number=ask.number, tok_s=0, for_ns=0, spare_tok_s=0, steward=False,
            )
            return [Letter(sender, refusal)]
        lent = self._lent(held, ask.home)
        others = self._usable(held, now_ns, now)[0] - lent.own_tok_s(now_ns)
        keep_tok_s = max(held.need_tok_s(now) - max(others, 0), 0)
        loan = lent.hear(ask, keep_tok_s, stand.until_ns, now_ns)
        self._refresh(held, now_ns, now)  # given away first
        return [] if loan is None else [Letter(sender, loan)]

    def _take_loan(self, sender: SiteName, loan: Loan, now_ns: int, now: int) -> None:
        held = self._held.get(loan.entitlement)
        borrowed = None if held is None else held.borrowed.get(loan.home)
        if held is None or borrowed is None:
            return
        if sender != self._stewards.get(loan.home, loan.home):
            return
        if not loan.steward:
            self._stewards.pop(loan.home, None)
            return
        borrowed.hear(loan)
        self._refresh(held, now_ns, now)

    def _borrow(self, held: _Held, now_ns: int, now: int, letters: list[Letter]) -> None:
        """Ask for what is lacking: where there is a loan already, then where most is spare."""
        lacking = held.need_tok_s(now)
        if lacking <= 0:
            return
        for home in held.slices:
            if self.is_steward(home, now_ns):
                lacking -= self._lent(held, home).own_tok_s(now_ns)
        if lacking <= 0:
            return
        for home in sorted(held.slices, key=lambda each: self._rank(held, each, now_ns)):
            if lacking <= 0:
                return
            if home == self.site or self.is_steward(home, now_ns):
                continue
            slice_ = held.borrowed.get(home)
            if slice_ is None:
                slice_ = held.borrowed[home] = BorrowedSlice(
                    held.entitlement.id, home, self.site, self._life
                )
            has = slice_.tok_s(now_ns)
            self._ask(slice_, home, min(lacking, held.slices[home]), now_ns, letters)
            spare = held.slices[home] if slice_.spare_tok_s is None else slice_.spare_tok_s
            silent_ns = slice_.unanswered_since_ns
            if silent_ns is not None and now_ns - silent_ns >= RETRY_NS:
                spare = 0  # nothing may come from there
            lacking -= min(lacking, has + spare)

    def _ask(
        self, slice_: BorrowedSlice, home: SiteName, want_tok_s: int, now_ns: int,
        letters: list[Letter],
    ) -> None:
        silent_ns = slice_.unanswered_since_ns
        if silent_ns is not None and now_ns - silent_ns >= SILENT_NS:
            self._stewards.pop(home, None)
            if now_ns >= self._rest_until_ns.get(home, 0):
                self._stand(home)
        every_ns = LOAN_NS // 3 if slice_.tok_s(now_ns) and silent_ns is None else RETRY_NS
        if slice_.asked_ns and now_ns - slice_.asked_ns < every_ns:
            return
        self._numbers += 1
        ask = slice_.ask(self._numbers, want_tok_s, now_ns)
        letters.append(Letter(self._stewards.get(home, home), ask))

    def _rank(self, held: _Held, home: SiteName, now_ns: int) -> tuple[int, int, str]:
        """In which order homes are asked."""
        slice_ = held.borrowed.get(home)
        if slice_ is None:
            return 0, -held.slices[home], home
        spare = held.slices[home] if slice_.spare_tok_s is None else slice_.spare_tok_s
        return -slice_.tok_s(now_ns), -spare, home

    def _pay(self, sender: SiteName, message: Pay | Back, now_ns: int) -> list[Letter]:
        """As the cashier of a request that is served at another site. None asks for more than all
        may have saved up: that would be demand without end."""
        held = self._held.get(message.entitlement)
        if isinstance(message, Back):
            if held is not None:
                held.till.take_back(message, held.allowance, now_ns)
            return []
        if held is not None and message.tokens <= held.entitlement.tok_s * BURST_S:
            return [Letter(sender, held.till.hear(message, held.allowance, now_ns))]
        return [Letter(sender, Paid(
            entitlement=message.entitlement, payer=sender, life=message.life,
            number=message.number, paid=False, has_tok_s=0,
        ))]

    # -- inside ----------------------------------------------------------------------------------

    def _electorate(self) -> tuple[SiteName, ...]:
        """Whose votes are asked for."""
        return tuple(dict.fromkeys((*self._voters.sites, *self._voters.former)))

    def _lent(self, held: _Held, home: SiteName) -> LentSlice:
        lent = held.mine.get(home)
        if lent is None:
            lent = held.mine[home] = LentSlice(held.slices[home])
        return lent

    def _usable(self, held: _Held, now_ns: int, now: int) -> tuple[int, int]:
        """Tokens/s that may be honoured here, and until when that surely holds."""
        if not is_open(held.entitlement, now):
            return 0, now_ns
        tok_s, until_ns = 0, now_ns + held.entitlement.ends_at - now
        for home, stand in self._stands.items():  # few, and most entitlements have many slices
            if home in held.slices and now_ns < stand.until_ns:
                tok_s += self._lent(held, home).own_tok_s(now_ns)
                until_ns = min(until_ns, stand.until_ns)
        for home, borrowed in held.borrowed.items():
            part = borrowed.tok_s(now_ns)
            if part and not self.is_steward(home, now_ns):
                tok_s += part
                until_ns = min(until_ns, borrowed.until_ns)
        return tok_s, until_ns

    def _refresh(self, held: _Held, now_ns: int, now: int) -> None:
        tok_s, until_ns = self._usable(held, now_ns, now)
        held.allowance.set_slice(tok_s, until_ns, now_ns)

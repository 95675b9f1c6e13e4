"""Loans of slices between sites: a lender gives away first, a borrower uses only after.

A loan is a rate for a while. Its lender stops using that much before it answers, and counts it as
lent until it has surely ended: the borrower counts the time from when it asked, by a clock a little
fast. Of several loans of one slice the borrower uses the one with the highest number, and the
lender counts the highest rate among those that the borrower may still use. So nothing that is lost,
doubled, late or crashes makes the parts add up to more than the slice; it wastes some of it at most
until the loan ends.
"""

from dataclasses import dataclass

from isochrone.core.admission.stewards import DRIFT
from isochrone.core.ids import EntitlementId, SiteName

LOAN_NS = 5_000_000_000
_KEPT_ASKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """`borrower`, in this `life` of its gateway, wants so much of a slice in all.

    `number` grows and is never used twice in a life; `heard` is the highest whose loan it has.
    """

    entitlement: EntitlementId
    home: SiteName
    borrower: SiteName
    life: int
    number: int
    heard: int
    want_tok_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loan:
    """The answer: this rate in all, perhaps 0, for `for_ns` from when it was asked for.

    `spare_tok_s`: what the lender could lend besides. `steward` False: the site that was asked
    does not look after this home (any more).
    """

    entitlement: EntitlementId
    home: SiteName
    borrower: SiteName
    life: int
    number: int
    tok_s: int
    for_ns: int
    spare_tok_s: int
    steward: bool = True


@dataclass(frozen=True, slots=True)
class _Lent:
    number: int
    tok_s: int
    until_ns: int


class LentSlice:
    """A slice as its steward sees it. Mutable, owned by one event loop."""

    def __init__(self, tok_s: int) -> None:
        self.tok_s = tok_s
        self._lent: dict[tuple[SiteName, int], list[_Lent]] = {}

    def own_tok_s(self, now_ns: int) -> int:
        """What is not lent."""
        self._prune(now_ns)
        return self.tok_s - sum(_most(lent) for lent in self._lent.values())

    def next_end_ns(self) -> int | None:
        """When something that is lent comes back; None if nothing is."""
        ends = [each.until_ns for lent in self._lent.values() for each in lent]
        return min(ends, default=None)

    def hear(self, ask: Ask, keep_tok_s: int, term_until_ns: int, now_ns: int) -> Loan | None:
        """Lend what is asked for, as far as there is more than `keep_tok_s`, which the lender
        needs itself. No loan outlasts the lender's term. None: the ask is old."""
        self._prune(now_ns)
        who = (ask.borrower, ask.life)
        lent = [each for each in self._lent.get(who, ()) if each.number >= ask.heard]
        if lent and lent[-1].number >= ask.number:
            return None
        others = sum(_most(each) for key, each in self._lent.items() if key != who)
        free = max(self.tok_s - others - keep_tok_s, 0)
        tok_s = min(max(ask.want_tok_s, 0), free)
        for_ns = min(LOAN_NS, term_until_ns - now_ns)
        if for_ns <= 0:
            return None
        if tok_s:
            lent.append(_Lent(ask.number, tok_s, now_ns + for_ns))
        if lent:
            self._lent[who] = lent
        else:
            self._lent.pop(who, None)
        return Loan(
            entitlement=ask.entitlement, home=ask.home, borrower=ask.borrower, life=ask.life,
            number=ask.number, tok_s=tok_s, for_ns=for_ns, spare_tok_s=free - tok_s,
        )

    def _prune(self, now_ns: int) -> None:
        for who, lent in list(self._lent.items()):
            kept = [each for each in lent if each.until_ns > now_ns]
            if kept:
                self._lent[who] = kept
            else:
                del self._lent[who]


class BorrowedSlice:
    """A slice of another home as a borrower sees it. Mutable, owned by one event loop.

    `spare_tok_s`: what its steward said that it could lend, None before it said anything.
    `unanswered_since_ns`: when the first ask after its last answer was sent.
    """

    def __init__(
        self, entitlement: EntitlementId, home: SiteName, borrower: SiteName, life: int
    ) -> None:
        self.spare_tok_s: int | None = None
        self.unanswered_since_ns: int | None = None
        self.asked_ns = 0
        self._entitlement = entitlement
        self._home = home
        self._borrower = borrower
        self._life = life
        self._heard = 0
        self._tok_s = 0
        self._until_ns = 0
        self._asked: dict[int, int] = {}

    def tok_s(self, now_ns: int) -> int:
        """What may be used of it now."""
        return self._tok_s if now_ns < self._until_ns else 0

    @property
    def until_ns(self) -> int:
        """The end of the present loan."""
        return self._until_ns

    def ask(self, number: int, want_tok_s: int, now_ns: int) -> Ask:
        """Ask for so much in all, the present loan included."""
        self.asked_ns = now_ns
        self._asked[number] = now_ns
        if len(self._asked) > _KEPT_ASKS:
            del self._asked[min(self._asked)]
        if self.unanswered_since_ns is None:
            self.unanswered_since_ns = now_ns
        return Ask(
            entitlement=self._entitlement, home=self._home, borrower=self._borrower,
            life=self._life, number=number, heard=self._heard, want_tok_s=want_tok_s,
        )

    def hear(self, loan: Loan) -> None:
        """Use the loan from now on, in place of the one before. One that was answered to an
        earlier ask than the present one, or to another life, is not used."""
        asked_ns = self._asked.get(loan.number)
        if asked_ns is None or loan.life != self._life or loan.borrower != self._borrower:
            return
        if not loan.steward or loan.number <= self._heard:
            return
        self.unanswered_since_ns = None
        self.spare_tok_s = loan.spare_tok_s
        self._heard = loan.number
        self._tok_s = loan.tok_s
        self._until_ns = asked_ns + loan.for_ns - loan.for_ns // DRIFT


def _most(lent: list[_Lent]) -> int:
    """The highest rate that the borrower may still use."""
    return max(each.tok_s for each in lent)

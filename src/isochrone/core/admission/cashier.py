"""Who pays for requests that are served where too little of an entitlement can be: the cashier.

A site's allowance holds five seconds of what it has, so where few requests are served at each of
many sites, none of them could ever pay for one, though all of it together would be there. So each
entitlement has one site, the same for all, that collects what such sites ask for and pays for them,
request by request: a `Pay` spends tokens there once, however often it comes, and a `Paid` lets one
request through, once. What is lost on the way is the customer's loss of those tokens and never a
request too many. Mutable, owned by one event loop. See docs/entitlements.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from isochrone.core.admission.allowance import Allowance
from isochrone.core.ids import EntitlementId, SiteName

HOMES = 3  # so many of its homes are asked before the voters, of whom most stand if anything does
KEPT_NS = 600_000_000_000  # as long as a request may run, and be settled
MOST_KEPT = 10_000  # payments, of one entitlement; and as many that were refused
REFUSED_NS = 10_000_000_000  # as long as one that was refused may come twice


@dataclass(frozen=True, slots=True, kw_only=True)
class Pay:
    """`payer`, in this `life` of its gateway, asks to pay for one request. `number` is never used
    twice in a life. `counts`: the tokens are demand at the cashier, not at the payer."""

    entitlement: EntitlementId
    payer: SiteName
    life: int
    number: int
    tokens: int
    counts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Paid:
    """The answer: whether the tokens of that `Pay` were spent. `has_tok_s`: what the cashier may
    honour in all now."""

    entitlement: EntitlementId
    payer: SiteName
    life: int
    number: int
    paid: bool
    has_tok_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Back:
    """Of what was spent for that `Pay`: its request was `honoured` and used `tokens` less, or was
    not, and nothing is needed of it."""

    entitlement: EntitlementId
    payer: SiteName
    life: int
    number: int
    tokens: int
    honoured: bool


def cashiers_of(
    entitlement_id: EntitlementId, homes: Iterable[SiteName], voters: Iterable[SiteName]
) -> tuple[SiteName, ...]:
    """The cashier of an entitlement, then its successors, by rendezvous hash: a few of its homes,
    where it may be served, then the voters, without most of whom nothing is honoured anyway."""
    first = _ranked(entitlement_id, homes)[:HOMES]
    return (*first, *[each for each in _ranked(entitlement_id, voters) if each not in first])


def _ranked(entitlement_id: EntitlementId, sites: Iterable[SiteName]) -> list[SiteName]:
    return sorted(
        sites, reverse=True,
        key=lambda site: blake2b(f"{entitlement_id}\n{site}".encode(), digest_size=8).digest(),
    )


@dataclass(slots=True)
class _Kept:
    """`tokens`: spent for it, 0 where it is settled."""

    own_number: int
    tokens: int
    counts: bool
    at_ns: int


class Till:
    """The payments for other sites out of one entitlement's allowance here. Those that were refused
    are kept apart, and not for long: where more is asked for than was sold they are the most."""

    def __init__(self) -> None:
        self._kept: dict[tuple[SiteName, int, int], _Kept] = {}
        self._refused: dict[tuple[SiteName, int, int], int] = {}  # when
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._kept) + len(self._refused)

    def hear(self, pay: Pay, allowance: Allowance, now_ns: int) -> Paid:
        """Spend it, the first time that it is heard; the answer is always the same."""
        key = (pay.payer, pay.life, pay.number)
        paid = key in self._kept
        if not paid and key not in self._refused:
            self._prune(now_ns)
            self._numbers += 1
            paid = pay.tokens > 0 and allowance.spend_for_another(
                self._numbers, pay.tokens, now_ns, counts=pay.counts
            )
            if paid:
                self._kept[key] = _Kept(self._numbers, pay.tokens, pay.counts, now_ns)
            else:
                self._refused[key] = now_ns
        return Paid(
            entitlement=pay.entitlement, payer=pay.payer, life=pay.life, number=pay.number,
            paid=paid, has_tok_s=allowance.rate_tok_s(now_ns),
        )

    def take_back(self, back: Back, allowance: Allowance, now_ns: int) -> None:
        """Once for each payment, and no more than was spent for it."""
        kept = self._kept.get((back.payer, back.life, back.number))
        if kept is None or not kept.tokens:
            return
        unused, kept.tokens = min(max(back.tokens, 0), kept.tokens), 0
        if back.honoured:
            allowance.settle_for_another(kept.own_number, unused, now_ns, counts=kept.counts)
        else:
            allowance.give_back(kept.own_number, now_ns)

    def _prune(self, now_ns: int) -> None:
        """Forget the oldest: whatever comes of them yet is not heard any more."""
        while self._kept:
            key = next(iter(self._kept))
            if len(self._kept) < MOST_KEPT and now_ns - self._kept[key].at_ns <= KEPT_NS:
                break
            del self._kept[key]
        while self._refused:
            key = next(iter(self._refused))
            if len(self._refused) < MOST_KEPT and now_ns - self._refused[key] <= REFUSED_NS:
                break
            del self._refused[key]

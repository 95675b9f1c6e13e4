"""The ledger's rules: postings of entries that sum to zero, and what undoes one.

Double entry. An entry is an amount on an account, in 10^-12 of a currency's unit; the entries of a
posting sum to zero, so money moves and is never made. Nothing is changed or deleted: what was wrong
is unwound by a posting with the recorded entries' opposites, which names what it unwinds. Balances
are sums over entries and can be made again at any time. A posting is known by its tenant and its
idempotency key: the same again is the same posting, the key with other content is a conflict.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from isochrone.core.ids import OrgId, ProjectId
from isochrone.core.money import LARGEST, is_currency

# credit: what a customer has to spend. held: set aside for what is not settled. owed: what went
# there for usage, less what was charged: below zero, used and not paid. revenue, cash, rounding,
# breakage: the operator's own.
AccountKind = Literal["credit", "held", "owed", "revenue", "cash", "rounding", "breakage"]
PostingKind = Literal["credit", "hold", "settle", "void", "charge", "correction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Of a project of a customer; those of the operator have no project."""

    kind: AccountKind
    org_id: OrgId
    project_id: ProjectId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Adds `amount_pico`, which may be negative and is never 0, to an account."""

    account: Account
    amount_pico: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Posting:
    """`at`: wall nanoseconds UTC of what it is about. `about` names that: an hour of a meter with
    the digest of its usage, a request, a payment. `unwinds`: the key of what it takes back."""

    org_id: OrgId
    key: str
    kind: PostingKind
    at: int
    currency: str
    about: str
    entries: tuple[Entry, ...]
    unwinds: str | None = None


def problems_of(posting: Posting) -> list[str]:
    """Why a posting may not be recorded; none when it may."""
    found = []
    if not posting.key:
        found.append("it has no idempotency key")
    if not is_currency(posting.currency):
        found.append(f"currency {posting.currency!r}: want three capital letters")
    if len(posting.entries) < 2:
        found.append("it has fewer than two entries")
    total = sum(entry.amount_pico for entry in posting.entries)
    if total:
        found.append(f"its entries sum to {total}, not to zero")
    if any(entry.amount_pico == 0 for entry in posting.entries):
        found.append("an entry of nothing")
    if any(abs(entry.amount_pico) > LARGEST for entry in posting.entries):
        found.append("an amount beyond 38 digits")
    if any(entry.account.org_id != posting.org_id for entry in posting.entries):
        found.append("an account of another tenant")
    if (posting.kind == "correction") != (posting.unwinds is not None):
        found.append("a correction, and nothing else, names what it unwinds")
    return found


Verdict = Literal["recorded", "duplicate", "conflict"]


def verdict(known: Posting | None, posting: Posting) -> Verdict:
    """What becomes of a posting where `known` has its tenant and key already."""
    if known is None:
        return "recorded"
    return "duplicate" if known == posting else "conflict"


def unwinding(posting: Posting, *, key: str, at: int, about: str) -> Posting:
    """The correction that takes all of a recorded posting back, entry by entry in its order. Raises
    ValueError for a correction: what it took back is posted anew instead."""
    if posting.kind == "correction":
        raise ValueError("a correction is not unwound: post anew what it took back")
    return Posting(
        org_id=posting.org_id, key=key, kind="correction", at=at, currency=posting.currency,
        about=about, unwinds=posting.key,
        entries=tuple(
            Entry(account=entry.account, amount_pico=-entry.amount_pico)
            for entry in posting.entries
        ),
    )


def balances(postings: Iterable[Posting]) -> Mapping[tuple[Account, str], int]:
    """Sums by account and currency, accounts at zero left out."""
    sums: defaultdict[tuple[Account, str], int] = defaultdict(int)
    for posting in postings:
        for entry in posting.entries:
            sums[entry.account, posting.currency] += entry.amount_pico
    return {account: amount for account, amount in sums.items() if amount}

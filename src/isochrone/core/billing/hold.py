"""A hold: budget set aside before the price is known, then posted in part, or given back.

    nothing --open--> open --settle--> settled
                       |---void-----> voided
                       `---expire---> expired --settle--> settled (late, told apart)

While it is open its amount is on the account `held`. Settling moves what was used to `owed` and the
rest back to `credit`; more than was held is taken from `credit`, since it was used. A settlement
that comes after the expiry still counts: what was used was used. Any event again changes nothing.
"""

from dataclasses import dataclass, replace
from typing import Literal

from isochrone.core.billing.ledger import Account, Entry, Posting, PostingKind
from isochrone.core.ids import OrgId, ProjectId

HoldState = Literal["open", "settled", "voided", "expired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """`id` makes the keys of its postings. `expires_at`: wall ns."""

    id: str
    org_id: OrgId
    project_id: ProjectId
    currency: str
    amount_pico: int
    opened_at: int
    expires_at: int
    state: HoldState = "open"
    used_pico: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """So much was used, 0 or more."""

    used_pico: int


Event = Settle | Literal["void", "expire"]


def opening(hold: Hold) -> Posting:
    """Sets the amount aside. Raises ValueError for an amount that is not above zero."""
    if hold.amount_pico <= 0 or hold.expires_at <= hold.opened_at:
        raise ValueError("a hold is for more than nothing and longer than no time")
    moved = {"credit": -hold.amount_pico, "held": hold.amount_pico}
    posting = _posting(hold, "hold", hold.opened_at, moved)
    assert posting is not None, "more than nothing moves"
    return posting


def step(hold: Hold, event: Event, now: int) -> tuple[Hold, Posting | None]:
    """The hold afterwards, and what has to be posted, if anything."""
    if isinstance(event, Settle):
        return _settle(hold, event.used_pico, now)
    if hold.state != "open" or (event == "expire" and now < hold.expires_at):
        return hold, None
    back = {"held": -hold.amount_pico, "credit": hold.amount_pico}
    after: HoldState = "voided" if event == "void" else "expired"
    return replace(hold, state=after), _posting(hold, "void", now, back)


def _settle(hold: Hold, used_pico: int, now: int) -> tuple[Hold, Posting | None]:
    if used_pico < 0:
        raise ValueError("less than nothing cannot have been used")
    if hold.state in ("settled", "voided"):
        return hold, None
    held_pico = hold.amount_pico if hold.state == "open" else 0
    moved = {"held": -held_pico, "credit": held_pico - used_pico, "owed": used_pico}
    after = replace(hold, state="settled", used_pico=used_pico)
    return after, _posting(hold, "settle", now, moved)


def _posting(hold: Hold, kind: PostingKind, at: int, moved: dict[str, int]) -> Posting | None:
    """None where nothing moves."""
    accounts: dict[str, Account] = {
        "credit": Account(kind="credit", org_id=hold.org_id, project_id=hold.project_id),
        "held": Account(kind="held", org_id=hold.org_id, project_id=hold.project_id),
        "owed": Account(kind="owed", org_id=hold.org_id, project_id=hold.project_id),
    }
    entries = tuple(
        Entry(account=accounts[name], amount_pico=amount)
        for name, amount in moved.items() if amount
    )
    if not entries:
        return None
    return Posting(
        org_id=hold.org_id, key=f"{hold.id}/{kind}", kind=kind, at=at, currency=hold.currency,
        about=hold.id, entries=entries,
    )

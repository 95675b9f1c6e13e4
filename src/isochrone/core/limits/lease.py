"""A budget in the ledger: what is left of a project's is held, day by day, and settled afterwards.

The lease of a day is a hold: opened with what is left of the budget then, settled with what was
spent in the day when that is known, and given back where nobody settles it in time. Money belongs
to projects, so budgets of a key or of a whole organisation hold none: it would be held twice.
"""

from isochrone.core.billing.hold import Hold
from isochrone.core.billing.period import DAY_NS, day_of
from isochrone.core.billing.sheet import HOUR_NS
from isochrone.core.world.limit import Limit

SETTLED_WITHIN_NS = 26 * HOUR_NS  # after the day; from then on it is given back


def lease_id(limit: Limit, at: int) -> str:
    """The id of the lease of the day of an instant."""
    return f"lease/{limit.id}/{day_of(at) // DAY_NS}"


def lease_of(limit: Limit, spent_pico: int, now: int) -> Hold | None:
    """The lease of this day, where `spent_pico` of the period are spent already; None where there
    is nothing left, or nothing to hold."""
    left = limit.amount - spent_pico
    if limit.project_id is None or limit.key_id is not None or left <= 0:
        return None
    assert limit.currency is not None, "a budget has a currency"
    return Hold(
        id=lease_id(limit, now), org_id=limit.org_id, project_id=limit.project_id,
        currency=limit.currency, amount_pico=left, opened_at=now,
        expires_at=day_of(now) + DAY_NS + SETTLED_WITHIN_NS,
    )

"""When the period of a budget began: a day or a calendar month of UTC."""

from isochrone.core.billing.period import day_of, month_of
from isochrone.core.world.limit import BudgetPeriod


def period_begin(period: BudgetPeriod, at: int) -> int:
    """Of the period of an instant (wall nanoseconds UTC)."""
    return day_of(at) if period == "day" else month_of(at).begin


def period_end(period: BudgetPeriod, at: int) -> int:
    """When the next one begins."""
    if period == "day":
        return day_of(at) + 86_400_000_000_000
    return month_of(at).end

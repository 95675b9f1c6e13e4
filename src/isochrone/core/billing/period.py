"""The billing period: a calendar month of UTC, in whole hours."""

from datetime import UTC, datetime, timedelta
from fractions import Fraction

from isochrone.core.billing.rate import Period
from isochrone.core.billing.sheet import HOUR_NS

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def hour_of(at: int) -> int:
    """The start of the hour of an instant (wall nanoseconds UTC)."""
    return at - at % HOUR_NS


def month_of(at: int) -> Period:
    """The period of an instant; it ends where the next one begins."""
    moment = _EPOCH + timedelta(seconds=at // 1_000_000_000)
    begin = moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    after = (begin + timedelta(days=32)).replace(day=1)
    return Period(begin=_ns(begin), end=_ns(after))


def _ns(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(seconds=1) * 1_000_000_000


def part_over(period: Period, now: int) -> Fraction:
    """The part of the period that is over at `now`."""
    done = min(max(now, period.begin), period.end) - period.begin
    return Fraction(done, period.end - period.begin)

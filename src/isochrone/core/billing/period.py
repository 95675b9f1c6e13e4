"""The billing period: a calendar month of UTC, in whole hours."""

import re
from fractions import Fraction
from typing import Final

from isochrone.core.billing.rate import Period
from isochrone.core.billing.sheet import HOUR_NS

DAY_NS: Final = 24 * HOUR_NS
_NAME: Final = re.compile(r"([0-9]{4})-([0-9]{2})")
_DAYS_TO_EPOCH: Final = 719_468  # from 1 March of the year 0 to 1 January 1970
_ERA_DAYS, _ERA_YEARS = 146_097, 400  # after which the calendar repeats itself


def hour_of(at: int) -> int:
    """The start of the hour of an instant (wall nanoseconds UTC)."""
    return at - at % HOUR_NS


def day_of(at: int) -> int:
    """The start of the day (UTC) of an instant (wall nanoseconds UTC)."""
    return at - at % DAY_NS


def month_of(at: int) -> Period:
    """The period of an instant; it ends where the next one begins."""
    return _month(*_year_and_month(at))


def month_named(name: str) -> Period:
    """Of a name such as 2026-11, from 1970 on. Raises ValueError."""
    found = _NAME.fullmatch(name)
    if found is None or not (1 <= int(found[2]) <= 12 and int(found[1]) >= 1970):
        raise ValueError(f"{name!r} is not a month like 2026-11")
    return _month(int(found[1]), int(found[2]))


def name_of(period: Period) -> str:
    """The name of a month, such as 2026-11."""
    year, month = _year_and_month(period.begin)
    return f"{year:04d}-{month:02d}"


def day_name(at: int) -> str:
    """The name of the day (UTC) of an instant, such as 2026-11-20."""
    year, month = _year_and_month(at)
    return f"{year:04d}-{month:02d}-{at // DAY_NS - _first_day(year, month) + 1:02d}"


def part_over(period: Period, now: int) -> Fraction:
    """The part of the period that is over at `now`."""
    done = min(max(now, period.begin), period.end) - period.begin
    return Fraction(done, period.end - period.begin)


def _month(year: int, month: int) -> Period:
    later = (year, month + 1) if month < 12 else (year + 1, 1)
    return Period(begin=_first_day(year, month) * DAY_NS, end=_first_day(*later) * DAY_NS)


def _year_and_month(at: int) -> tuple[int, int]:
    """Of the proleptic Gregorian calendar, counted from March so that leap days come last."""
    days = at // DAY_NS + _DAYS_TO_EPOCH
    era, of_era = divmod(days, _ERA_DAYS)
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    month = month + 3 if month < 10 else month - 9
    return era * _ERA_YEARS + year + (month <= 2), month


def _first_day(year: int, month: int) -> int:
    """Days since 1970 of the first of a month."""
    year -= month <= 2
    era, of_era = divmod(year, _ERA_YEARS)
    of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5
    days = of_era * 365 + of_era // 4 - of_era // 100 + of_year
    return era * _ERA_DAYS + days - _DAYS_TO_EPOCH

"""How values are written: instants, durations, counts and shares; and how large what is written is.
"""

import re
from datetime import UTC, datetime

from isochrone.core.percent import percent

NS_PER_S = 1_000_000_000
NOTHING = "–"
LEAST = -1e300  # as which nothing is sorted
NUMBER = re.compile(r"(-?[0-9][0-9\u202f]*(?:\.[0-9]+)?)(?: (ms|s|min|h|M)\b)?")
UNITS = {"": 1.0, "ms": 1.0, "s": 1e3, "min": 6e4, "h": 3.6e6, "M": 1e6}


def instant(at: int | None) -> str:
    """Wall nanoseconds as UTC to the second."""
    if at is None:
        return NOTHING
    return datetime.fromtimestamp(at // NS_PER_S, UTC).strftime("%Y-%m-%d %H:%M:%S")


def day(at: int | None) -> str:
    """Wall nanoseconds as the day of UTC."""
    return instant(at)[:10]


def duration(ms: float | None) -> str:
    """Milliseconds in the unit that reads best."""
    if ms is None:
        return NOTHING
    if ms < 10:
        return f"{ms:.1f} ms"
    if ms < 1_000:
        return f"{ms:.0f} ms"
    if ms < 60_000:
        return f"{ms / 1_000:.1f} s"
    if ms < 3_600_000:
        return f"{ms / 60_000:.0f} min"
    return f"{ms / 3_600_000:.1f} h"


def count(number: float | None) -> str:
    """A number with thin spaces between thousands; large ones shortened."""
    if number is None:
        return NOTHING
    if abs(number) >= 10_000_000:
        return f"{number / 1_000_000:.1f} M"
    return f"{number:,.0f}".replace(",", "\u202f")


def whole(number: int) -> str:
    """A whole number with thin spaces between thousands, however large."""
    return f"{number:,}".replace(",", "\u202f")


def ago(age_ms: float | None) -> str:
    """When something was heard that comes every second."""
    if age_ms is None:
        return "never"
    return "now" if age_ms < 3_000 else f"{duration(age_ms)} ago"


def share(part: float, whole: float) -> str:
    """`part` of `whole` in percent; what is nearly all or nearly nothing is not called so."""
    return NOTHING if whole == 0 else percent(part, whole)


def size(said: str) -> float:
    """How large the first number is in what these functions wrote, to sort by."""
    found = NUMBER.search(said)
    if found is None:
        return LEAST
    return float(found[1].replace("\u202f", "")) * UNITS[found[2] or ""]


def text(value: object) -> str:
    """A cell of a table: a dash for nothing, lists with commas."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list | frozenset):
        return ", ".join(text(each) for each in value) or NOTHING
    if isinstance(value, float):
        return f"{value:.1f}"
    return str(value)

"""Reads instants that callers give: RFC 3339 text with an offset, wall nanoseconds UTC; days."""

from datetime import UTC, datetime, timedelta

from isochrone.core.errors import InvalidInput

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_NS = (1 << 63) - 1
_MOST_DIGITS = len(str(_MOST_NS))  # Python refuses to read numbers of thousands of them


def instant_of(name: str, text: str | None) -> int | None:
    """Wall nanoseconds UTC. Raises InvalidInput, naming the parameter."""
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS and int(text) <= _MOST_NS:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    # A plus sign in a query string arrives as a space, hence the example with Z.
    if moment is None or moment.tzinfo is None:
        raise InvalidInput(
            [f"{name}: must be like 2026-11-20T18:00:00Z or wall nanoseconds, not {text!r}"]
        )
    at = (moment - _EPOCH) // timedelta(microseconds=1) * 1000
    if not 0 <= at <= _MOST_NS:
        raise InvalidInput([f"{name}: {text!r} is not between the years 1970 and 2262"])
    return at


def day_at(text: str) -> int:
    """The start of a day of UTC such as 2026-11-20, in wall nanoseconds. Raises InvalidInput."""
    try:
        at = instant_of("day", f"{text}T00:00:00Z") if len(text) == 10 else None
    except InvalidInput:
        at = None
    if at is None:
        raise InvalidInput([f"day: must be like 2026-11-20, not {text!r}"])
    return at

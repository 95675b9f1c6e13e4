"""Decides how long keys last: what end one may be given, and when a rotated one stops.

Instants are wall nanoseconds UTC.
"""

SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS
LONGEST_TERM_DAYS = 3_650
MOST_OVERLAP_S = 30 * 86_400
USUAL_OVERLAP_S = 86_400


def check_end(expires_at: int | None, *, now: int) -> list[str]:
    """What is wrong with the end of a new key; None is no end."""
    if expires_at is None:
        return []
    if expires_at <= now:
        return ["expires_at: lies in the past"]
    if expires_at > now + LONGEST_TERM_DAYS * DAY_NS:
        return [f"expires_at: more than {LONGEST_TERM_DAYS} days away; leave it out for no end"]
    return []


def check_overlap(overlap_s: int) -> list[str]:
    """What is wrong with how long a rotated key goes on."""
    if 0 <= overlap_s <= MOST_OVERLAP_S:
        return []
    return [f"overlap_s: must be 0..{MOST_OVERLAP_S} (30 days), not {overlap_s}"]


def is_over(expires_at: int | None, *, now: int) -> bool:
    """Whether a key with this end is refused at `now`."""
    return expires_at is not None and now >= expires_at


def is_later(expires_at: int | None, than: int | None) -> bool:
    """Whether an end that is stated (None: none is) lies beyond another (None: there is none)."""
    return expires_at is not None and than is not None and expires_at > than


def end_of_rotated(expires_at: int | None, *, now: int, overlap_s: int) -> int:
    """When a key that is replaced now stops: after the overlap, and never later than it would."""
    until = now + overlap_s * SECOND_NS
    return until if expires_at is None else min(expires_at, until)


def renewed_end(made_at: int, expires_at: int | None, *, now: int) -> int | None:
    """The end of the key that replaces another: as long a term as that one was given."""
    return None if expires_at is None else now + max(expires_at - made_at, SECOND_NS)

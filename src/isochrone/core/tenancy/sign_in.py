"""Decides how soon another try to sign in is allowed, and what a password must be.

Instants are wall nanoseconds UTC.
"""

from dataclasses import dataclass
from typing import Literal

from isochrone.core.tenancy.terms import SECOND_NS

SESSION_NS = 12 * 3600 * SECOND_NS
FORGOTTEN_NS = 3600 * SECOND_NS  # tries are forgotten so long after the last of them
LONGEST_WAIT_S = 300
SHORTEST_PASSWORD, LONGEST_PASSWORD = 12, 200

# A name is tried by its owner, an address by everybody behind it.
Tried = Literal["login", "address"]
FREE_TRIES: dict[Tried, int] = {"login": 5, "address": 30}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tries:
    """How often something was tried since the last success, and when last."""

    what: Tried
    count: int
    last_at: int


def wait_s(tries: Tries, *, now: int) -> float:
    """Seconds until one more try is allowed: none for the first few, then twice as long each."""
    since_ns = now - tries.last_at
    over = tries.count - FREE_TRIES[tries.what]
    if over < 0 or since_ns >= FORGOTTEN_NS:
        return 0.0
    pause_s = min(1 << min(over, 16), LONGEST_WAIT_S)
    return max(0.0, float(pause_s) - since_ns / SECOND_NS)


def check_password(password: str, *, login: str) -> list[str]:
    """What is wrong with a new password. Length is what counts; no kinds of characters are asked
    for."""
    if len(password) < SHORTEST_PASSWORD:
        return [f"password: needs at least {SHORTEST_PASSWORD} characters, has {len(password)}"]
    if len(password) > LONGEST_PASSWORD:
        return [f"password: has {len(password)} characters, at most {LONGEST_PASSWORD} are read"]
    if login and login.casefold() in password.casefold():
        return ["password: holds the name that it is for"]
    if len(set(password)) < 5:
        return ["password: repeats too few characters"]
    return []

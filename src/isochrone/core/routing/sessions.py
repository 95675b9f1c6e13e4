"""Sessions and their soft homes: requests of a session stay at one site until that costs too much,
and then move once.

Sessions are known by salted hashes, so that nobody's session names another's home. A home is never
more than a preference among the sites that a choice has found open. See docs/sessions.md.
"""

from typing import Final

from isochrone.core.ids import SiteName
from isochrone.core.routing.bond import HomeVerdict

MOST_LIMIT_MS: Final = 2_000.0  # nobody waits longer than this for the sake of a home
HOLD_NS: Final = 30_000_000_000  # after a move a session does not move by cost for so long
FORGOTTEN_NS: Final = 1_800_000_000_000  # a session that is not heard of for so long has no home


class Home:
    """Where a session is at home, since it last moved and was last heard of. Replaced, not changed,
    when it moves."""

    __slots__ = ("moved_ns", "site", "used_ns")

    def __init__(self, site: SiteName, moved_ns: int, used_ns: int) -> None:
        self.site = site
        self.moved_ns = moved_ns
        self.used_ns = used_ns

    def is_held(self, now_ns: int) -> bool:
        """Whether it moved here too lately to move on by cost."""
        return now_ns - self.moved_ns < HOLD_NS

    @property
    def is_settled(self) -> bool:
        """Whether any request has come after the one that moved it here."""
        return self.used_ns > self.moved_ns


class Sessions:
    """Session -> home; at most `most` are kept, in two halves like blocks of prompts.

    Mutable, owned by one event loop.
    """

    def __init__(self, most: int = 65_536) -> None:
        self._half = max(most // 2, 1)
        self._young: dict[int, Home] = {}
        self._old: dict[int, Home] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def home(self, session: int, now_ns: int) -> Home | None:
        """The home of a session; None where it has none, or was not heard of for too long."""
        home = self._young.get(session)
        if home is None:
            home = self._old.get(session)
        if home is None or now_ns - home.used_ns >= FORGOTTEN_NS:
            return None
        return home

    def went(self, session: int, site: SiteName, verdict: HomeVerdict, now_ns: int) -> None:
        """A request of the session goes to `site`, as `judge` said of its home."""
        home = self.home(session, now_ns)
        if home is None:
            home = Home(site, now_ns - HOLD_NS, now_ns)  # it has not moved: nothing is held
        elif verdict == "moved" or verdict == "gone":
            home = Home(site, now_ns, now_ns)
        home.used_ns = now_ns
        if session not in self._young and len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[session] = home


def limit_ms(tie_ms: float, saved_ms: float, *, is_held: bool) -> float:
    """How much dearer a home may be than where a request would go without one: as much as the
    cached beginning saves there, since that is what a move throws away; at least what counts as
    equal. One that was moved to lately may be as much dearer as anybody waits for a home."""
    return max(tie_ms, MOST_LIMIT_MS if is_held else min(saved_ms, MOST_LIMIT_MS))


def judge(
    home: Home, home_ms: float, other_ms: float, limit: float, now_ns: int, *,
    is_full: bool = False,
) -> HomeVerdict:
    """Whether a request goes to its session's home, by its cost there and where it would go without
    one, in milliseconds. `home_ms` is infinite where the home cannot take it; `is_full`: because
    its queue has just sent this request back.

    A home that was moved to lately is left by cost for single requests only, and a queue is cost:
    else two sites that are busy in turns would send a session to and fro. But who is sent back by
    the site that this very request has moved it to has left nothing there.
    """
    if home_ms == float("inf") and not (is_full and home.is_settled):
        return "gone"
    if home_ms - other_ms <= limit:
        return "kept"
    return "overflow" if home.is_held(now_ns) else "moved"

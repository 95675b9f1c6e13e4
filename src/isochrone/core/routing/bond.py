"""What bound a request to a site beside its cost: a cached beginning, and the home of its session.
"""

from dataclasses import dataclass
from typing import Literal

from isochrone.core.ids import SiteName

HomeVerdict = Literal[
    "none",      # the request is of no session
    "new",       # its session has no home yet: where this request goes
    "kept",      # the home costs little enough to stay
    "moved",     # the home costs too much, or sent this request back because much waits there:
                 # its session moves to where this request goes
    "gone",      # the home cannot take the request: its session moves, too
    "overflow",  # as `moved`, but its session has moved lately: this request only
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bond:
    """Of `prompt_tokens` of the prompt `cached_tokens` were believed to be cached where it was
    sent; both are estimates of the gateway. `home` is the session's before this request; it may be
    `limit_ms` dearer than where the request would go without one."""

    cached_tokens: int
    prompt_tokens: int
    verdict: HomeVerdict = "none"
    home: SiteName | None = None
    limit_ms: float = 0.0

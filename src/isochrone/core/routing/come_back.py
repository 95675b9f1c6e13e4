"""Says when to come back with a request for which a site is allowed and none can take it.

A site that failed, fell silent or is just starting may be back in a moment. One that an operator
has drained or stopped, or that has not joined, waits for a person, and who asks every second
meanwhile only asks.
"""

from collections.abc import Callable

from isochrone.core.ids import SiteName
from isochrone.core.routing.choice import Ground

SOON_S = 1
BY_HAND_S = 30  # longer than a moment, and how late the end of it is noticed at most


def waits_for_operator(ground: Ground, is_stopped: Callable[[SiteName], bool]) -> bool:
    """Whether every allowed site does. The open ones have joined and are not drained."""
    return all(is_stopped(each.site) for each in ground.open_sites)

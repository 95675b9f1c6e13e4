"""Choosing sites one after the other, while those that were chosen refuse at once.

A site that this gateway reaches itself says in the same instant that none of its replicas is ready,
or that its queue is full, and there may be hundreds of such sites.
"""

from abc import abstractmethod

from isochrone.gateway.context import Context
from isochrone.gateway.site_queues import Waiter


class Choosing(Waiter):
    """Who is chosen for. `_chooses_again` is None while no choice is being made."""

    context: Context
    _chooses_again: bool | None = None

    @abstractmethod
    def choose_one(self, now_ns: int) -> None:
        """Choose a site and try it."""

    def choose(self, now_ns: int) -> None:
        """Choose, and again for as long as that is asked for from within: not from there, where
        each site would be a few calls deeper."""
        if self._chooses_again is not None:
            self._chooses_again = True
            return
        try:
            self._chooses_again = False
            self.choose_one(now_ns)
            while self._chooses_again:
                self._chooses_again = False
                self.choose_one(self.context.clock.monotonic_ns())
        finally:
            self._chooses_again = None

"""Has the bus refuse the logins that the book says were taken back.

Load what is revoked, and have the bus refuse it: at the start, at every change (`wake`) and every
few seconds anyway, since a server may have been away, or have come back without what it was told.
All copies of control do this, and none takes back what another one did.
"""

import asyncio

import structlog

from isochrone.control.offload import Offload
from isochrone.control.pausing import pause
from isochrone.core.errors import Unavailable
from isochrone.ports.clock import Clock
from isochrone.ports.estate import Estate
from isochrone.ports.logins import Logins

INTERVAL_S = 2.0
RETRY_S = 0.5

log = structlog.get_logger()


class Revoking:
    """The revoking loop of one copy of control."""

    def __init__(
        self, estate: Estate, logins: Logins, *, clock: Clock, offload: Offload
    ) -> None:
        self._estate = estate
        self._logins = logins
        self._clock = clock
        self._offload = offload
        self._changed = asyncio.Event()
        self._told = ""

    def wake(self) -> None:
        """Look at the book now; call it on the loop's own thread."""
        self._changed.set()

    async def run(self) -> None:
        """Revoke until cancelled; outages of the book and the bus are waited out."""
        while True:
            pause_s = INTERVAL_S
            try:
                await self.revoke()
                self._told = ""
            except Unavailable as error:
                if error.message != self._told:  # once a cause, not once a try
                    self._told = error.message
                    log.warning("revoking_waits", reason=error.message)
                pause_s = RETRY_S
            await pause(self._changed, pause_s)

    async def revoke(self) -> int:
        """One round: how many logins were let in before it. Raises Unavailable."""
        self._changed.clear()
        now = self._clock.wall_ns()
        revoked = await self._offload(lambda: self._estate.revoked_logins(now=now))
        count = await self._logins.refuse(revoked) if revoked else 0
        if count:
            log.info("logins_revoked", count=count, of=len(revoked))
        return count

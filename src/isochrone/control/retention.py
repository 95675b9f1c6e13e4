"""For ever: erases who former members were, once their organisation retains it no longer, removes
sign-ins that are over, and forgets idempotency keys."""

import asyncio
from functools import partial

import structlog

from isochrone.control.offload import Offload
from isochrone.core.errors import Unavailable
from isochrone.ports.accounts import Accounts
from isochrone.ports.clock import Clock
from isochrone.ports.members import Members
from isochrone.ports.writes import Writes

INTERVAL_S = 3600.0

log = structlog.get_logger()


async def erase_for_ever(
    members: Members, accounts: Accounts, writes: Writes, clock: Clock, offload: Offload
) -> None:
    """At the start and once an hour. Several copies of control may do this at once."""
    while True:
        try:
            erased = await offload(partial(members.erase_overdue, now=clock.wall_ns()))
            await offload(partial(accounts.forget_old, now=clock.wall_ns()))
            # A tenant's own writes forget the tenant's, and there may be no more of them.
            await offload(partial(writes.forget_old, now=clock.wall_ns()))
        except Unavailable as error:
            log.warning("erasing_waits", reason=str(error))
        else:
            if erased:
                log.info("members_erased", count=erased)
        await asyncio.sleep(INTERVAL_S)

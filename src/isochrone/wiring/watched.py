"""Watches work beside a gateway that runs alone: what fails there is logged and begun again.

Requests do not need that work, so a bug in it must not end them; and nobody waits for it, so
without this nobody would see one.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

FIRST_WAIT_S = 0.4
LONGEST_WAIT_S = 60.0
SETTLED_S = 60.0  # what ran this long did not fail at its start

log = structlog.get_logger()


async def watched(
    name: str, work: Callable[[], Awaitable[None]], *, first_wait_s: float = FIRST_WAIT_S
) -> None:
    """Do `work` until it ends by itself; after a bug in it again, each time somewhat later."""
    loop, wait_s = asyncio.get_running_loop(), first_wait_s
    while True:
        began_s = loop.time()
        try:
            await work()
        except Exception as error:  # supervisor: requests go on, and somebody reads the log
            if loop.time() - began_s >= SETTLED_S:
                wait_s = first_wait_s
            log.error("task_failed", task=name, again_in_s=wait_s, exc_info=error)
        else:
            return
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)

"""The pause between two rounds of a loop that a change ends early."""

import asyncio


async def pause(changed: asyncio.Event, seconds: float) -> None:
    """Return when something changed, or after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            await changed.wait()
    except TimeoutError:
        return

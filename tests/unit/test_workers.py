"""The parent of workers: what it hears of one that ended."""

import asyncio
import os
import signal
from pathlib import Path

from isochrone.wiring.workers import _Workers

ROUNDS = 200


def test_who_is_told_in_the_moment_of_its_end_still_says_how_it_ended() -> None:
    """Else a worker that was killed would be taken for one that cannot work, and all stopped."""

    async def main() -> set[int]:
        parent, codes = _Workers(Path("gateway.toml"), 1, 4100, Path("journal")), set()
        for _ in range(ROUNDS):
            process = await asyncio.create_subprocess_exec("sleep", "60")
            parent._running[0] = process
            os.kill(process.pid, signal.SIGKILL)
            for _ in range(20):
                parent._tell(signal.SIGHUP)
            codes.add(await process.wait())
        return codes

    assert asyncio.run(main()) == {-signal.SIGKILL}

"""Child processes that cannot outlive their supervisor.

The parent-death signal is tied to the *thread* that starts the child: start children from the
main thread (as asyncio's subprocess functions do there), or the signal comes when a worker thread
ends.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

LAUNCH = Path(__file__).with_name("launch.py")


def child_command(argv: Sequence[str]) -> list[str]:
    """Wrap `argv` so that the program gets SIGKILL when the calling process dies.

    The started process keeps its pid: launch.py becomes the program by exec.
    """
    return [sys.executable, "-I", "-S", str(LAUNCH), str(os.getpid()), *argv]

"""Waits on conditions of real processes, always with a deadline."""

import time
from collections.abc import Callable
from pathlib import Path

DEADLINE_S = 60.0
POLL_S = 0.05


def wait_until(
    condition: Callable[[], bool], what: str, *, deadline_s: float = DEADLINE_S,
    poll_s: float = POLL_S,
) -> float:
    """Seconds until `condition` held; fails with `what` when it does not within the deadline."""
    began = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - began
        assert waited_s < deadline_s, f"not within {deadline_s:.0f} s: {what}"
        time.sleep(poll_s)
    return time.monotonic() - began


def gone(pid: int) -> bool:
    """True when the process has ended (a zombie that nobody reaps has)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"

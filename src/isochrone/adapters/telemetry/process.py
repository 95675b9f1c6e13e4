"""What the operating system says that this process uses."""

import os
import resource
from pathlib import Path

from isochrone.ports.telemetry import ProcessUse

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_START, _RESIDENT = 19, 21  # in /proc/self/stat, behind the name


def process_use() -> ProcessUse:
    """Of this process; what a system without /proc does not say is 0."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    most_fds, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    cpu_s = usage.ru_utime + usage.ru_stime
    try:
        stat = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        open_fds = len(os.listdir("/proc/self/fd")) - 1  # the listing's own
        started_at = _booted_at() + int(stat[_START]) / _TICKS_PER_S
    except OSError:
        return ProcessUse(
            cpu_s=cpu_s, resident_bytes=0, open_fds=0, most_fds=most_fds, started_at=0.0
        )
    return ProcessUse(
        cpu_s=cpu_s, resident_bytes=int(stat[_RESIDENT]) * _PAGE_BYTES, open_fds=open_fds,
        most_fds=most_fds, started_at=started_at,
    )


def _booted_at() -> float:
    """Seconds since 1970."""
    for line in Path("/proc/stat").read_bytes().splitlines():
        if line.startswith(b"btime "):
            return float(line.split()[1])
    return 0.0

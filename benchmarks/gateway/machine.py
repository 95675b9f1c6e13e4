"""Reads what the machine spent: CPU of process trees, memory, and how busy each core was."""

import os
import platform
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """`router` runs what is measured and nothing else; `load` everything that loads it."""

    router: int
    load: int


def choose_cores() -> Cores:
    """The first two cores this process may use; raises SystemExit when there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("two cores are needed: one for the router, one for upstream and load")
    return Cores(router=cores[0], load=cores[1])


def tree(root: int) -> list[int]:
    """`root` and every process below it; `root` alone when it has none or is gone."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, fresh = [root], [root]
    while fresh:
        fresh = [child for parent in fresh for child in children.get(parent, [])]
        found += fresh
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """User and system seconds of these processes, all threads, to the nanosecond.

    The times in /proc have steps of 10 ms, which is much of a short run: this reads the clock
    that they are rounded from (clock_getcpuclockid(3)).
    """
    total = 0.0
    for pid in pids:
        try:
            total += time.clock_gettime(~pid << 3 | 2)
        except OSError:  # it has ended
            continue
    return total


def pss_mb(pids: Iterable[int]) -> float:
    """Proportional resident memory: pages shared by several processes count in parts."""
    total_kb = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total_kb += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total_kb / 1024


def busy_s(core: int) -> float:
    """Seconds that a core has worked for anyone since it started."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _, _, hard, soft = map(int, ticks[:7])
            return (user + nice + system + hard + soft) / TICKS_PER_S
    raise SystemExit(f"/proc/stat knows no core {core}")


def facts() -> dict[str, object]:
    """What the numbers were measured on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def commit(source: Path) -> dict[str, object]:
    """The commit of a source folder, and whether it has local changes."""
    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(
                ["git", "-C", str(source), *arguments], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return "unknown"
        return done.stdout.strip()

    return {
        "commit": git("rev-parse", "HEAD"), "changed": git("status", "--porcelain", ".") != "",
    }

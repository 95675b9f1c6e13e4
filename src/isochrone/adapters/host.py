"""Finds what the machine has that this process runs on, as Linux and the NVIDIA driver say it.

What is not there to be read is left out; nothing here raises for a machine that is unlike ours.
"""

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from hashlib import sha256
from math import ceil
from pathlib import Path

from isochrone.core.ids import HostName
from isochrone.core.world.host import Gpu, Host, is_host_name

UNNAMED = "unnamed"
GPUS_ASKED = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
GPUS_WAIT_S = 20.0  # without its persistence daemon the driver wakes each GPU first
MIB = 1024 * 1024
MOST_KIND = 100


def find_host(
    name: str | None, *, root: Path = Path("/"), asked: Sequence[str] = GPUS_ASKED
) -> Host:
    """The host of this process, called `name`, by default as its kernel calls it. `root` is where
    /proc and /sys are, `asked` the command that lists GPUs; it may take seconds on a machine with
    many, and is given up after 20."""
    return Host(
        name=HostName(name) if name is not None else named(os.uname().nodename),
        cores=_cores(root), memory_bytes=_memory_bytes(root), gpus=_gpus(asked),
        machine=_machine(root),
    )


def named(node: str) -> HostName:
    """A node name as a host may be called: other characters become '-'."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", node)[:253].strip("._-")
    return HostName(plain if is_host_name(plain) else UNNAMED)


def _cores(root: Path) -> int:
    """Those that this process may run on, or fewer where its group may use less of their time."""
    cores = len(os.sched_getaffinity(0))
    for group in _groups(root):
        quota, _, period = _text(group / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            cores = min(cores, ceil(int(quota) / int(period)))
    return max(cores, 1)


def _memory_bytes(root: Path) -> int | None:
    """What the machine has, or less where its group may use less."""
    found = re.search(r"^MemTotal:\s+(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    limits = [_text(group / "memory.max") for group in _groups(root)]
    known = [int(limit) for limit in limits if limit.isdigit()]
    if found is not None:
        known.append(int(found[1]) * 1024)
    return min(known, default=None)


def _groups(root: Path) -> Iterator[Path]:
    """The folders of this process's control group (version 2) and of those that it lies in."""
    top = root / "sys/fs/cgroup"
    found = re.search(r"^0::/(.*)$", _text(root / "proc/self/cgroup"), re.MULTILINE)
    yield top
    if found is not None and ".." not in found[1]:
        folder = top
        for part in filter(None, found[1].split("/")):
            folder /= part
            yield folder


def _machine(root: Path) -> str | None:
    """Derived from what the kernel drew at its start, which all its containers share; its own name
    would say more of the machine than is asked."""
    drawn = _text(root / "proc/sys/kernel/random/boot_id")
    return sha256(drawn.encode()).hexdigest()[:16] if drawn else None


def _gpus(asked: Sequence[str]) -> tuple[Gpu, ...]:
    try:
        answer = subprocess.run(
            asked, stdin=subprocess.DEVNULL, capture_output=True, timeout=GPUS_WAIT_S, check=True,
            text=True, errors="replace",
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(_gpu(line) for line in answer.stdout.splitlines() if line.strip())


def _gpu(line: str) -> Gpu:
    """Of a line like `NVIDIA H200, 143771`; memory in MiB, or words where it has none of its own.
    """
    kind, _, memory = line.rpartition(",")
    text = memory.strip()
    return Gpu(
        kind=kind.strip()[:MOST_KIND], memory_bytes=int(text) * MIB if text.isdigit() else None
    )


def _text(path: Path) -> str:
    """What a file of the kernel says; nothing when it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""

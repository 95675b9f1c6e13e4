"""Disk port in memory: capacity, process deaths, power cuts with torn writes, failing syncs.

The object is the disk itself and outlives the processes that use it: `process_died` makes every
open segment unusable, `power_cut` also loses what was not synced. A process that is simulated goes
on for a moment after its death: what it then does through its `mount` reaches nobody.
"""

import asyncio
import errno
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random


@dataclass(slots=True)
class _File:
    data: bytearray = field(default_factory=bytearray)
    synced_bytes: int = 0
    reserved_bytes: int = 0

    @property
    def occupied_bytes(self) -> int:
        return max(len(self.data), self.reserved_bytes)


class MemorySegment:
    """One open segment of the fake."""

    def __init__(self, disk: "MemoryDisk", file: _File) -> None:
        self._disk = disk
        self._file = file
        self._life = disk.life
        self._open = True

    @property
    def size_bytes(self) -> int:
        return len(self._file.data)

    def append(self, data: bytes) -> None:
        self._check()
        if self._disk.failing_appends > 0:
            self._disk.failing_appends -= 1
            raise OSError(errno.EIO, "input/output error")
        grows = len(self._file.data) + len(data) - self._file.occupied_bytes
        room = self._disk.free_bytes
        if grows > room:
            kept = len(data) - (grows - room)  # a real disk writes what fits
            self._file.data += data[: max(kept, 0)]
            raise OSError(errno.ENOSPC, "no space left on device")
        self._file.data += data

    async def sync(self) -> None:
        self._check()
        size = len(self._file.data)
        await asyncio.sleep(self._disk.sync_s)
        self._check()
        if self._disk.failing_syncs > 0:
            self._disk.failing_syncs -= 1
            raise OSError(errno.EIO, "input/output error")
        self._file.synced_bytes = max(self._file.synced_bytes, size)

    def close(self) -> None:
        self._open = False

    def _check(self) -> None:
        if not self._open or self._life != self._disk.life:
            raise OSError(errno.EBADF, "segment is closed")


class MemoryDisk:
    """`capacity_bytes` None is endless; `sync_s` is how long a sync takes."""

    def __init__(self, capacity_bytes: int | None = None, sync_s: float = 0.0) -> None:
        self.capacity_bytes = capacity_bytes
        self.sync_s = sync_s
        self.failing_syncs = 0
        self.failing_appends = 0
        self.life = 0
        self._files: dict[str, _File] = {}

    # -- the port --------------------------------------------------------------------------------

    def names(self) -> Sequence[str]:
        return sorted(self._files)

    def create(self, name: str, *, reserve_bytes: int) -> MemorySegment:
        if name in self._files:
            raise FileExistsError(errno.EEXIST, "exists", name)
        if reserve_bytes > self.free_bytes:
            raise OSError(errno.ENOSPC, "no space left on device")
        file = self._files[name] = _File(reserved_bytes=reserve_bytes)
        return MemorySegment(self, file)

    def read(self, name: str) -> bytes:
        try:
            file = self._files[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "no such file", name) from None
        file.synced_bytes = len(file.data)
        return bytes(file.data)

    def replace(self, name: str, data: bytes) -> None:
        before = self._files[name].occupied_bytes if name in self._files else 0
        if len(data) - before > self.free_bytes:
            raise OSError(errno.ENOSPC, "no space left on device")
        self._files[name] = _File(data=bytearray(data), synced_bytes=len(data))

    async def save(self, name: str, data: bytes) -> None:
        life = self.life
        await asyncio.sleep(self.sync_s)
        if life != self.life:
            raise OSError(errno.EBADF, "the process that saved is gone")
        self.replace(name, data)

    def delete(self, name: str) -> None:
        self._files.pop(name, None)

    def mount(self) -> "Mount":
        """The disk as the process sees it that starts now, until it dies."""
        return Mount(self)

    # -- faults ----------------------------------------------------------------------------------

    @property
    def free_bytes(self) -> int:
        if self.capacity_bytes is None:
            return 2**62
        return max(self.capacity_bytes - self.occupied_bytes, 0)

    @property
    def occupied_bytes(self) -> int:
        """What all files take, with the room that is reserved for them."""
        return sum(file.occupied_bytes for file in self._files.values())

    def process_died(self) -> None:
        """The owner was killed: what was appended stays, its handles do not."""
        self.life += 1

    def power_cut(self, rng: Random) -> None:
        """Lose a random tail of what was not synced; the cut may lie inside a record."""
        self.life += 1
        for file in self._files.values():
            unsynced = len(file.data) - file.synced_bytes
            del file.data[file.synced_bytes + rng.randint(0, unsynced) :]
            file.synced_bytes = len(file.data)

    def damage(self, name: str, at: int) -> None:
        """Flip one byte of a file, as a failing disk would."""
        self._files[name].data[at] ^= 0xFF


class Mount:
    """The Disk port of one process; what it does after its death goes to a disk that nobody has."""

    def __init__(self, disk: MemoryDisk) -> None:
        self._disk = disk
        self._life = disk.life
        self._nobodys = MemoryDisk()

    @property
    def _now(self) -> MemoryDisk:
        return self._disk if self._disk.life == self._life else self._nobodys

    def names(self) -> Sequence[str]:
        return self._now.names()

    def create(self, name: str, *, reserve_bytes: int) -> MemorySegment:
        return self._now.create(name, reserve_bytes=reserve_bytes)

    def read(self, name: str) -> bytes:
        return self._now.read(name)

    def replace(self, name: str, data: bytes) -> None:
        self._now.replace(name, data)

    async def save(self, name: str, data: bytes) -> None:
        await self._now.save(name, data)

    def delete(self, name: str) -> None:
        self._now.delete(name)

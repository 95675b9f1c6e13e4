"""Disk port on a folder of files: plain writes, fdatasync in a thread, space reserved ahead.

Space is reserved with posix_fallocate, which makes the file its full length at once: so an append
cannot fail for room, a sync has no length to write, and `read` may return zero bytes behind the
last append. The first sync also makes the file's entry in the folder durable: after a power cut, a
segment of which nothing was synced may be missing. Appends are writes, not stores to a mapped page:
those take a third of a microsecond less, but where a disk breaks its promise of space they kill the
process. The folder is locked, so that two processes never share a journal.
"""

import asyncio
import errno
import fcntl
import os
import threading
from collections.abc import Sequence
from pathlib import Path

_PART = ".part"
_LOCK = ".lock"


class FileSegment:
    """One open segment, written from its start by this process only."""

    def __init__(self, fd: int, folder: Path) -> None:
        self._fd = fd
        self._folder: Path | None = folder  # None once its entry there is durable
        self._size_bytes = 0
        self._syncs = 0
        self._closed = False

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def append(self, data: bytes) -> None:
        if self._closed:
            raise OSError(errno.EBADF, "segment is closed")
        written = os.pwrite(self._fd, data, self._size_bytes)
        self._size_bytes += written
        if written < len(data):
            self.append(data[written:])  # goes on, or says why it cannot

    async def sync(self) -> None:
        if self._closed:
            raise OSError(errno.EBADF, "segment is closed")
        self._syncs += 1
        # The thread goes on when the waiter is cancelled, so only its end may close the file.
        running = asyncio.get_running_loop().run_in_executor(None, self._sync_now, self._folder)
        running.add_done_callback(self._synced)
        await asyncio.shield(running)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._syncs == 0:
                os.close(self._fd)

    def _sync_now(self, folder: Path | None) -> None:
        os.fdatasync(self._fd)
        if folder is not None:
            _sync_folder(folder)

    def _synced(self, done: asyncio.Future[None]) -> None:
        self._syncs -= 1
        if not done.cancelled() and done.exception() is None:
            self._folder = None
        if self._closed and self._syncs == 0:
            os.close(self._fd)


class FileDisk:
    """Segments and notes of one folder (made with mode 0700). Raises OSError when it is locked."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._saving = threading.Lock()
        self._lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise OSError(error.errno, f"{folder} is in use by another process") from error

    def names(self) -> Sequence[str]:
        found = os.listdir(self._folder)
        return sorted(name for name in found if name != _LOCK and not name.endswith(_PART))

    def create(self, name: str, *, reserve_bytes: int) -> FileSegment:
        path = self._folder / name
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if reserve_bytes > 0:
                os.posix_fallocate(fd, 0, reserve_bytes)
        except OSError:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        return FileSegment(fd, self._folder)

    def read(self, name: str) -> bytes:
        # An earlier process may have died before it synced what is read here.
        with open(self._folder / name, "rb") as file:
            os.fsync(file.fileno())
            return file.read()

    def replace(self, name: str, data: bytes) -> None:
        part = self._folder / (name + _PART)
        try:
            with open(part, "wb", opener=_private) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self._folder / name)
            _sync_folder(self._folder)
        except OSError:
            part.unlink(missing_ok=True)
            raise

    async def save(self, name: str, data: bytes) -> None:
        # The thread goes on when the waiter is cancelled, so the next one may have to wait for it.
        loop = asyncio.get_running_loop()
        await asyncio.shield(loop.run_in_executor(None, self._save, name, data))

    def delete(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Give the folder free."""
        os.close(self._lock)

    def _save(self, name: str, data: bytes) -> None:
        with self._saving:
            self.replace(name, data)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)

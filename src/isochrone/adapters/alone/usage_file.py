"""Usage as JSON lines in a file that several processes append to, each batch once.

A batch is written whole under the file's lock and synced before it counts as stored; what cannot be
written whole is cut off again. Every line names its batch, and each batch is looked for among those
that the file held after the start, so sending one of an earlier run again adds nothing.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import stat
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from isochrone.adapters.alone.stored_usage import StoredBatch
from isochrone.adapters.alone.usage_line import UsageLines
from isochrone.core.errors import BusUnavailable, Untrusted
from isochrone.ports.clock import Clock
from isochrone.wire import fleet

RECENT_BATCHES = 4096
TAIL_BYTES = 64 * 1024 * 1024  # an earlier run's last batches are looked for in this much

LONGEST_LINE_BYTES = 256 * 1024
# Lines made without a pause: no request waits longer than these take. Twice as many as last time
# where all lines together took longer than batches are gathered, so that writing keeps pace.
LINES_AT_ONCE = 12
MOST_AT_ONCE = 192
SLOW_NS = 200_000_000

_BATCH = re.compile(rb'"batch":"([^"\n]{1,200})"\}\n')

log = structlog.get_logger()


@dataclass(slots=True)
class _Waiting:
    """One batch on its way to the disk, as the shipper sends it."""

    batch: str
    payload: bytes
    done: asyncio.Future[None]
    lines: list[bytes] = field(default_factory=list)


class UsageFile:
    """Stores the durable messages of a gateway alone. Raises OSError when it cannot be opened."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._fd = _open(path)
        self._lines_of = UsageLines()
        self._on_way: dict[str, _Waiting] = {}
        self._queue: list[_Waiting] = []
        self._clock = clock
        self._at_once = LINES_AT_ONCE
        self._writing: asyncio.Task[None] | None = None
        self._stored: dict[str, None] = {}  # the last batches of this run
        self._earlier: Counter[str] | None = None  # lines by batch of earlier runs, once known
        # One thread of its own: a slow disk must not keep the journal's syncs waiting.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="usage")

    async def store(
        self, subject: str, payload: bytes, *, message_id: str, timeout_s: float
    ) -> None:
        """Return once the lines are safe on the disk. Raises BusUnavailable."""
        if message_id in self._stored:
            return
        waiting = self._on_way.get(message_id)
        if waiting is None:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiting = self._on_way[message_id] = _Waiting(message_id, payload, done)
            self._queue.append(waiting)
        if self._writing is None:
            self._writing = asyncio.ensure_future(self._write_all())
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(waiting.done)
        except TimeoutError as error:
            raise BusUnavailable(f"{self._path}: not written within {timeout_s:g} s") from error
        except OSError as error:
            raise BusUnavailable(f"{self._path}: {error.strerror or error}") from error
        except Untrusted as error:
            raise BusUnavailable(f"{subject}: {error.message}") from error

    def reopen(self) -> None:
        """Go on in a new file if the old one was moved away, behind what is still written to that;
        not here, since another process may hold the file for as long as its disk takes."""
        self._thread.submit(self._reopen)

    async def close(self) -> None:
        """Write what is on its way, then let go of the file."""
        while self._writing is not None:
            await self._writing
        self._thread.shutdown()
        os.close(self._fd)

    async def _write_all(self) -> None:
        """Write everything that waits at once, until nothing waits."""
        loop = asyncio.get_running_loop()
        while self._queue:
            taken, self._queue = self._queue, []
            began_ns = self._clock.monotonic_ns()
            batches = [each for each in taken if await self._has_lines(each)]
            self._pace(self._clock.monotonic_ns() - began_ns)
            try:
                await loop.run_in_executor(self._thread, self._append, batches)
            except OSError as error:
                self._settle(batches, error)
            else:
                self._settle(batches, None)
        self._writing = None

    def _pace(self, took_ns: int) -> None:
        """All lines that waited were made in this time, with what came in between."""
        if took_ns > SLOW_NS:
            self._at_once = min(self._at_once * 2, MOST_AT_ONCE)
        elif took_ns < SLOW_NS // 4:
            self._at_once = max(self._at_once // 2, LINES_AT_ONCE)

    async def _has_lines(self, waiting: _Waiting) -> bool:
        """Make the lines of a batch; False when it makes no sense."""
        await asyncio.sleep(0)
        try:
            # At once: one after the other they would be looked through a second time.
            records, at_once = fleet.decode(waiting.payload, StoredBatch).events, self._at_once
        except Untrusted as error:
            self._settle([waiting], error)
            return False
        for begin in range(0, len(records), at_once):
            await asyncio.sleep(0)
            waiting.lines.append(
                self._lines_of.of(records[begin : begin + at_once], waiting.batch)
            )
        return True

    def _settle(self, batches: list[_Waiting], error: OSError | Untrusted | None) -> None:
        for each in batches:
            del self._on_way[each.batch]
            if error is None:
                self._stored[each.batch] = None
                each.done.set_result(None)
            else:
                each.done.set_exception(error)
                each.done.exception()  # nobody may be waiting any more
        while len(self._stored) > RECENT_BATCHES:
            del self._stored[next(iter(self._stored))]

    # -- in the thread ---------------------------------------------------------------------------

    def _reopen(self) -> None:
        try:
            fd = _open(self._path)
        except OSError as error:
            log.error("file_not_reopened", why=str(error))
            return
        os.close(self._fd)
        self._fd = fd

    def _append(self, batches: list[_Waiting]) -> None:
        """All lines of these batches and a sync, or nothing at all."""
        fd = self._fd
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            _cut_half_line(fd, self._path)  # of another process, which was killed meanwhile
            data = memoryview(b"".join(line for each in batches for line in self._lines(fd, each)))
            written_bytes = 0
            try:
                while written_bytes < len(data):
                    written_bytes += os.write(fd, data[written_bytes:])
                os.fdatasync(fd)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, os.fstat(fd).st_size - written_bytes)
                raise
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)

    def _lines(self, fd: int, waiting: _Waiting) -> list[bytes]:
        """What of a batch is not in the file yet: its writer may have died in the middle."""
        if self._earlier is None:
            self._earlier = _lines_by_batch(fd)
        written = self._earlier[waiting.batch]
        if not written:
            return waiting.lines
        return b"".join(waiting.lines).splitlines(keepends=True)[written:]


def _open(path: Path) -> int:
    """The file for appending, made if need be, without half a line at its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # it cannot be synced, and not be read again
            raise OSError(errno.EINVAL, f'{path} is no regular file; "none" is for nowhere')
        fcntl.flock(fd, fcntl.LOCK_EX)
        _cut_half_line(fd, path)
        fcntl.flock(fd, fcntl.LOCK_UN)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError:
        os.close(fd)
        raise
    return fd


def _cut_half_line(fd: int, path: Path) -> None:
    """Whoever writes holds the file's lock, as the caller does: what is half is left over."""
    if _tail(fd, 1) in (b"", b"\n"):
        return
    tail = _tail(fd, LONGEST_LINE_BYTES)
    half_bytes = len(tail) - (tail.rfind(b"\n") + 1)
    log.warning("usage_file_torn", path=str(path), bytes=half_bytes)
    os.ftruncate(fd, os.fstat(fd).st_size - half_bytes)


def _tail(fd: int, most_bytes: int) -> bytes:
    size_bytes = os.fstat(fd).st_size
    return os.pread(fd, most_bytes, max(size_bytes - most_bytes, 0))


def _lines_by_batch(fd: int) -> Counter[str]:
    """Piece by piece: the loop of requests goes on between two of them."""
    found: Counter[str] = Counter()
    at = max(os.fstat(fd).st_size - TAIL_BYTES, 0)
    while piece := os.pread(fd, LONGEST_LINE_BYTES, at):
        whole = piece.rfind(b"\n") + 1 or len(piece)
        found.update(batch.decode("utf-8", "replace") for batch in _BATCH.findall(piece, 0, whole))
        at += whole
    return found

"""Runs child processes: starts them, waits until they answer, restarts crashed ones, stops all.

One task a child; it alone starts and reaps its process. A child that ends before it has ever been
ready fails the start after three tries, with the last lines of its log; later it is restarted for
ever with back-off. Children run in sessions of their own, so that Ctrl-C in a terminal reaches
only the supervisor, which then stops them in order.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isochrone.adapters.child import child_command
from isochrone.core.errors import IsochroneError, Unavailable

TRIES_AT_START = 3
BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0)
SETTLED_S = 10.0
READY_POLL_S = 0.05
LOG_LIMIT_BYTES = 16 * 2**20
LOG_CHECK_S = 5.0

Ready = Callable[[], Awaitable[bool]]
Note = Callable[..., object]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """What to run. `ready` makes one cheap try and says whether the child answers; `prepare` runs
    before each start. `stop_s` is how long it gets after `stop_signal` before SIGKILL."""

    name: str
    argv: Sequence[str]
    log: Path
    ready: Ready
    env: Mapping[str, str] | None = None
    prepare: Callable[[], object] | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_s: float = 3.0
    start_s: float = 60.0


class Child:
    """One supervised process. `pid` changes with every restart and is None while none runs;
    `failed` says why it was given up before it had ever been ready."""

    def __init__(self, spec: ChildSpec, note: Note, on_change: Callable[[], None]) -> None:
        self.spec = spec
        self.pid: int | None = None
        self.restarts = 0
        self._note = note
        self._on_change = on_change
        self._stop = asyncio.Event()
        self.failed: str | None = None
        self._settled = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._keep_running())

    async def wait_ready(self) -> None:
        """Return once it has answered for the first time; raises Unavailable when it will not."""
        settled = asyncio.ensure_future(self._settled.wait())
        try:
            done, _ = await asyncio.wait(
                (settled, self._task), timeout=self.spec.start_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            settled.cancel()
        if not done:
            raise Unavailable(
                f"{self.spec.name} did not answer within {self.spec.start_s:.0f} s"
                f"{_last_words(self.spec.log)}"
            )
        if self._task.done():
            self._task.result()
        if self.failed is not None:
            raise Unavailable(self.failed)

    async def stop(self) -> None:
        """Ask it to stop, kill it after its deadline; returns when the process is reaped."""
        self._stop.set()
        if self.pid is not None:
            _signal(self.pid, self.spec.stop_signal)
        done, _ = await asyncio.wait([self._task], timeout=self.spec.stop_s)
        if not done:
            self._note("child_killed", child=self.spec.name, after_s=self.spec.stop_s)
            self.kill()
        await asyncio.wait([self._task])

    def kill(self) -> None:
        """SIGKILL for the process and everything in its session's group."""
        if self.pid is not None:
            _signal(self.pid, signal.SIGKILL)
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                return

    async def _keep_running(self) -> None:
        failures = 0
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                code, was_ready = await self._run_once()
            except (IsochroneError, OSError) as error:
                code, was_ready = str(error), False
            if self._stop.is_set():
                return
            lived_s = time.monotonic() - started
            self._note(
                "child_ended", child=self.spec.name, code=code, lived_s=round(lived_s, 1)
            )
            failures = 1 if was_ready and lived_s > SETTLED_S else failures + 1
            if not self._settled.is_set() and failures >= TRIES_AT_START:
                self._fail(f"{self.spec.name} ended {failures} times while starting")
                return
            self.restarts += 1
            await self._stopped_within(BACKOFF_S[min(failures, len(BACKOFF_S)) - 1])

    async def _stopped_within(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            return

    def _fail(self, what: str) -> None:
        self.failed = f"{what}{_last_words(self.spec.log)}"
        self._settled.set()

    async def _run_once(self) -> tuple[int | str, bool]:
        if self.spec.prepare is not None:
            self.spec.prepare()
        log = os.open(self.spec.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                *child_command(self.spec.argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.spec.env) if self.spec.env is not None else None,
                start_new_session=True,
            )
        finally:
            os.close(log)
        self.pid = process.pid
        self._note("child_started", child=self.spec.name, pid=process.pid)
        if self._stop.is_set():
            self.kill()
        self._on_change()
        ready = asyncio.get_running_loop().create_task(self._await_ready())
        try:
            code = await process.wait()
        finally:
            self.pid = None
            ready.cancel()
            await asyncio.wait([ready])
        if ready.cancelled():
            return code, False
        ready.result()
        return code, True

    async def _await_ready(self) -> None:
        # Polled, because what is waited for is the state of another process.
        while not await self.spec.ready():  # noqa: ASYNC110
            await asyncio.sleep(READY_POLL_S)
        self._settled.set()
        self._note("child_ready", child=self.spec.name, pid=self.pid)


class Supervisor:
    """The children of one `up`. `on_change` is called whenever a process has been started."""

    def __init__(self, *, note: Note, on_change: Callable[[], None]) -> None:
        self.children: dict[str, Child] = {}
        self._note = note
        self._on_change = on_change

    def start(self, spec: ChildSpec) -> Child:
        """Start a child and keep it running."""
        child = Child(spec, self._note, self._on_change)
        self.children[spec.name] = child
        return child

    def failures(self) -> list[str]:
        """Why children were given up."""
        return [child.failed for child in self.children.values() if child.failed is not None]

    def pid(self, name: str) -> int | None:
        child = self.children.get(name)
        return None if child is None else child.pid

    async def stop(self, names: Sequence[str]) -> None:
        """Stop these children side by side; names that were never started are skipped."""
        found = [self.children[name] for name in names if name in self.children]
        await asyncio.gather(*(child.stop() for child in found))

    def kill_all(self) -> None:
        for child in self.children.values():
            child.kill()

    async def trim_logs(self) -> None:
        """For ever: keep every log below its limit, with one older file beside it."""
        while True:
            await asyncio.sleep(LOG_CHECK_S)
            for child in self.children.values():
                trim_log(child.spec.log, LOG_LIMIT_BYTES)


def trim_log(path: Path, limit_bytes: int) -> None:
    """Move the content of a log over the limit to `NAME.1` and empty it in place.

    Children hold the file open for appending, so it is emptied and not renamed; a line written
    between copy and truncation is lost, which a log may; so is all of it where a disk has no room.
    """
    with contextlib.suppress(OSError):
        if path.stat().st_size <= limit_bytes:
            return
        with contextlib.suppress(OSError):
            shutil.copyfile(path, path.with_name(path.name + ".1"))
        os.truncate(path, 0)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _last_words(log: Path) -> str:
    """The last line of a log for a message, with the path of the whole log."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it wrote no log")
    return f": {last[:300]} (whole log: {log})"

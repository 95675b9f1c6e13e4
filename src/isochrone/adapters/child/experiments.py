"""Plays experiments as child processes: `isochrone twin report` in a folder of each run's own.

    RUN/scenario.toml   what is played, if it is not packaged
    RUN/progress.json   how far it is, written by the child (`wire/experiments.py`)
    RUN/report.html     RUN/results.json    what came of it, written by the child at its end
    RUN/messages.txt    what the child said

A child is as humble as can be: lowest priority, first to go when memory runs out, bounds on memory,
on the size of its files and on its time; it dies with control, and all that it started with it.
"""

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from isochrone.adapters.child import child_command
from isochrone.core.errors import InvalidInput, Unavailable
from isochrone.core.lifecycle.experiment import (
    ExperimentPlan,
    ExperimentProgress,
    ExperimentResults,
)
from isochrone.core.lifecycle.experiment_run import OWN_FILE, ExperimentOrder, options_of
from isochrone.ports.experiments import Ending
from isochrone.wire.experiments import decoded

REPORT, RESULTS, PROGRESS, MESSAGES = (
    "report.html", "results.json", "progress.json", "messages.txt"
)
FILES = {"report": REPORT, "scenario": OWN_FILE}
PLAN_S = 14.0  # below what the console waits for control
PLANS_AT_ONCE = 2
KEPT_ENVIRONMENT = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE",
)
NICE = 19
MEMORY_BYTES = 4 << 30
FILE_BYTES = 32 << 20
TOLD_BYTES = 4_000  # of the end of what a child said
USAGE_PREFIX = "isochrone: "
WRONG_INPUT = 2  # the exit code of the command line


class ChildPlayer:
    """`ports.experiments.Player` in `folder`, which is made if it is missing. A run may take
    `most_s`; `jobs` processes play at a time, by default half as many as there are cores."""

    def __init__(self, folder: Path, *, most_s: float, jobs: int | None = None) -> None:
        self._folder = folder
        self._most_s = most_s
        self._jobs = jobs or max(1, (os.cpu_count() or 1) // 2)
        self._planning = asyncio.Semaphore(PLANS_AT_ONCE)
        self._packaged: tuple[ExperimentPlan, ...] | None = None

    async def packaged(self) -> Sequence[ExperimentPlan]:
        if self._packaged is None:
            self._packaged = await self._plans(("plan", "--json"), None)
        return self._packaged

    async def plan(self, order: ExperimentOrder, content: str) -> ExperimentPlan:
        options = ("plan", "--json", "--packaged-files", *options_of(order))
        plans = await self._plans(options, content if order.is_own else None)
        if len(plans) != 1:
            raise Unavailable(f"planning gave {len(plans)} plans")
        return plans[0]

    def keep(self, run_id: str, content: str) -> None:
        try:
            folder = self._of(run_id)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if content:
                (folder / OWN_FILE).write_text(content, encoding="utf-8")
        except OSError as error:
            raise _away(error) from error

    async def play(self, run_id: str, order: ExperimentOrder) -> Ending:
        folder = self._of(run_id)
        options = (
            "report", *options_of(order), "--jobs", str(self._jobs), "--packaged-files",
            "--progress-json", PROGRESS, "--json", RESULTS, "--out", REPORT,
        )
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            code = await _run(options, folder, most_s=self._most_s)
            return Ending(problem=None if code == 0 else "; ".join(_problems(code, folder)))
        except TimeoutError:
            return Ending(
                problem=f"it was not done after {self._most_s:g} s, which is the most that a run"
                " may take; ask for fewer requests, loads or policies"
            )
        except OSError as error:
            raise _away(error) from error

    def progress(self, run_id: str) -> ExperimentProgress | None:
        data = self._read(run_id, PROGRESS)
        return None if data is None else decoded(ExperimentProgress, data, PROGRESS)

    def results(self, run_id: str) -> ExperimentResults | None:
        data = self._read(run_id, RESULTS)
        return None if data is None else decoded(ExperimentResults, data, RESULTS)

    def kept(self, run_id: str, what: Literal["report", "scenario"]) -> str | None:
        data = self._read(run_id, FILES[what])
        return None if data is None else data.decode("utf-8", errors="replace")

    def forget(self, run_id: str) -> None:
        shutil.rmtree(self._of(run_id), ignore_errors=True)

    def _of(self, run_id: str) -> Path:
        assert run_id == Path(run_id).name, "ids are our own"
        return self._folder / run_id

    def _read(self, run_id: str, name: str) -> bytes | None:
        try:
            with (self._of(run_id) / name).open("rb") as file:
                return file.read(FILE_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _away(error) from error

    async def _plans(
        self, options: Sequence[str], content: str | None
    ) -> tuple[ExperimentPlan, ...]:
        async with self._planning:
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder = Path(tempfile.mkdtemp(prefix="plan-", dir=self._folder))
            except OSError as error:
                raise _away(error) from error
            try:
                if content is not None:
                    (folder / OWN_FILE).write_text(content, encoding="utf-8")
                code = await _run(options, folder, most_s=PLAN_S)
                if code == WRONG_INPUT:
                    raise InvalidInput(_problems(code, folder))
                if code != 0:
                    raise Unavailable("; ".join(_problems(code, folder)))
                said = (folder / "out.txt").read_bytes()
                return decoded(tuple[ExperimentPlan, ...], said, "the plan")
            except TimeoutError as error:
                raise Unavailable(
                    f"working out what would be played took more than {PLAN_S:g} s; this machine"
                    " is busy, or the experiment is very large"
                ) from error
            except OSError as error:
                raise _away(error) from error
            finally:
                shutil.rmtree(folder, ignore_errors=True)


async def _run(options: Sequence[str], folder: Path, *, most_s: float) -> int:
    """The exit code of `isochrone twin` in `folder`. Raises TimeoutError; however this is left,
    nothing of it runs any more."""
    argv = child_command([sys.executable, "-P", "-m", "isochrone", "twin", *options])
    kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    if "PYTHONPATH" in kept:  # it begins in another folder, and has to find the same code
        folders = kept["PYTHONPATH"].split(os.pathsep)
        kept["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, folders))
    with (folder / MESSAGES).open("wb") as messages, (folder / "out.txt").open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *argv, cwd=folder, env=kept, stdin=asyncio.subprocess.DEVNULL, stdout=out,
            stderr=messages, start_new_session=True,
        )
    try:
        _make_humble(process.pid)
        async with asyncio.timeout(most_s):
            return await process.wait()
    finally:
        # The whole group: processes that it started go with it. Its id is not given to another
        # while one of them is there.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _make_humble(pid: int) -> None:
    """A child that is gone already needs nothing; bounds that are lower already stay."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, NICE)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000", encoding="ascii")
    if sys.platform == "linux":
        bounds = ((resource.RLIMIT_FSIZE, FILE_BYTES), (resource.RLIMIT_DATA, MEMORY_BYTES))
        for kind, most in bounds:
            with contextlib.suppress(OSError, ValueError):
                resource.prlimit(pid, kind, (most, most))


def _problems(code: int, folder: Path) -> list[str]:
    """What the child complained of; its last words where it complained of nothing."""
    with (folder / MESSAGES).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TOLD_BYTES))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    told = [line.removeprefix(USAGE_PREFIX) for line in lines if line.startswith(USAGE_PREFIX)]
    if told:
        return told
    if code < 0:
        return [f"it was killed ({signal.Signals(-code).name}), perhaps because memory ran out"]
    if lines and lines[-1].startswith("MemoryError"):
        return [f"it needs more than {MEMORY_BYTES >> 30} GiB of memory"]
    return [f"it ended with code {code}" + (f": {lines[-1]}" if lines else "")]


def _away(error: OSError) -> Unavailable:
    return Unavailable(f"experiments cannot be kept: {error.filename}: {error.strerror}")

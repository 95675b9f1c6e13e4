"""Runs what `make test` asks for: first what may share the machine, side by side, then the rig.

Compiling, the types and the tests of single parts go on together: tests that wait for sockets and
servers leave the cores to those that compute. Their output comes as whole blocks, so that it can be
read. What is compiled is tested in its compiled form as soon as it is there, and as written where
nothing can be compiled. The rig measures real processes against deadlines: two clouds at a time,
then one that has the machine for itself; those of its tests that are patient run beside the rest.
What only computes, and waits for nobody, gets in a line of its own what the others leave of the
cores, and has to be over when the last of the rig begins. Ends with 1 when anything failed, after
everything has run.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "src" / "isochrone" / "_compiled" / "manifest.json"
# What of the tests has the compiled modules under it.
COMPILED = (
    "gateway or http or stream or fuzz or heads or journal or meter or choosing or board or limits "
    "or answers or client or pressure or narrowing or secured or tls or leaks or hops or retained "
    "or test_compiled"
)
# Of the rig: real processes, but no load, and nothing is measured. These tests wait for what is to
# happen, for half a minute or longer. A new file runs alone until it is listed here.
PATIENT = tuple(
    f"tests/rig/test_{name}.py"
    for name in (
        "control", "dns", "entitlements", "examples", "health", "outages", "standalone",
        "standalone_sites", "supervise",
    )
)
# The same, of what a cloud of one machine does for people, and of what is kept of it.
PATIENT_USERS = tuple(
    f"tests/rig/test_{name}.py"
    for name in (
        "command_line", "limits", "openai_client", "other_worlds", "residency", "up", "views",
    )
)
PATIENT_KEEPERS = tuple(
    f"tests/rig/test_{name}.py"
    for name in ("backup", "reconciliation", "replay", "state_folder")
)
# What a browser sees. Nothing of the patient ones computes as much.
PATIENT_CONSOLE = ("tests/rig/test_console.py",)
KILLED = tuple(f"tests/rig/test_{name}.py" for name in ("kills", "retry_storm", "drain"))
STREAMS = tuple(f"tests/rig/test_{name}.py" for name in ("streams", "sessions"))
# Clouds in virtual time, which take twice as long as written.
HEAVY = tuple(f"tests/property/test_{name}.py" for name in ("herding", "site_queue", "spill"))
LIGHT = tuple(f"--ignore={path}" for path in HEAVY)
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
# Two cores are busy with four jobs, because half of them mostly wait.
SIDE_BY_SIDE = max(4, os.cpu_count() or 1)
LESS = ("nice", "-n", "10") if shutil.which("nice") else ()
MEMORY, SCRATCH_BYTES = Path("/dev/shm"), 4 << 30
NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One command. `later`: it begins when compiling has ended. `compiled`: it tests that form, and
    is left out where there is none; `source`: it is left out where there is. `computes`: nothing in
    it waits or is timed, so that it may go on beside the rig with what that leaves."""

    name: str
    argv: Sequence[str]
    later: bool = False
    compiled: bool = False
    source: bool = False
    computes: bool = False


COMPILE = Job(name="compile", argv=(sys.executable, "tools/compile/build.py", "--strict"))
# In the order in which they begin: those that take longest first.
JOBS = (
    COMPILE,
    Job(name="contracts", argv=(*PYTEST, "tests/contract", "-k", f"not ({COMPILED})")),
    Job(name="whole systems", argv=(*PYTEST, "tests/sim")),
    # The test of the compiled form's own rules needs that form.
    Job(name="parts", argv=(
        *PYTEST, "--ignore", "tests/unit/test_compiled.py", "tests/arch", "tests/unit",
    )),
    # They start gateways, which take the compiled form by themselves.
    Job(name="processes", later=True, argv=(*PYTEST, "-m", "rig", *PATIENT)),
    Job(name="console", later=True, argv=(*PYTEST, "-m", "rig", *PATIENT_CONSOLE)),
    Job(name="contracts, compiled", later=True, compiled=True, argv=(
        *PYTEST, "tests/contract", "-k", COMPILED,
    )),
    Job(name="contracts, as written", later=True, source=True, argv=(
        *PYTEST, "tests/contract", "-k", COMPILED,
    )),
    Job(name="users", later=True, argv=(*PYTEST, "-m", "rig", *PATIENT_USERS)),
    Job(name="keepers", later=True, argv=(*PYTEST, "-m", "rig", *PATIENT_KEEPERS)),
    Job(name="properties", argv=(
        *PYTEST, "tests/property", "-k", f"not ({COMPILED})", *LIGHT,
    )),
    # Beside the C compiler it would need twice the memory.
    Job(name="types", later=True, computes=True, argv=(sys.executable, "-m", "mypy")),
    Job(name="clouds, compiled", later=True, compiled=True, computes=True, argv=(*PYTEST, *HEAVY)),
    Job(name="clouds, as written", later=True, source=True, computes=True, argv=(*PYTEST, *HEAVY)),
    Job(name="properties, compiled", later=True, compiled=True, computes=True, argv=(
        *PYTEST, "tests/unit/test_compiled.py", "tests/property", "-k", COMPILED, *LIGHT,
    )),
    Job(name="properties, as written", later=True, source=True, computes=True, argv=(
        *PYTEST, "tests/property", "-k", COMPILED, *LIGHT,
    )),
)
# These load a cloud, and bear one other that is loaded beside them.
PAIR = (
    Job(name="rig, killed processes", argv=(*PYTEST, "-m", "rig", *KILLED)),
    Job(name="rig, streams", argv=(*PYTEST, "-m", "rig", *STREAMS)),
)
RIG = Job(name="rig", argv=(
    *PYTEST, "-m", "rig", "tests/rig", *(
        f"--ignore={path}"
        for path in (
            *PATIENT, *PATIENT_USERS, *PATIENT_KEEPERS, *PATIENT_CONSOLE, *KILLED, *STREAMS,
        )
    ),
))


@dataclass(slots=True)
class Run:
    """Jobs that are still to begin, those that run, and the names of those that failed."""

    waiting: list[Job] = field(default_factory=lambda: list(JOBS))
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    is_later: bool = False
    stopped: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    def work(self, *, computes: bool = False) -> None:
        """Do one job after the other for as long as there are any, of the one kind or the other."""
        while (job := self._next(computes)) is not None:
            self.do(job)

    def do(self, job: Job, *, show: bool = False) -> None:
        """With `show` the output comes as it is made."""
        began_s = time.monotonic()
        environment = dict(self.environment)
        if job.compiled:
            environment["ISOCHRONE_TEST_FORM"] = "compiled"
        with self.changed:
            if self.stopped:
                return
            process = self.running[job.name] = subprocess.Popen(
                (*LESS, *job.argv) if job.computes else job.argv, cwd=ROOT, env=environment,
                stdout=None if show else subprocess.PIPE,
                stderr=None if show else subprocess.STDOUT,
            )
        said = None if process.stdout is None else process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)  # what it and all that it waited for used
        process.returncode = os.waitstatus_to_exitcode(status)
        cpu_s = used.ru_utime + used.ru_stime
        with self.changed:
            del self.running[job.name]
            if said is not None:
                sys.stdout.write(said.decode(errors="replace"))
            if process.returncode:
                self.failed.append(job.name)
            took_s = time.monotonic() - began_s
            print(f"-- {job.name}: {took_s:.0f} s, CPU {cpu_s:.0f} s", flush=True)
            if job is COMPILE:
                self._compiling_has_ended()
            self.changed.notify_all()

    def _compiling_has_ended(self) -> None:
        self.is_later = True
        if MANIFEST.is_file():
            self.waiting = [job for job in self.waiting if not job.source]
        else:
            self.waiting = [job for job in self.waiting if not job.compiled]

    def _next(self, computes: bool) -> Job | None:
        """The next job of the kind that may begin; None when none is left."""
        with self.changed:
            while not self.stopped:
                left = [job for job in self.waiting if job.computes == computes]
                if not left:
                    return None
                for job in left:
                    if self.is_later or not job.later:
                        self.waiting.remove(job)
                        return job
                self.changed.wait()
        return None

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            for process in self.running.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)  # unlike terminate() takes no status
            self.changed.notify_all()


def scratch() -> "tempfile.TemporaryDirectory[str]":
    """A folder for all that the tests write: in memory where there is plenty, for a database made
    there costs a fifth. What lasts through a kill lasts through it there as well."""
    parent = None
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= SCRATCH_BYTES:
        parent = MEMORY
    return tempfile.TemporaryDirectory(prefix="t", dir=parent, ignore_cleanup_errors=True)


def in_order(run: Run) -> None:
    """All jobs, to their end."""
    computing = threading.Thread(target=run.work, kwargs={"computes": True})
    workers = [threading.Thread(target=run.work) for _ in range(SIDE_BY_SIDE)]
    for worker in (*workers, computing):
        worker.start()
    for worker in workers:
        worker.join()
    pair = [threading.Thread(target=run.do, args=(job,)) for job in PAIR]
    for one in pair:
        one.start()
    for one in (*pair, computing):
        one.join()
    run.do(RIG, show=True)


def main() -> int:
    with scratch() as folder:
        # A hundred processes start from the same sources: they are read once.
        kept = {name: value for name, value in os.environ.items() if name != NO_BYTECODE}
        run = Run(environment={**kept, "TMPDIR": folder})
        try:
            in_order(run)
        except KeyboardInterrupt:
            run.stop()
            return 130
    print(f"failed: {', '.join(run.failed)}" if run.failed else "all tests passed")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())

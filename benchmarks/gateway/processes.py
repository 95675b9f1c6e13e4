"""Starts programs on one core and stops everything they became, by process id."""

import http.client
import os
import resource
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.gateway import machine

STOP_S = 8.0
POLL_S = 0.05
LOG_TAIL_CHARACTERS = 600

Process = subprocess.Popen[bytes]


class NotRunning(Exception):
    """A program ended, or did not answer in time."""


def raise_file_limit() -> None:
    """As many open files as the system allows: 5,000 streams are 10,000 sockets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def environment(changes: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without settings of a user's own cloud."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ISOCHRONE")}
    return kept | dict(changes)


@contextmanager
def running(
    argv: Sequence[str], *, core: int, log: Path, env: Mapping[str, str] | None = None,
    cwd: Path | None = None, stdout: int | None = None,
) -> Iterator[Process]:
    """A process pinned to `core`, in a session of its own so that Ctrl-C reaches only us."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *argv], env=environment(env or {}), cwd=cwd,
            stdin=subprocess.DEVNULL, stdout=stdout or output, stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: Process) -> None:
    """SIGTERM, then SIGKILL for whatever of its tree is left."""
    below = machine.tree(process.pid)
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    for pid in below:
        if pid != process.pid or process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def wait(
    condition: Callable[[], bool], what: str, deadline_s: float, process: Process, log: Path
) -> None:
    """Return once `condition` holds; raises NotRunning with the end of the log."""
    began = time.monotonic()
    while not condition():
        ended = process.poll() is not None
        if ended or time.monotonic() - began > deadline_s:
            why = f"it ended with {process.returncode}" if ended else f"not in {deadline_s:.0f} s"
            tail = log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:] if log.exists() else ""
            raise NotRunning(f"{what}: {why}; end of {log}:\n{tail}")
        time.sleep(POLL_S)


def post(port: int, body: bytes, *, tls: bool, key: str, timeout_s: float = 10.0) -> int:
    """The status of one chat completion; raises OSError or http.client.HTTPException."""
    link: http.client.HTTPConnection
    if tls:
        trusting = ssl._create_unverified_context()
        link = http.client.HTTPSConnection("127.0.0.1", port, timeout=timeout_s, context=trusting)
    else:
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    try:
        link.request("POST", "/v1/chat/completions", body, headers)
        answer = link.getresponse()
        answer.read()
        return answer.status
    finally:
        link.close()


def answers(port: int, body: bytes, *, tls: bool, key: str) -> bool:
    """Whether it serves chat completions already."""
    try:
        return post(port, body, tls=tls, key=key) == 200
    except (OSError, http.client.HTTPException):
        return False

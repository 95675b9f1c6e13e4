"""Supervision of real processes: start, restart, ordered stop, and death with the supervisor."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from isochrone.core.errors import Unavailable
from isochrone.wiring.local.supervise import ChildSpec, Supervisor, trim_log
from tests.rig.waiting import gone, wait_until

pytestmark = pytest.mark.rig

LOYAL = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); " + (
    "time.sleep(600)"
)


def _spec(name: str, program: str, log: Path, *, stop_s: float = 20.0) -> ChildSpec:
    def said_up() -> bool:
        return log.exists() and "up" in log.read_text()

    async def ready() -> bool:
        return said_up()

    argv = (sys.executable, "-c", program)
    return ChildSpec(name=name, argv=argv, log=log, ready=ready, stop_s=stop_s, start_s=30.0)


def _supervisor() -> tuple[Supervisor, list[str]]:
    events: list[str] = []
    return Supervisor(
        note=lambda event, **_: events.append(event), on_change=lambda: events.append("changed")
    ), events


async def _until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not check():
            await asyncio.sleep(0.02)


def test_a_killed_child_comes_back_and_all_stop(tmp_path: Path) -> None:
    async def scenario() -> None:
        supervisor, events = _supervisor()
        child = supervisor.start(_spec("one", LOYAL, tmp_path / "one.log"))
        await child.wait_ready()
        first = child.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await _until(lambda: child.pid not in (None, first))
        second = child.pid
        assert second is not None
        await supervisor.stop(["one", "never started"])
        assert gone(second)
        assert child.restarts == 1
        assert events.count("changed") == 2

    asyncio.run(scenario())


def test_a_child_that_ignores_its_signal_is_killed(tmp_path: Path) -> None:
    async def scenario() -> None:
        supervisor, events = _supervisor()
        child = supervisor.start(_spec("deaf", STUBBORN, tmp_path / "deaf.log", stop_s=0.2))
        await child.wait_ready()
        pid = child.pid
        assert pid is not None
        await supervisor.stop(["deaf"])
        assert gone(pid)
        assert "child_killed" in events

    asyncio.run(scenario())


def test_a_child_that_cannot_start_says_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        supervisor, _ = _supervisor()
        program = "import sys; sys.exit('the port is taken')"
        child = supervisor.start(_spec("bad", program, tmp_path / "bad.log"))
        with pytest.raises(Unavailable, match=r"bad ended 3 times.*the port is taken"):
            await child.wait_ready()
        await supervisor.stop(["bad"])

    asyncio.run(scenario())


def test_children_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time\n"
        "from isochrone.adapters.child import child_command\n"
        "child = subprocess.Popen(child_command(['sleep', '600']))\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as supervisor:
        assert supervisor.stdout is not None
        child = int(supervisor.stdout.readline())
        supervisor.kill()
        supervisor.wait()
    wait_until(lambda: gone(child), "the child died with its supervisor")


def test_a_log_over_its_limit_is_moved_aside(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("a" * 100)
    trim_log(log, 100)
    assert not (tmp_path / "x.log.1").exists()
    trim_log(log, 99)
    assert (tmp_path / "x.log.1").read_text() == "a" * 100
    assert log.read_text() == ""
    trim_log(tmp_path / "absent.log", 1)

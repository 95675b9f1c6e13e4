"""Gear 2 under a swarm of faults: each seed's run is right, and the same run every time.

`ISOCHRONE_SEEDS` says how many seeds are played; `isochrone twin chaos --seed N --trace` shows one.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from isochrone.adapters.packaged import default_world
from isochrone.adapters.postgres.server import PostgresPlan
from isochrone.twin import loop as virtual
from isochrone.twin.chaos.plan import KINDS, QUIET_EVERY, Event, Messages, draw
from isochrone.wiring.chaos_faults import Faults
from isochrone.wiring.chaos_runs import play_on
from isochrone.wiring.faulty_pool import FaultyPool
from isochrone.wiring.whole_system import WholeSystem
from isochrone.wiring.world_file import parse_world

SEEDS = int(os.environ.get("ISOCHRONE_SEEDS", "50"))
AT_ONCE = 10
# Faults of any process that runs.
WHOEVER_RUNS = (
    "clock_jump", "connections_reset", "network_slow", "bus_cut", "replies_lost", "pulls_doubled"
)


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_whatever_fails_nothing_is_lost_doubled_or_stuck(
    postgres: PostgresPlan, first: int
) -> None:
    for seed in range(first, min(first + AT_ONCE, SEEDS)):
        played = play_on(postgres.conninfo, postgres.superuser_conninfo, seed)
        assert not played.found, f"again: isochrone twin chaos --seed {seed} --trace"
        answered = sum(one.whole for one in played.record.asked)
        assert answered >= 10, "a run in which nothing is served shows nothing"


def test_the_swarm_has_every_fault_and_seeds_without_any() -> None:
    plans = [draw(seed) for seed in range(200)]
    for kind in KINDS:
        share = sum(kind in plan.kinds() for plan in plans) / len(plans)
        assert 0.1 < share < 0.5, f"{kind} is on in {share:.0%} of the seeds"
    for name in Messages.__slots__:
        assert any(getattr(plan.messages, name) > 0 for plan in plans)
    assert [plan.seed for plan in plans if not plan.has_faults] == [*range(0, 200, QUIET_EVERY)]


def test_faults_that_find_no_process_hit_nobody() -> None:
    """All of them may be dead at once: killed, and not started again yet."""
    events = tuple(
        Event(at_s=0.5, kind=kind, for_s=0.5, pick=0.9, hard=0.9)
        for kind in KINDS if kind in WHOEVER_RUNS
    )
    assert len(events) == len(WHOEVER_RUNS)

    async def happen() -> None:
        pool = FaultyPool("")  # nobody connects
        system = WholeSystem(pool, parse_world(default_world(), source="default"), seed=1)
        await Faults(system, pool, replace(draw(1), events=events)).run()
        assert not system.clocks

    virtual.run(happen())


def test_one_seed_is_one_trace_under_every_hash_seed(postgres: PostgresPlan) -> None:
    told = {
        subprocess.run(
            [sys.executable, "-m", "tests.sim.test_chaos", postgres.conninfo,
             postgres.superuser_conninfo],
            env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True,
            timeout=120, check=True,
        ).stdout
        for hash_seed in ("0", "1")
    }
    assert len(told) == 1
    lines = told.pop().split()
    assert len(set(lines)) == len(lines) == len(HASHED)


def test_who_plays_ends_with_whoever_asked_for_it() -> None:
    script = "from isochrone.wiring.chaos_runs import play_seeds; list(play_seeds(range(400), 2))"
    asked = subprocess.Popen([sys.executable, "-c", script])
    children = Path(f"/proc/{asked.pid}/task/{asked.pid}/children")
    try:
        until_s = time.monotonic() + 60.0
        while len(players := _players(children)) < 2 and time.monotonic() < until_s:
            time.sleep(0.1)
    finally:
        asked.kill()
        asked.wait()
    assert len(players) == 2
    until_s = time.monotonic() + 20.0
    while (left := [one for one in players if _runs(one)]) and time.monotonic() < until_s:
        time.sleep(0.1)
    for one in left:
        os.kill(int(one.name), signal.SIGKILL)
    assert not left, "they wait for more to do, for ever"


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_ends_what_plays(jobs: int) -> None:
    """Also those that play in processes of their own, which hear of it through the first alone."""
    asked = subprocess.Popen(
        [sys.executable, "-m", "isochrone", "twin", "chaos", "--seeds", "400", "--jobs", str(jobs)],
        start_new_session=True, stderr=subprocess.DEVNULL,
    )
    children = Path(f"/proc/{asked.pid}/task/{asked.pid}/children")
    players: list[Path] = []
    try:
        until_s = time.monotonic() + 60.0
        while time.monotonic() < until_s:
            players = _players(children) if jobs > 1 else [Path(f"/proc/{asked.pid}")]
            if len(players) == jobs and all(map(_is_amid_a_run, players)):
                break
            time.sleep(0.05)
        asked.send_signal(signal.SIGINT)
        assert asked.wait(timeout=20.0) == 130
    finally:
        if asked.poll() is None:
            os.killpg(asked.pid, signal.SIGKILL)
            asked.wait()
    assert len(players) == jobs
    assert not any(map(_runs, players))


def _is_amid_a_run(player: Path) -> bool:
    """Whether it has connections both to make databases and to use one."""
    try:
        every = [os.readlink(each) for each in (player / "fd").iterdir()]
    except OSError:  # one of them was closed meanwhile
        return False
    return sum(each.startswith("socket:") for each in every) >= 2


def _players(children: Path) -> list[Path]:
    every = [Path(f"/proc/{pid}") for pid in children.read_text(encoding="ascii").split()]
    return [one for one in every if b"spawn_main" in (one / "cmdline").read_bytes()]


def _runs(process: Path) -> bool:
    try:
        state = (process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


HASHED = (7, 18)


def main() -> None:
    """Print the hashes of some seeds: `CONNINFO SUPERUSER_CONNINFO` as arguments."""
    for seed in HASHED:
        print(play_on(sys.argv[1], sys.argv[2], seed).digest)


if __name__ == "__main__":
    main()

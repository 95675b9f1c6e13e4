"""A sweep on a real Ray cluster of two nodes: the same file, progress, Ctrl-C, lost processes.

Needs the extra `isochrone[ray]`; `make evidence` runs it in an environment that has it.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import numpy
import pytest

from isochrone.core.errors import Unavailable
from isochrone.wiring.twin_choice import Changes, chosen_scenario
from isochrone.wiring.twin_comparison import Game, Played, games
from isochrone.wiring.twin_pool import play_all

# Not imported here: it reads its token from the environment once, when it is.
pytestmark = pytest.mark.skipif(
    find_spec("ray") is None, reason="Ray is not installed: it is the extra isochrone[ray]"
)

NODES = ("127.0.0.2", "127.0.0.3")
START_S, END_S = 60.0, 20.0
COMMAND = Path(sys.executable).with_name("isochrone")
PLAYER = b"ray::play_sent"

SITES = """site_id,country_iso2,lat,lon
berlin,DE,52.5,13.4
paris,FR,48.9,2.4
london,GB,51.5,-0.1
"""
SCENARIO = """
length_s = 20.0
hours = false
sites = "sites.csv"
[fleet]
engine_sites = 3
replicas = 3
[workload]
kind = "lengths"
files = ["lengths.csv"]
load = 0.5
"""


@dataclass(frozen=True, slots=True)
class Cluster:
    """`nodes`: the processes that own each node's."""

    address: str
    nodes: tuple[int, ...]

    def players(self) -> dict[int, int]:
        """Processes that play a game now, and the node of each."""
        parents: dict[int, int] = {}
        playing = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    stat = (entry / "stat").read_text()
                    command = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
                if command.startswith(PLAYER):
                    playing.append(int(entry.name))
        found = {}
        for pid in playing:
            above = pid
            while above in parents and above not in self.nodes:
                above = parents[above]
            if above in self.nodes:
                found[pid] = above
        return found


def until(true: Callable[[], bool], within_s: float, what: str) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, f"{what}: not within {within_s:g} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one processor each, that only who has their token may use."""
    with socket.socket() as free:
        free.bind((NODES[0], 0))
        address = f"{NODES[0]}:{free.getsockname()[1]}"
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # names of sockets are short
    own = pytest.MonkeyPatch()
    own.setenv("RAY_USAGE_STATS_ENABLED", "0")
    own.setenv("RAY_AUTH_MODE", "token")
    own.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        with (folder / "nodes.log").open("wb") as log:
            nodes.append(node(log, NODES[0], (
                "--head", f"--port={address.rpartition(':')[2]}", f"--temp-dir={folder}",
                "--include-dashboard=false",
            )))
            until(lambda: answers(address), START_S, "the first node answers")
            nodes.append(node(log, NODES[1], (f"--address={address}",)))
            until(
                lambda: (folder / "nodes.log").read_bytes().count(b"Ray runtime started") == 2,
                START_S, "two nodes run",
            )
            yield Cluster(address, tuple(each.pid for each in nodes))
    finally:
        for each in reversed(nodes):
            each.terminate()
        for each in nodes:
            try:
                each.wait(END_S)
            except subprocess.TimeoutExpired:
                each.kill()
        own.undo()
        shutil.rmtree(folder, ignore_errors=True)


def node(log: IO[bytes], address: str, options: tuple[str, ...]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        (COMMAND.with_name("ray"), "start", "--block", "--num-cpus=1",
         f"--node-ip-address={address}", *options),
        stdout=log, stderr=log, stdin=subprocess.DEVNULL,
    )


def answers(address: str) -> bool:
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), 1.0).close()
    except OSError:
        return False
    return True


def work(policies: tuple[str, ...], requests: int) -> list[Game]:
    return games(chosen_scenario("eight-sites", Changes(seed=7)), policies, (0.5,), requests)


def begin(folder: Path, cluster: Cluster, requests: int) -> "subprocess.Popen[bytes]":
    """A sweep of eight games from the command line, as somebody in a terminal would start it."""
    return subprocess.Popen(
        (COMMAND, "twin", "sweep", "eight-sites", "--vary", "workload.load=0.5,0.6,0.7,0.8",
         "--policies", "ours,nearest", "--requests", str(requests), "--seed", "7",
         "--cluster", cluster.address, "--json", folder / "out.json",
         "--progress-json", folder / "progress.json"),
        stdout=subprocess.DEVNULL, stderr=(folder / "errors").open("wb"), cwd=folder,
    )


def test_traces_and_rows_are_those_of_processes_here(cluster: Cluster) -> None:
    played = work(("ours", "nearest", "llm_d", "bound"), 400)
    told: list[Played] = []
    there = play_all(played, 1, told.append, cluster.address)
    assert there == play_all(played, 1, lambda _: None)
    assert len({each.summary.trace for each in there if each.summary}) == 3
    assert sorted(each.row.policy for each in told) == sorted(each.policy for each in played)


def test_files_that_a_scenario_names_come_along(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Named from the folder of who asks, where no process of the cluster runs."""
    (tmp_path / "sites.csv").write_text(SITES)
    (tmp_path / "mine.toml").write_text(SCENARIO)
    (tmp_path / "lengths.csv").write_text(
        "num_prefill_tokens,num_decode_tokens\n" + "".join(
            f"{100 + 7 * number},{20 + number}\n" for number in range(60)
        )
    )
    written = []
    for name, where in (("here", ("--jobs", "2")), ("there", ("--cluster", cluster.address))):
        written.append(tmp_path / name)
        done = subprocess.run(
            (COMMAND, "twin", "compare", "mine.toml", "--policies", "ours,nearest,bound",
             "--loads", "0.4,0.8", "--requests", "200", "--json", written[-1], *where),
            cwd=tmp_path, capture_output=True, text=True, timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert "ray" not in done.stderr.lower(), "Ray's own lines are not the user's concern"
    here, there = (each.read_bytes() for each in written)
    assert here == there


def test_ctrl_c_ends_what_plays_on_both_nodes(cluster: Cluster, tmp_path: Path) -> None:
    sweep = begin(tmp_path, cluster, 400_000)
    try:
        until(lambda: set(cluster.players().values()) == set(cluster.nodes), START_S, "both play")
        sweep.send_signal(signal.SIGINT)
        assert sweep.wait(END_S) == 130
        until(lambda: not cluster.players(), END_S, "nothing plays any more")
    finally:
        sweep.kill()
        sweep.wait()
    assert (tmp_path / "errors").read_text() == ""
    assert not (tmp_path / "out.json").exists()
    assert json.loads((tmp_path / "progress.json").read_text())["of"] == 8
    [played] = play_all(work(("nearest",), 50), 1, lambda _: None, cluster.address)
    assert played.row.policy == "nearest", "the cluster is there for the next"


def test_a_game_whose_process_is_killed_is_played_again(cluster: Cluster) -> None:
    played = work(("ours", "nearest"), 6_000)
    there, killed = killing(cluster, played, most=1)
    assert killed == 1
    assert there == play_all(played, 1, lambda _: None)


def test_a_game_that_is_killed_each_time_is_told(cluster: Cluster) -> None:
    with pytest.raises(Unavailable, match="process or node of the cluster was lost"):
        killing(cluster, work(("nearest",), 100_000), most=100)


def killing(cluster: Cluster, played: list[Game], most: int) -> tuple[list[Played], int]:
    """What came of it while a process of its own kills players as they come."""
    killer = os.fork()
    if not killer:
        killed = 0
        end = time.monotonic() + START_S
        while killed < most and time.monotonic() < end:
            for pid in cluster.players():
                os.kill(pid, signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.02)
        os._exit(min(killed, 100))
    try:
        found = play_all(played, 1, lambda _: None, cluster.address)
        return found, os.waitstatus_to_exitcode(os.waitpid(killer, 0)[1])
    finally:
        try:
            os.kill(killer, signal.SIGKILL)
            os.waitpid(killer, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def test_a_node_that_cannot_give_the_same_rows_is_named(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numpy, "__version__", "1.0")
    with pytest.raises(Unavailable, match=r"node \S+ of the cluster has numpy .*machine 1.0"):
        play_all(work(("nearest",), 20), 1, lambda _: None, cluster.address)

"""The Counters port: one suite on mapped files and on the twin's fake; then real processes."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from isochrone.adapters.counters.alone import LoneCounters
from isochrone.adapters.counters.mapped import MappedCounters
from isochrone.gateway.key_counts import ROW_CELLS
from isochrone.gateway.limits import KeyLimits
from isochrone.ports.counters import Counters
from isochrone.twin.fakes.counters import SharedRows
from tests.fixtures.counting_worker import KEY, NOW_NS

CELLS = 64
WORKERS = 3
Open = Callable[[int], Counters]
PROGRAM = Path(__file__).parents[1] / "fixtures" / "counting_worker.py"


@pytest.fixture(params=["mapped", "memory"])
def open_row(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    if request.param == "memory":
        return SharedRows(workers=WORKERS, cells=CELLS).open
    return lambda own: MappedCounters(tmp_path / "rows", own=own, workers=WORKERS, cells=CELLS)


def zero_first(row: memoryview) -> None:
    row[0] = 0


def test_what_an_owner_writes_is_read_by_all(open_row: Open) -> None:
    first, second = open_row(0), open_row(2)
    assert [len(row) for row in first.rows] == [CELLS] * WORKERS
    assert not any(any(row) for row in first.rows)
    first.rows[0][5] = -(2**63)
    second.rows[2][CELLS - 1] = 2**63 - 1
    assert second.rows[0][5] == -(2**63)
    assert first.rows[2][CELLS - 1] == 2**63 - 1


def test_only_the_owner_writes(open_row: Open) -> None:
    counters = open_row(1)
    with pytest.raises(TypeError):
        counters.rows[0][0] = 1
    with pytest.raises(OSError, match="in use"):
        open_row(1)


def test_a_row_outlives_its_owner(open_row: Open) -> None:
    first = open_row(0)
    first.rows[0][3] = 42
    first.close()
    assert open_row(0).rows[0][3] == 42


def test_the_row_of_a_dead_owner_is_cleared_once(open_row: Open) -> None:
    first, second, third = open_row(0), open_row(1), open_row(2)
    first.rows[0][0] = third.rows[2][0] = 9
    assert second.sweep_dead(zero_first) == 0
    first.close()
    assert second.sweep_dead(zero_first) == 1
    assert second.sweep_dead(zero_first) == 0
    assert (second.rows[0][0], second.rows[2][0]) == (0, 9)
    successor = open_row(0)
    successor.rows[0][0] = 8
    assert second.sweep_dead(zero_first) == 0
    assert second.rows[0][0] == 8


def test_a_lone_gateway_has_one_row_of_its_own() -> None:
    counters = LoneCounters(CELLS)
    assert (counters.own, [len(row) for row in counters.rows]) == (0, [CELLS])
    counters.rows[0][1] = 5
    assert counters.sweep_dead(zero_first) == 0
    counters.close()
    assert counters.rows == ()


@contextlib.contextmanager
def a_worker(folder: Path, own: int, workers: int, mode: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(folder), str(own), str(workers), mode],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )
    try:
        assert said(process) == "ready"
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: "subprocess.Popen[str]") -> object:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_that_race_for_a_limit_take_exactly_what_it_allows(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(a_worker(tmp_path, own, 4, "admit")) for own in range(3)]
        for each in workers:
            go(each)
        admitted = [said(each) for each in workers]
        limits = KeyLimits(MappedCounters(tmp_path, own=3, workers=4, cells=ROW_CELLS))
        lines = limits.headers(KEY, NOW_NS).split("\r\n")
    # Claims come before judgement: two that race for the last place may both step back, so the
    # limit is never passed, and whoever asks again takes what is left.
    total = sum(each for each in admitted if isinstance(each, int))
    assert 0 < total <= 2000
    assert f"x-ratelimit-remaining-requests: {2000 - total}" in lines
    assert f"x-ratelimit-remaining-tokens: {10**9 - 5 * total}" in lines
    rest = next(n for n in range(3000) if limits.admit(KEY, 7, NOW_NS) is not None)
    assert total + rest == 2000


def test_a_killed_process_leaves_its_count_and_nothing_running(tmp_path: Path) -> None:
    limits = KeyLimits(MappedCounters(tmp_path, own=1, workers=2, cells=ROW_CELLS))
    with a_worker(tmp_path, 0, 2, "hold") as process:
        go(process)
        assert said(process) == "held"
        held = f"x-ratelimit-remaining-tokens: {10**9 - 7}\r\n"
        assert held in limits.headers(KEY, NOW_NS)
        assert limits.sweep(NOW_NS) == 0
        process.kill()
        process.wait()
    assert limits.sweep(NOW_NS * 2) == 1
    lines = limits.headers(KEY, NOW_NS).split("\r\n")
    assert f"x-ratelimit-remaining-tokens: {10**9}" in lines
    assert "x-ratelimit-remaining-requests: 1999" in lines

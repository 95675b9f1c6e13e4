"""`isochrone twin`: what was played is kept, whoever is gone by the end and whatever is full."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from typing import Any, TextIO

import pytest

from isochrone.adapters.parquet.tables import read_parquet
from isochrone.cli.twin_shown import progress
from isochrone.wiring.twin_experiment import play_experiment, read_experiment
from tests.fixtures.twin_command import SMALL

FEW = ("--requests", "30")
NEAREST = (*FEW, "--policies", "nearest", "--jobs", "1")
CALLS = "t_s,context_tokens,generated_tokens\n" + "".join(f"{at},100,10\n" for at in range(40))


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "s.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.fixture(params=["nobody reads", "disk full"])
def lost_output(request: pytest.FixtureRequest) -> Iterator[TextIO]:
    if request.param == "disk full":
        writer = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, writer = os.pipe()
        os.close(reader)
    output = os.fdopen(writer, "w", encoding="utf-8")
    yield output
    with suppress(OSError):
        output.close()


def test_what_was_played_is_written_although_nobody_saw_it(
    twin_command: Any, scenario: Path, tmp_path: Path, lost_output: TextIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", lost_output)
    rows, page, table = tmp_path / "rows.json", tmp_path / "page.html", tmp_path / "rows.parquet"

    def play(*words: object) -> None:
        with suppress(OSError, SystemExit):  # it may well end with that
            twin_command(*words)
            sys.stdout.flush()

    for words in (("compare", scenario, *NEAREST, "--loads", "0.4,0.5"),
                  ("run", scenario, *FEW, "--policy", "nearest")):
        play(*words, "--json", rows)
        assert json.loads(rows.read_bytes())[0]["policy"] == "nearest"
        rows.unlink()
    play("sweep", scenario, *NEAREST, "--json", rows, "--parquet", table)
    assert json.loads(rows.read_bytes())["rows"]
    assert len(read_parquet(table)) == 1
    play("report", scenario, *NEAREST, "--out", page)
    assert "nearest" in page.read_text(encoding="utf-8")


def test_a_full_disk_behind_the_output_is_told_in_a_line(scenario: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "isochrone", "twin", "run", str(scenario), *FEW, "--policy",
             "nearest"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "isochrone: the output cannot be written: No space left on device\n"


def test_a_file_that_cannot_be_written_costs_no_other(
    twin_command: Any, scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, rows = tmp_path / "page.html", tmp_path / "rows.json"
    full = tmp_path / ("x" * 250)  # its name is good, that of what is written beside it too long
    for options in (("--parquet", full, "--json", rows), ("--parquet", rows, "--json", full)):
        assert twin_command("report", scenario, *NEAREST, "--out", page, *options) == 2
        assert "File name too long" in capsys.readouterr().err
        assert page.exists()
        assert rows.exists()
        page.unlink()
        rows.unlink()


def test_names_that_are_no_text_are_shown_as_far_as_they_are(
    twin_command: Any, scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, out = tmp_path / os.fsdecode(b"caf\xe9.csv"), tmp_path / os.fsdecode(b"o\xfft")
    trace.write_text(CALLS + "x,1,1\n", encoding="utf-8")
    assert twin_command("compare", scenario, "--trace", trace, *NEAREST, "--json", out) == 0
    assert json.loads(out.read_bytes())[0]["workload"] == "caf\N{REPLACEMENT CHARACTER}"
    shown = capsys.readouterr().out
    assert "written to" in shown
    assert "1 rows of the trace" in shown
    other = tmp_path / os.fsdecode(b"s\xe9.toml")
    other.write_text(SMALL, encoding="utf-8")
    rows = tmp_path / "rows.json"
    assert twin_command("report", other, *NEAREST, "--out", out, "--json", rows) == 0
    assert "nearest" in out.read_text(encoding="utf-8")
    assert json.loads(rows.read_bytes())["rows"]


def test_names_are_no_markup(
    twin_command: Any, scenario: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario.write_text(SMALL + 'name = "calls [/min] [red]"\n', encoding="utf-8")
    assert twin_command("compare", scenario, *NEAREST) == 0
    assert "calls [/min] [red] at load 0.5" in capsys.readouterr().out


def test_how_far_it_is_may_be_hindered_meanwhile(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    with progress("runs", 2, folder / "far.json") as told:
        rmtree(folder)
        told(1)
        told(1)


def test_traces_that_are_gone_by_the_end_cost_nothing(tmp_path: Path) -> None:
    """More of them than are kept in memory."""
    traces = [tmp_path / f"{name}.csv" for name in "abc"]
    for trace in traces:
        trace.write_text(CALLS, encoding="utf-8")
    read = read_experiment(
        {"experiment": {"policies": ["nearest"]},
         "scenario": {"length_s": 20.0, "hours": False, "workload": {"load": 0.5},
                      "fleet": {"engine_sites": 3, "replicas": 3}},
         "case": [{"name": trace.stem, "set": {"workload.files": [str(trace)]}}
                  for trace in traces]},
        source="x", change=lambda each: each,
    )
    played: list[object] = []

    def on_played(one: object) -> None:
        played.append(one)
        if len(played) == len(traces):
            for trace in traces:
                trace.unlink()

    results = play_experiment(
        read, requests=20, jobs=1, cluster=None, command="", commit="", on_played=on_played
    )
    assert len(results.outcomes) == 3

"""What processes and short commands do not import, so that they start quickly and stay small."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from isochrone.adapters.sparing import without
from isochrone.cli import processes
from isochrone.cli.main import PROCESSES

START = """
import json, sys
from isochrone.cli.main import main
sys.argv = ["isochrone", *sys.argv[1:]]
code = 0
try:
    main()
except SystemExit as end:
    code = end.code
print(json.dumps({"code": code, "packages": sorted({name.split(".")[0] for name in sys.modules})}))
"""


def started(*line: str) -> tuple[int, set[str], str]:
    """Exit code, imported packages and complaint of a command."""
    run = subprocess.run(
        (sys.executable, "-P", "-c", START, *line), capture_output=True, text=True, timeout=60,
        check=True,
    )
    said = json.loads(run.stdout.splitlines()[-1])
    return said["code"], set(said["packages"]), run.stderr


@pytest.mark.parametrize("process", ["control", "gateway", "agent", "dns"])
def test_a_process_imports_nothing_that_others_need(process: str, tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("")
    code, packages, complaint = started(process, "--config", str(settings))
    assert code == 2
    assert complaint.startswith("isochrone: ")
    assert {"isochrone", "typer"} <= packages
    assert not packages & {"aiohttp", "rich", "nicegui"}
    assert process != "agent" or "numpy" not in packages


def test_a_short_command_imports_nothing_that_is_large() -> None:
    code, packages, _ = started("version")
    assert code == 0
    assert not packages & {"aiohttp", "rich", "nicegui", "numpy", "structlog"}


def test_the_processes_are_the_commands_of_their_line() -> None:
    line = typer.Typer()
    processes.register(line)
    names = [each.callback.__name__ for each in line.registered_commands if each.callback]
    assert sorted(names) == sorted(PROCESSES)


def test_a_library_can_be_had_without_what_it_uses_and_others_find_it_as_it_is() -> None:
    assert "wave" not in sys.modules
    with without("wave"), pytest.raises(ImportError):
        importlib.import_module("wave")
    wave = importlib.import_module("wave")
    with without("wave"):
        assert importlib.import_module("wave") is wave
    assert sys.modules["wave"] is wave

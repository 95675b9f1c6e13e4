"""The compiled form of the hot modules is taken whole, or not at all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from isochrone.wiring.compiled import FOLDER, compiled_files

ASK = (
    "from isochrone.wiring.compiled import use_compiled\n"
    "used = use_compiled()\n"
    "import isochrone.gateway.forward as forward, isochrone.core.routing.choose as choose\n"
    "print(used, forward.__file__.endswith('.py'), choose.__file__.endswith('.py'))\n"
)


def ask(before: str = "") -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", before + ASK], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split()
AS_A_USER = (
    "import sys\n"
    "from isochrone.cli.main import main\n"
    "sys.argv = ['isochrone', 'gateway', '--help']\n"
    "try:\n    main()\nexcept SystemExit:\n    pass\n"
    "import isochrone.gateway.forward as forward, isochrone.core.ids as ids\n"
    "print(forward.__file__.endswith('.py'), ids.__file__.endswith('.py'))\n"
)


@pytest.fixture
def manifest() -> dict[str, object]:
    if not compiled_files():
        pytest.skip("nothing is compiled here: no C compiler, or sources changed since")
    found: dict[str, object] = json.loads((FOLDER / "manifest.json").read_text())
    return found


@pytest.mark.usefixtures("manifest")
def test_a_process_takes_all_modules_in_their_compiled_form() -> None:
    assert ask() == ["True", "False", "False"]


@pytest.mark.usefixtures("manifest")
def test_the_command_line_takes_it_before_it_imports_any_of_it() -> None:
    """One import too early, and every process would run as written: right, and half as fast."""
    done = subprocess.run(
        [sys.executable, "-c", AS_A_USER], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split()[-2:] == ["False", "False"]


@pytest.mark.usefixtures("manifest")
def test_the_two_forms_are_never_mixed() -> None:
    assert ask("import isochrone.core.routing.choose\n") == ["False", "True", "True"]


def test_other_sources_another_python_or_a_broken_manifest_are_not_taken(
    manifest: dict[str, object], tmp_path: Path
) -> None:
    def taken(text: str) -> bool:
        (tmp_path / "manifest.json").write_text(text)
        return bool(compiled_files(tmp_path))

    assert taken(json.dumps(manifest))
    assert not taken(json.dumps({**manifest, "digest": "0" * 64}))
    assert not taken(json.dumps({**manifest, "suffix": ".cpython-30.so"}))
    assert not taken(json.dumps({**manifest, "sources": ["isochrone/gateway/none.py"]}))
    assert not taken(json.dumps({**manifest, "modules": 3}))
    assert not taken("[]")
    assert not taken("{")


def test_without_a_manifest_the_sources_run(tmp_path: Path) -> None:
    assert compiled_files(tmp_path) == {}


def test_what_games_came_to_is_read_in_the_process_that_asked(tmp_path: Path) -> None:
    """In processes of their own, as people play them: nobody else mixes pickles and compiled."""
    files = [tmp_path / "here", tmp_path / "there"]
    for jobs, file in enumerate(files, start=1):
        subprocess.run(
            [sys.executable, "-m", "isochrone", "twin", "compare", "eight-sites", "--policies",
             "ours,nearest", "--loads", "0.5", "--requests", "60", "--jobs", str(jobs), "--json",
             file],
            capture_output=True, check=True, timeout=120,
        )
    assert files[0].read_bytes() == files[1].read_bytes()

"""The examples do what they say, run as a reader would run them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig.cloud import Cloud, environment, isochrone

pytestmark = pytest.mark.rig

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(cloud: Cloud, name: str) -> list[str]:
    """The lines that an example prints."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), str(cloud.state / "up.json")],
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


def test_a_chat_streams_and_says_where(cloud: Cloud) -> None:
    *story, _, where, explain = run(cloud, "openai_chat.py")
    assert any(story)
    assert where.startswith("served at ")
    request = explain.removeprefix("isochrone explain ")
    assert len(request) == 36


def test_a_bound_key_runs_at_home_or_nowhere(cloud: Cloud) -> None:
    german, french = run(cloud, "residency.py")
    assert german == "DE: asked at sydney, ran at frankfurt, DE"
    assert french.startswith("FR: 403 residency: ")


def test_the_world_of_ones_own_is_good() -> None:
    done = isochrone("check", EXAMPLES / "my-world.toml")
    assert done.returncode == 0, done.stderr
    assert "2 models, 2 sites, 1 stated links, distance real" in done.stdout
    assert "partner (NL) runs 1 x big-fable" in done.stdout

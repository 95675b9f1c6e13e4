"""`isochrone up`: what it writes, what it keeps, how it heals and stops, and how it refuses."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig.cloud import Cloud, descendants, isochrone
from tests.rig.waiting import gone, wait_until

pytestmark = pytest.mark.rig

SITES = [("sydney", "AU"), ("frankfurt", "DE"), ("ashburn", "US")]


def test_up_json_says_what_runs(cloud: Cloud) -> None:
    path = cloud.state / "up.json"
    up = cloud.up
    assert path.stat().st_mode & 0o777 == 0o600
    assert set(up) == {
        "control", "admin_key", "api_key", "nats", "console", "console_login", "console_password",
        "sites",
    }
    assert [(site["name"], site["country"]) for site in up["sites"]] == SITES
    for site in up["sites"]:
        assert set(site) == {
            "name", "country", "endpoint", "gateway_pid", "agent_pid", "replicas"
        }
        assert site["endpoint"].endswith("/v1")
        assert len(site["replicas"]) == 1
        for replica in site["replicas"]:
            assert set(replica) == {"id", "model", "pid"}
            assert not gone(replica["pid"])
    assert up["api_key"].startswith("iso_")
    assert up["admin_key"].startswith("isoadm_")
    pids = [pid for pid in cloud.pids().values() if pid is not None]
    assert len(set(pids)) == 13
    assert cloud.process is not None
    assert set(pids) <= descendants(cloud.process.pid)


def test_it_is_ready_soon(cloud: Cloud, record_property: Callable[[str, object], None]) -> None:
    # The promise is 30 s on an idle machine; the bound leaves room for a loaded one.
    record_property("ready_after_s", cloud.ready_after_s)
    assert cloud.ready_after_s < 90


def test_the_printed_line_answers(cloud: Cloud) -> None:
    printed = cloud.output.read_text()
    assert cloud.up["control"] in printed
    line = next(one.strip() for one in printed.splitlines() if one.strip().startswith("curl "))
    words = shlex.split(line)
    if shutil.which("curl") is None:
        assert words[2] == f"{cloud.endpoint('sydney')}/chat/completions"
        assert cloud.chats("sydney")
        return
    answer = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    assert answer.startswith("HTTP/1.1 200")
    assert "x-isochrone-request: " in answer.lower()
    assert '"content"' in answer


def test_a_second_up_keeps_everything_beside_another_cloud(cloud: Cloud, tmp_path: Path) -> None:
    second = Cloud(tmp_path / "state").start()
    try:
        before = second.up
        assert before["control"] != cloud.up["control"]
        assert cloud.chats("sydney")
        served = second.chat("sydney")
        request = served.headers["x-isochrone-request"]
        wait_until(
            lambda: request in [row["id"] for row in second.api.items("usage")], "it is booked"
        )
        assert request not in [row["id"] for row in cloud.api.items("usage")]
        assert second.stop() < 12
        assert not (second.state / "up.json").exists()
        second.start()
        after = second.up
        for kept in ("control", "admin_key", "api_key", "nats"):
            assert after[kept] == before[kept]
        assert [site["endpoint"] for site in after["sites"]] == [
            site["endpoint"] for site in before["sites"]
        ]
        assert request in [row["id"] for row in second.api.items("usage")]
        assert second.chats("frankfurt")
    finally:
        second.stop(signal.SIGKILL)
    assert cloud.chats("sydney")


@pytest.mark.parametrize(
    "name",
    ["gateway sydney", "replica frankfurt", "agent ashburn", "control", "nats", "postgres"],
)
def test_a_killed_process_comes_back(cloud: Cloud, name: str) -> None:
    before = cloud.pids()
    pid = before[name]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: gone(pid), "it is dead")
    wait_until(lambda: cloud.pids().get(name) not in (None, pid), f"{name} is back in up.json")
    wait_until(lambda: all(cloud.chats(site) for site, _ in SITES), "every gateway answers")
    wait_until(cloud.ready, "control says that every site is ready")


def _refused(*arguments: str | Path) -> str:
    done = isochrone("up", *arguments)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done
    assert len(lines) == 1, done
    return lines[0]


def test_bad_input_starts_nothing(cloud: Cloud, tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen(1)
        port = busy.getsockname()[1]
        line = _refused("--state", tmp_path / "a", "--port", str(port))
        assert re.search(rf"port {port} .* in use", line)
    text = tmp_path / "notes.gguf"
    text.write_text("not a model")
    assert "is no GGUF file" in _refused("--state", tmp_path / "b", "--model", text)
    assert "no bundled model" in _refused("--state", tmp_path / "b", "--model", "gpt-9")
    assert "in use by another" in _refused("--state", cloud.state)
    assert "is a file" in _refused("--state", text)
    shutil.copytree(cloud.state / "secrets", tmp_path / "c" / "secrets")
    shutil.copy(cloud.state / "state.json", tmp_path / "c")
    (tmp_path / "c" / "secrets" / "nats.json").write_text("{")
    assert "is damaged: secrets/nats.json" in _refused("--state", tmp_path / "c")
    world = tmp_path / "world.toml"
    world.write_text(
        '[[site]]\nname = "x"\ncountry = "XX"\nlatitude = 91\nlongitude = 0\nfoo = 1\n'
    )
    done = isochrone("up", "--state", tmp_path / "d", "--sites", world)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 3, done
    assert not (tmp_path / "d").exists()

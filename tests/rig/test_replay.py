"""`isochrone replay` of real traces on the real cloud, and what the book says afterwards."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.rig.cloud import COMMAND, Cloud, environment, isochrone
from tests.rig.waiting import wait_until

pytestmark = pytest.mark.rig


def test_a_trace_with_shared_prefixes_is_replayed(cloud: Cloud, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = isochrone(
        "replay", "mooncake-conv-sample", "--state", cloud.state, "--limit", "30", "--speed", "4",
        "--verify", "--out", out, timeout_s=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 lost, 0 double" in done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["cached_share"] > 0, "every request of this trace shares its first block"
    for what in ("TTFT", "p50", "p99", "tokens/s"):
        assert what in done.stdout


def test_300_requests_survive_the_loss_of_a_site(cloud: Cloud, tmp_path: Path) -> None:
    """One site is killed whole, gateway, agent and engine, and comes back in the middle."""
    out = tmp_path / "result.json"
    replay = subprocess.Popen(
        [
            *COMMAND, "replay", "azure-conv-sample", "--state", str(cloud.state), "--limit", "300",
            "--speed", "4", "--verify", "--out", str(out),
        ],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    try:
        time.sleep(8)
        assert replay.poll() is None
        before = cloud.pids()
        for part in ("gateway", "agent", "replica"):
            pid = before[f"{part} frankfurt"]
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        output, _ = replay.communicate(timeout=240)
    finally:
        if replay.poll() is None:
            replay.kill()
            replay.wait()
    assert replay.returncode == 0, output
    assert "0 lost, 0 double" in output
    result = json.loads(out.read_text())
    assert result["whole"]["requests"] == 300
    wait_until(
        lambda: all(site["ready"] for site in cloud.api.get("status")["sites"]), "all is ready"
    )
    assert cloud.pids()["gateway frankfurt"] != before["gateway frankfurt"]


def test_bad_traces_are_refused_with_every_problem(cloud: Cloud, tmp_path: Path) -> None:
    bad = tmp_path / "trace.csv"
    bad.write_text("t_s,context_tokens,generated_tokens\n0,ten,5\n1,-3,5\n")
    done = isochrone("replay", bad, "--state", cloud.state)
    assert done.returncode == 2
    assert isochrone("replay", tmp_path / "none.csv", "--state", cloud.state).returncode == 2

"""An engine that hangs is left out, seen, explained, and gets its work back step by step."""

import contextlib
import os
import signal
from typing import Any

import pytest

from isochrone.core.errors import NotFound
from tests.rig.cloud import Cloud, isochrone
from tests.rig.waiting import wait_until

pytestmark = pytest.mark.rig

SILENT_S, RECOVERY_S = 10.0, 10.0


def replica_at(cloud: Cloud, site: str) -> dict[str, Any]:
    """What the API shows of the replica of a site."""
    shown: dict[str, Any] = cloud.api.get(f"sites/{site}")["replicas"][0]
    return shown


def health_at(cloud: Cloud, site: str) -> str:
    return str(replica_at(cloud, site)["health"])


def test_an_engine_that_hangs_is_left_out_and_comes_back(cloud: Cloud) -> None:
    wait_until(lambda: health_at(cloud, "sydney") == "healthy", "all is well")
    assert cloud.chat("sydney", max_tokens=2).headers["x-isochrone-site"] == "sydney"
    pid = cloud.pids()["replica sydney"]
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        took_s = wait_until(lambda: health_at(cloud, "sydney") == "ejected", "it is left out")
        assert took_s > SILENT_S - 2
        shown = isochrone("status", "--state", cloud.state)
        assert "ready, ejected" in shown.stdout
        assert "its agent has had no answer" in shown.stdout

        reply = cloud.chat("sydney", max_tokens=2)
        assert reply.status == 200
        assert reply.headers["x-isochrone-site"] != "sydney"
    finally:
        os.kill(pid, signal.SIGCONT)

    def probed() -> bool:
        return cloud.chat("sydney", max_tokens=2).headers["x-isochrone-site"] == "sydney"

    wait_until(probed, "it is asked again")
    wait_until(lambda: health_at(cloud, "sydney") == "recovering", "it recovers", deadline_s=5)
    wait_until(lambda: health_at(cloud, "sydney") == "healthy", "it has its work again")
    assert cloud.pids()["replica sydney"] == pid, "nobody had to start it anew"

    request = reply.headers["x-isochrone-request"]
    told: dict[str, Any] = {}

    def booked() -> bool:
        with contextlib.suppress(NotFound):
            told.update(cloud.api.get(f"requests/{request}"))
        return bool(told)

    wait_until(booked, "the request is booked")
    assert [(each["site"], each["rule"]) for each in told["decision"]["tried"]] \
        == [("sydney", "no_ready_replica")]
    text = isochrone("explain", request, "--state", cloud.state)
    assert "none of the site's replicas is ready" in text.stdout

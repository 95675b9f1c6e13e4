"""What gateways know: a revoked key is refused everywhere at once; a start needs nobody else."""

import os
import signal
import subprocess
import time

import pytest

from tests.rig.cloud import COMMAND, Cloud, Reply, ask, environment
from tests.rig.waiting import gone, wait_until

pytestmark = pytest.mark.rig

SITES = ("sydney", "frankfurt", "ashburn")
REVOKED_S = 2.0
BOOKED_S = 90.0


def status(cloud: Cloud, site: str, key: str) -> int:
    return ask(cloud.endpoint(site), "/models", key).status


def made(cloud: Cloud, name: str, residency: list[str]) -> dict[str, str]:
    """A new key that every gateway knows."""
    body = {"name": name, "residency": residency, "transit": ["any"]}
    key: dict[str, str] = cloud.api.post("keys", body, idempotency_key=name)
    wait_until(
        lambda: all(status(cloud, site, key["key"]) == 200 for site in SITES), "the key is known"
    )
    return key


def test_a_revoked_key_is_refused_everywhere_within_seconds(cloud: Cloud) -> None:
    key = made(cloud, f"revoked-{time.monotonic_ns()}", ["any"])
    began = time.monotonic()
    cloud.api.delete(f"keys/{key['id']}")
    answered_s = time.monotonic() - began
    refused_s: dict[str, float] = {}
    while len(refused_s) < len(SITES):
        for site in SITES:
            asked_s = time.monotonic() - began  # it refuses since then, however long it takes
            if site not in refused_s and status(cloud, site, key["key"]) == 401:
                refused_s[site] = asked_s
        assert time.monotonic() - began < REVOKED_S, f"refused only at {refused_s}"
    print(f"revoked: answered after {answered_s:.3f} s, refused after {refused_s}")
    assert [cloud.chat(site, key=key["key"]).status for site in SITES] == [401] * 3


def test_a_gateway_starts_from_its_disk_while_control_and_nats_are_dead(cloud: Cloud) -> None:
    key = made(cloud, f"stored-{time.monotonic_ns()}", ["DE"])
    folder = cloud.state / "sites" / "sydney"
    view = folder / "journal" / "view"
    wait_until(
        lambda: view.exists() and key["id"].encode() in view.read_bytes(),
        "the view with the key is on disk",
    )
    assert cloud.process is not None
    pids = cloud.pids()
    names = ("control", "nats", "gateway sydney")
    victims = [pid for name in names if (pid := pids[name]) is not None]
    assert len(victims) == len(names)
    output = (cloud.state / "logs" / "gateway-sydney.log").open("ab")
    gateway: subprocess.Popen[bytes] | None = None
    answers: list[Reply] = []
    os.kill(cloud.process.pid, signal.SIGSTOP)  # or it would start them again
    try:
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: all(gone(pid) for pid in victims), "they are dead")
        gateway = subprocess.Popen(
            [*COMMAND, "gateway", "--config", str(folder / "gateway.toml")], env=environment(),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )
        wait_until(lambda: cloud.chats("sydney", key=key["key"]), "it serves from its disk")
        for secret in (key["key"], cloud.up["api_key"]):
            answers.append(cloud.chat("sydney", key=secret))
            assert answers[-1].status == 200
        assert answers[0].headers["x-isochrone-site"] == "frankfurt"
        assert answers[1].headers["x-isochrone-site"] in SITES
        assert cloud.chat("sydney", key="iso_unknown").status == 401
        ready = ask(cloud.endpoint("sydney").removesuffix("/v1"), "/ready", key["key"])
        assert (ready.status, ready.body["view"]) == (200, "stored")
        gateway.terminate()
        assert gateway.wait(30) == 0
    finally:
        if gateway is not None and gateway.poll() is None:
            gateway.kill()
            gateway.wait(30)
        os.kill(cloud.process.pid, signal.SIGCONT)
        output.close()
    wait_until(cloud.ready, "control is back", deadline_s=BOOKED_S)
    wait_until(lambda: all(cloud.chats(site) for site in SITES), "every gateway answers")
    wanted = {answer.headers["x-isochrone-request"] for answer in answers}
    wait_until(
        lambda: wanted <= {row["id"] for row in cloud.api.items("usage")},
        "what was served meanwhile is booked", deadline_s=BOOKED_S,
    )

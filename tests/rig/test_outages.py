"""Control and NATS are frozen for a while: gateways go on, and what they did is booked later."""

import os
import signal
import time

import pytest

from tests.rig.booked import settle
from tests.rig.cloud import Cloud
from tests.rig.load import Load
from tests.rig.waiting import wait_until

pytestmark = pytest.mark.rig

SITES = ("sydney", "frankfurt", "ashburn")


def test_control_may_be_away(cloud: Cloud) -> None:
    """Frozen for 30 s: every gateway serves, keys and policies hold, usage waits and arrives."""
    bound = cloud.api.post(
        "keys", {"name": "bound", "residency": ["DE"], "transit": ["any"]}, idempotency_key="away"
    )["key"]
    wait_until(lambda: cloud.chats("sydney", key=bound), "the key is known")
    control = cloud.pids()["control"]
    assert control is not None
    name = f"away-{time.monotonic_ns()}"
    os.kill(control, signal.SIGSTOP)
    try:
        began = time.monotonic()
        endpoints = [(site, cloud.endpoint(site)) for site in SITES]
        load = Load(endpoints, cloud.up["api_key"], name=name, threads=1, max_tokens=4).start()
        while time.monotonic() - began < 30:
            for site in SITES:
                assert cloud.chat(site, key=bound, max_tokens=2).headers[
                    "x-isochrone-site"
                ] == "frankfurt"
                assert cloud.chat(site, key="iso_unknown", max_tokens=2).status == 401
            time.sleep(1)
        results = load.stop()
    finally:
        os.kill(control, signal.SIGCONT)
    assert all(one.whole and one.status == 200 for one in results)
    rows = settle(cloud, name, results)
    assert len(rows) == len(results)


def test_nats_may_be_away(cloud: Cloud) -> None:
    """Frozen past the age at which digests go stale: every gateway serves, here and elsewhere."""
    bound = cloud.api.post(
        "keys", {"name": "bound", "residency": ["DE"], "transit": ["any"]}, idempotency_key="nats"
    )["key"]
    wait_until(lambda: all(cloud.chats(site, key=bound) for site in SITES), "the key is known")
    nats = cloud.pids()["nats"]
    assert nats is not None
    name = f"silent-{time.monotonic_ns()}"
    load = Load(
        [(site, cloud.endpoint(site)) for site in SITES], bound, name=name, threads=2, max_tokens=4
    )
    os.kill(nats, signal.SIGSTOP)
    try:
        load.start()
        time.sleep(15)
        results = load.stop()
    finally:
        os.kill(nats, signal.SIGCONT)
    assert [one for one in results if not one.whole or one.status != 200] == []
    assert {one.served_at for one in results} == {"frankfurt"}
    assert len(settle(cloud, name, results)) == len(results)

"""The drill: a running cloud is backed up and restored into a fresh one, and the totals agree."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.rig.cloud import Cloud, isochrone
from tests.rig.waiting import wait_until

pytestmark = pytest.mark.rig

STILL = 20  # looks at the totals in a row: what is booked comes in batches


def totals(cloud: Cloud) -> Mapping[str, Any]:
    """What was used and what stands in the ledger, by everybody."""
    return {
        "usage": [
            [row["name"], row["requests"], row["input_uncached"], row["output"]]
            for row in cloud.api.items("usage", {"by": "model"})
        ],
        "balances": sorted(
            [row["account"], str(row["project_id"]), row["amount"]]
            for row in cloud.api.items("ledger/balances")
        ),
    }


def test_a_backup_of_a_running_cloud_makes_a_fresh_one_with_the_same_totals(
    cloud: Cloud, tmp_path: Path
) -> None:
    made = cloud.api.post("keys", {"name": "drill", "residency": ["any"], "transit": ["any"]})
    site = cloud.up["sites"][0]["name"]
    wait_until(lambda: cloud.chats(site, key=made["key"]), "the new key works")
    cloud.api.post("ledger/credits", {"project_id": "default", "amount": "10.00"},
                   idempotency_key="drill")
    stop, folder = threading.Event(), tmp_path / "copy"

    def traffic() -> None:
        while not stop.is_set():
            cloud.chats(site, key=made["key"])

    busy = threading.Thread(target=traffic)
    busy.start()
    try:
        live = isochrone("backup", tmp_path / "live", "--state", cloud.state)
    finally:
        stop.set()
        busy.join()
    assert live.returncode == 0, live.stderr
    # What is compared must not move: all that was sent is booked and charged first.
    before = [totals(cloud)]
    cloud.api.post("ledger/charges", {})

    def still() -> bool:
        before.append(totals(cloud))
        return len(before) > STILL and len({str(each) for each in before[-STILL:]}) == 1

    wait_until(still, "nothing is on its way any more")
    cloud.api.post("ledger/charges", {})
    expected = totals(cloud)
    done = isochrone("backup", folder, "--state", cloud.state, "--json")
    assert done.returncode == 0, done.stderr
    assert totals(cloud) == expected
    assert int(json.loads(done.stdout)["requests"]) > 0

    refused = isochrone("restore", folder, "--state", cloud.state)
    assert (refused.returncode, "holds a cloud already" in refused.stderr) == (2, True)
    whole = isochrone("restore", folder, "--check")
    assert (whole.returncode, "is whole" in whole.stdout) == (0, True)
    fresh = tmp_path / "fresh"
    back = isochrone("restore", folder, "--state", fresh)
    assert back.returncode == 0, back.stderr
    other = Cloud(fresh)
    try:
        other.start()
        assert totals(other) == expected
        assert other.up["api_key"] == cloud.up["api_key"]
        assert other.up["admin_key"] == cloud.up["admin_key"]
        wait_until(lambda: other.chats(site, key=made["key"]), "a key made before works")
        wait_until(lambda: totals(other)["usage"] != expected["usage"], "and is booked")
        assert isochrone("reconcile", "--state", fresh).stdout.count("sums by hour") == 0
    finally:
        other.stop()

"""A replayed trace end to end: engine tokens = usage tokens = charged tokens, to the token."""

import json
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from tests.rig.cloud import Cloud, isochrone
from tests.rig.waiting import wait_until

pytestmark = pytest.mark.rig

CLASSES = ("input_uncached", "input_cached", "output")


def counts(cloud: Cloud) -> dict[str, "Counter[str]"]:
    """Tokens by class: of the engines, of usage by source, of charges."""
    report = cloud.api.get("reconciliation")
    found: dict[str, Counter[str]] = {
        name: Counter() for name in ("engine", "exact", "other", "charged", "waiting")
    }
    for line in report["replicas"]:
        for name in ("engine", "exact", "other"):
            found[name].update({each: line[name][each] for each in CLASSES})
    for meter in report["meters"]:
        name = meter["meter"].removesuffix("_tokens")
        for side in ("charged", "waiting"):
            found[side][name] += meter[side]
    return found


def test_engines_usage_and_charges_agree_to_the_token(cloud: Cloud, tmp_path: Path) -> None:
    cloud.api.post("ledger/charges", {})
    before = counts(cloud)
    out = tmp_path / "result.json"
    done = isochrone(
        "replay", "azure-conv-sample", "--state", cloud.state, "--limit", "40", "--speed", "8",
        "--verify", "--out", out, timeout_s=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(out.read_text())["whole"]["requests"] == 40

    def grown() -> dict[str, dict[str, int]]:
        after = counts(cloud)
        return {
            name: {each: after[name][each] - before[name][each] for each in CLASSES}
            for name in after
        }

    # The last readings of the engines arrive with the next digests.
    wait_until(lambda: grown()["engine"] == grown()["exact"], "engines and usage agree")
    assert grown()["charged"] != grown()["exact"], "nothing is charged before its time"
    cloud.api.post("ledger/charges", {})
    end = grown()
    assert end["engine"] == end["exact"] == end["charged"]
    assert all(end["engine"][each] > 0 for each in CLASSES)
    assert (sum(end["other"].values()), sum(end["waiting"].values())) == (0, 0)

    rows = [row for row in cloud.api.items("ledger/spent") if row["org_id"] == "default"]
    (spent,) = (row for row in rows if row["project_id"] == "default")
    assert spent["charged"] == spent["amount"]
    assert not spent["unpriced"]
    balances = list(cloud.api.items("ledger/balances"))
    assert sum(Decimal(row["amount"]) for row in balances) == 0
    (owed,) = (
        row["amount"] for row in balances
        if (row["account"], row["project_id"]) == ("owed", "default")
    )
    assert Decimal(owed) == -Decimal(spent["charged"])
    shown = isochrone("reconcile", "--state", cloud.state)
    assert "engines and usage" in shown.stdout
    assert isochrone("ledger", "--state", cloud.state).stdout.count("EUR") > 0
    assert "standard" in isochrone("price", "--state", cloud.state).stdout

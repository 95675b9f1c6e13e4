"""A replayed trace end to end: engine tokens = usage tokens = charged tokens, to the token."""

import json
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from isochrone.wiring.control_api import connection
from tests.rig.cloud import Cloud, isochrone
from tests.rig.waiting import wait_until

pytestmark = pytest.mark.rig

MOST = 300
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
    assert "0 sums were made again" in isochrone(
        "reconcile", "--mend", "--state", cloud.state
    ).stdout
    assert isochrone("ledger", "--state", cloud.state).stdout.count("EUR") > 0
    assert "standard" in isochrone("price", "--state", cloud.state).stdout


def test_a_stream_that_was_cut_off_is_charged_within_the_stated_bound(cloud: Cloud) -> None:
    """What a client had of it is charged, and no more than the engine made; of what it made without
    telling anybody, at most what was asked for, the report says so."""
    before = counts(cloud)
    received = cut_off(cloud, "cut-off")

    def row() -> Mapping[str, Any] | None:
        rows = cloud.api.items("usage", {"order": "newest"})
        return next((each for each in rows if each["client_request_id"] == "cut-off"), None)

    wait_until(lambda: row() is not None, "it is booked")
    booked = row()
    assert booked is not None
    assert (booked["outcome"], booked["source"]) == ("client_gone", "running")
    assert received <= booked["output"] <= MOST
    cloud.api.post("ledger/charges", {})

    def grown(name: str) -> dict[str, int]:
        after = counts(cloud)
        return {each: after[name][each] - before[name][each] for each in CLASSES}

    mine = {each: booked[each] for each in CLASSES}
    assert grown("other") == grown("charged") == mine
    wait_until(
        lambda: all(grown("engine")[each] >= mine[each] for each in CLASSES), "the engine tells it"
    )
    assert all(grown("engine")[each] == mine[each] for each in CLASSES[:2])
    beyond = grown("engine")["output"] - mine["output"]
    assert 0 <= beyond <= MOST - mine["output"]
    (line,) = (
        each for each in cloud.api.get("reconciliation")["replicas"]
        if each["site"] == booked["site"]
    )
    assert line["others"] >= 1
    assert line["verdict"] == ("estimated" if any(line["difference"].values()) else "equal")


def cut_off(cloud: Cloud, name: str) -> int:
    """Begin a long stream under this name, and leave; how many tokens had come by then."""
    link, prefix = connection(cloud.endpoint("sydney"), timeout_s=30.0)
    body = {
        "model": "tiny-fable", "stream": True, "max_tokens": MOST, "ignore_eos": True,
        "messages": [{"role": "user", "content": "Tell me a long story."}],
    }
    link.request("POST", f"{prefix}/chat/completions", json.dumps(body), {
        "authorization": f"Bearer {cloud.up['api_key']}", "content-type": "application/json",
        "x-request-id": name,
    })
    answer = link.getresponse()
    assert answer.status == 200
    received = 0
    while received < 5:
        line = answer.readline()
        assert line, "it ended before it was left"
        received += line.startswith(b"data: {") and b'"content":"' in line
    answer.close()
    link.close()
    return received

"""A replayed trace end to end: engine tokens = usage tokens = charged tokens, to the token."""

import json
import os
import signal
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from itertools import repeat
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest

from isochrone.wiring.control_api import connection
from tests.rig.cloud import Cloud, isochrone
from tests.rig.waiting import wait_until

pytestmark = pytest.mark.rig

MOST = 300
STREAMS = 6
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
    """What a client had of it is charged, and no more than the engine made; what it made without
    telling anybody, at most what was asked for, is within what the report explains."""
    def grown(name: str) -> dict[str, int]:
        after = counts(cloud)
        return {each: after[name][each] - before[name][each] for each in CLASSES}

    def told(of: Mapping[str, int]) -> bool:
        return all(grown("engine")[each] >= of[each] for each in CLASSES)

    for name in ("cut-off", "cut-off-2", "cut-off-3"):
        before = counts(cloud)
        received = cut_off(cloud, name)
        booked = booked_as(cloud, name)
        cloud.api.post("ledger/charges", {})
        mine = {each: booked[each] for each in CLASSES}
        wait_until(partial(told, mine), "the engine tells it")
        if booked["outcome"] != "finished":  # it was left before its end
            break
    assert (booked["outcome"], booked["source"]) == ("client_gone", "running")
    assert received <= booked["output"] <= MOST
    assert grown("other") == grown("charged") == mine
    assert all(grown("engine")[each] == mine[each] for each in CLASSES[:2])
    beyond = grown("engine")["output"] - mine["output"]
    assert 0 <= beyond <= MOST - mine["output"]
    (line,) = (
        each for each in cloud.api.get("reconciliation")["replicas"]
        if each["site"] == booked["site"]
    )
    assert line["others"] >= 1
    assert line["verdict"] == ("within" if any(line["difference"].values()) else "equal")


def test_an_engine_that_is_killed_in_mid_stream_explains_what_differs(cloud: Cloud) -> None:
    """Its streams go on elsewhere, each booked once and exactly; what engines counted beside that
    is explained, by the engine that died and by those that read the prompts again."""
    went_on = next((names for names in map(killed_beneath, range(5), repeat(cloud)) if names), None)
    assert went_on, "each time all streams had ended before their engine was killed"

    def lines() -> dict[str, Any]:
        return {each["site"]: each for each in cloud.api.get("reconciliation")["replicas"]}

    wait_until(lambda: cloud.ready() and lines()["sydney"]["lives"] > 1, "the next life is heard")

    def explained() -> bool:
        return {each["verdict"] for each in lines().values()} <= {"equal", "within"}

    wait_until(explained, "every engine agrees with the book, as far as is explained")
    found = lines()
    causes = {
        site: {each["cause"] for each in line["reasons"]} for site, line in found.items()
    }
    assert "ended" in causes["sydney"]
    assert all(causes[site] & {"moved", "silent"} for site in went_on)

    def told() -> bool:
        """Not of each engine: one that ended before it told of any of them agrees to the token."""
        explained = cloud.api.get("reconciliation")["explained"]
        shown = isochrone("reconcile", "--state", cloud.state).stdout
        return len(explained) > 0 and all(line in shown for line in explained)

    wait_until(told, "the report says what is explained, and why")


def killed_beneath(number: int, cloud: Cloud) -> set[str]:
    """Begin streams at Sydney and kill its engine; the sites at which some of them went on."""
    wait_until(cloud.ready, "every site serves")
    begun, ended = Barrier(STREAMS + 1), []

    def stream(index: int) -> None:
        link, answer = opened(cloud, f"killed-{number}-{index}")
        answer.readline()
        begun.wait(30.0)
        ended.append(answer.read())
        link.close()

    threads = [Thread(target=stream, args=(index,)) for index in range(STREAMS)]
    for thread in threads:
        thread.start()
    begun.wait(30.0)
    pid = cloud.pids()["replica sydney"]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join(60.0)
    assert all(b"[DONE]" in data for data in ended)
    assert len(ended) == STREAMS

    def rows() -> list[Mapping[str, Any]]:
        found = cloud.api.items("usage", {"order": "newest"})
        return [
            row for row in found
            if (row["client_request_id"] or "").startswith(f"killed-{number}-")
        ]

    wait_until(lambda: len(rows()) == STREAMS, "all are booked")
    assert {(row["outcome"], row["source"]) for row in rows()} == {("finished", "engine")}
    return {row["site"] for row in rows()} - {"sydney"}


def booked_as(cloud: Cloud, name: str) -> Mapping[str, Any]:
    """The row of the request that its client called so."""
    def rows() -> list[Mapping[str, Any]]:
        newest = cloud.api.items("usage", {"order": "newest"})
        return [each for each in newest if each["client_request_id"] == name]

    wait_until(lambda: rows() != [], "it is booked")
    return rows()[0]


def cut_off(cloud: Cloud, name: str) -> int:
    """Begin a long stream under this name, and leave; how many tokens had come by then."""
    link, answer = opened(cloud, name)
    received = 0
    while received < 5:
        line = answer.readline()
        assert line, "it ended before it was left"
        received += line.startswith(b"data: {") and b'"content":"' in line
    answer.close()
    link.close()
    return received


def opened(cloud: Cloud, name: str) -> tuple[HTTPConnection, HTTPResponse]:
    """A long stream under this name that has begun."""
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
    return link, answer

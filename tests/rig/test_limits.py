"""Limits of a key hold over three sites of the real cloud while control stands still."""

import json
import os
import signal
import time
from functools import partial

import pytest

from tests.rig.cloud import Cloud, Reply, isochrone
from tests.rig.waiting import wait_until

pytestmark = pytest.mark.rig

LIMIT = "x-ratelimit-limit-requests"
SITES = ("sydney", "frankfurt", "ashburn")


def limit(cloud: Cloud, *arguments: str) -> str:
    done = isochrone("limit", *arguments, "--state", cloud.state)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_limits_hold_over_sites_without_control(cloud: Cloud) -> None:
    made = cloud.api.post("keys", {"name": "limited"}, idempotency_key="limited-key")
    key, id_ = made["key"], made["id"]
    for site in SITES:
        wait_until(partial(cloud.chats, site, key=key), "the key is known")
    requests = json.loads(limit(cloud, "set", "requests_per_min", "7", "--of-key", id_, "--json"))
    assert sorted((requests["home"], *requests["successors"])) == sorted(SITES)
    began_s = time.monotonic()
    answers: list[Reply] = []
    # A gateway that knows of the limit says so; from then on it counts there.
    wait_until(lambda: knows(cloud, "sydney", key, answers), "told")
    control = cloud.pids()["control"]
    assert control is not None
    os.kill(control, signal.SIGSTOP)
    try:
        answers += [chat(cloud, SITES[number % 3], key) for number in range(12)]
    finally:
        os.kill(control, signal.SIGCONT)
    counted = [each for each in answers if LIMIT in each.headers]
    refused = [each for each in counted if each.status != 200]
    assert len(counted) - len(refused) == 7 or time.monotonic() - began_s > 50
    assert refused
    for each in refused:
        assert (each.status, each.headers["x-isochrone-reason"]) == (429, "rate_limit_requests")
        assert 1 <= int(each.headers["retry-after"]) <= 60
        assert each.headers["x-ratelimit-remaining-requests"] == "0"
    wait_until(
        lambda: (cloud.api.get(f"limits/{requests['id']}")["use"] or {}).get("used") == "7",
        "control is told",
    )
    shown = limit(cloud, "show", requests["id"])
    assert "used        7\n" in shown
    assert f"home        {requests['home']}" in shown
    assert "removed" in limit(cloud, "remove", requests["id"])

    budget = json.loads(limit(cloud, "set", "budget", "0.0002", "--of-key", id_, "--json"))
    assert (budget["period"], budget["currency"]) == ("month", "EUR")
    wait_until(lambda: spent_up(cloud, key), "the budget is spent", deadline_s=20)
    assert "budget" in limit(cloud, "list", "--json")
    limit(cloud, "remove", budget["id"])
    wait_until(lambda: chat(cloud, "sydney", key).status == 200, "removed")


def knows(cloud: Cloud, site: str, key: str, answers: list[Reply]) -> bool:
    time.sleep(0.5)  # the others are told as soon
    answers.append(chat(cloud, site, key))
    return LIMIT in answers[-1].headers


def chat(cloud: Cloud, site: str, key: str) -> Reply:
    return cloud.chat(site, "Hello!", key=key)


def spent_up(cloud: Cloud, key: str) -> bool:
    for site in SITES:
        answer = cloud.chat(site, "Hello!", key=key, max_tokens=16)
        if answer.status == 429:
            assert answer.headers["x-isochrone-reason"] == "budget"
            assert answer.body["error"]["code"] == "insufficient_quota"
            return int(answer.headers["retry-after"]) > 60
    time.sleep(0.1)
    return False

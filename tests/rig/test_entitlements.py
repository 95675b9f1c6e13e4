"""Capacity that is sold is used at two sites of the real cloud while control stands still."""

import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pytest

from tests.rig.cloud import Cloud, isochrone
from tests.rig.waiting import wait_until

pytestmark = pytest.mark.rig

YEAR_NS = 365 * 86_400 * 1_000_000_000
SOLD_TOK_S = 150
BURST_S = 5
SILENT_S = 25.0  # a voter that was just started says nothing for 15 s
THREADS = 2  # a site
SETTLED_S = 10  # demand is an average over 5 s, and borrowing follows it in looks of a second
BACK_S = 7      # a home that needs its slice has it back within a loan (5 s) and two looks


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """One answer: where it was asked for, when, in which class, and its weighted tokens."""

    site: str
    at_s: float
    class_: str
    tokens: int


def one(cloud: Cloud, site: str, key: str) -> Used:
    asked_s = time.monotonic()
    answer = cloud.chat(site, "Tell me about a fox.", key=key, max_tokens=8, tier="priority")
    assert answer.status == 200, answer.body
    usage = answer.body["usage"]
    return Used(
        site=site, at_s=asked_s, class_=answer.headers["x-isochrone-class"],
        tokens=usage["prompt_tokens"] + 2 * usage["completion_tokens"],
    )


def work(cloud: Cloud, sites: Sequence[str], key: str, *, tok_s: int, for_s: float) -> list[Used]:
    """Ask for about so many tokens/s at each of the sites."""
    end_s = time.monotonic() + for_s

    def client(site: str) -> list[Used]:
        found: list[Used] = []
        next_s = time.monotonic()
        while next_s < end_s:
            time.sleep(max(next_s - time.monotonic(), 0))
            found.append(one(cloud, site, key))
            next_s += THREADS * found[-1].tokens / tok_s
        return found

    with ThreadPoolExecutor(max_workers=THREADS * len(sites)) as pool:
        clients = [pool.submit(client, site) for site in sites for _ in range(THREADS)]
        return sorted(
            (used for each in clients for used in each.result()), key=lambda used: used.at_s
        )


def tok_s_of(
    uses: Sequence[Used], since_s: float, until_s: float, *, class_: str = "", site: str = ""
) -> float:
    return sum(
        used.tokens for used in uses
        if since_s <= used.at_s < until_s
        and class_ in ("", used.class_) and site in ("", used.site)
    ) / (until_s - since_s)


def test_what_was_sold_travels_without_control(cloud: Cloud) -> None:
    key = cloud.api.post(
        "keys", {"name": "gold", "classes": ["reserved", "on_demand"]}, idempotency_key="gold-key"
    )["key"]
    sold = cloud.api.post(
        "entitlements",
        {"model": "tiny-fable", "tok_s": SOLD_TOK_S, "residency": ["any"],
         "ends_at": str(time.time_ns() + YEAR_NS)},
        idempotency_key="gold",
    )
    slices = {each["site"]: each["tok_s"] for each in sold["slices"]}
    assert sum(slices.values()) == SOLD_TOK_S
    assert len(slices) == 3
    voters = isochrone("entitlement", "voters", "--state", cloud.state)
    assert voters.stdout.split() == ["voters", "ashburn,", "frankfurt,", "sydney"], voters.stderr
    changed = isochrone("entitlement", "voters", "--change", "ashburn", "--state", cloud.state)
    assert changed.returncode == 0, changed.stderr
    assert "before  ashburn, frankfurt, sydney; more than half" in changed.stdout
    wait_until(lambda: cloud.chats("frankfurt", key=key), "the key is known")
    for site in ("sydney", "frankfurt", "ashburn"):  # who has no slice yet can lend none
        wait_until(partial(honours, cloud, site, key), "honoured", deadline_s=SILENT_S)
    control = cloud.pids()["control"]
    assert control is not None
    os.kill(control, signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        uses = work(cloud, ["sydney"], key, tok_s=2 * SOLD_TOK_S, for_s=SETTLED_S + 5)
        turned_s = time.monotonic()
        uses += work(cloud, ["sydney", "frankfurt"], key, tok_s=SOLD_TOK_S, for_s=BACK_S + 3)
        ended_s = time.monotonic()
    finally:
        os.kill(control, signal.SIGCONT)
    most = SOLD_TOK_S * (ended_s - began_s + BURST_S) + max(used.tokens for used in uses)
    assert sum(used.tokens for used in uses if used.class_ == "reserved") <= most
    # A machine that is busy may ask for less than was sold.
    asked = tok_s_of(uses, began_s + SETTLED_S, turned_s)
    alone = tok_s_of(uses, began_s + SETTLED_S, turned_s, class_="reserved")
    assert alone > 1.2 * slices["sydney"], "it has borrowed from others"
    assert alone > 0.85 * min(SOLD_TOK_S, asked), "all that was sold can be had at one site"
    for site in ("sydney", "frankfurt"):
        asked = tok_s_of(uses, turned_s + BACK_S, ended_s, site=site)
        own = tok_s_of(uses, turned_s + BACK_S, ended_s, class_="reserved", site=site)
        assert own > 0.5 * min(slices[site], asked), "each has its slice back"
    wait_until(
        lambda: {"reserved", "on_demand"} <= {
            row["name"] for row in cloud.api.items("usage", {"by": "class"})
        },
        "the book tells them apart",
    )
    assert cloud.api.delete(f"entitlements/{sold['id']}")["revoked_at"] is not None
    wait_until(lambda: one(cloud, "sydney", key).class_ == "on_demand", "revoked")


def honours(cloud: Cloud, site: str, key: str) -> bool:
    """Asked so seldom that it counts for nearly nothing as demand."""
    time.sleep(0.8)
    return one(cloud, site, key).class_ == "reserved"

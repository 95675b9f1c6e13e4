"""Streams go on when the engine, or the whole site, that writes them is killed, or is told to stop.

The full number of streams runs in benchmarks/streams.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.rig.stream_kills import (
    INGRESS,
    LEAST_TEXTS,
    OTHER,
    SERVING,
    Case,
    Rig,
    Round,
    Sent,
    a_rig,
    booked,
    faults,
    kill_in_the_middle,
    misbooked,
    tried_again,
    undisturbed,
    wait_until_served,
)
from tests.rig.waiting import wait_until

pytestmark = pytest.mark.rig

STREAMS, BOUND = 36, 4
MAX_TOKENS = 100
NEAR_TIES = 1  # of a kill: a token from a prefill may fall the other way than one from a decode


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with a_rig(tmp_path_factory.mktemp("streams"), streams=STREAMS + BOUND) as running:
        yield running


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    folder: Path = tmp_path_factory.mktemp("undisturbed")
    return asyncio.run(undisturbed(STREAMS + BOUND, max_tokens=MAX_TOKENS, logs=folder))


def play(
    rig: Rig, name: str, cases: Sequence[Case], entries: Sequence[str], kill: Callable[[], object]
) -> Round:
    return asyncio.run(
        kill_in_the_middle(rig, name, cases, bound=BOUND, entries=entries, kill=kill)
    )


def all_went_on(
    rig: Rig, played: Round, sent: Sequence[Sent], *, moved: bool
) -> dict[str, dict[str, Any]]:
    """No client saw anything but the text come late, and the book says what the clients saw."""
    complaints = {each.own_id: faults(each, moved=moved) for each in sent}
    assert {own_id: found for own_id, found in complaints.items() if found} == {}
    cut = [each for each in played.at(SERVING) if each.stream.texts_at_kill >= LEAST_TEXTS]
    assert len(cut) > 0.5 * len(sent), "most streams were in their middle, and where they should be"
    ties = [
        (each.case.undisturbed.text, each.stream.received().text) for each in sent
        if each.stream.received().text != each.case.undisturbed.text
    ]
    assert len(ties) <= NEAR_TIES, ties
    rows = booked(rig.cloud, played.sent)
    wrong = {each.own_id: misbooked(each, rows[each.own_id]) for each in sent}
    assert {own_id: found for own_id, found in wrong.items() if found} == {}
    return rows


def pays_for_what_it_got(each: Sent, row: dict[str, Any]) -> bool:
    """The prompt once, and the output up to where the stream ended."""
    usage = each.case.usage
    prompt = row["input_uncached"] + row["input_cached"]
    return bool(
        prompt == usage["prompt_tokens"]
        and each.stream.texts <= row["output"] <= usage["completion_tokens"]
    )


def test_a_site_is_killed_and_another_goes_on(rig: Rig, cases: list[Case]) -> None:
    try:
        played = play(rig, "site", cases, [rig.cloud.endpoint(INGRESS)], rig.serving.kill)
        rows = all_went_on(rig, played, played.free, moved=True)
        assert OTHER in {row["site"] for row in rows.values()}
        for each in played.bound:
            # Its policy allows the dead site only: it is told, and pays for what it got.
            error, row = each.stream.error, rows[each.own_id]
            assert error is not None
            assert (error["code"], each.stream.whole) == ("engine_lost", False)
            assert "no other allowed replica" in error["message"]
            assert b"[DONE]" not in each.stream.data
            assert b'"finish_reason":"' not in each.stream.data
            assert (row["outcome"], row["site"]) == ("engine_lost", SERVING)
            assert pays_for_what_it_got(each, row), row
    finally:
        rig.serving.start(replicas=2)
    wait_until_served(rig)
    # The dead gateway's journal held evidence of every one of these requests.
    assert booked(rig.cloud, played.sent) == rows


def test_an_engine_is_killed_and_its_site_goes_on(rig: Rig, cases: list[Case]) -> None:
    wait_until_served(rig)
    first, other = sorted(rig.serving.engines().items())
    entries = (rig.cloud.endpoint(INGRESS), rig.serving.endpoint)
    played = play(rig, "engine", cases, entries, lambda: os.kill(first[1], signal.SIGKILL))
    rows = all_went_on(rig, played, played.sent, moved=False)
    at_home = played.at(SERVING)
    assert {rows[each.own_id]["site"] for each in at_home} == {SERVING}
    wait_until(
        lambda: tried_again(rig, at_home) > 0.2 * len(at_home), "the engine had its share of them"
    )
    rig.serving.start(replicas=2)
    assert rig.serving.engines()[other[0]] == other[1]
    wait_until_served(rig)


def test_a_serving_gateway_that_stops_finishes_its_streams(rig: Rig, cases: list[Case]) -> None:
    rig.serving.restart_gateway("drain_timeout_s = 60")
    wait_until_served(rig)
    entries = (rig.cloud.endpoint(INGRESS), rig.serving.endpoint)
    played = play(rig, "drain", cases, entries, rig.serving.gateway.terminate)
    assert rig.serving.gateway.wait(60) == 0
    rows = all_went_on(rig, played, played.sent, moved=False)
    assert {rows[each.own_id]["attempts"] for each in played.at(SERVING)} == {1}


def test_streams_of_other_ingresses_go_on_elsewhere_when_the_drain_is_over(
    rig: Rig, cases: list[Case]
) -> None:
    """Those that came in at the gateway itself end with a reason, and pay for what they got."""
    rig.serving.restart_gateway("drain_timeout_s = 0.1")
    wait_until_served(rig)
    entries = (rig.cloud.endpoint(INGRESS), rig.serving.endpoint)
    played = play(rig, "limit", cases, entries, rig.serving.gateway.terminate)
    assert rig.serving.gateway.wait(60) == 0
    rig.serving.restart_gateway("")
    here = [each for each in played.sent if each.stream.entry == rig.serving.endpoint]
    there = [each for each in played.free if each.stream.entry != rig.serving.endpoint]
    moved = replace(played, sent=there)
    rows = all_went_on(rig, moved, there, moved=False)  # the engines ran on after the signal
    assert OTHER in {row["site"] for row in rows.values()}
    rows = booked(rig.cloud, here)
    stopped = [each for each in here if not each.stream.error_free]
    assert stopped
    for each in stopped:
        error, row = each.stream.error, rows[each.own_id]
        assert error is not None
        assert (error["code"], each.stream.whole) == ("gateway_stopping", False)
        assert (row["outcome"], row["reason"]) == ("timed_out", "gateway_stopping")
        assert pays_for_what_it_got(each, row), row

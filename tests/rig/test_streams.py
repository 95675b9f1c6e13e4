"""Streams go on when the engine, or the whole site, that writes them is killed, or is told to stop;
and end at the engine when their client goes.

With real engines the full number of streams runs in benchmarks/streams; here it is shown with
engines that cost nothing.
"""

import asyncio
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.fixtures.recorded_answers import CACHED_TOKENS, PROMPT_TOKENS, received
from tests.fixtures.tale_process import TOKENS, question, tale
from tests.rig.stream_kills import (
    INGRESS,
    LEAST_TEXTS,
    MODEL,
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
from tests.rig.streams import Ask, Client, Stream, until
from tests.rig.tale_sites import BOUND as PORTUGUESE
from tests.rig.tale_sites import FREE, TaleSites, tale_sites
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


# -- two hundred streams, of engines that cost nothing ---------------------------------------------

MANY, MANY_BOUND = 200, 10
WAIT_AT = 9  # events: the role and eight tokens
CANCEL_S = 0.1


@pytest.fixture(scope="module")
def tales(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaleSites]:
    with tale_sites(tmp_path_factory.mktemp("tales")) as running:
        yield running


@dataclass(slots=True, kw_only=True)
class Leaver:
    """A client that leaves; `number` is that of its tale, `first` what it has read of it."""

    number: int
    kind: str
    how: str
    link: socket.socket
    first: bytes = b""
    left_at: float = 0.0

    def leave(self) -> None:
        if self.how == "reset":
            linger = struct.pack("ii", 1, 0)
            self.link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.left_at = time.monotonic()
        self.link.close()


def comes(base: str, number: int, kind: str, how: str) -> Leaver:
    """A client whose request is at the engine once this returns if it is to have a first byte."""
    parts = urlsplit(base)
    assert parts.hostname is not None
    assert parts.port is not None
    link = socket.create_connection((parts.hostname, parts.port), timeout=30)
    asked = question(number, WAIT_AT if kind == "streamed" else 0)
    body = json.dumps({
        "model": MODEL, "stream": kind != "whole", "max_tokens": TOKENS,
        "messages": [{"role": "user", "content": asked}],
    }).encode()
    link.sendall(
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {FREE}\r\n"
        f"x-request-id: leaves-{number}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    )
    first = b""
    while kind == "streamed" and first.count(b'"content":"') < WAIT_AT - 1:
        first += link.recv(65_536)
    return Leaver(number=number, kind=kind, how=how, link=link, first=first)


def test_a_client_that_goes_away_cancels_its_engine_within_100_ms(tales: TaleSites) -> None:
    """By the clock of engine and client, which is one; beyond that only what a client costs in the
    same moment that is the engine's own: the time until it is scheduled."""
    ways = product(
        (tales.madrid.url, tales.lisbon.url, tales.engine.url), ("streamed", "unbegun", "whole"),
        ("close", "reset"), range(3),
    )
    leavers: dict[str, list[Leaver]] = {}
    for number, (base, kind, how, _) in enumerate(ways, 10_000):
        leavers.setdefault(base, []).append(comes(base, number, kind, how))
    count = sum(map(len, leavers.values()))
    wait_until(lambda: len(tales.engine.waits) == count, "the engine works for all of them")
    for together in zip(*leavers.values(), strict=True):
        for one in together:
            one.leave()
    wait_until(lambda: len(tales.engine.left) == count, "the engine has heard of all of them")
    left = tales.engine.left
    took_s = {
        base: [left[one.number]["gone_at"] - one.left_at for one in each]
        for base, each in leavers.items()
    }
    own_s = max(took_s.pop(tales.engine.url))
    for base, gateway in ((tales.madrid.url, tales.madrid), (tales.lisbon.url, tales.lisbon)):
        print(f"cancelled after {1e3 * max(took_s[base]):.1f} ms at most, {1e3 * own_s:.1f} direct")
        assert max(took_s[base]) <= CANCEL_S + own_s
        for one in leavers[base]:
            line = gateway.usage_called(f"leaves-{one.number}")
            assert line["outcome"] == "client_gone"
            used = (line["input_uncached"] + line["input_cached"], line["output"])
            if one.kind == "streamed":
                assert (used, line["token_source"]) == ((PROMPT_TOKENS, WAIT_AT - 1), "running")
                assert left[one.number]["sent"] == WAIT_AT
            else:
                assert (used, line["token_source"]) == ((0, 0), "none")


def tale_ask(number: int) -> Ask:
    """Some end by their limit of tokens, some at a stop string, all behind the kill."""
    body: dict[str, Any] = {
        "model": MODEL, "stream": True, "temperature": 0, "max_tokens": TOKENS + 5,
        "messages": [{"role": "user", "content": question(number, WAIT_AT)}],
    }
    if number % 7:
        body["stream_options"] = {"include_usage": True}
    if number % 3 == 0:
        body["max_tokens"] = 25
    if number % 5 == 0:
        body["stop"] = [f"{number}-20"]
    return Ask(own_id=f"tale-{number}", path="/chat/completions", body=body)


def expected(number: int) -> tuple[str, str, int]:
    """(text, finish reason, output tokens) of an undisturbed answer."""
    if number % 5 == 0:
        return "".join(tale(number)[:20]), "stop", 21
    if number % 3 == 0:
        return "".join(tale(number)[:25]), "length", 25
    return "".join(tale(number)), "stop", TOKENS


async def through_a_kill(tales: TaleSites) -> list[Stream]:
    client = Client()
    streams = [
        client.add(tale_ask(number), tales.madrid.url, FREE if number < MANY else PORTUGUESE)
        for number in range(MANY + MANY_BOUND)
    ]
    await client.begin()
    await until(
        lambda: all(stream.ended or stream.texts >= WAIT_AT - 1 for stream in streams),
        "all are in their middle",
    )
    assert {stream.texts for stream in streams} == {WAIT_AT - 1}
    tales.kill_lisbon()
    await client.finish()
    return streams


def test_two_hundred_streams_outlive_their_site(tales: TaleSites) -> None:
    streams = asyncio.run(through_a_kill(tales))
    for number, stream in enumerate(streams):
        assert stream.headers["x-isochrone-site"] == "lisbon"
        line = tales.madrid.usage_called(f"tale-{number}")
        assert line["input_uncached"] + line["input_cached"] == PROMPT_TOKENS, "charged once"
        if number >= MANY:
            assert stream.error is not None
            assert (stream.error["code"], stream.whole) == ("engine_lost", False)
            assert (line["outcome"], line["output"]) == ("engine_lost", WAIT_AT - 1)
            continue
        assert stream.error_free, (stream.status, stream.lost, stream.data[-300:])
        got, (text, finish, output) = received(stream.data), expected(number)
        assert (got.text, got.finish) == (text, {0: finish})
        assert (len(got.ids), len(got.created), got.roles, got.done) == (1, 1, 1, 1)
        assert len(got.usages) == stream.ask.wants_usage
        for usage in got.usages:
            assert (usage["prompt_tokens"], usage["completion_tokens"]) == (PROMPT_TOKENS, output)
        assert (line["outcome"], line["site"], line["output"]) == ("finished", "ashburn", output)
        assert line["input_cached"] == CACHED_TOKENS
    assert len({line["request_id"] for line in tales.madrid.usage()}) == len(tales.madrid.usage())

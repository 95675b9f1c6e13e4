"""Cached prefixes and sessions on a real cloud of two near sites with several replicas each."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from isochrone.core.errors import NotFound
from isochrone.core.routing.choose import BACK_SHARE
from isochrone.core.routing.words import BECAUSE
from isochrone.wiring.control_api import connection
from tests.rig.cloud import Cloud, Reply, isochrone
from tests.rig.waiting import wait_until

pytestmark = pytest.mark.rig

WORLD = """
emulate_distance = true

[[model]]
name = "tiny-fable"
kind = "chat"
file = "bundled:tiny-fable-q8_0.gguf"
context = 2048

[[site]]
name = "sydney"
country = "AU"
operator = "Example"
latitude = -33.86
longitude = 151.21
  [[site.hardware]]
  kind = "cpu"
  count = 1
  [[site.deployment]]
  model = "tiny-fable"
  replicas = 3
  engine = "llamacpp"
  slots = 2
  threads = 1
  shares_cache = true

[[site]]
name = "newcastle"
country = "AU"
operator = "Example"
latitude = -32.93
longitude = 151.78
  [[site.hardware]]
  kind = "cpu"
  count = 1
  [[site.deployment]]
  model = "tiny-fable"
  replicas = 1
  engine = "llamacpp"
  slots = 4
  threads = 1
  shares_cache = true

[[link]]
between = ["sydney", "newcastle"]
rtt_ms = 2.0
"""

PROMPTS = 8
LEAST_RATIO = 3.0
STREAMS = 36
TARGET_MS = 200.0  # within it a request stays at its own site
SENTENCES = (
    "Once there was a brave fox named {name} who lived near the river and loved honey.",
    "One day the fog was thick, and {name} heard someone calling for help near the park.",
    "{name} went along the old road, met a quiet deer, and asked it where the bridge was.",
    "In the evening {name} came home, told the story, and slept well that night.",
)


def story(number: int, sentences: int = 44) -> str:
    """About 900 tokens, another beginning for every number."""
    said = [SENTENCES[each % 4].format(name=f"Otto{number}") for each in range(sentences)]
    return f"Story {number}. " + " ".join(said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """`first_ms` until the first byte of the answer; of the prompt's tokens so many were cached."""

    first_ms: float
    site: str
    timing: str
    prompt_tokens: int
    cached_tokens: int

    @property
    def home(self) -> str:
        return self.timing.partition('session;desc="')[2].partition('"')[0]


def ask(
    cloud: Cloud, site: str, messages: Sequence[dict[str, str]], *, key: str | None = None,
    spaces: int = 0, headers: dict[str, str] | None = None,
) -> Answered:
    """One streamed answer of a few tokens. `spaces` are put into the JSON: the same prompt for an
    engine, and another one for whoever compares its bytes."""
    content = json.dumps(messages)
    body = (
        f'{{"model": "tiny-fable", "stream": true, "max_tokens": 4, "temperature": 0, '
        f'"stream_options": {{"include_usage": true}}, '
        f'"messages": [{" " * spaces}{content[1:]}}}'
    )
    link, prefix = connection(cloud.endpoint(site), timeout_s=60.0)
    try:
        link.connect()
        began = time.perf_counter()
        link.request("POST", prefix + "/chat/completions", body, {
            "authorization": f"Bearer {key or cloud.up['api_key']}",
            "content-type": "application/json", **(headers or {}),
        })
        answer = link.getresponse()
        first = answer.read(1)
        first_ms = (time.perf_counter() - began) * 1000
        text = (first + answer.read()).decode()
    finally:
        link.close()
    assert answer.status == 200, text
    usage = next(
        event["usage"] for event in map(json.loads, _events(text)) if event.get("usage")
    )
    return Answered(
        first_ms=first_ms, site=answer.getheader("x-isochrone-site") or "",
        timing=answer.getheader("server-timing") or "", prompt_tokens=usage["prompt_tokens"],
        cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
    )


def _events(text: str) -> Iterator[str]:
    for event in text.split("\n\n"):
        if event.startswith("data: {"):
            yield event.removeprefix("data: ")


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """Sydney with three replicas, Newcastle with one."""
    folder: Path = tmp_path_factory.mktemp("near")
    world = folder / "world.toml"
    world.write_text(WORLD)
    running = Cloud(folder / "state", "--sites", world)
    try:
        running.start()
        wait_until(lambda: len(ready(running)) == 4, "all four replicas are ready")
        yield running
    finally:
        running.stop()


def ready(cloud: Cloud) -> list[str]:
    return [
        replica["id"] for site in cloud.api.get("status")["sites"]
        for replica in site.get("replicas") or () if replica["state"] == "ready"
    ]


@pytest.fixture(scope="module")
def bound(near: Cloud) -> dict[str, str]:
    """A key for each site that is served nowhere else."""
    keys: dict[str, str] = {}
    for site in ("sydney", "newcastle"):
        made = isochrone(
            "keys", "create", "--state", near.state, "--json", "--residency", f"site:{site}"
        )
        assert made.returncode == 0, made.stderr
        key = keys[site] = str(json.loads(made.stdout)["key"])
        for entry in ("sydney", "newcastle"):
            wait_until(partial(near.chats, entry, key=key), f"the key is known at {entry}")
    return keys


@pytest.mark.parametrize("entry", ["sydney", "newcastle"])
def test_a_prompt_that_goes_where_its_beginning_is_cached_is_answered_sooner(
    near: Cloud, bound: dict[str, str], entry: str
) -> None:
    """Three replicas at Sydney: asked there, and through the hop from Newcastle. The blind half
    asks the same again in other bytes, so that engines know it and gateways do not."""
    key = bound["sydney"]
    first = {"sydney": 100, "newcastle": 200}[entry]
    for number in range(first, first + 2 * PROMPTS):
        cold = ask(near, entry, user(story(number)), key=key)
        assert (cold.site, cold.cached_tokens < 50) == ("sydney", True)
        assert 700 < cold.prompt_tokens < 1800
    aware = [
        ask(near, entry, user(story(number)), key=key) for number in range(first, first + PROMPTS)
    ]
    blind = [
        ask(near, entry, user(story(number)), key=key, spaces=number % 7 + 1)
        for number in range(first + PROMPTS, first + 2 * PROMPTS)
    ]
    aware_ms, blind_ms = mean(each.first_ms for each in aware), mean(b.first_ms for b in blind)
    hits = sum(each.cached_tokens > 500 for each in blind)
    print(
        f"through {entry}: first byte after {aware_ms:.1f} ms where the prefix is known, "
        f"{blind_ms:.1f} ms where not ({hits} of {PROMPTS} by chance): {blind_ms / aware_ms:.1f}x"
    )
    assert all(each.cached_tokens > 0.9 * each.prompt_tokens for each in aware)
    assert hits < PROMPTS, "chance alone does not find them all"
    assert blind_ms / aware_ms >= LEAST_RATIO


class Crowd:
    """Long streams that are served at one site only, until `leave`."""

    def __init__(self, cloud: Cloud, site: str, key: str) -> None:
        self._links: list[http.client.HTTPConnection] = []
        self._threads = [
            threading.Thread(target=self._stream, args=(cloud.endpoint(site), key, number))
            for number in range(STREAMS)
        ]
        for thread in self._threads:
            thread.start()
        wait_until(lambda: len(self._links) == STREAMS, "the crowd is there")

    def _stream(self, endpoint: str, key: str, number: int) -> None:
        link, prefix = connection(endpoint, timeout_s=60.0)
        body = {
            "model": "tiny-fable", "stream": True, "max_tokens": 1500, "temperature": 1,
            "messages": user(f"Tell me a very long story about {number} foxes."),
            "ignore_eos": True,
        }
        try:
            link.request(
                "POST", prefix + "/chat/completions", json.dumps(body),
                {"authorization": f"Bearer {key}", "content-type": "application/json"},
            )
            self._links.append(link)
            answer = link.getresponse()
            while answer.read(4096):
                pass
        except (OSError, http.client.HTTPException):
            pass  # it was sent away
        finally:
            link.close()

    def leave(self) -> None:
        for link in self._links:
            with contextlib.suppress(OSError, AttributeError):  # it is gone already
                link.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(60)


def test_a_session_stays_and_moves_once_under_load(near: Cloud, bound: dict[str, str]) -> None:
    session = {"x-session-id": "a long conversation"}
    messages = user(story(1))

    def turn() -> Answered:
        return ask(near, "sydney", messages, headers=session)

    turns = [turn()]
    home = turns[0].site
    assert turns[0].home == "new"
    for _ in range(6):
        messages += [
            {"role": "assistant", "content": "It was so."}, {"role": "user", "content": "And?"}
        ]
        turns.append(turn())
    assert {(each.site, each.home) for each in turns[1:]} == {(home, "kept")}
    def left() -> bool:
        turns.append(turn())
        return turns[-1].site != home

    crowd = Crowd(near, "sydney", bound[home])
    try:
        wait_until(left, "it moves")
        turns += [turn() for _ in range(4)]
    finally:
        crowd.leave()
    turns += [turn() for _ in range(6)]
    sites = [each.site for each in turns]
    print(f"session: {' '.join(f'{each.site}:{each.home}' for each in turns)}")
    moved = [each.home for each in turns if each.home not in ("new", "kept")]
    assert moved == ["moved"]
    at = sites.index(next(site for site in sites if site != home))
    assert len(set(sites[at:])) == 1, "and does not come back"
    assert turns[-1].cached_tokens > 500


def test_requests_spill_while_their_own_site_is_late_and_come_home(
    near: Cloud, bound: dict[str, str]
) -> None:
    """By cost, with the reason on record; Newcastle has one engine, Sydney is 2 ms away."""
    numbers = count()

    def asked() -> Reply:
        reply = near.chat("newcastle", f"Say hello to {next(numbers)} foxes.")
        assert reply.status == 200, reply.body
        return reply

    def served_at(site: str, times: int = 1) -> bool:
        return all(asked().headers["x-isochrone-site"] == site for _ in range(times))

    wait_until(lambda: served_at("newcastle", 3), "its own site serves")
    spilled: list[Any] = []

    def by_cost() -> bool:
        """One more request; whether it spilled, and not because its own site sent it back."""
        reply = asked()
        if reply.headers["x-isochrone-site"] != "sydney":
            return False
        request = reply.headers["x-isochrone-request"]
        wait_until(partial(_is_booked, near, request), "it is booked")
        spilled.append(near.api.get(f"requests/{request}"))
        return _is_by_cost(spilled[-1]["decision"])

    crowd = Crowd(near, "newcastle", bound["newcastle"])
    try:
        wait_until(lambda: served_at("sydney"), "one spills")
        assert sum([served_at("sydney") for _ in range(6)]) >= 4
        # What a site sends back knows more than the last digest; the next ones say it, too.
        wait_until(by_cost, "one spills by its cost")
    finally:
        crowd.leave()
    for told in spilled:
        decision = told["decision"]
        assert (told["ingress"]["site"], told["serving"]["site"]) == ("newcastle", "sydney")
        by = decision["because"]
        if _is_by_cost(decision):
            assert decision["runner_up"]["site"] == "newcastle"
            assert decision["candidates"][0]["cost_ms"] < decision["runner_up"]["cost_ms"]
            assert decision["runner_up"]["cost_ms"] > BACK_SHARE * TARGET_MS
            explained = isochrone("explain", told["id"], "--state", near.state).stdout
            assert BECAUSE[by] in explained
        else:  # sent back by its own site, or one of a hundred that look about
            assert by == "explored" or [
                (each["site"], each["rule"]) for each in decision["tried"]
            ] == [("newcastle", "saturated")]
    wait_until(lambda: served_at("newcastle", 3), "they come home")


def _is_by_cost(decision: Mapping[str, Any]) -> bool:
    return decision["because"] in ("cheapest", "nearest") and not decision["tried"]


def _is_booked(cloud: Cloud, request: str) -> bool:
    try:
        return bool(cloud.api.get(f"requests/{request}"))
    except NotFound:
        return False

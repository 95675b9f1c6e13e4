"""Two tenants at one real llama.cpp: neither learns from it what the other one asked."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from isochrone.core.world.model import ALL_ENDPOINTS
from isochrone.ports.engine import Engine
from tests.contract.test_engines import ask as ask_engine
from tests.contract.test_gateway_http import one_site
from tests.contract.test_several_prompts import with_engine
from tests.contract.test_surface_gateway import has_everything
from tests.fixtures.gateways import MODEL, RunningSite, a_cloud, ask, post

STORY = "Once upon a time a fox and a crow lived in a wood beside a river. " * 8
OTHER = "The price of bread in the town rose by two coins, and the baker was sorry. " * 8

THIRD = "Seven sailors rowed to an island with a lighthouse that nobody had lit for years. " * 8

Chat = Callable[..., Awaitable[int]]


def with_tenants(
    path: Path, main: Callable[[Chat], Awaitable[None]], *, shares: bool = False
) -> None:
    """As `with_site`, for one that asks and is told how much was cached."""

    async def asking(site: RunningSite) -> None:
        async def chat(key: str, text: str, path: str = "/v1/chat/completions",
                       **fields: Any) -> int:
            return await cached(site, key, text, path, fields)

        await main(chat)

    with_site(path, asking, shares=shares)


def with_site(
    path: Path, main: Callable[[RunningSite], Awaitable[None]], *, shares: bool = False
) -> None:
    """Run a test body with a gateway before a real engine of two slots, and tenants a, b and c."""

    async def started(engine: Engine) -> None:
        replica = {
            "base_url": engine.base_url, "engine_key": engine.key, "upstream_model": "tiny",
            "running_counts": "timings", "usage_counts_one_choice": True, "slots": 2,
            "pid": engine.pid, "endpoints": ALL_ENDPOINTS, "shares_cache": shares,
        }
        async with a_cloud() as cloud:
            site = await has_everything(await one_site(cloud, replica=replica))
            for name in ("a", "b", "c"):
                await cloud.key(name, org=name)
            await cloud.ready()
            await main(site)

    with_engine(path, started, shares_cache=shares)


async def cached(
    site: RunningSite, key: str, text: str, path: str, fields: dict[str, Any]
) -> int:
    """Ask; how many tokens of the prompt the engine says it had."""
    body = {
        "model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 2, **fields
    }
    answer = await ask(site, post(json.dumps(body).encode(), key=key, path=path))
    assert answer.status == 200, answer.body
    if fields.get("stream"):
        usage = json.loads(answer.events[-2])["usage"]
    else:
        usage = answer.json["usage"]
    if path.endswith("/messages"):
        return int(usage["cache_read_input_tokens"])
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def test_who_asks_what_another_tenant_asked_is_not_told_so(tmp_path: Path) -> None:
    async def main(chat: Chat) -> None:
        assert await chat("a", STORY) == 0
        own = await chat("a", STORY)
        assert own > 100
        assert await chat("b", STORY) == 0
        assert await chat("b", STORY) == own
        assert await chat("a", STORY) == own, "each has a slot"
        assert await chat("c", STORY) == 0, "the third takes the one that was left alone longer"
        assert await chat("b", STORY) == 0
        streams = {"stream": True, "stream_options": {"include_usage": True}}
        assert await chat("b", STORY, **streams) == own
        assert await chat("a", STORY, **streams) == 0

    with_tenants(tmp_path, main)


def test_what_a_client_says_of_slots_and_caches_does_not_count(tmp_path: Path) -> None:
    async def main(chat: Chat) -> None:
        await chat("a", STORY)
        assert await chat("a", STORY) > 100
        for key, slot in (("b", 0), ("c", 1)):
            assert await chat(key, STORY, id_slot=slot, cache_prompt=True) == 0
        await chat("a", STORY)
        # Its own salt parts what it keeps, and joins nobody's.
        assert await chat("a", STORY, cache_salt="mine") == 0
        assert await chat("b", OTHER, id_slot=0, cache_prompt=True, cache_salt="mine") == 0

    with_tenants(tmp_path, main)


def test_what_runs_in_any_slot_uses_nothing_and_leaves_nothing_to_use(tmp_path: Path) -> None:
    async def main(chat: Chat) -> None:
        await chat("a", STORY)
        assert await chat("a", STORY) > 100
        for _ in range(2):
            assert await chat("b", STORY, "/v1/messages") == 0
        assert await chat("a", STORY, n=2) == 0
        assert await chat("b", STORY, n=2) == 0
        assert await chat("a", STORY) == 0
        assert await chat("a", STORY) > 100

    with_tenants(tmp_path, main)


@pytest.mark.parametrize(("path", "answers"), [
    ("/v1/chat/completions", "choices"), ("/v1/responses", "output"),
])
def test_an_engine_gives_as_many_answers_as_are_counted(
    tmp_path: Path, path: str, answers: str
) -> None:
    async def main(site: RunningSite) -> None:
        body = {
            "model": MODEL, "messages": [{"role": "user", "content": "hi"}], "input": "hi",
            "max_tokens": 2, "max_output_tokens": 2,
        }
        fields: list[dict[str, int]] = [{"n_cmpl": 2}, {"n_cmpl": 1}]
        if path.endswith("responses"):
            fields = [{"n": 2}, {"n": 2, "n_cmpl": 2}]
        for each in fields:
            answer = await ask(site, post(json.dumps(body | each).encode(), key="a", path=path))
            assert answer.status == 200, answer.body
            assert len(answer.json[answers]) == 1
        if path.endswith("completions"):
            two = await ask(site, post(json.dumps(body | {"n": 2, "n_cmpl": 1}).encode(), key="a"))
            assert len(two.json[answers]) == 2

    with_site(tmp_path, main)


def test_tenants_share_what_there_is_where_the_operator_says_so(tmp_path: Path) -> None:
    async def main(chat: Chat) -> None:
        for text in (STORY, OTHER, THIRD):
            assert await chat("a", text) < 50
        for text in (STORY, OTHER, THIRD):
            assert await chat("b", text) > 100, "also what no slot holds any more"
        assert await chat("c", STORY, "/v1/messages") > 100

    with_tenants(tmp_path, main, shares=True)


def test_messages_share_what_there_is_where_the_operator_says_so(tmp_path: Path) -> None:
    async def main(engine: Engine) -> None:
        body = {"messages": [{"role": "user", "content": STORY}], "max_tokens": 2}
        usages = [
            (await ask_engine(engine, "/messages", body)).json()["usage"] for _ in range(2)
        ]
        first, second = [usage["cache_read_input_tokens"] for usage in usages]
        assert first == 0
        assert second > 100

    with_engine(tmp_path, main, shares_cache=True)

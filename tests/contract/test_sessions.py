"""Cached prefixes and sessions on real gateways: who is asked again, what is told to whom."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isochrone.core.ids import OrgId, ReplicaId
from isochrone.core.world.digest import ReplicaLoad
from isochrone.gateway.prefix_hash import prompt_blocks
from isochrone.gateway.request import parse_request
from isochrone.gateway.salts import Salts
from isochrone.wire import fleet, subjects
from isochrone.wiring.peer_secret import kept_peer_secret
from tests.fixtures.gateways import (
    MODEL,
    Answer,
    GatewayCloud,
    RunningSite,
    a_digest_of_one,
    ask,
    chat_body,
    post,
    run,
    until,
)

LONG = "Tell me of the sea, and of the ships on it. " * 100  # 4,400 bytes: four blocks


def long_body(text: str = LONG, *answers: str, **fields: Any) -> bytes:
    """A conversation: a first message, and answers that were given, each with a next question."""
    messages: list[dict[str, str]] = [{"role": "user", "content": text}]
    for answer in answers:
        messages += [
            {"role": "assistant", "content": answer}, {"role": "user", "content": "And then?"}
        ]
    return chat_body(messages=messages, **fields)


def asked(site: RunningSite) -> list[int]:
    """How often each engine of a site was asked."""
    return [len(engine.asked) for engine in site.engines]


async def served_by(site: RunningSite, raw: bytes) -> str:
    answer = await ask(site, raw)
    assert answer.status == 200
    return answer.headers["x-isochrone-site"]


async def two_near_sites(cloud: GatewayCloud) -> tuple[RunningSite, RunningSite]:
    """So near that chance decides between them."""
    sydney = await cloud.add_site("sydney", "AU", ttft_target_ms=0.0)
    oslo = await cloud.add_site("oslo", "NO")
    await cloud.link("sydney", "oslo", 1.0)
    await cloud.key("secret")
    await cloud.key("norwegian", residency=("NO",))
    await cloud.ready()
    await until(lambda: sydney.running.context.view.rtt_ms(oslo.site.name) == 1.0)
    return sydney, oslo


# -- sessions --------------------------------------------------------------------------------------


def test_a_session_stays_where_it_began_though_chance_would_part_it() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, _ = await two_near_sites(cloud)
        body = chat_body()
        without = {await served_by(sydney, post(body)) for _ in range(30)}
        assert without == {"sydney", "oslo"}
        homes = set()
        for session in range(12):
            headers = {"x-session-id": f"session {session}"}
            served = {await served_by(sydney, post(body, headers=headers)) for _ in range(5)}
            assert len(served) == 1
            homes |= served
        assert homes == {"sydney", "oslo"}
        for key in range(4):
            body = chat_body(prompt_cache_key=f"key {key}")
            assert len({await served_by(sydney, post(body)) for _ in range(6)}) == 1
        for number in range(4):
            turns = [f"answer {number}"] * 3
            said = [
                await ask(sydney, post(long_body(f"{number} {LONG}", *turns[:turn])))
                for turn in range(4)
            ]
            assert len({each.headers["x-isochrone-site"] for each in said}) == 1
            homes_said = [each.headers["server-timing"].partition("session")[2] for each in said]
            assert homes_said == ["", ';desc="new"', ';desc="kept"', ';desc="kept"']

    run(main)


async def of_a_session_at(entry: RunningSite, home: str) -> dict[str, str]:
    """The headers of a session that has made itself at home at this site."""
    for number in range(200):  # each is somewhere by chance
        headers = {"x-session-id": f"s-{number}"}
        if await served_by(entry, post(chat_body(), headers=headers)) == home:
            return headers
    raise AssertionError(f"no session is at home at {home}")


def test_what_became_of_a_home_is_told() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, _ = await two_near_sites(cloud)
        raw = post(chat_body(), headers={"x-session-id": "s"})
        first, second = await ask(sydney, raw), await ask(sydney, raw)
        assert first.headers["server-timing"].endswith(', session;desc="new"')
        assert second.headers["server-timing"].endswith(
            'prefix;desc="0 tokens believed cached", session;desc="kept"'
        )
        reports = 1 if second.headers["x-isochrone-site"] == "sydney" else 2
        events = await cloud.events(second.request_id, reports)
        (event,) = [each for each in events if each.reporter == "ingress"]
        assert event.decision is not None
        bond = event.decision.bond
        assert bond is not None
        assert (bond.verdict, bond.home, bond.limit_ms > 0) == ("kept", event.serving_site, True)
        plain = await ask(sydney, post(chat_body()))
        assert "desc" not in plain.headers["server-timing"]

    run(main)


def test_a_home_that_is_not_allowed_is_left_and_nobody_else_moves() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, oslo = await two_near_sites(cloud)
        headers = await of_a_session_at(sydney, "sydney")
        bound = post(chat_body(), key="norwegian", headers=headers)
        narrowed = post(chat_body(), headers={**headers, "x-isochrone-residency": "NO"})
        for raw in (bound, narrowed, bound, narrowed):
            assert await served_by(sydney, raw) == "oslo"
        assert len(sydney.running.context.sessions) >= 1
        for _ in range(6):
            assert await served_by(sydney, post(chat_body(), headers=headers)) == "sydney"
        assert asked(oslo)[0] >= 4

    run(main)


def test_each_wish_has_homes_of_its_own_also_one_of_transit() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, _ = await two_near_sites(cloud)
        headers = await of_a_session_at(sydney, "oslo")
        narrowed = post(chat_body(), headers={**headers, "x-isochrone-transit": "any,via:AU"})
        for _ in range(6):
            assert await served_by(sydney, narrowed) == "sydney", "the link does not say its way"
            assert await served_by(sydney, post(chat_body(), headers=headers)) == "oslo"

    run(main)


def test_nothing_is_remembered_where_the_policy_of_caches_does_not_admit_the_ingress() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, oslo = await two_near_sites(cloud)
        raw = post(long_body(), key="norwegian", headers={"x-session-id": "s"})
        answer = await ask(sydney, raw)
        assert answer.headers["x-isochrone-site"] == "oslo"
        assert "desc" not in answer.headers["server-timing"]
        context = sydney.running.context
        assert (len(context.sessions), len(context.prefixes)) == (0, 0)
        assert len(oslo.running.context.prefixes) > 0, "it may process, so it may remember"
        assert len(oslo.running.context.sessions) == 0, "its ingress has chosen already"

    run(main)


def test_ids_of_sessions_stay_here_and_keys_of_caches_go_on_untouched() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, oslo = await two_near_sites(cloud)
        body = chat_body(prompt_cache_key="my key")
        while not (asked(sydney)[0] and asked(oslo)[0]):
            headers = {"x-session-id": f"mine {asked(sydney)} {asked(oslo)}"}
            await ask(sydney, post(body, headers=headers))
        for site in (sydney, oslo):
            for each in site.engines[0].asked:
                assert each.json["prompt_cache_key"] == "my key"
                assert "x-session-id" not in each.headers
                assert not any("mine" in value for value in each.headers.values())
        await cloud.events((await ask(sydney, post(body, headers=headers))).request_id)
        for site in (sydney, oslo):
            site.running.context.log.flush()
            held = [site.disk.read(name) for name in site.disk.names()] + [site.log_lines]
            assert not any(b"mine" in each or b"my key" in each for each in held)

    run(main)


# -- prefixes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("through", ["sydney", "oslo"])
def test_the_replica_that_has_the_beginning_is_asked_again(through: str) -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU", engines=4)
        oslo = await cloud.add_site("oslo", "NO", engines=0)
        await cloud.key("secret")
        await cloud.ready()
        entry = sydney if through == "sydney" else oslo
        for conversation in range(6):
            before = asked(sydney)
            for turn in range(5):
                text = f"{conversation} {LONG}"
                raw = post(long_body(text, *["And so on."] * turn, stream=turn % 2 == 1))
                assert (await ask(entry, raw)).status == 200
            added = [now - was for now, was in zip(asked(sydney), before, strict=True)]
            assert sorted(added) == [0, 0, 0, 5]
        assert asked(sydney) != [30, 0, 0, 0], "others go elsewhere"

    run(main)


def test_tenants_know_nothing_of_each_other() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, _ = await two_near_sites(cloud)
        await cloud.key("other", org="another-org")
        await cloud.ready()
        headers = {"x-session-id": "s"}

        async def told(key: str) -> str:
            answer = await ask(sydney, post(long_body(), key=key, headers=headers))
            return answer.headers["server-timing"].partition("prefix")[2]

        assert await told("secret") == ';desc="0 tokens believed cached", session;desc="new"'
        sessions = len(sydney.running.context.sessions)
        assert "1023 tokens believed cached" in await told("secret"), "a moment has passed"
        assert await told("other") == ';desc="0 tokens believed cached", session;desc="new"'
        assert len(sydney.running.context.sessions) == sessions + 1

    run(main)


def test_reports_teach_how_far_to_believe() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU")
        await cloud.key("secret")
        await cloud.ready()
        engine = sydney.engines[0]

        async def believed(cached_tokens: int) -> int:
            engine.cached_tokens = cached_tokens
            answer: Answer = await ask(sydney, post(long_body()))
            said = answer.headers["server-timing"]
            return int(said.partition('prefix;desc="')[2].partition(" ")[0])

        assert [await believed(10) for _ in range(3)] == [0, 1023, 1023]
        falling = [await believed(0) for _ in range(10)]
        assert falling[0] == 1023
        assert falling == sorted(falling, reverse=True)
        assert falling[-1] < 400
        rising = [await believed(10) for _ in range(20)]
        assert rising[-1] > 900

    run(main)


def test_what_one_replica_has_is_not_believed_of_the_one_that_serves_while_it_is_busy() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU", engines=2, replica={"slots": 1})
        await cloud.key("secret")
        await cloud.ready()
        context, raw = sydney.running.context, post(long_body())
        assert (await ask(sydney, raw)).status == 200
        one, other = sorted(sydney.engines, key=lambda each: -len(each.asked))
        one.hold.clear()
        other.hold.clear()
        one.cached_tokens, other.cached_tokens = 10, 0
        first = asyncio.create_task(ask(sydney, raw))
        await until(lambda: asked(sydney) in ([2, 0], [0, 2]))
        second = asyncio.create_task(ask(sydney, raw))
        await until(lambda: len(other.asked) == 1)
        known = context.view.replicas._by_id
        named = ReplicaId(f"sydney-{MODEL}-{sydney.engines.index(other)}")
        request = parse_request("chat.completions", long_body())
        assert known[named].ahead.prompt_tokens == request.prompt_tokens, "it has all to read"
        one.hold.set()
        other.hold.set()
        assert '"0 tokens believed cached"' not in (await first).headers["server-timing"]
        answer = await second
        assert '"0 tokens believed cached"' in answer.headers["server-timing"]
        (event,) = await cloud.events(answer.request_id)
        assert event.decision is not None
        assert event.decision.bond is not None
        assert (event.replica, event.decision.bond.cached_tokens) == (named, 0)
        blocks = prompt_blocks(request, context.salts.of_prompts(OrgId("org"), MODEL))
        now_ns = context.clock.monotonic_ns()
        for belief in context.prefixes.cached_by_replica(sydney.site.name, blocks, now_ns).values():
            assert belief.sighting.trust.share == 1.0, "whoever was believed had as much"

    run(main)


def test_a_replica_that_starts_anew_has_forgotten() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU", engines=2)
        await cloud.key("secret")
        await cloud.ready()
        replicas = sydney.running.context.view.replicas
        ids = [ReplicaId(f"sydney-{MODEL}-{number}") for number in range(2)]
        anew: list[int] = []
        for generation in range(2, 14):
            assert (await ask(sydney, post(long_body()))).status == 200
            assert (await ask(sydney, post(long_body()))).status == 200
            alike = [count % 2 for count in asked(sydney)]
            assert alike == [0, 0], "as long as it runs, the one that has it is asked again"
            anew.append(generation)
            await cloud.deploy("sydney", MODEL, {"generation": generation})
            await until(lambda: {replicas.generation_of(each) for each in ids} == {anew[-1]})
        assert min(asked(sydney)) > 0

    run(main)


def test_nothing_is_believed_of_a_try_that_failed() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU", engines=2)
        await cloud.key("secret")
        await cloud.ready()
        sydney.engines[0].status = 503
        while not sydney.engines[0].asked:  # chance decides who is asked first
            text = f"{len(sydney.engines[1].asked)} {LONG}"
            assert (await ask(sydney, post(long_body(text)))).status == 200
        context = sydney.running.context
        request = parse_request("chat.completions", long_body(text))
        blocks = prompt_blocks(request, context.salts.of_prompts(OrgId("org"), MODEL))
        cached = context.prefixes.cached_by_replica(
            sydney.site.name, blocks, context.clock.monotonic_ns()
        )
        assert set(cached) == {f"sydney-{MODEL}-1"}

    run(main)


def test_nothing_is_believed_of_an_engine_that_gave_no_answer_in_time() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU", first_byte_timeout_s=0.3)
        await cloud.key("secret")
        await cloud.ready()
        context, engine = sydney.running.context, sydney.engines[0]
        blocks = prompt_blocks(
            parse_request("chat.completions", long_body()),
            context.salts.of_prompts(OrgId("org"), MODEL),
        )

        def believed() -> int:
            found = context.prefixes.cached(blocks, context.clock.monotonic_ns())
            return sum(belief.seen_tokens for belief in found.values())

        engine.silent = True
        engine.hold.clear()
        answer = await ask(sydney, post(long_body(stream=True)))
        assert answer.headers["x-isochrone-reason"] == "first_byte_timeout"
        assert believed() == 0
        engine.hold.set()
        assert (await ask(sydney, post(long_body(stream=True)))).status == 200
        before = believed()
        assert before > 0
        engine.hold.clear()
        longer = post(long_body(LONG, LONG, stream=True))
        assert (await ask(sydney, longer)).headers["x-isochrone-reason"] == "first_byte_timeout"
        assert believed() == before, "what the engine had of it before"

    run(main)


def test_what_answers_may_have_at_most_displaces_nothing() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU")  # which does not say what it has computed
        await cloud.key("secret")
        await cloud.ready()
        sydney.engines[0].cached_tokens = 10
        assert (await ask(sydney, post(long_body()))).status == 200
        for number in range(3):
            body = long_body(f"{number} {LONG}", max_tokens=128_000)
            assert (await ask(sydney, post(body))).status == 200
        said = (await ask(sydney, post(long_body()))).headers["server-timing"]
        assert int(said.partition('prefix;desc="')[2].partition(" ")[0]) > 980

    run(main)


def test_digests_say_which_replicas_have_started_anew() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU", engines=0)
        oslo = await cloud.add_site("oslo", "NO")
        await cloud.key("secret")
        await cloud.ready()
        cloud.silent.add("oslo")
        sequence = 1_000_000

        async def say(generation: int) -> None:
            nonlocal sequence
            sequence += 1
            replica = ReplicaLoad(
                id=f"oslo-{MODEL}-0", model=MODEL, generation=generation, state="ready", pid=None,
                running=0, waiting=0, restarts=0, prompt_tokens_total=9, cached_tokens_total=0,
                output_tokens_total=0,
            )
            digest = replace(a_digest_of_one(oslo), sequence=sequence, replicas=(replica,))
            await oslo.bus.publish(subjects.digest_subject("oslo"), fleet.encode(digest))
            load = sydney.running.context.loads
            await until(lambda: (known := load.of(oslo.site.name)) and known.sequence == sequence)

        async def believed() -> bool:
            answer = await ask(sydney, post(long_body()))
            return '"0 tokens believed' not in answer.headers["server-timing"]

        assert not await believed()
        await say(1)
        assert await believed()
        await say(1)
        assert await believed()
        await say(2)
        assert not await believed()
        assert await believed()

    run(main)


# -- the cache of the engine itself ----------------------------------------------------------------


@pytest.mark.parametrize("model", [MODEL, "engine-name"])
def test_an_engine_that_can_keeps_tenants_apart_whatever_clients_say(model: str) -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site(
            "sydney", "AU", replica={"cache_salt": True, "upstream_model": model}
        )
        await cloud.key("secret")
        await cloud.key("other", org="another-org")
        await cloud.key("third")
        await cloud.ready()

        async def salt(key: str, path: str = "/v1/chat/completions", **fields: Any) -> str:
            body = chat_body(**fields)
            if path.endswith("completions") and "chat" not in path:
                body = json.dumps({"model": "tiny-fable", "prompt": "hello", **fields}).encode()
            assert (await ask(sydney, post(body, key=key, path=path))).status == 200
            said = sydney.engines[0].asked[-1]
            assert said.body.count(b"cache_salt") == 1
            assert said.json["model"] == model
            return str(said.json["cache_salt"])

        mine = await salt("secret")
        assert len(mine) == 32
        assert {
            await salt("secret", stream=True), await salt("third"), await salt("third"),
            await salt("secret", path="/v1/completions"),
        } == {mine}, "one tenant, one salt"
        others = await salt("other")
        assert others != mine
        part = await salt("secret", cache_salt="abc", stream=True)
        assert len({mine, others, part, await salt("other", cache_salt="abc")}) == 4
        assert await salt("secret", cache_salt="abc") == part
        assert await salt("other", cache_salt=mine) != mine, "nobody joins another's cache"
        assert await salt("other", cache_salt=None) == others
        raw = b'{"model":"tiny-fable","messages":[],"cache_salt":null}'
        assert (await ask(sydney, post(raw, key="other"))).status == 200
        assert sydney.engines[0].asked[-1].json["cache_salt"] not in ("", None, mine)

    run(main)


def test_other_engines_get_what_the_client_said() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU")
        await cloud.key("secret")
        await cloud.ready()
        await ask(sydney, post(chat_body()))
        assert "cache_salt" not in sydney.engines[0].asked[-1].json
        await ask(sydney, post(chat_body(cache_salt="abc")))
        assert sydney.engines[0].asked[-1].json["cache_salt"] == "abc"

    run(main)


def test_workers_and_later_lives_of_a_site_use_one_salt_and_no_other_site_does() -> None:
    one, again, other = Salts(b"a" * 32), Salts(b"a" * 32), Salts(b"b" * 32)
    org: Any = "org"
    assert one.of_engine(org, b"") == again.of_engine(org, b"") != other.of_engine(org, b"")
    assert one.of_prompts(org, org) == again.of_prompts(org, org) != other.of_prompts(org, org)


def test_a_gateway_alone_keeps_its_secret_for_all_its_workers(tmp_path: Path) -> None:
    path = tmp_path / "journal" / "secret"
    with ThreadPoolExecutor(8) as workers:
        secrets = set(workers.map(lambda _: kept_peer_secret(path), range(8)))
    assert secrets == {kept_peer_secret(path)}
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["secret"]

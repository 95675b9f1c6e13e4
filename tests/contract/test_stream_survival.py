"""Streams through real gateways whose engine, or whole serving site, is lost in the middle."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from isochrone.gateway.continuation.retained import MOST_TEXT_BYTES
from tests.fixtures.gateways import MODEL, Client, GatewayCloud, RunningSite, ask, post, run, until
from tests.fixtures.recorded_answers import PROMPT_TOKENS, received
from tests.fixtures.tellers import (
    AT,
    TALE,
    TEXT,
    Fate,
    asked,
    billed,
    body,
    europe,
    is_whole,
    lost,
    site,
    usage_is_whole,
)

# -- who goes on -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reset", "end", "error"])
@pytest.mark.parametrize("at", [1, 2, AT, 11, 12, 13])
def test_another_replica_of_the_site_goes_on(how: str, at: int) -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[(how, at)])
        paris = await site(cloud, fate, "paris", "FR", engines=2)
        await cloud.key("secret")
        await cloud.ready()
        answer = await ask(paris, post(body()))
        got = is_whole(answer)
        await usage_is_whole(cloud, answer, got)
        # With its finish reason an answer is complete, and nobody is asked again.
        assert fate.asked == (1 if at > len(TALE) + 1 else 2)
        assert not paris.running.context.exchanges

    run(main)


@pytest.mark.parametrize("names", [("paris", "berlin"), ("paris", "berlin", "rome")])
@pytest.mark.parametrize("what", ["site", "engine"])
def test_another_allowed_site_goes_on(names: tuple[str, ...], what: str) -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", AT)])
        ingress = await europe(cloud, fate, *names)
        asking = asyncio.create_task(ask(ingress, post(body())))
        await until(lambda: fate.reached)
        exchange = next(iter(ingress.running.context.exchanges))
        await until(lambda: getattr(exchange, "first_ns", None))
        served = next(name for name, count in asked(cloud).items() if count)
        if what == "site":
            cloud.kill_site(served)
        else:
            cloud.sites[served].engines[0].kill()
        answer = await asking
        got = is_whole(answer)
        assert answer.headers["x-isochrone-site"] == served
        await usage_is_whole(cloud, answer, got)
        assert (fate.asked, asked(cloud)["boston"]) == (2, 0)
        (event,) = (e for e in cloud.all_events() if e.reporter == "ingress")
        assert event.serving_site in names
        assert event.serving_site != served
        assert [(each.nth, each.method) for each in exchange.continued] == [(1, "continue_text")]

    run(main)


def test_a_stream_may_be_lost_twice() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("reset", AT), ("reset", 3)])
        ingress = await europe(cloud, fate, "paris", "berlin", "rome")
        answer = await ask(ingress, post(body()))
        await usage_is_whole(cloud, answer, is_whole(answer))
        assert fate.asked == 3

    run(main)


def test_a_third_loss_is_the_end() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("reset", AT), ("reset", 3), ("reset", 2)])
        paris = await site(cloud, fate, "paris", "FR", engines=4)
        await cloud.key("secret")
        await cloud.ready()
        answer = await ask(paris, post(body()))
        assert "too often" in lost(answer)
        assert fate.asked == 3

    run(main)


def test_who_had_refused_it_at_first_may_go_on() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", AT)])
        lisbon = await site(cloud, fate, "lisbon", "PT")
        await site(cloud, fate, "paris", "FR")
        lisbon.engines[0].status = 503
        await cloud.key("secret")
        await cloud.ready()
        asking = asyncio.create_task(ask(lisbon, post(body())))
        await until(lambda: fate.reached)
        lisbon.engines[0].status = 200
        before = len(lisbon.engines[0].asked)
        cloud.kill_site("paris")
        answer = await asking
        await usage_is_whole(cloud, answer, is_whole(answer))
        assert len(lisbon.engines[0].asked) == before + 1

    run(main)


def test_a_silent_engine_is_left_for_another() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", AT)])
        paris = await site(cloud, fate, "paris", "FR", engines=2, between_events_timeout_s=0.5)
        await cloud.key("secret")
        await cloud.ready()
        answer = await ask(paris, post(body()))
        await usage_is_whole(cloud, answer, is_whole(answer))
        await until(lambda: sum(engine.cancelled for engine in paris.engines) == 1)

    run(main)


def test_a_gateway_that_stops_leaves_its_streams_to_others() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", AT)])
        ingress = await cloud.add_site("lisbon", "PT", engines=0)
        for name, country in (("paris", "FR"), ("berlin", "DE")):
            await site(cloud, fate, name, country, drain_timeout_s=0.1)
        await cloud.key("secret")
        await cloud.ready()
        asking = asyncio.create_task(ask(ingress, post(body())))
        await until(lambda: fate.reached)
        served = next(name for name, count in asked(cloud).items() if count)
        cloud.sites[served].stop.set()
        is_whole(await asking)

    run(main)


# -- what is asked ---------------------------------------------------------------------------------


def test_a_sampled_answer_is_replayed_with_one_seed() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("reset", AT)])
        ingress = await europe(cloud, fate, "paris", "berlin")
        answer = await ask(ingress, post(body(temperature=0.8)))
        await usage_is_whole(cloud, answer, is_whole(answer))
        first, second = (
            engine.asked[0].json for running in cloud.sites.values() for engine in running.engines
            if engine.asked
        )
        assert first == second
        assert isinstance(first["seed"], int)

    run(main)


def test_a_replay_that_says_something_else_is_not_shown() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("reset", AT)], tales=[TALE, ("Once", " upon", " another")])
        paris = await site(cloud, fate, "paris", "FR", engines=3)
        await cloud.key("secret")
        await cloud.ready()
        tools = [{"type": "function", "function": {"name": "f"}}]
        answer = await ask(paris, post(body(tools=tools)))
        assert "something else" in lost(answer)
        assert b'" another"' not in answer.body

    run(main)


def test_a_replay_that_differs_is_continued_where_that_is_honest() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("reset", AT)], tales=[TALE, ("Once", " upon", " another")])
        paris = await site(cloud, fate, "paris", "FR", engines=2)
        await cloud.key("secret")
        await cloud.ready()
        answer = await ask(paris, post(body(temperature=0.8)))
        is_whole(answer)
        await billed(cloud, answer)
        assert fate.asked == 3  # the last two by the same replica, which is alive

    run(main)


@pytest.mark.parametrize(("fields", "text"), [
    ({"max_tokens": 8}, "".join(TALE[:8])),
    ({"stop": [" was a"]}, "".join(TALE[:6])),
    ({"stop": [", there was"], "temperature": 0}, "".join(TALE[:4])),
])
def test_limits_and_stop_strings_hold(fields: dict[str, Any], text: str) -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate()
        paris = await site(cloud, fate, "paris", "FR", engines=4)
        await cloud.key("secret")
        await cloud.ready()
        for at in range(2, 5):
            fate.places, fate.asked = [("reset", at)], 0
            answer = await ask(paris, post(body(**fields)))
            assert answer.whole
            got = received(answer.body)
            assert (got.text, got.done) == (text, 1)
            assert got.finish == {0: "length" if "max_tokens" in fields else "stop"}
            assert fate.asked == 2

    run(main)


def test_completions_go_on_too() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("reset", AT)])
        ingress = await europe(cloud, fate, "paris", "berlin")
        asks = {"model": "tiny-fable", "prompt": "Tell: ", "stream": True, "temperature": 0}
        answer = await ask(ingress, post(json.dumps(asks).encode(), path="/v1/completions"))
        assert answer.whole
        got = received(answer.body)
        assert (got.text, got.done, len(got.ids), got.usages) == (TEXT, 1, 1, [])
        await billed(cloud, answer)

    run(main)


# -- where nobody goes on --------------------------------------------------------------------------


def test_a_bound_stream_never_leaves_the_allowed_sites() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", AT)])
        ingress = await europe(cloud, fate, "paris")
        asking = asyncio.create_task(ask(ingress, post(body())))
        await until(lambda: fate.reached)
        cloud.kill_site("paris")
        answer = await asking
        assert "no other allowed replica" in lost(answer)
        assert asked(cloud) == {"lisbon": 0, "paris": 1, "boston": 0}
        await until(lambda: any(e.reporter == "ingress" for e in cloud.all_events()))
        (event,) = (e for e in cloud.all_events() if e.reporter == "ingress")
        assert (event.outcome, event.tokens.output) == ("engine_lost", AT - 1)
        assert (event.serving_site, event.tokens.total) == ("paris", PROMPT_TOKENS + AT - 1)

    run(main)


@pytest.mark.parametrize("hop", [False, True])
def test_an_unknown_revision_is_never_continued(hop: bool) -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("reset", AT)])
        paris = await site(cloud, fate, "paris", "FR", engines=2, replica={"revision": None})
        ingress = await cloud.add_site("lisbon", "PT", engines=0) if hop else paris
        await cloud.key("secret")
        await cloud.ready()
        assert "revision of the model is not known" in lost(await ask(ingress, post(body())))
        assert fate.asked == 1

    run(main)


def test_another_revision_is_asked_by_nobody() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("reset", AT)])
        ingress = await cloud.add_site("lisbon", "PT", engines=0)
        await site(cloud, fate, "paris", "FR")
        await site(cloud, fate, "berlin", "DE", replica={"revision": "r2"})
        await site(cloud, fate, "rome", "IT", replica={"running_counts": None, "engine": "openai"})
        await cloud.key("secret")
        await cloud.ready()
        while not asked(cloud)["paris"]:
            fate.places[:] = [("reset", AT)]
            answer = await ask(ingress, post(body()))
        assert "no other allowed replica" in lost(answer)

    run(main)


def test_an_engines_own_error_is_told_when_nobody_goes_on() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate()
        paris = await site(cloud, fate, "paris", "FR")
        lisbon = await cloud.add_site("lisbon", "PT", engines=0)
        await cloud.key("secret")
        await cloud.ready()
        for ingress, reports in ((paris, 1), (lisbon, 2)):
            fate.places = [("error", AT)]
            answer = await ask(ingress, post(body()))
            assert "out of memory" in answer.events[-1]
            assert sum('"error"' in event for event in answer.events) == 1
            assert "[DONE]" not in answer.events
            events = await cloud.events(answer.request_id, reports)
            assert {(e.outcome, e.tokens.output) for e in events} == {("engine_error", AT - 1)}

    run(main)


def test_what_is_kept_of_a_stream_is_bounded() -> None:
    async def main(cloud: GatewayCloud) -> None:
        piece = "x" * 1024
        count = MOST_TEXT_BYTES // len(piece) + 2
        fate = Fate(answer=(piece,) * (count + 3), places=[("reset", count)])
        paris = await site(cloud, fate, "paris", "FR", engines=2)
        await cloud.key("secret")
        await cloud.ready()
        answer = await ask(paris, post(body()))
        assert "too much was delivered" in lost(answer)
        assert fate.asked == 1

    run(main)


def test_an_end_that_is_missing_comes_behind_a_long_answer_too() -> None:
    async def main(cloud: GatewayCloud) -> None:
        pieces = ("x" * 1024,) * (MOST_TEXT_BYTES // 1024 + 3)
        fate = Fate(answer=pieces, places=[("reset", len(pieces) + 2)])
        paris = await site(cloud, fate, "paris", "FR", engines=2)
        await cloud.key("secret")
        await cloud.ready()
        is_whole(await ask(paris, post(body())), "".join(pieces))
        assert fate.asked == 1

    run(main)


def test_a_stream_of_several_prompts_ends_with_its_engine() -> None:
    async def main(cloud: GatewayCloud) -> None:
        paris = await cloud.add_site("paris", "FR", engines=2)
        for engine in paris.engines:
            engine.die_after = 2
        await cloud.key("secret")
        await cloud.ready()
        asks = {"model": MODEL, "prompt": ["one", "two"], "stream": True}
        answer = await ask(paris, post(json.dumps(asks).encode(), path="/v1/completions"))
        assert "the connection was closed" in lost(answer) or "reset" in lost(answer)
        assert sum(len(engine.asked) for engine in paris.engines) == 1
        (said,) = (engine.asked[0].json for engine in paris.engines if engine.asked)
        assert "seed" not in said

    run(main)


# -- the client in the gap -------------------------------------------------------------------------


async def in_the_gap(
    cloud: GatewayCloud, then: Callable[[RunningSite, Fate, Client], Awaitable[None]]
) -> None:
    """Call `then` when the first engine is lost and the second one lets wait for its head."""
    fate = Fate(places=[("reset", AT), ("wait", 0)])
    paris = await site(cloud, fate, "paris", "FR", engines=2)
    await cloud.key("secret")
    await cloud.ready()
    client = await Client.open(paris)
    client.send(post(body()))
    await until(lambda: fate.reached == 2)
    await then(paris, fate, client)


def test_a_waiting_client_hears_that_it_goes_on() -> None:
    async def main(cloud: GatewayCloud) -> None:
        async def then(paris: RunningSite, fate: Fate, client: Client) -> None:
            begun = await client.reader.readuntil(b": continuing\n\n")
            fate.gate.set()
            rest = await client.reader.readuntil(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            assert b'" time"' in begun
            assert b'" there"' in rest
            client.close()

        await in_the_gap(cloud, then)

    run(main)


def test_a_client_that_goes_in_the_gap_cancels_the_continuation() -> None:
    async def main(cloud: GatewayCloud) -> None:
        async def then(paris: RunningSite, fate: Fate, client: Client) -> None:
            client.close()
            await until(lambda: sum(engine.cancelled for engine in paris.engines) == 1)
            await until(cloud.all_events)
            (event,) = cloud.all_events()
            assert (event.outcome, event.status) == ("client_gone", 200)
            assert event.tokens.total == PROMPT_TOKENS + AT - 1
            assert not paris.running.context.exchanges

        await in_the_gap(cloud, then)

    run(main)


def test_a_slow_client_in_the_gap_gets_everything_later() -> None:
    async def main(cloud: GatewayCloud) -> None:
        async def then(paris: RunningSite, fate: Fate, client: Client) -> None:
            (connection,) = paris.running.server.connections
            connection.pause_writing()
            fate.gate.set()
            (exchange,) = paris.running.context.exchanges
            await until(lambda: exchange.attempt and exchange.attempt.last_ns)
            connection.resume_writing()
            is_whole(await client.answer())
            client.close()

        await in_the_gap(cloud, then)

    run(main)

"""Real gateways before engines with few slots: who waits, who is refused, where it goes then."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from isochrone.core.world.site_policy import ClassRule, SitePolicy
from isochrone.gateway.queue_gauges import queue_families
from isochrone.wire import subjects
from tests.fixtures.few_slots import ALL, admit_by, ask_as, is_quiet, queue_of
from tests.fixtures.gateways import (
    MODEL,
    Answer,
    Client,
    GatewayCloud,
    RunningSite,
    ask,
    chat_body,
    post,
    run,
    until,
)
from tests.fixtures.scripted_engine import ScriptedEngine


async def one_slot(cloud: GatewayCloud, **rule: Any) -> RunningSite:
    """A site with one slot, whose on-demand class has this rule."""
    paris = await cloud.add_site("paris", "FR", replica={"slots": 1})
    await cloud.key("secret", classes=ALL)
    await cloud.ready()
    await admit_by(cloud, "paris", SitePolicy(on_demand=ClassRule(share=3, **rule)))
    return paris


async def occupied(running: RunningSite) -> "asyncio.Task[Answer]":
    """A request that holds a slot until its engine's `hold` is set."""
    engine = running.engines[0]
    engine.hold.clear()
    count = len(engine.asked)
    first = asyncio.create_task(ask(running, post(chat_body())))
    await until(lambda: len(engine.asked) > count)
    return first


def with_one_slot(
    play: Callable[[GatewayCloud, RunningSite], Awaitable[None]], **rule: Any
) -> None:
    async def main(cloud: GatewayCloud) -> None:
        paris = await one_slot(cloud, **rule)
        await play(cloud, paris)
        await until(lambda: is_quiet(paris))

    run(main)


# -- waiting ---------------------------------------------------------------------------------------


def test_who_finds_no_slot_waits_for_one_and_is_told_for_how_long() -> None:
    async def play(cloud: GatewayCloud, paris: RunningSite) -> None:
        engine = paris.engines[0]
        first = await occupied(paris)
        second = asyncio.create_task(ask(paris, post(chat_body(stream=True))))
        await until(lambda: queue_of(paris).queued == 1)
        await asyncio.sleep(0.03)
        assert len(engine.asked) == 1
        engine.hold.set()
        answers = await first, await second
        assert [answer.status for answer in answers] == [200, 200]
        assert "queue;dur=" not in answers[0].headers["server-timing"]
        timing = answers[1].headers["server-timing"]
        queued_ms = float(timing.partition("queue;dur=")[2])
        assert 20 < queued_ms < 20_000
        (event,) = await cloud.events(answers[1].request_id)
        assert event.decision is not None
        assert event.decision.queued_ms == pytest.approx(queued_ms, abs=0.01)
        await until(lambda: answers[1].request_id.encode() in paris.log_lines)
        (line,) = (
            each for each in map(json.loads, paris.log_lines.splitlines())
            if each.get("request") == answers[1].request_id
        )
        assert line["queued_ms"] == pytest.approx(queued_ms, abs=0.01)

    with_one_slot(play)


class Closing(ScriptedEngine):
    """Closes behind every stream, a little late and without a word, as llama.cpp does."""

    async def _stream(
        self, body: dict[str, Any], writer: asyncio.StreamWriter, reader: asyncio.StreamReader
    ) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nserver: llama.cpp\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\nkeep-alive: timeout=5, max=100\r\n\r\n"
        )
        event = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}'
        for data in (event + b"\n\n", b"data: [DONE]\n\n"):
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()
            await self._held(reader)
        writer.write(b"0\r\n\r\n")
        await asyncio.sleep(0.002)
        raise ConnectionResetError


def test_the_next_in_line_is_not_sent_to_where_the_engine_is_closing() -> None:
    async def main(cloud: GatewayCloud) -> None:
        paris = await cloud.add_site("paris", "FR", replica={"slots": 1}, make_engine=Closing)
        await cloud.key("secret")
        await cloud.ready()
        engine = paris.engines[0]
        engine.hold.clear()
        asking = [
            asyncio.create_task(ask(paris, post(chat_body(stream=True)))) for _ in range(4)
        ]
        await until(lambda: len(engine.asked) == 1 and queue_of(paris).queued == 3)
        engine.hold.set()
        for answer in await asyncio.gather(*asking):
            assert (answer.status, answer.whole) == (200, True)
            (event,) = await cloud.events(answer.request_id)
            assert event.attempts == 1

    run(main)


@pytest.mark.parametrize("most", [10**18, (1 << 64) - 1, 10**30, 10**400], ids=range(4))
def test_a_number_that_no_answer_reaches_harms_nobody(most: int) -> None:
    """Wherever it is added up, and told: to the agent too."""

    async def play(cloud: GatewayCloud, paris: RunningSite) -> None:
        engine = paris.engines[0]
        assert (await ask(paris, post(chat_body(max_tokens=most)))).status == 200
        first = await occupied(paris)
        waiting = asyncio.create_task(ask(paris, post(chat_body(max_tokens=most))))
        await until(lambda: queue_of(paris).queued == 1)
        await asyncio.sleep(0.4)  # the agent is told what waits
        engine.hold.set()
        assert [(await each).status for each in (first, waiting)] == [200, 200]
        assert (await ask(paris, post(chat_body()))).status == 200
        assert paris.task is not None
        assert not paris.task.done()

    with_one_slot(play)


def test_a_request_that_waited_brings_no_retries_of_the_time_before() -> None:
    async def play(cloud: GatewayCloud, paris: RunningSite) -> None:
        engine, budget = paris.engines[0], paris.running.context.retries
        first = await occupied(paris)
        waiting = asyncio.create_task(ask(paris, post(chat_body())))
        await until(lambda: queue_of(paris).queued == 1)
        await asyncio.sleep(1.1)
        while budget.try_spend(paris.clock.monotonic_ns()):
            pass
        began_ns = paris.clock.monotonic_ns()
        engine.hold.set()
        assert [(await each).status for each in (first, waiting)] == [200, 200]
        now_ns = paris.clock.monotonic_ns()
        seconds = now_ns // 10**9 - began_ns // 10**9
        assert budget.left(now_ns) < 1 + 10 * seconds + 2

    with_one_slot(play)


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    async def play(cloud: GatewayCloud, paris: RunningSite) -> None:
        first = await occupied(paris)
        refused = await ask(paris, post(chat_body()))
        assert (refused.status, refused.headers["x-isochrone-reason"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json["error"]["type"] == "rate_limit_error"
        (event,) = await cloud.events(refused.request_id)
        assert (event.outcome, event.reason, event.tokens.output) == ("refused", "queue_full", 0)
        assert event.decision is not None
        assert [each.rule for each in event.decision.tried] == ["saturated"]
        paris.engines[0].hold.set()
        assert (await first).status == 200
        assert (await ask(paris, post(chat_body()))).status == 200

    with_one_slot(play, queue_most=0)


def test_who_has_waited_long_enough_is_refused() -> None:
    async def play(cloud: GatewayCloud, paris: RunningSite) -> None:
        first = await occupied(paris)
        refused = await ask(paris, post(chat_body()))
        assert (refused.status, refused.headers["x-isochrone-reason"]) == (429, "expired")
        assert len(paris.engines[0].asked) == 1
        paris.engines[0].hold.set()
        assert (await first).status == 200

    with_one_slot(play, wait_ms=40.0)


def test_each_waits_for_its_own_time() -> None:
    async def play(cloud: GatewayCloud, paris: RunningSite) -> None:
        first = await occupied(paris)
        waiting = [asyncio.create_task(ask(paris, post(chat_body())))]
        await asyncio.sleep(0.03)
        waiting.append(asyncio.create_task(ask(paris, post(chat_body()))))
        for answer in await asyncio.gather(*waiting):
            assert (answer.status, answer.headers["x-isochrone-reason"]) == (429, "expired")
        paris.engines[0].hold.set()
        assert (await first).status == 200

    with_one_slot(play, wait_ms=60.0)


def test_a_class_that_is_closed_is_refused_without_a_time() -> None:
    async def play(cloud: GatewayCloud, paris: RunningSite) -> None:
        refused = await ask(paris, post(chat_body()))
        assert (refused.status, refused.headers["x-isochrone-reason"]) == (429, "class_closed")
        assert "retry-after" not in refused.headers

    with_one_slot(play, ceiling=0.0)


def test_a_client_that_leaves_the_queue_is_forgotten() -> None:
    async def play(cloud: GatewayCloud, paris: RunningSite) -> None:
        first = await occupied(paris)
        client = await Client.open(paris)
        client.send(post(chat_body()))
        await until(lambda: queue_of(paris).queued == 1)
        client.close()
        await until(lambda: queue_of(paris).queued == 0)
        paris.engines[0].hold.set()
        assert (await first).status == 200
        assert len(paris.engines[0].asked) == 1

    with_one_slot(play)


def test_a_client_that_leaves_as_it_is_turned_away_is_written_down() -> None:
    async def play(cloud: GatewayCloud, paris: RunningSite) -> None:
        first = await occupied(paris)
        context = paris.running.context
        client = await Client.open(paris)
        client.send(post(chat_body()))
        await until(lambda: queue_of(paris).queued == 1)
        (waiting,) = [each for each in context.exchanges if each.turn and each.turn.waits]
        # In one round of the loop, before the queue's word has reached the request.
        queue_of(paris).resize(0, paris.clock.monotonic_ns())
        waiting.client_gone()
        (event,) = await cloud.events(waiting.request_id)
        assert event.outcome == "client_gone"
        queue_of(paris).resize(1, paris.clock.monotonic_ns())
        paris.engines[0].hold.set()
        assert (await first).status == 200
        client.close()

    with_one_slot(play)


def test_evidence_of_who_left_another_sites_queue_names_that_site() -> None:
    async def play(cloud: GatewayCloud, paris: RunningSite) -> None:
        lisbon = await cloud.add_site("lisbon", "PT", engines=0)
        await cloud.ready()
        first = await occupied(paris)
        client = await Client.open(lisbon)
        client.send(post(chat_body()))
        await until(lambda: queue_of(paris).queued == 1)
        client.close()
        await until(lambda: queue_of(paris).queued == 0)
        paris.engines[0].hold.set()
        assert (await first).status == 200
        await until(lambda: any(each.reporter == "evidence" for each in cloud.all_events()))
        (evidence,) = [each for each in cloud.all_events() if each.reporter == "evidence"]
        assert (evidence.serving_site, evidence.serving_country) == ("paris", "FR")
        assert (evidence.outcome, evidence.tokens.total) == ("client_gone", 0)

    with_one_slot(play)


def test_a_slot_is_free_again_however_its_request_ended() -> None:
    async def play(cloud: GatewayCloud, paris: RunningSite) -> None:
        engine = paris.engines[0]
        await ask(paris, post(chat_body()))
        engine.status = 400
        assert (await ask(paris, post(chat_body()))).status == 400
        engine.status = 200
        engine.hold.clear()
        client = await Client.open(paris)
        client.send(post(chat_body(stream=True)))
        await until(lambda: engine.open_streams)
        client.close()
        await until(lambda: is_quiet(paris))
        engine.hold.set()
        engine.die_after = 1
        broken = await ask(paris, post(chat_body(stream=True, tools=[{}])))
        assert not broken.whole
        engine.die_after = None
        await until(lambda: is_quiet(paris))
        assert (await ask(paris, post(chat_body()))).status == 200

    with_one_slot(play)


def test_who_waits_at_a_gateway_that_is_told_to_stop_has_until_the_end_of_its_drain() -> None:
    async def main(cloud: GatewayCloud) -> None:
        paris = await cloud.add_site(
            "paris", "FR", replica={"slots": 1}, drain_timeout_s=0.3,
        )
        await cloud.key("secret")
        await cloud.ready()
        first = await occupied(paris)
        second = asyncio.create_task(ask(paris, post(chat_body())))
        await until(lambda: queue_of(paris).queued == 1)
        paris.stop.set()
        answers = await first, await second
        assert [each.status for each in answers] == [504, 504]
        assert {each.headers["x-isochrone-reason"] for each in answers} == {"gateway_stopping"}

    run(main)


def test_those_who_wait_for_an_engine_that_goes_away_are_told() -> None:
    async def play(cloud: GatewayCloud, paris: RunningSite) -> None:
        first = await occupied(paris)
        second = asyncio.create_task(ask(paris, post(chat_body())))
        await until(lambda: queue_of(paris).queued == 1)
        await cloud.deploy("paris", MODEL, {"state": "draining", "slots": 1})
        answer = await second
        assert (answer.status, answer.headers["x-isochrone-reason"]) == (429, "no_capacity")
        paris.engines[0].hold.set()
        assert (await first).status == 200

    with_one_slot(play)


def test_slots_that_nobody_states_hold_nobody_back() -> None:
    async def main(cloud: GatewayCloud) -> None:
        paris = await cloud.add_site(
            "paris", "FR", replica={"slots": 1, "slots_stated": False, "engine": "openai"},
        )
        await cloud.key("secret")
        await cloud.ready()
        engine = paris.engines[0]
        engine.hold.clear()
        asking = [asyncio.create_task(ask(paris, post(chat_body()))) for _ in range(20)]
        await until(lambda: len(engine.asked) == 20)
        engine.hold.set()
        assert {answer.status for answer in await asyncio.gather(*asking)} == {200}
        await until(lambda: is_quiet(paris))

    run(main)


# -- how many slots --------------------------------------------------------------------------------


def test_workers_on_one_port_part_the_slots() -> None:
    async def main(cloud: GatewayCloud) -> None:
        paris = await cloud.add_site(
            "paris", "FR", engines=2, replica={"slots": 4}, worker=2, workers=3
        )
        await cloud.key("secret")
        await cloud.ready()
        await ask(paris, post(chat_body()))
        assert queue_of(paris).slots == 2
        await cloud.control.delete(
            subjects.site_bucket("paris"), subjects.replica_key(f"paris-{MODEL}-0")
        )
        await until(lambda: queue_of(paris).slots == 1)

    run(main)


# -- over a hop ------------------------------------------------------------------------------------


async def two_sites(cloud: GatewayCloud, **rule: Any) -> list[RunningSite]:
    """Paris and Berlin with a slot each, taken by requests of their own; Lisbon sends there."""
    policy = SitePolicy(on_demand=ClassRule(share=3, **rule))
    lisbon = await cloud.add_site("lisbon", "PT", engines=0)
    paris = await cloud.add_site("paris", "FR", replica={"slots": 1})
    berlin = await cloud.add_site("berlin", "DE", replica={"slots": 1})
    await cloud.link("lisbon", "berlin", 30.0)
    await cloud.key("secret")
    await cloud.key("only-paris", residency=("FR",))
    await cloud.key("only-berlin", residency=("DE",))
    await cloud.ready()
    for name in ("paris", "berlin"):
        await admit_by(cloud, name, policy)
    return [lisbon, paris, berlin]


async def hold(running: RunningSite, key: str) -> "asyncio.Task[Answer]":
    engine = running.engines[0]
    engine.hold.clear()
    task = asyncio.create_task(ask(running, post(chat_body(), key=key)))
    await until(lambda: len(engine.asked) == 1)
    return task


def test_a_site_that_refuses_is_left_for_one_that_has_room() -> None:
    async def main(cloud: GatewayCloud) -> None:
        lisbon, paris, berlin = await two_sites(cloud, queue_most=0)
        first = await hold(paris, "only-paris")
        answer = await ask(lisbon, post(chat_body()))
        assert (answer.status, answer.headers["x-isochrone-site"]) == (200, "berlin")
        events = await cloud.events(answer.request_id, 2)
        (event,) = (e for e in events if e.reporter == "ingress")
        assert event.decision is not None
        if event.decision.tried:
            assert [(each.site, each.rule) for each in event.decision.tried] == [
                ("paris", "saturated")
            ]
        paris.engines[0].hold.set()
        assert (await first).status == 200
        assert berlin.engines[0].asked
        for each in (lisbon, paris, berlin):
            await until(lambda each=each: is_quiet(each))  # type: ignore[misc]

    run(main)


@pytest.mark.parametrize("slow", [1, 2])
def test_when_all_refuse_the_client_is_told_the_nearest_time(slow: int) -> None:
    async def main(cloud: GatewayCloud) -> None:
        lisbon, paris, berlin = await two_sites(cloud, queue_most=0)
        firsts = [await hold(paris, "only-paris"), await hold(berlin, "only-berlin")]
        # One is slower: whoever is refused there is told to come later.
        slower = (lisbon, paris, berlin)[slow]
        queue_of(slower).asked_ns *= 20
        answer = await ask(lisbon, post(chat_body()))
        assert (answer.status, answer.headers["x-isochrone-reason"]) == (429, "queue_full")
        alone = await ask(lisbon, post(chat_body(), key=f"only-{slower.site.name}"))
        assert alone.status == 429
        assert 1 <= int(answer.headers["retry-after"]) < int(alone.headers["retry-after"])
        for site_, first in zip((paris, berlin), firsts, strict=True):
            site_.engines[0].hold.set()
            assert (await first).status == 200
        (event,) = await cloud.events(answer.request_id)
        assert event.decision is not None
        assert sorted((each.site, each.rule) for each in event.decision.tried) == [
            ("berlin", "saturated"), ("paris", "saturated"),
        ]

    run(main)


def test_the_ingress_knows_how_long_its_request_waited_elsewhere() -> None:
    async def main(cloud: GatewayCloud) -> None:
        lisbon, paris, _ = await two_sites(cloud)
        first = await hold(paris, "only-paris")
        second = asyncio.create_task(
            ask(lisbon, post(chat_body(stream=True), key="only-paris"))
        )
        await until(lambda: queue_of(paris).queued == 1)
        await asyncio.sleep(0.05)
        paris.engines[0].hold.set()
        await first
        answer = await second
        assert answer.status == 200
        assert "x-isochrone-queued" not in answer.headers
        events = await cloud.events(answer.request_id)
        await until(lambda: len([
            e for e in cloud.all_events()
            if e.request_id == answer.request_id and e.reporter == "ingress"
        ]))
        events = [e for e in cloud.all_events() if e.request_id == answer.request_id]
        (event,) = (e for e in events if e.reporter == "ingress")
        assert event.decision is not None
        assert 40 <= event.decision.queued_ms < 20_000

    run(main)


# -- figures ---------------------------------------------------------------------------------------


def test_figures_say_who_has_slots_and_who_waits() -> None:
    async def play(cloud: GatewayCloud, paris: RunningSite) -> None:
        first = await occupied(paris)
        waiting = ask_as(paris, "batch")
        await until(lambda: queue_of(paris).queued == 1)
        figures = {
            (family.metric.name.removeprefix("isochrone_gateway_"), *sample.labels): sample.value
            for family in queue_families(paris.running.context.queues)
            for sample in family.samples if hasattr(sample, "value")
        }
        assert figures["queue_running_requests", MODEL, "on_demand"] == 1
        assert figures["queue_waiting_requests", MODEL, "batch"] == 1
        assert figures["queue_slots", MODEL] == 1
        assert figures["queue_stops_total", "batch"] == 0
        paris.engines[0].hold.set()
        await asyncio.gather(first, waiting)

    with_one_slot(play)

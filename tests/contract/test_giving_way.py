"""Real gateways whose lent slots are asked back: what begins anew, what goes on, what stays."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from isochrone.core.admission.retry_budget import RetryBudget
from isochrone.core.ids import OrgId
from isochrone.gateway.prefix_hash import prompt_blocks
from isochrone.gateway.request import parse_request
from tests.fixtures.few_slots import (
    ALL,
    HALF,
    admit_by,
    ask_as,
    is_quiet,
    one_tells_of_two,
    queue_of,
    sell_to_all,
)
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
from tests.fixtures.recorded_answers import received
from tests.fixtures.tellers import AT, TALE, Fate, billed, body, is_whole, site


def test_a_request_whose_answer_has_not_begun_gives_way_and_begins_anew() -> None:
    async def main(cloud: GatewayCloud) -> None:
        paris = await cloud.add_site("paris", "FR", replica={"slots": 2})
        await cloud.key("secret", classes=ALL)
        await cloud.ready()
        await admit_by(cloud, "paris", HALF)
        sell_to_all(paris)
        engine = paris.engines[0]
        engine.hold.clear()
        lent = [
            asyncio.create_task(ask(paris, post(chat_body(max_tokens=20)))) for _ in range(2)
        ]
        await until(lambda: len(engine.asked) == 2)
        firm = asyncio.create_task(
            ask(paris, post(chat_body(max_tokens=20, service_tier="priority")))
        )
        await until(lambda: len(engine.asked) == 3)
        assert engine.asked[2].json["service_tier"] == "priority"
        await until(lambda: engine.cancelled == 1)
        engine.hold.set()
        answers = await asyncio.gather(*lent, firm)
        assert {answer.status for answer in answers} == {200}
        assert len(engine.asked) == 4
        await until(lambda: is_quiet(paris))
        queues = paris.running.context.queues
        assert dict(queues.stops) == {"on_demand": 1}
        assert sum(queues.reclaims["reserved"]) == 1

    run(main)


async def one_gives_way(
    cloud: GatewayCloud, bodies: Sequence[bytes], *others: str
) -> tuple[RunningSite, list["asyncio.Task[Answer]"], "asyncio.Task[Answer]"]:
    """Paris, two requests that hold its two slots, and a firm one, which has to stay there, for
    which one of them, that has not begun to answer, has just begun to wait again."""
    paris = await cloud.add_site("paris", "FR", replica={"slots": 2})
    for name in others:
        await cloud.add_site(name, "DE")
    await cloud.key("secret", classes=ALL)
    await cloud.key("french", classes=ALL, residency=("FR",))
    await cloud.ready()
    await admit_by(cloud, "paris", HALF)
    sell_to_all(paris)
    engine = paris.engines[0]
    engine.hold.clear()
    lent = [asyncio.create_task(ask(paris, post(each))) for each in bodies]
    await until(lambda: len(engine.asked) == 2)
    raw = post(chat_body(max_tokens=20, service_tier="priority"), key="french")
    firm = asyncio.create_task(ask(paris, raw))
    await until(lambda: len(engine.asked) == 3 and engine.cancelled == 1)
    assert queue_of(paris).queued == 1
    return paris, lent, firm


def test_what_gave_way_pays_for_each_of_its_retries() -> None:
    async def main(cloud: GatewayCloud) -> None:
        others = ("berlin", "bonn")
        paris, lent, firm = await one_gives_way(cloud, [chat_body(max_tokens=20)] * 2, *others)
        for each in cloud.sites.values():
            each.engines[0].status = 503
        context = paris.running.context
        context.retries = RetryBudget(1.0, 0.0)
        context.retries.deposit(context.clock.monotonic_ns())
        paris.engines[0].hold.set()
        answers = await asyncio.gather(*lent, firm)
        assert sorted(answer.status for answer in answers) == [200, 200, 503]
        (refused,) = [answer for answer in answers if answer.status == 503]
        asked = sum(len(cloud.sites[each].engines[0].asked) for each in others)
        assert (refused.headers["x-isochrone-reason"], asked) == ("retry_budget", 1)
        assert context.retries.spent == 1

    run(main)


def test_an_engine_is_not_believed_to_have_read_what_gave_way_before_it_answered() -> None:
    async def main(cloud: GatewayCloud) -> None:
        bodies = [
            chat_body(max_tokens=5, messages=[{"role": "user", "content": f"{what} " * 175}])
            for what in ("river", "stone")
        ]
        paris, lent, firm = await one_gives_way(cloud, bodies)
        context = paris.running.context
        salt = context.salts.of_prompts(OrgId("org"), MODEL)

        def believed(body: bytes) -> bool:
            blocks = prompt_blocks(parse_request("chat.completions", body), salt)
            return bool(context.prefixes.cached(blocks, context.clock.monotonic_ns()))

        assert sorted(believed(each) for each in bodies) == [False, True]
        paris.engines[0].hold.set()
        assert {answer.status for answer in await asyncio.gather(*lent, firm)} == {200}
        assert [believed(each) for each in bodies] == [True, True]

    run(main)


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.7}], ids=["exact", "sampled"])
@pytest.mark.parametrize("ingress", ["paris", "lisbon"])
def test_a_stream_of_batch_is_stopped_in_its_middle_and_goes_on(
    ingress: str, fields: dict[str, Any]
) -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", AT), ("wait", AT), ("wait", AT)])
        paris = await one_tells_of_two(cloud, fate, ingress)
        entry = cloud.sites[ingress]
        lent = [ask_as(entry, "batch", **fields) for _ in range(2)]
        await until(lambda: fate.reached == 2)
        firm = ask_as(entry, "reserved")
        await until(lambda: fate.reached == 3)
        assert queue_of(paris).line("batch").order.queued == 1
        assert sum(engine.cancelled for engine in paris.engines) == 1
        fate.gate.set()
        answers = await asyncio.gather(*lent, firm)
        for answer in answers:
            got = is_whole(answer)
            assert got.usages[-1]["completion_tokens"] == len(TALE)
            await billed(cloud, answer)
        assert fate.asked == 4
        # What had been said was not computed again, but handed to the engine.
        assert paris.engines[0].asked[3].json["messages"][-1]["role"] == "assistant"
        await until(lambda: is_quiet(paris))
        assert dict(paris.running.context.queues.stops) == {"batch": 1}
        continuations = [
            sample.labels for family in paris.running.context.metrics.families()
            for sample in family.samples if family.metric.name.endswith("continuations_total")
        ]
        assert [labels[1:] for labels in continuations] == [("stopped", "finished")]

    run(main)


def test_a_stream_may_be_stopped_more_often_than_it_may_be_lost() -> None:
    async def main(cloud: GatewayCloud) -> None:
        rounds = 4
        again = [("whole", 0), ("wait", 2)] * rounds  # a reserved one, and batch once more
        fate = Fate(places=[("wait", 1), ("wait", 3), *again])
        paris = await one_tells_of_two(cloud, fate, "paris")
        beside = ask_as(paris, "on_demand")
        await until(lambda: fate.reached == 1)
        batch = ask_as(paris, "batch")
        await until(lambda: fate.reached == 2)
        for number in range(rounds):
            is_whole(await ask_as(paris, "reserved"))
            await until(lambda number=number: fate.reached == 3 + number)  # type: ignore[misc]
        fate.gate.set()
        is_whole(await beside)
        answer = await batch
        is_whole(answer)
        await billed(cloud, answer)
        assert dict(paris.running.context.queues.stops) == {"batch": rounds}
        await until(lambda: is_quiet(paris))

    run(main)


@pytest.mark.parametrize(
    "fields", [{"tools": [{"type": "function"}]}, {"n": 2}], ids=["tools", "choices"]
)
def test_a_stream_that_cannot_be_continued_keeps_its_slot(fields: dict[str, Any]) -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", AT), ("wait", AT)])
        paris = await one_tells_of_two(cloud, fate, "paris")
        lent = [ask_as(paris, "batch", **fields) for _ in range(2)]
        await until(lambda: fate.reached == 2)
        firm = ask_as(paris, "reserved")
        await until(lambda: queue_of(paris).line("reserved").order.queued == 1)
        await asyncio.sleep(0.03)
        assert sum(engine.cancelled for engine in paris.engines) == 0
        fate.gate.set()
        answers = await asyncio.gather(*lent, firm)
        for answer in answers:
            assert (answer.status, answer.whole) == (200, True)
            assert received(answer.body).done == 1
        assert fate.asked == 3
        await until(lambda: is_quiet(paris))

    run(main)


def test_a_client_that_leaves_a_stopped_stream_pays_for_what_it_got() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", AT), ("wait", AT), ("wait", AT)])
        paris = await one_tells_of_two(cloud, fate, "paris")
        clients = [await Client.open(paris) for _ in range(2)]
        for client in clients:
            client.send(post(body(service_tier="flex", max_tokens=20)))
        await until(lambda: fate.reached == 2)
        firm = ask_as(paris, "reserved")
        await until(lambda: fate.reached == 3)
        for client in clients:
            client.close()
        await until(lambda: len(paris.running.context.exchanges) == 1)
        assert queue_of(paris).queued == 0
        fate.gate.set()
        is_whole(await firm)
        assert fate.asked == 3
        await until(lambda: len([e for e in cloud.all_events() if e.outcome != "finished"]) == 2)
        gone = [e for e in cloud.all_events() if e.outcome == "client_gone"]
        assert [event.tokens.output for event in gone] == [AT - 1, AT - 1]
        await until(lambda: is_quiet(paris))

    run(main)


def test_an_interactive_stream_that_goes_on_elsewhere_keeps_its_slot_there() -> None:
    """Its answer has begun long before it came to this queue."""

    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", AT), ("wait", 3), ("wait", 3)])
        paris = await site(cloud, fate, "paris", "FR", replica={"slots": 2})
        await site(cloud, fate, "berlin", "DE")
        await cloud.key("secret", classes=ALL)
        await cloud.ready()
        await admit_by(cloud, "paris", HALF)
        sell_to_all(paris)
        paris.engines[0].status = 503
        lent = ask_as(paris, "on_demand")
        await until(lambda: fate.reached == 1)
        (exchange,) = paris.running.context.exchanges
        await until(lambda: exchange.first_ns)
        paris.engines[0].status = 200
        cloud.kill_site("berlin")
        await until(lambda: fate.reached == 2 and exchange.continued)
        beside = ask_as(paris, "on_demand")
        await until(lambda: fate.reached == 3)
        firm = ask_as(paris, "reserved")
        await until(lambda: queue_of(paris).line("reserved").order.queued == 1 or firm.done())
        await asyncio.sleep(0.05)
        stops = dict(paris.running.context.queues.stops)
        fate.gate.set()
        for answer in await asyncio.gather(lent, beside):
            is_whole(answer)
            await billed(cloud, answer)
        await firm  # which waits for one of them, or is told to come back
        assert stops == {}
        await until(lambda: is_quiet(paris))

    run(main)


def test_a_stream_may_be_stopped_again_before_it_goes_on() -> None:
    async def main(cloud: GatewayCloud) -> None:
        # Two that last; a reserved one for which batch is stopped; batch again, which says nothing
        # yet when the next reserved one comes.
        fate = Fate(places=[("wait", 3), ("wait", AT), ("whole", 0), ("wait", 0), ("whole", 0)])
        paris = await one_tells_of_two(cloud, fate, "paris")
        beside = ask_as(paris, "on_demand")
        await until(lambda: fate.reached == 1)
        batch = ask_as(paris, "batch")
        await until(lambda: fate.reached == 2)
        is_whole(await ask_as(paris, "reserved"))
        await until(lambda: fate.reached == 3)
        firm = ask_as(paris, "reserved")
        async with asyncio.timeout(5):
            is_whole(await firm)
        assert dict(paris.running.context.queues.stops) == {"batch": 2}
        fate.gate.set()
        for answer in await asyncio.gather(beside, batch):
            is_whole(answer)
            await billed(cloud, answer)
        await until(lambda: is_quiet(paris))

    run(main)

"""Real gateways: a class that is meant to wait says nothing against the site where it waits."""

import asyncio
from typing import Any

import pytest

from isochrone.core.ids import SiteName
from isochrone.core.world.site_policy import ClassRule, SitePolicy
from tests.contract.test_gateway_entitlements import MovedClock
from tests.fixtures.few_slots import ALL, admit_by, queue_of
from tests.fixtures.gateways import (
    MODEL,
    Client,
    GatewayCloud,
    ask,
    chat_body,
    post,
    run,
    until,
)

S = 1_000_000_000
SHARE = SitePolicy(batch=ClassRule(share=1, wait_ms=600_000), on_demand=ClassRule(share=9))


def wanting(tier: str, key: str, **fields: Any) -> bytes:
    return post(chat_body(stream=True, max_tokens=2, service_tier=tier, **fields), key=key)


@pytest.mark.parametrize(
    ("waits_s", "statuses"), [(40, {200}), (500, {200}), (725, {504, 429})],
    ids=["long", "longer than others may", "to its end"],
)
def test_batch_that_waits_for_its_turn_elsewhere_does_not_make_that_site_ill(
    waits_s: int, statuses: set[int]
) -> None:
    async def main(cloud: GatewayCloud) -> None:
        clock = MovedClock()
        lisbon = await cloud.add_site("lisbon", "PT", engines=0, clock=clock)
        paris = await cloud.add_site("paris", "FR", replica={"slots": 1}, clock=clock)
        await cloud.add_site("berlin", "DE", clock=clock)
        await cloud.key("anywhere", classes=ALL)
        await cloud.key("french", classes=ALL, residency=("FR",))
        await cloud.link("lisbon", "berlin", 80.0)
        await cloud.ready()
        await admit_by(cloud, "paris", SHARE)
        context = lisbon.running.context
        await until(lambda: context.view.table.view.links)
        answer = await ask(lisbon, wanting("default", "anywhere"))
        assert answer.headers["x-isochrone-site"] == "paris"
        paris.engines[0].hold.clear()
        clients = [await Client.open(lisbon) for _ in range(7)]
        for number, client in enumerate(clients):
            client.send(wanting("flex" if number else "default", "french"))
            await until(lambda: len(queue_of(paris).line("on_demand").tickets) == 1)
        await until(lambda: queue_of(paris).line("batch").order.queued == 6)
        clock.ahead_ns += waits_s * S
        known = context.loads.of(SiteName("paris"))
        assert known is not None
        await until(lambda: clock.monotonic_ns() - known.heard_ns < S)
        sweeps = 0

        def swept() -> bool:
            nonlocal sweeps
            sweeps += 1
            return sweeps > 80

        await until(swept)
        health = context.loads.health.of(SiteName("paris"), MODEL)
        assert health is None or not health.is_out, health.why
        paris.engines[0].hold.set()
        answers = [await client.answer() for client in clients]
        assert {each.status for each in answers[1:]} <= statuses

    run(main)


def test_batch_that_waited_here_in_vain_has_its_time_at_the_engine_of_another_site() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU", replica={"slots": 1})
        hobart = await cloud.add_site("hobart", "AU")
        await cloud.key("anywhere", classes=ALL)
        await cloud.link("sydney", "hobart", 80.0)
        await cloud.ready()
        await admit_by(cloud, "sydney", SHARE)
        context = sydney.running.context
        here, there = sydney.engines[0], hobart.engines[0]
        here.hold.clear()
        there.hold.clear()
        there.silent = True
        clients = [await Client.open(sydney) for _ in range(2)]
        await until(lambda: context.view.table.view.links)
        clients[0].send(wanting("default", "anywhere"))
        await until(lambda: len(here.asked) == 1)
        clients[1].send(wanting("flex", "anywhere"))
        await until(lambda: queue_of(sydney).line("batch").order.queued == 1)
        waiter = next(each for each in context.exchanges if each.class_ == "batch")
        waiter.started_ns -= 200 * S
        replicas, now_ns = context.view.replicas, context.clock.monotonic_ns()
        lost = next(iter(replicas._by_entry.values()))
        for each in hobart.running.context.view.replicas._by_entry.values():
            replicas.put("there", each)  # as a gateway that runs alone reaches them
        replicas.lost(lost, now_ns, context.rng)
        await until(lambda: len(there.asked) == 1)
        await asyncio.sleep(1)
        there.hold.set()
        assert (await clients[1].answer()).status == 200

    run(main)

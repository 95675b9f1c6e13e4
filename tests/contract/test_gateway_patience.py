"""Gateways over real sockets: a busy site sends back what may not wait for so long."""

import asyncio
from functools import partial

from isochrone.core.admission.retry_budget import RetryBudget
from isochrone.core.ids import OrgId, SiteName
from isochrone.core.world.site_policy import ClassRule, SitePolicy
from isochrone.gateway.prefix_hash import prompt_blocks
from isochrone.gateway.request import parse_request
from tests.fixtures.few_slots import admit_by, queue_of
from tests.fixtures.gateways import (
    MODEL,
    GatewayCloud,
    RunningSite,
    ask,
    chat_body,
    post,
    run,
    until,
)
from tests.fixtures.signed_hops import signed_by


async def paris_before_berlin(cloud: GatewayCloud) -> tuple[RunningSite, RunningSite]:
    """Lisbon, which has no engine and tries Paris first, which has one slot; and Paris."""
    lisbon = await cloud.add_site("lisbon", "PT", engines=0)
    paris = await cloud.add_site("paris", "FR", replica={"slots": 1})
    await cloud.add_site("berlin", "DE")
    await cloud.key("secret")
    await cloud.key("only-paris", residency=("FR",))
    await cloud.ready()
    await cloud.link("lisbon", "berlin", 300.0)
    return lisbon, paris


def test_a_busy_site_sends_back_what_may_not_wait_so_long_and_queues_the_rest() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU")
        frankfurt = await cloud.add_site("frankfurt", "DE", replica={"slots": 1})
        await cloud.key("german", residency=("DE",))
        await cloud.ready()
        assert (await ask(frankfurt, signed_by(sydney, frankfurt, patience_ms=0.0))).status == 200
        engine = frankfurt.engines[0]
        engine.hold.clear()
        first = asyncio.create_task(ask(frankfurt, signed_by(sydney, frankfurt)))
        await until(lambda: len(engine.asked) == 2)
        queue_of(frankfurt).asked_ns = 5e6  # some 500 tokens run: seconds
        busy = await ask(frankfurt, signed_by(sydney, frankfurt, patience_ms=500.0))
        assert (busy.status, busy.headers["x-isochrone-refused"]) == (429, "busy")
        raw = signed_by(sydney, frankfurt, patience_ms=500.0)
        assert (await ask(frankfurt, raw.replace(b"w500 ", b"w900000 ", 1))).status == 401
        queue_of(frankfurt).asked_ns = 1e6
        patient = asyncio.create_task(
            ask(frankfurt, signed_by(sydney, frankfurt, patience_ms=900_000.0))
        )
        await until(lambda: queue_of(frankfurt).queued == 1)
        engine.hold.set()
        assert [(await each).status for each in (first, patient)] == [200, 200]

    run(main)


def test_a_request_that_a_busy_site_sends_back_takes_nobodys_place_there() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU")
        frankfurt = await cloud.add_site("frankfurt", "DE", replica={"slots": 1})
        await cloud.key("german", residency=("DE",))
        await cloud.key("other", residency=("DE",), org="other")
        await cloud.ready()
        await admit_by(cloud, "frankfurt", SitePolicy(on_demand=ClassRule(queue_most=2)))
        engine = frankfurt.engines[0]
        assert (await ask(frankfurt, signed_by(sydney, frankfurt))).status == 200
        engine.hold.clear()
        hog = [
            asyncio.create_task(ask(frankfurt, signed_by(sydney, frankfurt))) for _ in range(3)
        ]
        await until(lambda: queue_of(frankfurt).queued == 2)
        queue_of(frankfurt).asked_ns = 1e6  # some 500 tokens run: half a second each
        raw = signed_by(sydney, frankfurt, key="other", patience_ms=100.0)
        busy = await ask(frankfurt, raw)
        assert (busy.status, busy.headers["x-isochrone-refused"]) == (429, "busy")
        engine.hold.set()
        assert [(await each).status for each in hog] == [200, 200, 200]

    run(main)


def test_a_request_that_a_busy_site_sends_back_takes_nothing_of_the_retry_budget() -> None:
    async def main(cloud: GatewayCloud) -> None:
        lisbon, paris = await paris_before_berlin(cloud)
        assert (await ask(paris, post(chat_body(), key="only-paris"))).status == 200
        engine = paris.engines[0]
        engine.hold.clear()
        first = asyncio.create_task(ask(paris, post(chat_body(), key="only-paris")))
        await until(lambda: len(engine.asked) == 2)
        context = lisbon.running.context
        await until(lambda: context.view.table.view.links)
        queue_of(paris).asked_ns = 5e6
        context.retries = RetryBudget(0.0, 0.0)
        answer = await ask(lisbon, post(chat_body()))
        assert (answer.status, answer.headers["x-isochrone-site"]) == (200, "berlin")
        (event,) = (
            e for e in await cloud.events(answer.request_id, 2) if e.reporter == "ingress"
        )
        assert event.decision is not None
        assert [(each.site, each.rule, each.detail[:4]) for each in event.decision.tried] == [
            ("paris", "saturated", "busy")
        ]
        engine.hold.set()
        assert (await first).status == 200

    run(main)


def asked_twice(site: RunningSite) -> bool:
    return len(site.engines[0].asked) == 2


def test_two_busy_sites_send_a_request_back_and_the_third_takes_it_be_one_the_own() -> None:
    async def main(cloud: GatewayCloud) -> None:
        places = {"sydney": "AU", "paris": "FR", "berlin": "DE", "lisbon": "PT"}
        for name, country in places.items():
            await cloud.add_site(name, country, replica={"slots": 1})
            await cloud.key(f"only-{name}", residency=(country,))
        await cloud.key("secret")
        await cloud.ready()
        held = []
        for name in places:
            site = cloud.sites[name]
            mine = post(chat_body(), key=f"only-{name}")
            assert (await ask(site, mine)).status == 200
            site.engines[0].hold.clear()
            held.append(asyncio.create_task(ask(site, mine)))
            await until(partial(asked_twice, site))
            queue_of(site).asked_ns = 5e6
        waits = asyncio.create_task(ask(cloud.sites["sydney"], post(chat_body())))
        await until(lambda: any(queue_of(each).queued for each in cloud.sites.values()))
        for each in cloud.sites.values():
            each.engines[0].hold.set()
        answer = await waits
        assert [(await each).status for each in held] == [200] * 4
        assert answer.status == 200
        (event,) = (
            e for e in await cloud.events(answer.request_id, 2) if e.reporter == "ingress"
        )
        assert event.decision is not None
        tried = event.decision.tried
        assert [(each.rule, each.detail[:4]) for each in tried] == [("saturated", "busy")] * 2
        assert tried[0].site == "sydney"

    run(main)


def test_what_a_busy_site_has_cached_is_still_known_when_it_sent_a_request_back() -> None:
    async def main(cloud: GatewayCloud) -> None:
        lisbon, paris = await paris_before_berlin(cloud)
        context = lisbon.running.context
        await until(lambda: context.view.table.view.links)
        said = "Tell me of the sea, and of the ships on it. " * 100
        body = chat_body(messages=[{"role": "user", "content": said}])
        assert (await ask(lisbon, post(body))).headers["x-isochrone-site"] == "paris"
        request = parse_request("chat.completions", body)
        blocks = prompt_blocks(request, context.salts.of_prompts(OrgId("org"), MODEL))

        def believed() -> set[SiteName]:
            return set(context.prefixes.cached(blocks, context.clock.monotonic_ns()))

        assert believed() == {"paris"}
        engine = paris.engines[0]
        engine.hold.clear()
        first = asyncio.create_task(ask(paris, post(chat_body(), key="only-paris")))
        await until(lambda: len(engine.asked) == 2)
        queue_of(paris).asked_ns = 5e7
        assert (await ask(lisbon, post(body))).headers["x-isochrone-site"] == "berlin"
        assert believed() == {"paris", "berlin"}
        engine.hold.set()
        assert (await first).status == 200

    run(main)

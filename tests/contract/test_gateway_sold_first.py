"""Real gateways: what was sold, as it is in force at a site, goes first there, before engines that
have enough to read."""

import asyncio

from isochrone.core.admission.allowance import Allowance
from isochrone.core.ids import EntitlementId, OrgId, SiteName
from isochrone.core.world.digest import DeploymentLoad, SiteDigest
from isochrone.core.world.entitlement import Entitlement, Slice
from isochrone.core.world.tenant import Class
from isochrone.gateway.entitled import Served, Sold
from tests.fixtures.few_slots import ALL, TIERS, is_quiet, queue_of, sell_to_all
from tests.fixtures.gateways import MODEL, Answer, GatewayCloud, ask, chat_body, post, run, until


def test_what_may_be_honoured_here_is_the_floor_of_reserved() -> None:
    """The slices of the site as long as they are in force, where what was sold may be served here;
    nothing of them once they are lent, and what is borrowed besides."""

    async def main(cloud: GatewayCloud) -> None:
        paris = await cloud.add_site("paris", "FR", replica={"slots": 8})
        await cloud.key("secret")
        await cloud.ready()
        await ask(paris, post(chat_body()))
        context = paris.running.context
        queue = queue_of(paris)

        def floor(now_ns: int) -> int:
            queue.slot_ns = 10_000_000.0  # a hundred tokens/s of each slot
            context.queues.sweep(now_ns)
            return queue.line("reserved").floor

        def a_sale(name: str, *residency: str) -> Sold:
            noun = Entitlement(
                id=EntitlementId(name), org_id=OrgId("org"), project_id=None, model=MODEL,
                class_="reserved", tok_s=700, residency=residency, starts_at=0, ends_at=1 << 62,
                slices=(Slice(site=SiteName("paris"), tok_s=700),),
            )
            return Sold(noun, Allowance(0), Served(residency, context.view))

        now_ns = paris.clock.monotonic_ns()
        one, two, elsewhere = a_sale("a", "any"), a_sale("b", "FR"), a_sale("c", "DE")
        context.entitled.set_sold([one, two, elsewhere])
        elsewhere.allowance.set_slice(700, 1 << 62, now_ns)
        one.allowance.set_slice(150, now_ns + 1_000, now_ns)
        assert [floor(now_ns), floor(now_ns + 999), floor(now_ns + 1_000)] == [2, 2, 0]
        one.allowance.set_slice(150, 1 << 62, now_ns)
        two.allowance.set_slice(450, 1 << 62, now_ns)  # of that 300 borrowed, say
        assert floor(now_ns + 2_000) == 6
        two.allowance.set_slice(0, 1 << 62, now_ns)
        assert floor(now_ns + 3_000) == 2

    run(main)


def a_digest(*, prefill_tok_s: float) -> SiteDigest:
    load = DeploymentLoad(
        model=MODEL, revision=None, ready=1, slots=8, running=0, waiting=0,
        pending_prompt_tokens=0, pending_output_tokens=0, prefill_tok_s=prefill_tok_s,
        decode_tok_s=50.0,
    )
    return SiteDigest(
        site=SiteName("paris"), epoch=1, sequence=1, at=0, loads=(load,), replicas=()
    )


def test_engines_get_no_more_prompts_than_keep_them_reading_and_what_was_sold_goes_first() -> None:
    """Slots are free, and still the engine's row of unread prompts stays short: of those that wait
    meanwhile, the one that was paid for is next."""

    async def main(cloud: GatewayCloud) -> None:
        paris = await cloud.add_site("paris", "FR", replica={"slots": 8})
        await cloud.key("secret", classes=ALL)
        await cloud.ready()
        sell_to_all(paris)
        await ask(paris, post(chat_body()))
        queue, engine = queue_of(paris), paris.engines[0]
        engine.hold.clear()
        long = " ".join(["word"] * 1_000)
        begun = len(engine.asked)

        def asking(class_: Class) -> "asyncio.Task[Answer]":
            raw = post(chat_body(
                service_tier=TIERS[class_], max_tokens=20,
                messages=[{"role": "user", "content": long}],
            ))
            return asyncio.create_task(ask(paris, raw))

        context = paris.running.context
        context.view.replicas.heard(a_digest(prefill_tok_s=400.0), 0, context.rng)
        context.queues.sweep(context.clock.monotonic_ns())
        first = [asking("on_demand")]
        await until(lambda: len(engine.asked) == begun + 1)
        others = [asking("on_demand") for _ in range(3)]
        await until(lambda: queue.queued == 3)
        paid = asking("reserved")
        await until(lambda: queue.queued == 4)
        assert (len(engine.asked), queue.running) == (begun + 1, 1)
        engine.hold.set()
        answers = await asyncio.gather(*first, paid, *others)
        assert {answer.status for answer in answers} == {200}
        tiers = [each.json["service_tier"] for each in engine.asked[begun:]]
        assert tiers[:2] == ["default", "priority"]
        await until(lambda: is_quiet(paris))
        assert queue.reading.tokens == 0

    run(main)

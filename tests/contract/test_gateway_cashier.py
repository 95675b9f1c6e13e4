"""What the site that serves a request cannot pay for, the cashier of what was sold pays for.

Real gateways on real sockets. Engines wait with their answers until a test lets them go on.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from isochrone.core.admission.cashier import Back, Pay, cashiers_of
from isochrone.core.admission.payments import MOST_LATE
from isochrone.core.ids import EntitlementId, ProjectId, SiteName
from isochrone.core.world.site_policy import ClassRule, SitePolicy
from isochrone.gateway.entitled import Sold
from isochrone.gateway.letters import PATH
from isochrone.wire import peer
from isochrone.wire.commitments import encode_messages
from isochrone.wire.peer import HopHead
from isochrone.wire.peer_codes import proof, started
from tests.contract.test_gateway_entitlements import (
    CLASS,
    ID,
    USED,
    MovedClock,
    a_cloud,
    a_term_passes,
    german,
    left,
    scraped,
    sell,
    usable,
    wanting,
)
from tests.fixtures.few_slots import admit_by, queue_of
from tests.fixtures.gateways import (
    MODEL,
    Answer,
    GatewayCloud,
    RunningSite,
    ask,
    chat_body,
    post,
    run,
    until,
)


def hold(site: RunningSite) -> None:
    """Its engines answer nothing until they are let go."""
    for engine in site.engines:
        engine.silent = True
        engine.hold.clear()


def let_go(site: RunningSite) -> None:
    for engine in site.engines:
        engine.hold.set()


def at_rome(tier: str) -> bytes:
    """At Rome only: else, where this machine is slow, it may go where nobody waits."""
    body = chat_body(service_tier=tier, max_tokens=2)
    return post(body, headers={"x-isochrone-residency": "site:rome"})


def outcomes(site: RunningSite) -> dict[str, int]:
    return dict(site.running.context.paying.outcomes)


def decided_later(site: RunningSite) -> Callable[[int], None]:
    """What is known of payments reaches no request until the test says so, by what is returned."""
    paying = site.running.context.paying
    decide = paying.decide

    def nothing(now_ns: int) -> None:
        pass

    paying.decide = nothing  # type: ignore[method-assign]
    return decide


def at(site: RunningSite) -> Sold:
    (sold,) = site.running.context.entitled.sold()
    return sold


async def paris_pays(cloud: GatewayCloud, *more: str, **settings: Any) -> list[RunningSite]:
    """Of what was sold Paris has all, as its one home and so its cashier; and it has saved up."""
    sites = await a_cloud(cloud, "paris", "rome", *more, **settings)
    await sell(cloud, {"paris": 10})
    await until(
        lambda: usable(sites[0]) == 10
        and all(site.running.context.entitled.sold() for site in sites)
    )
    sites[0].clock.ahead_ns += 10**10  # type: ignore[attr-defined]
    assert (left(sites[0]), left(sites[1])) == (50, 0)
    return sites


async def served_once(
    site: RunningSite, raw: bytes, known: Callable[[], bool]
) -> Answer:
    """Let its engine answer as soon as it has the request and that is known."""
    hold(site)
    engine = site.engines[0]
    before = len(engine.asked)
    asked = asyncio.create_task(ask(site, raw))
    await until(lambda: len(engine.asked) > before and known())
    let_go(site)
    return await asked


@pytest.mark.parametrize("stream", [False, True])
def test_what_nothing_at_a_site_can_pay_for_its_cashier_pays(stream: bool) -> None:
    async def main(cloud: GatewayCloud) -> None:
        paris, rome = await paris_pays(cloud)
        answer = await served_once(
            rome, wanting(stream=stream), lambda: outcomes(rome).get("paid") == 1
        )
        assert (answer.status, answer.headers["x-isochrone-site"]) == (200, "rome")
        assert answer.headers[CLASS] == "reserved"
        assert (await cloud.events(answer.request_id))[0].class_ == "reserved"
        used = 16 if stream else USED
        assert (at(rome).honoured, at(rome).used_tokens, at(rome).refused) == (1, used, 0)
        assert (at(paris).honoured, at(paris).refused) == (0, 0)
        assert left(paris) < 50
        assert usable(rome) == 0, "and nothing was lent for it"
        assert at(rome).allowance.is_idle
        assert not at(paris).allowance.is_idle, "it is demand of the cashier"
        assert scraped(rome)["entitled_payments_total", "paid"] == 1

    run(main)


def test_a_peer_is_told_the_class_that_was_paid_for_meanwhile() -> None:
    async def main(cloud: GatewayCloud) -> None:
        clock = MovedClock()
        sydney = await cloud.add_site("sydney", "AU", clock=clock)
        rome = await cloud.add_site("rome", "DE", clock=clock)
        paris = await cloud.add_site("paris", "FR", engines=0, clock=clock)
        await cloud.key("secret", classes=("reserved", "on_demand", "batch"))
        await cloud.key("german", classes=("reserved",), residency=("DE",))
        await cloud.ready()
        await a_term_passes(clock, [sydney, rome])
        await sell(cloud, {"paris": 10}, residency=("DE",))
        await until(lambda: usable(paris) == 10 and bool(rome.running.context.entitled.sold()))
        await until(lambda: bool(sydney.running.context.entitled.sold()))
        clock.ahead_ns += 10**10
        hold(rome)
        asked = asyncio.create_task(ask(sydney, german()))
        await until(lambda: outcomes(rome).get("paid") == 1)
        let_go(rome)
        answer = await asked
        assert (answer.headers["x-isochrone-site"], answer.headers[CLASS]) == ("rome", "reserved")
        events = await cloud.events(answer.request_id, 2)
        assert {event.class_ for event in events} == {"reserved"}
        assert (at(rome).honoured, at(sydney).honoured) == (1, 0)
        assert outcomes(sydney) == {}, "who has a peer pay asks nobody"

    run(main)


def test_an_answer_that_comes_before_the_payment_is_on_demand_and_costs_nothing() -> None:
    async def main(cloud: GatewayCloud) -> None:
        paris, rome = await paris_pays(cloud)
        await cloud.link("paris", "rome", 300)
        await until(lambda: rome.running.context.view.emulated_rtt_ms(SiteName("paris")) == 300)
        for number in range(MOST_LATE):
            answer = await ask(rome, wanting())
            assert (answer.status, answer.headers[CLASS]) == (200, "on_demand")
            assert at(rome).refused == number + 1
            await until(lambda: left(paris) < 50)
            await until(lambda: left(paris) == 50)  # it fills by 10 a second, and is given back
        assert outcomes(rome)["asked"] == MOST_LATE
        answer = await ask(rome, wanting())
        assert outcomes(rome)["asked"] == MOST_LATE, "one that is too far is not asked again"
        assert not at(rome).allowance.is_idle, "what comes is demand here again"

    run(main)


def test_a_cashier_pays_once_however_often_it_is_asked_and_takes_back_once() -> None:
    async def main(cloud: GatewayCloud) -> None:
        paris, rome = await paris_pays(cloud)
        shared = rome.running.context.peers.key_for(paris.site)
        assert shared is not None
        sent = 0

        async def send(*messages: Any) -> None:
            nonlocal sent
            sent += 1
            head = HopHead("POST", PATH, "rome", "paris", peer.NOTHING, "reserved")
            body, now = encode_messages(messages), rome.clock.wall_ns()
            lines = head.lines() + (
                f"{peer.HOP}: {proof(started(shared, head.covered()), f'x-{sent}', now, body)}"
            )
            headers = dict(line.split(": ", 1) for line in lines.splitlines())
            answer = await ask(paris, post(body, key=None, path=PATH, headers=headers))
            assert answer.status == 200

        def pay(payer: str, number: int) -> Pay:
            return Pay(
                entitlement=ID, payer=SiteName(payer), life=1, number=number, tokens=15,
                counts=True,
            )

        await send(pay("rome", 1), pay("rome", 1))
        await send(pay("rome", 1))
        assert 35 <= left(paris) < 45
        await send(pay("berlin", 1))
        assert 35 <= left(paris) < 45, "nobody pays in another's name"
        await send(pay("rome", 2), pay("rome", 3))
        assert 5 <= left(paris) < 15
        back = Back(
            entitlement=ID, payer=SiteName("rome"), life=1, number=2, tokens=900, honoured=True
        )
        await send(back, back)
        await send(back)
        assert 20 <= left(paris) < 30
        assert (await ask(rome, wanting("default"))).status == 200, "answers to nothing do nothing"
        assert outcomes(rome) == {}

    run(main)


def test_without_its_cashier_a_request_is_on_demand_and_soon_a_successor_pays() -> None:
    async def main(cloud: GatewayCloud) -> None:
        _, rome, oslo = await paris_pays(cloud, "oslo")
        voters = tuple(SiteName(name) for name in ("paris", "rome", "oslo"))
        assert cashiers_of(ID, [SiteName("paris")], voters) == ("paris", "rome", "oslo")
        clock = oslo.clock

        def known() -> bool:
            """Nothing is awaited of any cashier."""
            counts = outcomes(oslo)
            return counts["asked"] == sum(counts.values()) - counts["asked"]

        cloud.kill_site("paris")
        answer = await ask(oslo, wanting())
        assert (answer.status, answer.headers[CLASS]) == (200, "on_demand")
        assert outcomes(oslo) == {"asked": 1}, "it has waited for nothing"
        async with asyncio.timeout(40):
            while answer.headers[CLASS] == "on_demand":  # Rome has to be elected, and to borrow
                clock.ahead_ns += 3 * 10**9 // 2  # type: ignore[attr-defined]
                await asyncio.sleep(0.3)
                answer = await served_once(oslo, wanting(), known)
        assert outcomes(oslo)["paid"] == at(oslo).honoured == 1
        assert usable(oslo) == 0
        assert usable(rome) > 0

    run(main)


def test_a_request_that_waits_is_moved_before_those_on_demand() -> None:
    async def main(cloud: GatewayCloud) -> None:
        _, rome = await paris_pays(cloud, replica={"slots": 1})
        hold(rome)
        first = asyncio.create_task(ask(rome, at_rome("default")))
        await until(lambda: queue_of(rome).running == 1)
        second = asyncio.create_task(ask(rome, at_rome("default")))
        await until(lambda: queue_of(rome).queued == 1)
        third = asyncio.create_task(ask(rome, at_rome("priority")))
        await until(lambda: outcomes(rome).get("paid") == 1)
        queue = queue_of(rome)
        assert [queue.line(each).order.queued for each in ("reserved", "on_demand")] == [1, 1]
        let_go(rome)
        done, _ = await asyncio.wait({second, third}, return_when=asyncio.FIRST_COMPLETED)
        answers = [await each for each in (first, second, third)]
        assert third in done
        assert [each.status for each in answers] == [200, 200, 200]
        assert answers[2].headers[CLASS] == "reserved"

    run(main)


@pytest.mark.parametrize("dead", [False, True])
def test_one_that_would_be_turned_away_on_demand_waits_for_its_payment(dead: bool) -> None:
    async def main(cloud: GatewayCloud) -> None:
        _, rome = await paris_pays(cloud)
        await admit_by(cloud, "rome", SitePolicy(on_demand=ClassRule(ceiling=0.0)))
        await admit_by(cloud, "paris", SitePolicy(on_demand=ClassRule(ceiling=0.0)))
        if dead:
            cloud.kill_site("paris")
        answer = await ask(rome, wanting())
        if dead:
            assert (answer.status, answer.headers["x-isochrone-reason"]) == (429, "class_closed")
        else:
            assert (answer.status, answer.headers[CLASS]) == (200, "reserved")
            assert answer.headers["x-isochrone-site"] == "rome", "it did not go elsewhere for it"
            assert ", queue;dur=" in answer.headers["server-timing"], "and says that it has waited"

    run(main)


def test_requests_that_are_paid_for_together_wait_in_the_order_in_which_they_came() -> None:
    async def main(cloud: GatewayCloud) -> None:
        _, rome = await paris_pays(cloud, replica={"slots": 1})
        hold(rome)
        first = asyncio.create_task(ask(rome, at_rome("default")))
        await until(lambda: queue_of(rome).running == 1)
        context = rome.running.context
        assert context.paying.commitments is not None
        decide = decided_later(rome)
        asked = []
        for _ in range(2):
            asked.append(asyncio.create_task(ask(rome, at_rome("priority"))))
            await until(lambda: queue_of(rome).queued == len(asked))
        payments = context.paying.commitments.payments
        await until(lambda: len(payments.decided) == 2)
        decide(rome.clock.monotonic_ns())
        waiting = list(context.queues.places[rome.site.name, MODEL].waiters)[1:]
        queue = queue_of(rome)
        order = [queue.line("reserved").order.take(True) for _ in waiting]
        assert order == waiting
        for each in (first, *asked):
            each.cancel()

    run(main)


def test_one_that_waits_for_its_payment_is_not_served_where_it_may_no_longer_be() -> None:
    async def main(cloud: GatewayCloud) -> None:
        _, rome = await paris_pays(cloud)
        await admit_by(cloud, "rome", SitePolicy(on_demand=ClassRule(ceiling=0.0)))
        await admit_by(cloud, "paris", SitePolicy(on_demand=ClassRule(ceiling=0.0)))
        context, before = rome.running.context, len(rome.engines[0].asked)
        decide = decided_later(rome)
        asked = asyncio.create_task(ask(rome, wanting()))
        assert context.paying.commitments is not None
        payments = context.paying.commitments.payments
        await until(lambda: len(payments.decided) == 1)
        await cloud.key("secret", classes=("reserved", "on_demand", "batch"), residency=("FR",))
        await until(lambda: not context.view.table.may_process(
            SiteName("rome"), next(iter(context.exchanges)).key.policy_id
        ))
        decide(rome.clock.monotonic_ns())
        answer = await asked
        assert answer.status != 200
        assert len(rome.engines[0].asked) == before

    run(main)


def test_a_gateway_that_drains_asks_no_cashier_and_gives_back_what_is_left() -> None:
    async def main(cloud: GatewayCloud) -> None:
        paris, rome = await paris_pays(cloud)
        hold(rome)
        large = post(chat_body(service_tier="priority", max_tokens=20))
        asked = asyncio.create_task(ask(rome, large))
        await until(lambda: outcomes(rome).get("paid") == 1)
        rome.running.letters.stop()
        before = paris.running.letters.heard
        let_go(rome)
        assert (await asked).headers[CLASS] == "reserved"
        await until(lambda: paris.running.letters.heard == before + 1)
        answer = await ask(rome, wanting())
        assert (answer.status, answer.headers[CLASS]) == (200, "on_demand")
        assert outcomes(rome)["asked"] == 1

    run(main)


async def paris_pays_for_two(cloud: GatewayCloud, *, spent: bool) -> list[RunningSite]:
    """As `paris_pays`; and more was sold to the project alone, which comes first. `spent`: there is
    nothing left of that."""
    sites, own = await a_cloud(cloud, "paris", "rome"), EntitlementId("own")
    paris = sites[0]
    await sell(cloud, {"paris": 10})
    await sell(cloud, {"paris": 3}, id=own, project_id=ProjectId("project"))
    await until(lambda: all(len(each.running.context.entitled.sold()) == 2 for each in sites))
    await until(
        lambda: usable(paris) == 10 and paris.running.letters.standing(own).usable_tok_s == 3
    )
    paris.clock.ahead_ns += 10**10  # type: ignore[attr-defined]
    assert (left(paris), left(paris, own)) == (50, 15)
    if spent:
        (sold,) = [
            each for each in paris.running.context.entitled.sold() if each.entitlement.id == own
        ]
        sold.allowance.settle(0, 1_000, paris.clock.monotonic_ns(), counts=False)
    return sites


def honoured(site: RunningSite) -> dict[str, int]:
    return {each.entitlement.id: each.honoured for each in site.running.context.entitled.sold()}


@pytest.mark.parametrize(("spent", "of"), [(False, "own"), (True, "gold")])
def test_of_two_that_were_sold_the_first_that_has_enough_pays(spent: bool, of: str) -> None:
    async def main(cloud: GatewayCloud) -> None:
        _, rome = await paris_pays_for_two(cloud, spent=spent)
        answer = await served_once(rome, wanting(), lambda: outcomes(rome).get("paid") == 1)
        assert (answer.status, answer.headers[CLASS]) == (200, "reserved")
        assert honoured(rome) == {"own": 0, "gold": 0} | {of: 1}

    run(main)


def test_one_that_waits_for_its_payment_waits_for_the_next_one_too() -> None:
    async def main(cloud: GatewayCloud) -> None:
        _, rome = await paris_pays_for_two(cloud, spent=True)
        for name in ("rome", "paris"):
            await admit_by(cloud, name, SitePolicy(on_demand=ClassRule(ceiling=0.0)))
        answer = await ask(rome, wanting())
        assert (answer.status, answer.headers[CLASS]) == (200, "reserved")
        assert honoured(rome) == {"own": 0, "gold": 1}
        assert outcomes(rome) == {"asked": 2, "refused": 1, "paid": 1}

    run(main)

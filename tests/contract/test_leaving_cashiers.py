"""A gateway that stops has told its cashiers, by the time it is gone, what is not needed of what
they paid or were asked for.

Real gateways on real sockets that drain as under SIGTERM.
"""

import asyncio

from isochrone.core.admission.cashier import Back, Paid, Pay
from isochrone.core.admission.commitments import Letter, Message
from isochrone.core.ids import SiteName
from tests.contract.test_gateway_cashier import hold, let_go, outcomes, paris_pays
from tests.contract.test_gateway_entitlements import CLASS, left, wanting
from tests.fixtures.gateways import (
    GatewayCloud,
    RunningSite,
    ask,
    chat_body,
    post,
    run,
    until,
)

LARGE = post(chat_body(service_tier="priority", max_tokens=20))


def told_to(site: RunningSite) -> list[Message]:
    """What its books are told from now on."""
    commitments = site.running.context.paying.commitments
    assert commitments is not None
    heard: list[Message] = []
    hear = commitments.hear

    def noted(sender: SiteName, message: Message, now_ns: int, now: int) -> list[Letter]:
        heard.append(message)
        return hear(sender, message, now_ns, now)

    commitments.hear = noted  # type: ignore[method-assign]
    return heard


def backs(heard: list[Message]) -> list[tuple[int, bool]]:
    return [(each.number, each.honoured) for each in heard if isinstance(each, Back)]


async def far_apart(cloud: GatewayCloud, rome: RunningSite) -> None:
    """An answer of Paris takes as long as it needs to be asked for and to be missed."""
    await cloud.link("paris", "rome", 300)
    await until(lambda: rome.running.context.view.emulated_rtt_ms(SiteName("paris")) == 300)


async def leave(site: RunningSite) -> None:
    site.stop.set()
    assert site.task is not None
    await until(lambda: site.running.context.stopping)


async def gone(site: RunningSite) -> None:
    assert site.task is not None
    await asyncio.wait([site.task])


def test_what_the_last_requests_leave_of_their_payments_comes_back() -> None:
    async def main(cloud: GatewayCloud) -> None:
        paris, rome = await paris_pays(cloud)
        heard = told_to(paris)
        hold(rome)
        asked = asyncio.create_task(ask(rome, LARGE))
        await until(lambda: outcomes(rome).get("paid") == 1)
        await leave(rome)
        let_go(rome)
        answer = await asked
        assert (answer.status, answer.headers[CLASS]) == (200, "reserved")
        await gone(rome)
        assert backs(heard) == [(1, True)]

    run(main)


def test_requests_that_are_cut_leave_what_they_have_not_used() -> None:
    async def main(cloud: GatewayCloud) -> None:
        paris, rome = await paris_pays(cloud, drain_timeout_s=0.1)
        heard = told_to(paris)
        hold(rome)
        asked = asyncio.create_task(ask(rome, LARGE))
        await until(lambda: outcomes(rome).get("paid") == 1)
        await leave(rome)
        assert (await asked).status == 504
        await gone(rome)
        assert backs(heard) == [(1, True)]

    run(main)


def test_what_was_asked_for_and_not_answered_comes_back() -> None:
    async def main(cloud: GatewayCloud) -> None:
        paris, rome = await paris_pays(cloud)
        heard = told_to(paris)
        await far_apart(cloud, rome)
        hold(rome)
        asked = asyncio.create_task(ask(rome, wanting()))
        await until(lambda: outcomes(rome).get("asked") == 1)
        await leave(rome)
        let_go(rome)
        answer = await asked
        assert (answer.status, answer.headers[CLASS]) == (200, "on_demand")
        await gone(rome)
        assert [isinstance(each, Pay) for each in heard if isinstance(each, Pay | Back)] == [
            True, False,
        ]
        assert backs(heard) == [(1, False)]
        assert left(paris) == 50

    run(main)


def test_an_answer_that_comes_while_it_stops_counts() -> None:
    async def main(cloud: GatewayCloud) -> None:
        _, rome = await paris_pays(cloud)
        heard = told_to(rome)
        await far_apart(cloud, rome)
        hold(rome)
        asked = asyncio.create_task(ask(rome, LARGE))
        await until(lambda: outcomes(rome).get("asked") == 1)
        rome.running.letters.stop()
        await until(lambda: any(isinstance(each, Paid) for each in heard))
        let_go(rome)
        assert (await asked).headers[CLASS] == "reserved"

    run(main)


def test_who_has_nothing_to_tell_waits_for_nobody() -> None:
    async def main(cloud: GatewayCloud) -> None:
        _, rome = await paris_pays(cloud)
        cloud.kill_site("paris")
        before_s = asyncio.get_running_loop().time()
        await leave(rome)
        await gone(rome)
        assert asyncio.get_running_loop().time() - before_s < 0.5

    run(main)



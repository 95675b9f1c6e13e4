"""One gateway over real sockets: limits that hold over sites, and requests that are sent ahead."""

import asyncio
import time

import pytest

from isochrone.core.ids import LimitId, OrgId, ProjectId
from isochrone.core.world.limit import Limit, LimitKind, OrgLimits
from isochrone.core.world.tenant import NO_LIMITS, Limits
from isochrone.wire import subjects
from tests.fixtures.gateways import Client, GatewayCloud, ask, chat_body, post, run, until
from tests.fixtures.stepped_clock import SteppedClock

REQUEST = post(chat_body(max_tokens=5))


async def publish_limit(
    cloud: GatewayCloud, kind: LimitKind, amount: int, *, age_s: int = 0
) -> None:
    limit = Limit(
        id=LimitId("limit"), org_id=OrgId("org"), project_id=ProjectId("project"), kind=kind,
        amount=amount, created_at=time.time_ns() - age_s * 1_000_000_000,
    )
    await cloud.publish(
        subjects.limits_key("org"), OrgLimits(org_id=OrgId("org"), limits=(limit,))
    )


@pytest.mark.parametrize("alone", [False, True], ids=["over sites", "alone"])
def test_requests_sent_ahead_count_by_when_they_are_served(alone: bool) -> None:
    """Five a minute: the answer to the first takes until the next bucket of the minute."""
    async def main(cloud: GatewayCloud) -> None:
        clock = SteppedClock()
        site = await cloud.add_site("frankfurt", "DE", clock=clock)
        await cloud.key("secret", limits=Limits(requests_per_min=5) if alone else NO_LIMITS)
        await cloud.ready()
        replicas = site.running.context.view.replicas
        await until(lambda: len(replicas._by_entry) == 1)
        if not alone:
            await asyncio.sleep(0.6)  # what is made while the gateway runs is kept at once
            await publish_limit(cloud, "requests_per_min", 5)
            await until(lambda: site.running.context.shared_limits.is_on)
        engine = site.engines[0]
        engine.hold.clear()
        ahead = await Client.open(site)
        ahead.send(REQUEST * 8)
        await until(lambda: len(engine.asked) == 1)
        clock.ahead_ns = 5_000_000_000
        await asyncio.sleep(0.5)  # until the site has said anew that it is there
        others = [asyncio.create_task(ask(site, REQUEST)) for _ in range(6)]
        await until(lambda: sum(each.done() for each in others) >= 2)
        engine.hold.set()
        statuses = [(await each).status for each in others]
        statuses += [(await ahead.answer()).status for _ in range(8)]
        statuses += [(await ask(site, REQUEST)).status for _ in range(3)]
        assert statuses.count(200) == 5
        assert statuses.count(429) == 12

    run(main)


def test_a_gateway_that_starts_has_its_limits_before_its_first_request() -> None:
    """It has forgotten what it granted, so for now there is only the bootstrap: none of five."""
    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site("frankfurt", "DE")
        await cloud.key("secret")
        await cloud.ready()
        await publish_limit(cloud, "concurrent", 5, age_s=1_000_000)
        await until(lambda: site.running.context.shared_limits.is_on)
        site.stop.set()
        assert site.task is not None
        await asyncio.wait([site.task])
        await cloud.start_gateway("frankfurt")
        assert site.running.context.shared_limits.is_on
        client = await Client.open(site)
        client.send(REQUEST)
        answer = await client.answer()
        assert answer.status == 503
        assert answer.headers["x-isochrone-reason"] == "limit_unreachable"
        client.close()

    run(main)

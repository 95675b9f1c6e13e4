"""Streams that another site serves: what its gateway makes of them, and what happens in a gap."""

import asyncio

from tests.fixtures.gateways import Client, GatewayCloud, RunningSite, ask, post, run, until
from tests.fixtures.tellers import AT, Fate, body, is_whole, site


async def a_hop(
    cloud: GatewayCloud, fate: Fate, engines: int = 2
) -> tuple[RunningSite, RunningSite]:
    """An ingress without engines, and who serves it."""
    lisbon = await cloud.add_site("lisbon", "PT", engines=0)
    paris = await site(cloud, fate, "paris", "FR", engines=engines)
    await cloud.key("secret")
    await cloud.ready()
    return lisbon, paris


def test_a_long_stream_for_another_site_is_not_late() -> None:
    """Its first byte has come long ago."""

    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", AT)])
        lisbon, paris = await a_hop(cloud, fate)
        asking = asyncio.create_task(ask(lisbon, post(body())))
        await until(lambda: fate.reached)
        (exchange,) = paris.running.context.exchanges
        await until(lambda: exchange.reply.head_sent)
        assert exchange.attempt is not None
        assert exchange.attempt.expected_ms > 0.0, "how long it should take is known"
        exchange.tick(paris.clock.monotonic_ns() + 50_000_000_000)
        states = [each.state for _, _, each in paris.running.context.view.replicas.states()]
        fate.gate.set()
        is_whole(await asking)
        assert states == ["healthy", "healthy"]

    run(main)


def test_who_waits_for_another_site_hears_that_it_goes_on() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("reset", AT), ("wait", 0)])
        lisbon, _ = await a_hop(cloud, fate)
        client = await Client.open(lisbon)
        client.send(post(body()))
        await until(lambda: fate.reached == 2)
        async with asyncio.timeout(5):
            begun = await client.reader.readuntil(b": continuing\n\n")
        fate.gate.set()
        rest = await client.reader.readuntil(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert b'" time"' in begun
        assert b'" there"' in rest
        client.close()

    run(main)

"""Streams that another site serves: what its gateway makes of them, and what happens in a gap."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from isochrone.core.ids import SiteName
from isochrone.gateway.forward import Exchange
from isochrone.wire import fleet, subjects
from isochrone.wire.peer import TURNED_AWAY
from tests.fixtures.gateways import MODEL, Client, GatewayCloud, RunningSite, ask, post, run, until
from tests.fixtures.scripted_engine import ScriptedEngine
from tests.fixtures.tellers import (
    AT,
    TALE,
    Fate,
    Teller,
    asked,
    billed,
    body,
    is_whole,
    lost,
    site,
)


async def a_hop(
    cloud: GatewayCloud, fate: Fate, engines: int = 2
) -> tuple[RunningSite, RunningSite]:
    """An ingress without engines, and who serves it."""
    lisbon = await cloud.add_site("lisbon", "PT", engines=0)
    paris = await site(cloud, fate, "paris", "FR", engines=engines)
    await cloud.key("secret")
    await cloud.ready()
    return lisbon, paris


async def in_the_middle(ingress: RunningSite, fate: Fate) -> Exchange:
    """The one stream of a gateway, whose client has the beginning of its answer."""
    await until(lambda: fate.reached)
    (exchange,) = ingress.running.context.exchanges
    await until(lambda: exchange.first_ns)
    return exchange


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


def test_an_answer_is_never_of_two_revisions() -> None:
    """The ingress knows the weights by the head of the answer, which is out before its text."""

    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", 1)])
        other = Fate(answer=("Zwei", " alte", " Bären", " tanzten", "."), places=[("wait", 3)])
        lisbon, paris = await a_hop(cloud, fate)
        first, second = paris.engines
        assert isinstance(second, Teller)
        second.fate, second.status = other, 503
        replicas = paris.running.context.view.replicas
        (told,) = (each for each, _, _ in replicas.states() if f":{second.port}/" in each.base_url)
        await cloud.control.put(
            subjects.site_bucket("paris"), subjects.replica_key(told.id),
            fleet.encode(replace(told, revision="r2")),
        )
        await until(lambda: any(each.revision == "r2" for each, _, _ in replicas.states()))
        asking = asyncio.create_task(ask(lisbon, post(body())))
        await in_the_middle(lisbon, fate)
        await site(cloud, fate, "berlin", "DE")
        await cloud.ready()
        second.status = 200
        first.kill()
        await until(lambda: asking.done() or other.reached)
        if not asking.done():
            cloud.kill_site("paris")
        answer = await asking
        is_whole(answer)
        await billed(cloud, answer)

    run(main)


@pytest.mark.parametrize("cut", [len(TURNED_AWAY), 7, len(TURNED_AWAY) - 1])
@pytest.mark.parametrize("fields", [{}, {"temperature": 0.7}], ids=["exact", "sampled"])
def test_a_stream_may_be_turned_away_as_often_as_sites_have_no_place_for_it(
    fields: dict[str, Any], cut: int
) -> None:
    """A site that had none may have one later."""

    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", 3), ("wait", 2), ("wait", 2), ("wait", 2)])
        lisbon = await cloud.add_site("lisbon", "PT", engines=0)
        for name, country in (("paris", "FR"), ("berlin", "DE")):
            await site(cloud, fate, name, country)
        await cloud.key("secret")
        await cloud.ready()
        asking = asyncio.create_task(ask(lisbon, post(body(**fields))))
        await until(lambda: lisbon.running.context.exchanges)
        (exchange,) = lisbon.running.context.exchanges
        for number in range(4):
            await until(lambda number=number: fate.reached == number + 1)  # type: ignore[misc]
            await until(lambda: exchange.first_ns)
            while len(exchange.continued) < number:
                await asyncio.sleep(0.005)
            attempt = exchange.attempt
            assert attempt is not None
            connection = attempt._connection
            assert connection is not None
            for part in (TURNED_AWAY[:cut], TURNED_AWAY[cut:]):
                attempt.received(part)
            connection._fail("it was cut")
        answer = await asking
        got = is_whole(answer)
        assert b"turned-away" not in answer.body
        assert got.usages[-1]["completion_tokens"] == len(TALE)
        await billed(cloud, answer)
        assert fate.asked == 5
        assert {each.method for each in exchange.continued} == {"stopped"}
        health = lisbon.running.context.loads.health
        for name in ("paris", "berlin"):
            known = health.of(SiteName(name), MODEL)
            assert known is None or not known.why, "no place for it is no failure"

    run(main)


def test_a_site_that_lost_a_stream_is_not_asked_again() -> None:
    """Nor where it was lost once more, elsewhere."""

    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("reset", AT), ("reset", 3)])
        lisbon = await cloud.add_site("lisbon", "PT", engines=0)
        for name, country in (("paris", "FR"), ("berlin", "DE")):
            await site(cloud, fate, name, country)
        await cloud.key("secret")
        await cloud.ready()
        answer = await ask(lisbon, post(body()))
        assert "no other allowed replica" in lost(answer)
        assert sorted(asked(cloud).values()) == [0, 1, 1]

    run(main)


def test_a_full_disk_ends_no_stream_that_is_on_record() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", AT)])
        paris = await site(cloud, fate, "paris", "FR", engines=2)
        await cloud.key("secret")
        await cloud.ready()
        asking = asyncio.create_task(ask(paris, post(body())))
        await in_the_middle(paris, fate)
        paris.disk.capacity_bytes = 0
        journal = paris.running.context.journal
        room = journal._reserved_bytes
        journal._reserved_bytes = 2**30
        journal._recount()
        assert (await ask(paris, post(body()))).headers["x-isochrone-reason"] == "journal"
        next(engine for engine in paris.engines if engine.asked).kill()
        answer = await asking
        paris.disk.capacity_bytes, journal._reserved_bytes = None, room
        journal._recount()
        is_whole(answer)
        await billed(cloud, answer)

    run(main)


def test_a_queue_learns_of_what_was_made_here_alone() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", AT)])
        paris = await site(cloud, fate, "paris", "FR", replica={"slots": 2})
        await site(cloud, fate, "berlin", "DE")
        await cloud.key("secret")
        await cloud.ready()
        paris.engines[0].status = 503
        asking = asyncio.create_task(ask(paris, post(body())))
        await in_the_middle(paris, fate)
        paris.engines[0].status = 200
        queue = paris.running.context.queues.places[SiteName("paris"), MODEL].queue
        assert queue.guessed
        cloud.kill_site("berlin")
        is_whole(await asking)
        await until(lambda: not queue.guessed)  # the first that ends says all that it knows
        assert queue._measured_tokens == (len(TALE) - AT + 1) * queue.policy.output_weight

    run(main)


def test_batch_that_goes_on_may_wait_for_its_turn_there() -> None:
    """For as long as it may wait, which is longer than an engine may say nothing."""

    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", AT)])
        lisbon = await cloud.add_site("lisbon", "PT", engines=0)
        await site(cloud, fate, "paris", "FR")
        await cloud.key("secret", classes=("on_demand", "batch"))
        await cloud.ready()
        asking = asyncio.create_task(ask(lisbon, post(body(service_tier="flex"))))
        exchange = await in_the_middle(lisbon, fate)
        other = Fate(places=[("wait", 0)])
        await site(cloud, other, "berlin", "DE")
        await cloud.ready()
        cloud.kill_site("paris")
        await until(lambda: other.reached)
        exchange.tick(lisbon.clock.monotonic_ns() + 100_000_000_000)
        await asyncio.sleep(0.05)
        other.gate.set()
        is_whole(await asking)
        assert other.asked == 1
        known = lisbon.running.context.loads.health.of(SiteName("berlin"), MODEL)
        assert known is None or not known.why

    run(main)


@pytest.mark.parametrize("ingress", ["paris", "lisbon"])
def test_who_will_not_go_on_with_a_stream_is_not_ill(ingress: str) -> None:
    """As an engine does that knows no open answers: status 400 says nothing of it, here either."""

    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", AT)])
        _, paris = await a_hop(cloud, fate)
        asking = asyncio.create_task(ask(cloud.sites[ingress], post(body())))
        await in_the_middle(cloud.sites[ingress], fate)
        berlin = await site(cloud, fate, "berlin", "DE")
        await cloud.ready()
        berlin.engines[0].status = 400
        first, second = sorted(paris.engines, key=lambda engine: -len(engine.asked))
        second.status = 400
        first.kill()
        assert "no other allowed replica" in lost(await asking)
        assert len(second.asked) >= 1
        replicas = paris.running.context.view.replicas
        (state,) = (
            health for each, _, health in replicas.states() if f":{second.port}/" in each.base_url
        )
        assert (state.state, state.why) == ("healthy", "")
        for name in ("paris", "lisbon"):
            known = cloud.sites[name].running.context.loads.health.of(SiteName("berlin"), MODEL)
            assert known is None or not known.why

    run(main)


class Commenter(ScriptedEngine):
    """Says that it is there, and is lost."""

    async def _stream(
        self, body: dict[str, Any], writer: asyncio.StreamWriter, reader: asyncio.StreamReader
    ) -> None:
        said = b": a moment\n\n"
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(said), said)
        )
        await writer.drain()
        await asyncio.sleep(0.02)
        raise ConnectionResetError


def test_a_comment_is_no_answer_that_goes_on() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", AT)])
        paris = await site(cloud, fate, "paris", "FR")
        await cloud.key("secret")
        await cloud.ready()
        asking = asyncio.create_task(ask(paris, post(body())))
        exchange = await in_the_middle(paris, fate)
        berlin = await cloud.add_site(
            "berlin", "DE", make_engine=Commenter, replica={"running_counts": "timings"},
        )
        await cloud.ready()
        paris.engines[0].kill()
        answer = await asking
        lost(answer)
        assert b": a moment" in answer.body
        assert len(berlin.engines[0].asked) == 1
        assert exchange.continued == ()

    run(main)

"""Real gateways: what is on record of a request that gave its slot back for a firmer class."""

import asyncio

import pytest

from isochrone.core.ids import SiteName
from isochrone.core.metering.event import UsageEvent
from isochrone.core.routing.choice import Stopped
from isochrone.core.world.site_policy import ClassRule, SitePolicy
from isochrone.core.world.tenant import Class
from tests.fixtures.few_slots import (
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
    post,
    run,
    until,
)
from tests.fixtures.tellers import AT, Fate, body, is_whole
from tests.fixtures.tellers import site as telling_site

SHORT = ClassRule(share=1, wait_ms=150)
IMPATIENT = SitePolicy(reserved=ClassRule(floor=0.5, share=6), on_demand=SHORT, batch=SHORT)


def said_by(cloud: GatewayCloud, reporter: str, request_id: str) -> list[UsageEvent]:
    return [
        each for each in cloud.all_events()
        if (each.request_id, each.reporter) == (request_id, reporter)
    ]


async def stops_of(cloud: GatewayCloud, reporter: str, answers: list[Answer]) -> list[Stopped]:
    """All that this reporter tells of these requests, once it has told of each."""
    ids = [each.request_id for each in answers]
    await until(lambda: all(said_by(cloud, reporter, one) for one in ids))
    decisions = [said_by(cloud, reporter, one)[0].decision for one in ids]
    return [stop for each in decisions if each is not None for stop in each.stops]


@pytest.mark.parametrize("ingress", ["paris", "lisbon"])
def test_who_gave_way_before_its_first_byte_is_told_by_whoever_stopped_it(ingress: str) -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", 0), ("wait", 0), ("whole", 0)])
        paris = await one_tells_of_two(cloud, fate, ingress)
        entry = cloud.sites[ingress]
        lent = [ask_as(entry, "on_demand") for _ in range(2)]
        await until(lambda: fate.reached == 2)
        firm = await ask_as(entry, "reserved")
        fate.gate.set()
        answers = await asyncio.gather(*lent)
        for answer in answers:
            is_whole(answer)
        teller = "ingress" if ingress == "paris" else "evidence"
        (stop,) = await stops_of(cloud, teller, answers)
        assert (stop.site, stop.replica) == ("paris", f"paris-{MODEL}-0")
        assert (stop.for_class, stop.output) == ("reserved", None)
        assert (stop.at, stop.refused) == ("paris", None)
        assert stop.since_ms > 0
        assert stop.after_ms is not None
        assert await stops_of(cloud, "ingress", [firm]) == []
        if teller == "evidence":
            assert await stops_of(cloud, "ingress", answers) == [], "it is told once"
        await until(lambda: is_quiet(paris))

    run(main)


@pytest.mark.parametrize("ingress", ["paris", "lisbon"])
def test_a_stream_that_was_stopped_is_told_with_what_it_had_said(ingress: str) -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", AT), ("wait", AT), ("wait", AT)])
        paris = await one_tells_of_two(cloud, fate, ingress)
        entry = cloud.sites[ingress]
        lent = [ask_as(entry, "batch") for _ in range(2)]
        await until(lambda: fate.reached == 2)
        firm = ask_as(entry, "reserved")
        await until(lambda: fate.reached == 3)
        fate.gate.set()
        answers = await asyncio.gather(*lent)
        is_whole(await firm)
        (stop,) = await stops_of(
            cloud, "ingress" if ingress == "paris" else "evidence", answers
        )
        assert (stop.site, stop.for_class, stop.output) == ("paris", "reserved", AT - 1)
        assert (stop.at, stop.refused) == ("paris", None)
        await until(lambda: is_quiet(paris))

    run(main)


async def two_lent(
    cloud: GatewayCloud, fate: Fate, entry: RunningSite, class_: Class
) -> list[asyncio.Task[Answer]]:
    """Two requests that hold both slots of Paris, which keeps what it stops for a moment only, and
    one of `reserved` that needs one of them and holds it."""
    await admit_by(cloud, "paris", IMPATIENT)
    sell_to_all(entry)
    asking = [ask_as(entry, class_) for _ in range(2)]
    await until(lambda: fate.reached == 2)
    asking.append(ask_as(entry, "reserved"))
    await until(lambda: fate.reached == 3)
    return asking


def test_who_gave_way_and_was_turned_away_then_is_told_so_with_the_reason() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", 0), ("wait", 0), ("wait", 0)])
        paris = await one_tells_of_two(cloud, fate, "paris")
        asking = await two_lent(cloud, fate, paris, "on_demand")
        done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        (refused,) = (each.result() for each in done)
        assert (refused.status, refused.headers["x-isochrone-reason"]) == (429, "expired")
        (stop,) = await stops_of(cloud, "ingress", [refused])
        assert (stop.for_class, stop.at, stop.refused) == ("reserved", None, "expired")
        assert stop.after_ms == pytest.approx(150, abs=100)
        fate.gate.set()
        await asyncio.gather(*asking)
        await until(lambda: is_quiet(paris))

    run(main)


async def one_moves_to_berlin(
    cloud: GatewayCloud, fate: Fate, class_: Class
) -> tuple[list[asyncio.Task[Answer]], Answer]:
    """Two that came in at Lisbon are lent the slots of Paris, and one of them has to leave it."""
    entry = cloud.sites["lisbon"]
    await telling_site(cloud, Fate(), "berlin", "DE")
    await cloud.link("lisbon", "berlin", 80.0)
    await cloud.ready()
    await until(lambda: entry.running.context.view.table.view.links)
    asking = await two_lent(cloud, fate, entry, class_)
    done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    (moved,) = (each.result() for each in done)
    is_whole(moved)
    return asking, moved


def test_of_who_was_turned_away_elsewhere_the_ingress_tells_where_it_went() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", 0), ("wait", 0), ("wait", 0)])
        paris = await one_tells_of_two(cloud, fate, "lisbon")
        asking, moved = await one_moves_to_berlin(cloud, fate, "on_demand")
        assert moved.headers["x-isochrone-site"] == "berlin"
        (stop,) = await stops_of(cloud, "ingress", [moved])
        assert (stop.site, stop.replica) == ("paris", f"paris-{MODEL}-0")
        assert (stop.for_class, stop.output) == ("reserved", None)
        assert (stop.at, stop.refused) == ("berlin", "expired")
        assert "x-isochrone-stopped" not in moved.headers
        fate.gate.set()
        await asyncio.gather(*asking)
        await until(lambda: is_quiet(paris))

    run(main)


def test_a_stream_that_has_no_slot_again_goes_on_elsewhere_and_both_sites_tell() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", AT), ("wait", AT), ("wait", AT)])
        await one_tells_of_two(cloud, fate, "lisbon")
        asking, moved = await one_moves_to_berlin(cloud, fate, "batch")
        await until(lambda: len([
            each for each in said_by(cloud, "evidence", moved.request_id)
            if each.serving_site == "paris"
        ]) == 1)
        (event,) = (
            each for each in said_by(cloud, "evidence", moved.request_id)
            if each.serving_site == "paris"
        )
        assert event.decision is not None
        (stop,) = event.decision.stops
        assert (stop.output, stop.at, stop.refused) == (AT - 1, None, "expired")
        await until(lambda: bool(said_by(cloud, "ingress", moved.request_id)))
        (told,) = said_by(cloud, "ingress", moved.request_id)
        assert told.decision is not None
        assert [each.detail for each in told.decision.tried] == [
            "it gave way there, and had no place again"
        ]
        assert b"turned-away" not in moved.body
        context = cloud.sites["lisbon"].running.context
        known = context.loads.health.of(SiteName("paris"), MODEL)
        assert known is not None
        assert not known.why, "that a firmer class goes first is no failure"
        fate.gate.set()
        await asyncio.gather(*asking)

    run(main)


def test_who_leaves_while_it_waits_for_its_slot_again_is_told_to_have_ended_so() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", AT), ("wait", AT), ("wait", AT)])
        paris = await one_tells_of_two(cloud, fate, "paris")
        clients = [await Client.open(paris) for _ in range(2)]
        for client in clients:
            client.send(post(body(service_tier="flex", max_tokens=20)))
        await until(lambda: fate.reached == 2)
        firm = ask_as(paris, "reserved")
        await until(lambda: queue_of(paris).queued == 1 and fate.reached == 3)
        for client in clients:
            client.close()
        await until(lambda: len([e for e in cloud.all_events() if e.outcome != "finished"]) == 2)
        gone = [e.decision.stops for e in cloud.all_events() if e.decision is not None]
        (stop,) = (stop for stops in gone for stop in stops)
        assert (stop.output, stop.after_ms, stop.at, stop.refused) == (AT - 1, None, None, None)
        fate.gate.set()
        is_whole(await firm)

    run(main)



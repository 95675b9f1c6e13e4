"""How a name server starts while the bus is away: from the view that it kept, or not at all."""

import asyncio
from dataclasses import replace
from hashlib import sha256

import pytest

from isochrone.core.ids import OrgId, PolicyId
from isochrone.core.world.tenant import Policy
from isochrone.twin import loop as virtual
from isochrone.wire import subjects
from tests.fixtures.dns_stage import Stage, on_stage


def test_without_a_view_it_fails_and_heals() -> None:
    async def main() -> None:
        stage = Stage()
        await stage.prepare()
        stage.hub.down()
        async with stage.running():
            assert stage.ask("de") == "SERVFAIL"
            stage.hub.up()
            await stage.until("de", "berlin", limit_s=20)

    virtual.run(main())


def test_told_to_stop_while_it_waits_for_a_view_it_stops() -> None:
    async def main() -> None:
        stage = Stage()
        await stage.prepare()
        stage.hub.down()
        stage.start()
        stop = asyncio.Event()
        running = asyncio.create_task(stage.dns.run(stop))
        await asyncio.sleep(1)
        stop.set()
        began_s = stage.loop.time()
        await running
        assert stage.loop.time() - began_s < 0.5

    virtual.run(main())


def test_it_starts_from_the_view_that_it_kept_and_corrects_it_later() -> None:
    async def main() -> None:
        stage = Stage()
        await stage.prepare()
        policy = Policy(
            id=PolicyId("p1"), org_id=OrgId("o"), residency=("any",), transit=("FR",),
            max_view_age_s=30.0,
        )
        await stage.publish(subjects.policy_key("p1"), policy)
        async with stage.running():
            assert stage.ask("acme") == "paris"
        stage.hub.down()
        async with stage.running():
            assert stage.ask("de") == "berlin"
            assert stage.ask("acme") == "paris"
            await stage.until("acme", "nobody", limit_s=40)
            assert stage.ask("de") == "berlin"
        stage.hub.up()
        await stage.control.delete(subjects.VIEW_BUCKET, subjects.site_key("berlin"))
        stage.hub.down()
        async with stage.running():
            assert stage.ask("de") == "berlin", "as it was"
            stage.hub.up()
            await stage.until("de", "frankfurt", limit_s=20)
            assert stage.ask("acme") == "paris"

    virtual.run(main())


@pytest.mark.parametrize("damage", [b"", b"noise", b"isochrone dns view 1\n" + bytes(40)])
def test_a_damaged_view_on_disk_is_no_view(damage: bytes) -> None:
    async def main() -> None:
        stage = Stage()
        await stage.prepare()
        await stage.disk.save("view", damage)
        stage.hub.down()
        async with stage.running():
            assert stage.ask("de") == "SERVFAIL"
            stage.hub.up()
            await stage.until("de", "berlin", limit_s=20)

    virtual.run(main())


def test_a_kept_view_that_control_did_not_sign_is_no_view() -> None:
    async def main() -> None:
        stage = Stage()
        await stage.prepare()
        async with stage.running():
            assert stage.ask("de") == "berlin"
        data = bytearray(stage.disk.read("view"))
        at = data.index(b"operator", data.index(b"site.berlin"))
        data[at : at + 8] = b"overator"
        body = bytes(data[-(len(data) - 21 - 32) :])
        await stage.disk.save("view", bytes(data[:21]) + sha256(body).digest() + body)
        stage.hub.down()
        async with stage.running():
            assert stage.ask("de") == "frankfurt", "Berlin's entry is refused, the others stand"

    virtual.run(main())


def test_a_full_disk_does_not_stop_it() -> None:
    async def body(stage: Stage) -> None:
        stage.disk.capacity_bytes = 0
        await stage.publish(
            subjects.site_key("berlin"), replace(stage.sites["berlin"], draining=True)
        )
        await stage.until("de", "frankfurt", limit_s=1)
        await asyncio.sleep(10)
        assert stage.ask("de") == "frankfurt"

    on_stage(body)

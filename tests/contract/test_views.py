"""What changes of the view do to a gateway at work, and how it starts and goes on without one."""

import asyncio
from dataclasses import replace

import pytest

from isochrone.core.ids import KeyId, OrgId, PolicyId
from isochrone.core.world.tenant import KeyShard, Policy
from isochrone.ports.clock import Clock
from isochrone.wire import subjects
from tests.fixtures.gateways import (
    Client,
    GatewayCloud,
    RunningSite,
    ask,
    chat_body,
    get,
    post,
    run,
    until,
)


class LaterClock:
    """A monotonic clock that can be put forward, as if so much time had passed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.later_ns = 0

    def wall_ns(self) -> int:
        return self._clock.wall_ns()

    def monotonic_ns(self) -> int:
        return self._clock.monotonic_ns() + self.later_ns


async def stop(site: RunningSite) -> None:
    assert site.task is not None
    site.stop.set()
    await asyncio.wait([site.task])


async def begin_stream(cloud: GatewayCloud, site: RunningSite, key: str) -> Client:
    """A client whose stream has begun and is held by its engine."""
    for each in cloud.sites.values():
        for engine in each.engines:
            engine.chunks = 5
            engine.hold.clear()
    client = await Client.open(site)
    client.send(post(chat_body(stream=True), key=key))
    await until(lambda: any(e.open_streams for s in cloud.sites.values() for e in s.engines))
    return client


async def change_everything(cloud: GatewayCloud, key: str) -> None:
    """New operators and links for every site, another policy for `key`, and then no key at all."""
    for name, site in cloud.sites.items():
        site.site = replace(site.site, operator="another", draining=True)
        await cloud.publish(subjects.site_key(name), site.site)
    await cloud.publish(
        subjects.policy_key(f"p-{key}"),
        Policy(
            id=PolicyId(f"p-{key}"), org_id=OrgId("org"), residency=("FR",), transit=("FR",)
        ),
    )
    shard = cloud.keys.pop(key).secret_sha256[:2]
    await cloud.publish(subjects.keys_key(shard), KeyShard(shard=shard, keys=()))


async def revoke(cloud: GatewayCloud, secret: str) -> KeyId:
    """As control does it: the shard without the key, or no shard where nothing is left of it."""
    revoked = cloud.keys.pop(secret)
    shard = revoked.secret_sha256[:2]
    keys = tuple(k for k in cloud.keys.values() if k.secret_sha256[:2] == shard)
    if keys:
        await cloud.publish(subjects.keys_key(shard), KeyShard(shard=shard, keys=keys))
    else:
        await cloud.control.delete(subjects.VIEW_BUCKET, subjects.keys_key(shard))
    return revoked.id


async def forgotten(site: RunningSite, key: KeyId) -> None:
    view = site.running.context.view
    await until(lambda: view.keys.by_id(key) is None)


async def drains(site: RunningSite) -> None:
    view = site.running.context.view
    await until(lambda: view.own is not None and view.own.draining)


@pytest.mark.parametrize("residency", ["AU", "DE"])
def test_a_stream_goes_on_whatever_the_view_becomes(residency: str) -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU")
        frankfurt = await cloud.add_site("frankfurt", "DE")
        await cloud.key("bound", residency=(residency,))
        await cloud.ready()
        client = await begin_stream(cloud, sydney, "bound")  # at home, and over a hop
        known = cloud.keys["bound"].id
        await change_everything(cloud, "bound")
        for site in (sydney, frankfurt):
            await forgotten(site, known)
            await drains(site)
        assert (await ask(sydney, post(chat_body(), key="bound"))).status == 401
        for site in (sydney, frankfurt):
            for engine in site.engines:
                engine.hold.set()
        answer = await client.answer()
        assert (answer.status, answer.whole, answer.events[-1]) == (200, True, "[DONE]")
        event = (await cloud.events(answer.request_id))[0]
        assert (event.outcome, event.key_id) == ("finished", known)
        client.close()

    run(main)


def test_a_gateway_that_was_cut_off_learns_of_a_revocation_at_once() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sites = [await cloud.add_site(name, "AU") for name in ("sydney", "perth", "hobart")]
        await cloud.key("secret")
        await cloud.key("bad")
        await cloud.ready()
        cut = sites[0]
        cut.bus.down()
        revoked = await revoke(cloud, "bad")
        for site in sites[1:]:
            await forgotten(site, revoked)
            assert (await ask(site, post(chat_body(), key="bad"))).status == 401
        assert (await ask(cut, post(chat_body(), key="bad"))).status == 200
        cut.bus.up()
        await forgotten(cut, revoked)
        for site in sites:
            assert (await ask(site, post(chat_body(), key="bad"))).status == 401
            assert (await ask(site, post(chat_body()))).status == 200

    run(main)


def test_a_gateway_starts_without_nats_and_learns_what_it_missed() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU")
        await cloud.key("secret")
        await cloud.key("bad")
        await cloud.ready()
        await stop(sydney)
        revoked = await revoke(cloud, "bad")
        sydney.bus = cloud.hub.bus()
        sydney.bus.down()
        await cloud.start_gateway("sydney")
        ready = (await ask(sydney, get("/ready", key=None))).json
        assert (ready["status"], ready["view"]) == ("ready", "stored")
        assert 0 <= ready["view_age_s"] < 60
        for key in ("secret", "bad"):  # it cannot know
            assert (await ask(sydney, post(chat_body(), key=key))).status == 200
        sydney.bus.up()
        await forgotten(sydney, revoked)
        assert (await ask(sydney, post(chat_body(), key="bad"))).status == 401
        assert (await ask(sydney, post(chat_body()))).status == 200
        assert (await ask(sydney, get("/ready", key=None))).json["view"] == "live"

    run(main)


def test_past_its_limit_an_old_view_serves_no_key_of_that_policy() -> None:
    async def main(cloud: GatewayCloud) -> None:
        clock = LaterClock(cloud.clock)
        sydney = await cloud.add_site("sydney", "AU", clock=clock)
        await cloud.key("strict")
        await cloud.key("patient")
        for name, limit_s in (("strict", 3600.0), ("patient", 1e8)):
            policy = Policy(
                id=PolicyId(f"p-{name}"), org_id=OrgId("org"), residency=("any",),
                transit=("any",), max_view_age_s=limit_s,
            )
            await cloud.publish(subjects.policy_key(policy.id), policy)
        await cloud.ready()
        view = sydney.running.context.view
        await until(lambda: view.too_old(PolicyId("p-strict")) is None and not view.aged)
        assert (await ask(sydney, post(chat_body(), key="strict"))).status == 200
        sydney.bus.down()
        clock.later_ns = 7_200_000_000_000
        await until(lambda: view.aged)
        answer = await ask(sydney, post(chat_body(), key="strict"))
        assert (answer.status, answer.headers["x-isochrone-reason"]) == (503, "view_too_old")
        assert "3600 s" in answer.json["error"]["message"]
        assert (await ask(sydney, post(chat_body(), key="patient"))).status == 200
        assert (await ask(sydney, get("/ready", key=None))).json["view_age_s"] > 7000
        sydney.bus.up()
        clock.later_ns = 0  # the bus of the test tells the true time
        await until(lambda: not view.aged)
        assert (await ask(sydney, post(chat_body(), key="strict"))).status == 200
        event = (await cloud.events(answer.request_id))[0]
        assert (event.outcome, event.reason) == ("refused", "view_too_old")

    run(main)


def test_the_destination_of_a_hop_judges_its_own_view() -> None:
    async def main(cloud: GatewayCloud) -> None:
        clock = LaterClock(cloud.clock)
        sydney = await cloud.add_site("sydney", "AU")
        frankfurt = await cloud.add_site("frankfurt", "DE", clock=clock)
        await cloud.key("german", residency=("DE",))
        await cloud.ready()
        assert (await ask(sydney, post(chat_body(), key="german"))).status == 200
        view = frankfurt.running.context.view
        frankfurt.bus.down()
        clock.later_ns = 2 * 86_400_000_000_000
        await until(lambda: view.aged)
        before = len(frankfurt.engines[0].asked)
        answer = await ask(sydney, post(chat_body(), key="german"))
        assert answer.status == 503
        assert len(frankfurt.engines[0].asked) == before

    run(main)

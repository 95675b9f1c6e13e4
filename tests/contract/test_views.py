"""What changes of the view do to a gateway at work: nothing to the streams that are under way."""

from dataclasses import replace

import pytest

from isochrone.core.ids import KeyId, OrgId, PolicyId
from isochrone.core.world.tenant import KeyShard, Policy
from isochrone.wire import subjects
from tests.fixtures.gateways import (
    Client,
    GatewayCloud,
    RunningSite,
    ask,
    chat_body,
    post,
    run,
    until,
)


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
        revoked = cloud.keys.pop("bad")
        shard = revoked.secret_sha256[:2]
        keys = tuple(k for k in cloud.keys.values() if k.secret_sha256[:2] == shard)
        if keys:
            await cloud.publish(subjects.keys_key(shard), KeyShard(shard=shard, keys=keys))
        else:
            await cloud.control.delete(subjects.VIEW_BUCKET, subjects.keys_key(shard))
        for site in sites[1:]:
            await forgotten(site, revoked.id)
            assert (await ask(site, post(chat_body(), key="bad"))).status == 401
        assert (await ask(cut, post(chat_body(), key="bad"))).status == 200
        cut.bus.up()
        await forgotten(cut, revoked.id)
        for site in sites:
            assert (await ask(site, post(chat_body(), key="bad"))).status == 401
            assert (await ask(site, post(chat_body()))).status == 200

    run(main)

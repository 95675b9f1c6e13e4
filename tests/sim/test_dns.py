"""A name server on virtual time: follows the signed view, digests and probes, and what it does when
sites drain, die or come back, when entries are forged, and when the bus is gone."""

import asyncio
from dataclasses import replace

from isochrone.core.ids import OrgId, PolicyId
from isochrone.core.steering.reach import FAILURES
from isochrone.core.world.tenant import Policy
from isochrone.dns.probes import Probes
from isochrone.twin import loop as virtual
from isochrone.twin.network import Wire
from isochrone.wire import fleet, subjects
from tests.builders import a_site
from tests.fixtures.dns_stage import NAMES, SIGNER, STRANGER, Stage, on_stage


def test_it_listens_when_it_knows_the_fleet() -> None:
    async def body(stage: Stage) -> None:
        assert stage.ask() == "berlin"
        assert stage.ask("de") == "berlin"
        assert stage.ask("fr") == "paris"
        assert stage.ask("us") == "nobody"

    on_stage(body)


def test_a_drained_site_is_left_at_once_and_comes_back() -> None:
    async def body(stage: Stage) -> None:
        drained = replace(stage.sites["berlin"], draining=True)
        await stage.publish(subjects.site_key("berlin"), drained)
        assert await stage.until("de", "frankfurt", limit_s=1) < 1
        assert stage.ask() == "paris", "by the links 9.0 ms, Frankfurt 12.5 ms"
        await stage.publish(subjects.site_key("berlin"), stage.sites["berlin"])
        await stage.until("de", "berlin", limit_s=1)

    on_stage(body)


def test_links_that_change_are_followed() -> None:
    async def body(stage: Stage) -> None:
        stage.silent.add("berlin")
        await stage.until("", "paris", limit_s=7)
        await stage.link(paris=20.0, frankfurt=12.5)
        await stage.until("", "frankfurt", limit_s=1)

    on_stage(body)


def test_a_site_whose_digests_stop_is_left_and_one_that_owes_none_is_not() -> None:
    async def body(stage: Stage) -> None:
        stage.silent.add("berlin")
        assert await stage.until("de", "frankfurt", limit_s=7) > 4
        stage.silent.add("paris")
        await stage.until("fr", "SERVFAIL", limit_s=7)
        await asyncio.sleep(60)
        assert stage.ask() == "frankfurt"
        stage.silent.clear()
        await stage.until("fr", "paris", limit_s=2)
        await stage.until("", "berlin", limit_s=2)

    on_stage(body)


def test_dead_hanging_and_unready_gateways_are_left_and_come_back() -> None:
    async def body(stage: Stage) -> None:
        stage.wire.kill("frankfurt")
        await asyncio.sleep(25)
        stage.hanging.add("berlin")
        await stage.until("de", "SERVFAIL", limit_s=25)
        assert stage.ask() == "paris"
        await stage.listen("frankfurt", 4001)
        await stage.until("de", "frankfurt", limit_s=12)
        stage.hanging.clear()
        await stage.until("de", "berlin", limit_s=12)
        stage.unready.add("berlin")
        await stage.until("de", "frankfurt", limit_s=17)

    on_stage(body)


def test_when_no_gateway_answers_it_is_the_name_server_that_is_cut_off() -> None:
    async def body(stage: Stage) -> None:
        for name in NAMES:
            stage.hanging.add(name)
        await asyncio.sleep(60)
        assert stage.ask() == "berlin"

    on_stage(body)


def test_without_the_bus_it_goes_on_and_nobody_grows_stale() -> None:
    async def body(stage: Stage) -> None:
        stage.hub.down()
        for _ in range(60):
            await asyncio.sleep(1)
            assert stage.ask() == "berlin"
        stage.hub.up()
        for _ in range(20):
            await asyncio.sleep(1)
            assert stage.ask() == "berlin"

    on_stage(body)


def test_a_name_of_a_policy_follows_the_policy_and_its_age() -> None:
    async def body(stage: Stage) -> None:
        def policy(*transit: str) -> Policy:
            return Policy(
                id=PolicyId("p1"), org_id=OrgId("o"), residency=("any",), transit=transit,
                max_view_age_s=30.0,
            )

        assert stage.ask("acme") == "nobody", "the policy is not in the view"
        key = subjects.policy_key("p1")
        await stage.publish(key, policy("FR"))
        await stage.until("acme", "paris", limit_s=1)
        await stage.publish(key, policy("DE"))
        await stage.until("acme", "berlin", limit_s=1)
        stage.hub.down()
        await asyncio.sleep(25)
        assert stage.ask("acme") == "berlin"
        await stage.until("acme", "nobody", limit_s=10)
        assert stage.ask("de") == "berlin", "a name without a policy does not ask for the age"
        stage.hub.up()
        await stage.until("acme", "berlin", limit_s=20)
        await stage.control.delete(subjects.VIEW_BUCKET, key)
        await stage.until("acme", "nobody", limit_s=1)

    on_stage(body)


def test_entries_that_control_did_not_sign_or_signed_before_change_nothing() -> None:
    async def body(stage: Stage) -> None:
        berlin = stage.sites["berlin"]
        key = subjects.site_key("berlin")
        moved = replace(berlin, country="FR")
        await stage.publish(key, berlin)
        await stage.publish(key, moved, signer=STRANGER)
        await stage.publish(key, moved, serial=1)
        signed_elsewhere = fleet.sign(
            moved, bucket=subjects.VIEW_BUCKET, key=subjects.site_key("other"), serial=999,
            signer=SIGNER,
        )
        await stage.control.put(subjects.VIEW_BUCKET, key, signed_elsewhere)
        await stage.control.publish(subjects.digest_subject("paris"), b"noise")
        await asyncio.sleep(2)
        assert stage.ask("de") == "berlin"

    on_stage(body)


def test_sites_that_have_not_joined_or_are_gone_are_not_answered() -> None:
    async def body(stage: Stage) -> None:
        await stage.publish(
            subjects.site_key("berlin"), replace(stage.sites["berlin"], peer_key=None)
        )
        await stage.until("de", "frankfurt", limit_s=1)
        await stage.control.delete(subjects.VIEW_BUCKET, subjects.site_key("frankfurt"))
        await stage.until("de", "nobody", limit_s=1)

    on_stage(body)


class Mute(asyncio.Protocol):
    """Something in front of a gateway that speaks no HTTP."""


def test_what_only_connects_is_probed_by_connecting() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        wire = Wire(loop)
        await wire.process("front").listen(Mute, "", 4000)
        probes = Probes(wire.process("dns"), kind="connect", interval_s=5, timeout_s=2)
        site = replace(a_site("oslo", "NO"), port=4000)
        probes.sites = {site.name: site}
        await probes.probe_all()
        assert probes.reaches[site.name].answers
        wire.kill("front")
        for _ in range(FAILURES):
            assert probes.reaches[site.name].answers
            await probes.probe_all()
        assert not probes.reaches[site.name].answers
        probes.sites = {}
        await probes.probe_all()
        assert probes.reaches == {}

    virtual.run(main())

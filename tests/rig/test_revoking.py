"""Identities of sites that are theirs no more: the real control cuts them off at NATS."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from isochrone.adapters.clock import SystemClock
from isochrone.adapters.nats.bus import NatsBus, open_bus
from isochrone.adapters.nats.identity import Credentials, load_secrets
from isochrone.adapters.nats.server import prepare
from isochrone.core.rng import stream
from isochrone.wire.identity import SiteIdentity
from isochrone.wiring.joining import join_site, load_identity
from tests.contract.test_bus import until
from tests.fixtures.nats import NatsServer
from tests.rig.cloud import Cloud, isochrone
from tests.rig.test_control import Control, control  # noqa: F401 - a fixture

pytestmark = pytest.mark.rig

WITHIN_S = 2.0


def joined(control: Control, out: Path) -> SiteIdentity:  # noqa: F811
    """The site's identity, with new keys where `out` is a new file."""
    status, made = control.call("POST", "sites/sydney/token")
    assert status == 201
    return join_site(
        made["token"], f"http://127.0.0.1:{control.port}", host="127.0.0.1", port=4100,
        public_url="http://127.0.0.1:4100/v1", out=out,
    )


async def comes_in(identity: SiteIdentity, *, wait_s: float = 20.0) -> NatsBus:
    return await open_bus(
        identity.nats_urls, Credentials(jwt=identity.nats_jwt, seed=identity.nats_seed),
        name="test", clock=SystemClock(), rng=stream(0, "bus"), wait_s=wait_s,
    )


async def is_cut(bus: NatsBus, cause: Callable[[], object]) -> None:
    """It is connected until the cause, and soon after it no more."""
    assert bus.connected
    await asyncio.to_thread(cause)
    async with asyncio.timeout(WITHIN_S):
        await until(lambda: not bus.connected, "it is cut off")
    await bus.close()


def test_an_identity_that_is_the_sites_no_more_is_cut_off(
    control: Control, tmp_path: Path  # noqa: F811
) -> None:
    out = tmp_path / "identity.json"
    first = joined(control, out)

    async def main() -> None:
        old = await comes_in(first)
        same = joined(control, out)
        assert (same.nats_seed, old.connected) == (first.nats_seed, True)
        await is_cut(old, lambda: joined(control, tmp_path / "second.json"))
        second = joined(control, tmp_path / "second.json")

        bus = await comes_in(second)
        await is_cut(bus, lambda: control.call("DELETE", "sites/sydney/login"))
        again = joined(control, tmp_path / "second.json")
        assert again.nats_seed == second.nats_seed
        control.stop(signal.SIGKILL)
        control.nats.kill()
        control.nats.start()
        for identity in (first, same, second):
            refused = await comes_in(identity, wait_s=0.5)
            assert not refused.connected
            await refused.close()
        control.start()
        bus = await comes_in(again)
        assert bus.connected, "the operator gave it a token after that"
        await bus.close()

    asyncio.run(main())


async def refuses_without_control(restored: Path, sites: Path) -> None:
    """The NATS of a restored cloud lets in who belongs to it, before anybody tells it."""
    server = NatsServer(restored)
    server.secrets = load_secrets(restored / "secrets" / "nats.json")
    server.plan = prepare(restored / "nats", server.secrets, 0)
    server.start()
    try:
        for name in ("sydney", "frankfurt"):
            identity = load_identity(sites / name / "identity.json")
            bus = await server.bus(
                Credentials(jwt=identity.nats_jwt, seed=identity.nats_seed), wait_s=2.0
            )
            assert bus.connected is (name == "frankfurt")
            await bus.close()
    finally:
        server.kill()


def test_a_site_of_up_that_was_cut_off_joins_again_at_the_next_start(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path / "state").start()
    try:
        done = isochrone("site", "revoke", "sydney", "--state", cloud.state)
        assert (done.returncode, done.stderr) == (0, "")
        sites = {each["name"]: each["joined"] for each in cloud.api.get("sites")["items"]}
        assert sites == {"sydney": False, "frankfurt": True, "ashburn": True}
        folder, fresh = tmp_path / "backup", tmp_path / "fresh"
        for what, state in (("backup", cloud.state), ("restore", fresh)):
            done = isochrone(what, folder, "--state", state)
            assert done.returncode == 0, done.stderr
        asyncio.run(refuses_without_control(fresh, cloud.state / "sites"))
        cloud.stop()
        cloud.start()  # it is up when each site's gateway and agent are heard
        assert cloud.chats("sydney")
    finally:
        cloud.stop()

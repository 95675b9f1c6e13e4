"""Logins that were taken back, at the real nats-server: cut off at once, refused for ever.

On uvloop, as the other tests of NATS.
"""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from isochrone.adapters.nats.bus import NatsBus
from isochrone.adapters.nats.connection import Connection
from isochrone.adapters.nats.identity import (
    Credentials,
    new_user,
    revoking_user,
    site_user_jwt,
)
from isochrone.adapters.nats.logins import NatsLogins, open_logins
from isochrone.adapters.nats.server import prepare
from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.registry import open_registry
from isochrone.control.revoking import Revoking
from isochrone.core.errors import BusUnavailable
from isochrone.core.world.tenant import EVERY_TENANT
from isochrone.ports.estate import Estate
from isochrone.ports.logins import RevokedLogin
from tests.contract.test_bus import until
from tests.contract.test_logins import AA, invite
from tests.contract.test_nats import refused, run, stays_out
from tests.contract.test_registry import a_joining, an_intent
from tests.fixtures.nats import HostClock, NatsServer

SECOND = 1_000_000_000
WITHIN_S = 2.0


def revoked(login: Credentials, at: int | None = None) -> RevokedLogin:
    return RevokedLogin(user_key=login.user_key, revoked_at=at or time.time_ns())


@asynccontextmanager
async def logins_at(server: NatsServer) -> AsyncIterator[NatsLogins]:
    opened = await open_logins(
        [server.plan.url], server.secrets, server.control, rng=Random(), wait_s=20.0
    )
    try:
        yield opened
    finally:
        await opened.close()


async def soon(holds: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(WITHIN_S):
        await until(holds, what)


async def refuse(logins: NatsLogins, *each: RevokedLogin) -> int:
    """As the loop does: again until the server is there."""
    for _ in range(200):
        try:
            return await logins.refuse(each)
        except BusUnavailable:
            await asyncio.sleep(0.05)
    raise AssertionError("the server never took it")


async def is_shut_out(server: NatsServer, login: Credentials) -> None:
    """Soon after the server has started: it cannot know what was revoked while it was away."""
    bus = await server.bus(login, wait_s=0.3)
    for _ in range(300):
        with pytest.raises(BusUnavailable) as why:
            await bus.publish_durable("usage.aa", b"", message_id="m", timeout_s=0.1)
        if "authorization violation" in why.value.message.lower():
            break
        await asyncio.sleep(0.05)
    await bus.close()
    await stays_out(server, login)


async def comes_in(server: NatsServer, login: Credentials) -> None:
    bus = await server.bus(login)
    assert bus.connected
    await bus.close()


def test_a_revoked_login_is_cut_off_and_never_comes_in_again(own_nats: NatsServer) -> None:
    async def main() -> None:
        control = await own_nats.bus()
        old, new = own_nats.site("sydney"), own_nats.site("sydney")
        buses = {each.user_key: await own_nats.bus(each) for each in (old, new)}
        gone, kept = buses[old.user_key], buses[new.user_key]
        async with logins_at(own_nats) as logins:
            assert await logins.refuse([]) == 0
            assert await logins.refuse([revoked(old)]) == 1
            await soon(lambda: not gone.connected, "the old login is cut off")
            assert await logins.refuse([revoked(old, time.time_ns() - 60 * SECOND)]) == 0
            await stays_out(own_nats, old)
            assert kept.connected
            assert control.connected, "nobody else is cut off"

            own_nats.kill()
            own_nats.start()
            await until(lambda: kept.connected and control.connected, "they come again")
            assert not gone.connected
            await stays_out(own_nats, old)
            assert await refuse(logins, revoked(old, time.time_ns() - 60 * SECOND)) == 0
        for bus in (control, *buses.values()):
            await bus.close()

    run(main())


def test_what_is_issued_later_for_the_same_key_comes_in(own_nats: NatsServer) -> None:
    async def main() -> None:
        control, now = await own_nats.bus(), time.time_ns()
        public, seed = new_user()

        def issued(at: int) -> Credentials:
            jwt = site_user_jwt(own_nats.secrets, "sydney", public, issued_at=at)
            return Credentials(jwt=jwt, seed=seed)

        early, late = issued(now), issued(now + SECOND)
        async with logins_at(own_nats) as logins:
            assert await logins.refuse([revoked(early, now)]) == 1
            await stays_out(own_nats, early)
            await comes_in(own_nats, late)
            assert await logins.refuse([revoked(late, now + SECOND)]) == 1
            await stays_out(own_nats, late)
        await control.close()

    run(main())


def test_what_was_revoked_stays_so_when_others_are(own_nats: NatsServer) -> None:
    """Copies of control may look at the book at different times, or at an older one."""

    async def main() -> None:
        control = await own_nats.bus()
        one, two = own_nats.site("sydney"), own_nats.site("oslo")
        async with logins_at(own_nats) as logins, logins_at(own_nats) as others:
            assert await logins.refuse([revoked(one)]) == 1
            assert await others.refuse([revoked(two)]) == 1
            for each in (one, two):
                await stays_out(own_nats, each)
        await control.close()

    run(main())


def test_control_is_spared_and_keys_that_are_none_spoil_nothing(own_nats: NatsServer) -> None:
    async def main() -> None:
        control, site = await own_nats.bus(), own_nats.site("sydney")
        damaged = RevokedLogin(user_key="U" + "A" * 55, revoked_at=time.time_ns())
        async with logins_at(own_nats) as logins:
            own = revoked(own_nats.control, time.time_ns() + 60 * SECOND)
            assert await logins.refuse([own, damaged]) == 0
            assert await logins.refuse([own, damaged, revoked(site)]) == 1
        await stays_out(own_nats, site)
        await comes_in(own_nats, own_nats.control)
        assert control.connected
        await control.close()

    run(main())


def test_nobody_else_reaches_what_revokes(own_nats: NatsServer) -> None:
    async def main() -> None:
        account = own_nats.secrets.account
        update = f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.UPDATE"
        control = await own_nats.bus()
        site = await own_nats.bus(own_nats.site("sydney"))
        await refused(site.publish_durable(update, b"x", message_id="m", timeout_s=20.0))
        with pytest.raises(BusUnavailable, match="no stream or service"):
            await control.publish_durable(update, b"x", message_id="m", timeout_s=20.0)
        login = revoking_user(own_nats.secrets)
        connection = Connection([own_nats.plan.url], login, name="test", rng=Random())
        await connection.open(wait_s=20.0)
        bus = NatsBus(connection, clock=HostClock(), rng=Random())
        system = own_nats.secrets.system_account
        for subject in (
            "$SYS.REQ.CLAIMS.DELETE", f"$SYS.REQ.ACCOUNT.{system}.CLAIMS.UPDATE", "usage.sydney",
        ):
            await refused(bus.publish_durable(subject, b"", message_id="m", timeout_s=20.0))
        for each in (bus, site, control):
            await each.close()

    run(main())


def cluster(folder: Path) -> list[NatsServer]:
    """Two servers of one cluster, as operators run them: each keeps accounts, none has streams."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [each.getsockname()[1] for each in held]  # no other port of theirs may be one of these
    servers: list[NatsServer] = []
    for number, port in enumerate(ports):
        (folder / str(number)).mkdir()
        server = NatsServer(folder / str(number))
        if servers:
            server.secrets, server.control = servers[0].secrets, servers[0].control
            server.plan = prepare(folder / str(number) / "nats", server.secrets, 0)
        text = server.plan.config.read_text().partition("jetstream {")[0]
        routes = json.dumps([f"nats://127.0.0.1:{other}" for other in ports if other != port])
        server.plan.config.write_text(
            text.replace("server_name: isochrone", f"server_name: server-{number}")
            + f'cluster {{ name: c, listen: "127.0.0.1:{port}", routes: {routes} }}\n'
        )
        servers.append(server)
    for each in held:
        each.close()
    return servers


def test_every_server_of_a_cluster_refuses_it(tmp_path: Path) -> None:
    one, other = servers = cluster(tmp_path)

    async def main() -> None:
        async with asyncio.timeout(20):
            while (await one.monitor("varz"))["routes"] == 0:
                await asyncio.sleep(0.05)
        login = one.site("sydney")
        bus = await one.bus(login)
        async with logins_at(other) as logins:  # where nobody of the account is
            assert await logins.refuse([revoked(login)]) == 1
            await soon(lambda: not bus.connected, "cut off at the other server")
        for server in servers:
            await stays_out(server, login)
        one.kill()
        one.start()
        await stays_out(one, login)
        await bus.close()

    try:
        for server in servers:
            server.start()
        run(main())
    finally:
        for server in servers:
            server.kill()


class Clock(HostClock):
    """The machine's, and what a test puts it forward by."""

    def __init__(self) -> None:
        self.ahead_ns = 0

    def wall_ns(self) -> int:
        return super().wall_ns() + self.ahead_ns


class Cloud:
    """Site `aa` in a book, and the loop that has NATS refuse what the book says."""

    def __init__(self, pool: Pool, server: NatsServer) -> None:
        self.estate: Estate = open_registry(pool).estate
        self.server = server
        self.clock = Clock()
        self.estate.reconcile(an_intent("1", "aa"), now=time.time_ns())

    def join(self, token: str) -> Credentials:
        """New keys of the site, and what it logs in with."""
        public, seed = new_user()
        now = time.time_ns()
        invite(self.estate, token, now=now)
        at = self.estate.join(a_joining(token, keys=public), now=now).joined_at
        jwt = site_user_jwt(self.server.secrets, AA, public, issued_at=at)
        return Credentials(jwt=jwt, seed=seed)

    @asynccontextmanager
    async def control(self) -> AsyncIterator[Revoking]:
        """A copy of control at work, as far as logins go."""
        bus = await self.server.bus()
        async with logins_at(self.server) as logins:
            revoking = Revoking(
                self.estate, logins, clock=self.clock, offload=asyncio.to_thread
            )
            task = asyncio.create_task(revoking.run())
            try:
                yield revoking
            finally:
                task.cancel()
                await asyncio.wait([task])
                await bus.close()


@pytest.fixture
def cloud(pool: Pool, own_nats: NatsServer) -> Cloud:
    return Cloud(pool, own_nats)


def test_control_cuts_off_what_the_book_revokes(cloud: Cloud) -> None:
    async def main() -> None:
        first = cloud.join("t1")
        bus = await cloud.server.bus(first)
        async with cloud.control() as control:
            second = cloud.join("t2")
            control.wake()
            await soon(lambda: not bus.connected, "the old identity is cut off")
            await comes_in(cloud.server, second)
            again = await cloud.server.bus(second)
            cloud.estate.revoke_login(EVERY_TENANT, AA, now=time.time_ns())
            control.wake()
            await soon(lambda: not again.connected, "the site is cut off")
            third = cloud.join("t3")
            await comes_in(cloud.server, third)
        for each in (first, second):
            await stays_out(cloud.server, each)
        await bus.close()
        await again.close()

    run(main())


def test_a_site_that_is_removed_has_a_minute_to_hear_it_and_to_report(cloud: Cloud) -> None:
    async def main() -> None:
        bus = await cloud.server.bus(cloud.join("t1"))
        async with cloud.control() as control:
            cloud.estate.reconcile(an_intent("2", "bb"), now=time.time_ns())
            assert await control.revoke() == 0
            assert bus.connected, "it is told to run nothing"
            cloud.clock.ahead_ns = 60 * SECOND
            control.wake()
            await soon(lambda: not bus.connected, "the removed site is cut off")
        await bus.close()

    run(main())


def test_control_cuts_off_at_its_start_what_was_revoked_before_its_end(cloud: Cloud) -> None:
    async def main() -> None:
        first = cloud.join("t1")
        bus = await cloud.server.bus(first)
        cloud.join("t2")  # and control was killed before it told anybody
        async with cloud.control():
            await soon(lambda: not bus.connected, "the old identity is cut off")
        await bus.close()

    run(main())


def test_control_cuts_off_what_was_revoked_while_nats_was_away(cloud: Cloud) -> None:
    async def main() -> None:
        first = cloud.join("t1")
        async with cloud.control() as control:
            cloud.server.kill()
            second = cloud.join("t2")
            control.wake()
            await asyncio.sleep(0.2)
            cloud.server.start()
            await is_shut_out(cloud.server, first)
            await comes_in(cloud.server, second)

    run(main())


@pytest.mark.parametrize("kept", ["nothing", "half"])
def test_control_revokes_again_at_a_server_that_lost_its_accounts(cloud: Cloud, kept: str) -> None:
    async def main() -> None:
        first = cloud.join("t1")
        second = cloud.join("t2")
        bus = await cloud.server.bus(first)
        async with cloud.control():
            await until(lambda: not bus.connected, "the old identity is cut off")
            cloud.server.kill()
            plan = cloud.server.plan
            path = plan.accounts / f"{cloud.server.secrets.account}.jwt"
            text = path.read_text()
            path.write_text(text[: len(text) // 2] if kept == "half" else "")
            cloud.server.start()
            await is_shut_out(cloud.server, first)
            await comes_in(cloud.server, second)
        await bus.close()

    run(main())


def test_control_revokes_again_at_a_server_that_keeps_nothing(cloud: Cloud) -> None:
    """A server of the operator's own, whose accounts are in its memory alone."""

    async def main() -> None:
        config = cloud.server.plan.config
        lines = config.read_text().splitlines()
        memory = ["resolver: MEMORY" if "resolver:" in line else line for line in lines]
        assert memory != lines
        config.write_text("\n".join(memory))
        cloud.server.kill()
        cloud.server.start()
        first = cloud.join("t1")
        bus = await cloud.server.bus(first)
        async with cloud.control() as control:
            second = cloud.join("t2")
            control.wake()
            await soon(lambda: not bus.connected, "the old identity is cut off")
            cloud.server.kill()
            cloud.server.start()
            await is_shut_out(cloud.server, first)
            await comes_in(cloud.server, second)
        await bus.close()

    run(main())

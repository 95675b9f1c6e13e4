"""What only the real nats-server can show: rights of sites, refused logins, silent connections.

On uvloop, as gateway and agent run; the port's own suite runs on asyncio's loop.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Coroutine
from dataclasses import replace
from random import Random

import pytest
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg

from isochrone.adapters.nats.bus import open_bus
from isochrone.adapters.nats.connection import Connection
from isochrone.adapters.nats.identity import (
    Credentials,
    control_user,
    inbox_prefix,
    new_secrets,
    new_user,
    site_user_jwt,
)
from isochrone.core.errors import BusUnavailable, InvalidInput, Untrusted
from isochrone.ports.bus import Entry
from isochrone.wire import subjects
from tests.contract.test_bus import until
from tests.fixtures.nats import HostClock, NatsServer


def run(main: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


async def refused(attempt: Awaitable[None]) -> None:
    """Assert that NATS says no, and says so before the caller's deadline."""
    with pytest.raises(BusUnavailable, match="does not let this user"):
        async with asyncio.timeout(10):
            await attempt


def test_a_site_may_write_and_read_only_its_own(own_nats: NatsServer) -> None:
    async def main() -> None:
        control = await own_nats.bus()
        sydney = await own_nats.bus(own_nats.site("sydney"))
        for bucket in (subjects.VIEW_BUCKET, "site_sydney", "site_ashburn"):
            await control.ensure_bucket(bucket)
            await control.put(bucket, subjects.DESIRED_KEY, b"by control")
        await control.ensure_stream(
            subjects.USAGE_STREAM, subjects.USAGE_SUBJECTS, subjects.BOOK_CONSUMER
        )
        heard: list[str] = []
        await control.subscribe(subjects.DIGESTS, lambda subject, _: heard.append(subject))
        await control.subscribe(subjects.HEALTH, lambda subject, _: heard.append(subject))
        await control.subscribe("elsewhere", lambda subject, _: heard.append(subject))

        await sydney.publish_durable("usage.sydney", b"", message_id="u", timeout_s=20)
        await sydney.publish_durable("evidence.sydney", b"", message_id="e", timeout_s=20)
        await sydney.put("site_sydney", "replica.x", b"by sydney")
        assert list(await sydney.keys("site_sydney")) == ["desired", "replica.x"]
        assert list(await sydney.keys(subjects.VIEW_BUCKET)) == ["desired"]
        assert sydney.refused == 0

        for subject in ("usage.ashburn", "evidence.ashburn"):
            await refused(sydney.publish_durable(subject, b"", message_id="m", timeout_s=20.0))
        await refused(sydney.put(subjects.VIEW_BUCKET, "desired", b"forged"))
        await refused(sydney.put("site_sydney", "desired", b"forged"))
        await refused(sydney.put("site_ashburn", "replica.x", b"forged"))
        await refused(sydney.ensure_bucket("mine"))
        with pytest.raises(BusUnavailable):
            await sydney.pull(subjects.USAGE_STREAM, subjects.BOOK_CONSUMER, most=1, wait_s=0)
        told: list[Entry] = []
        watch = await sydney.watch("site_ashburn", "", told.append)
        before = sydney.refused
        await until(lambda: sydney.refused > before, "reading another site's bucket is refused")
        assert watch.heard_ns == 0
        assert told == []

        await sydney.subscribe(">", lambda subject, _: heard.append("overheard " + subject))
        await sydney.subscribe("usage.*", lambda subject, _: heard.append("overheard " + subject))
        for subject in (
            "elsewhere", "digest.ashburn", "health.ashburn", "digest.sydney", "health.sydney",
        ):
            await sydney.publish(subject, b"")
        await control.publish("usage.ashburn", b"")
        await until(lambda: len(heard) > 1, "the site's digest and health")
        assert heard == ["digest.sydney", "health.sydney"]
        await sydney.close()
        await control.close()

    run(main())


async def stays_out(server: NatsServer, credentials: Credentials) -> None:
    bus = await server.bus(credentials, wait_s=0.3)
    assert not bus.connected

    async def reason() -> str:
        with pytest.raises(BusUnavailable) as refused:
            await bus.publish_durable("usage.sydney", b"", message_id="m", timeout_s=0.2)
        return refused.value.message.lower()

    # The server may close before its reason has been read; every new try is told it again.
    for _ in range(100):
        if "authorization violation" in await reason():
            break
        await asyncio.sleep(0.1)
    else:
        raise AssertionError("the server never said why")
    assert not bus.connected
    await bus.close()


def test_forged_and_expired_logins_are_refused(own_nats: NatsServer) -> None:
    async def main() -> None:
        public, seed = new_user()
        _, other_seed = new_user()
        genuine = own_nats.site("sydney")
        stranger = new_secrets()
        mixed = replace(stranger, account_seed=own_nats.secrets.account_seed)
        await stays_out(own_nats, Credentials(jwt=genuine.jwt, seed=other_seed))
        await stays_out(own_nats, control_user(stranger))
        jwt = site_user_jwt(mixed, "sydney", public)
        await stays_out(own_nats, Credentials(jwt=jwt, seed=seed))
        past = time.time_ns() - 5_000_000_000
        await stays_out(own_nats, own_nats.site("sydney", expires_at=past))

    run(main())


def test_a_login_that_expires_is_cut(own_nats: NatsServer) -> None:
    async def main() -> None:
        soon = time.time_ns() + 2_000_000_000
        bus = await own_nats.bus(own_nats.site("sydney", expires_at=soon))
        other = await own_nats.bus(own_nats.site("sydney"))
        assert bus.connected
        await until(lambda: not bus.connected, "the expired login is cut")
        assert other.connected
        await bus.close()
        await other.close()

    run(main())


def test_a_site_named_like_nothing_safe_gets_no_login() -> None:
    secrets = new_secrets()
    public, seed = new_user()
    for name in ("a.b", "*", ">", "", "A", "_control", "a b"):
        with pytest.raises(InvalidInput, match="site name"):
            site_user_jwt(secrets, name, public)
    with pytest.raises(Untrusted):
        site_user_jwt(secrets, "sydney", seed)
    assert inbox_prefix("sydney") == "_INBOX_sydney"


def test_usage_is_synced_and_never_discarded(own_nats: NatsServer) -> None:
    async def main() -> None:
        bus = await own_nats.bus()
        await bus.ensure_stream(subjects.USAGE_STREAM, ["usage.*"], "book")
        await bus.ensure_stream(subjects.USAGE_STREAM, subjects.USAGE_SUBJECTS, "book")
        info = json.loads(await own_nats.request(f"STREAM.INFO.{subjects.USAGE_STREAM}"))
        config = info["config"]
        assert config["subjects"] == list(subjects.USAGE_SUBJECTS)
        assert (config["storage"], config["discard"]) == ("file", "new")
        assert (config["retention"], config["max_age"]) == ("workqueue", 0)
        assert config["max_bytes"] > 0
        assert config["duplicate_window"] == 120_000_000_000
        assert (await own_nats.monitor("jsz"))["config"]["sync_always"] is True
        await bus.close()

    run(main())


def test_a_silent_connection_is_noticed(own_nats: NatsServer) -> None:
    async def main() -> None:
        bus = await own_nats.bus()
        await bus.ensure_bucket("view")
        told: list[Entry] = []
        watch = await bus.watch("view", "", told.append)
        await watch.synced()
        own_nats.freeze()
        try:
            await until(lambda: not bus.connected, "the frozen server is given up")
            heard_ns = watch.heard_ns
        finally:
            own_nats.thaw()
        await until(lambda: bus.connected and watch.heard_ns > heard_ns, "it is current again")
        await bus.put("view", "key", b"1")
        await until(lambda: [entry.key for entry in told] == ["key"], "the change")
        await bus.close()

    run(main())


def test_a_watch_whose_consumer_vanished_lists_again_and_leaves_none_behind(
    own_nats: NatsServer,
) -> None:
    async def main() -> None:
        bus = await own_nats.bus()
        await bus.ensure_bucket("view")
        told: list[Entry] = []
        watch = await bus.watch("view", "", told.append)
        await watch.synced()
        names = await own_nats.consumers("KV_view")
        assert len(names) == 1
        await own_nats.request(f"CONSUMER.DELETE.KV_view.{names[0]}")
        await bus.put("view", "key", b"1")
        await until(lambda: [entry.key for entry in told] == ["key"], "the change it missed")
        assert await own_nats.consumers("KV_view") == names
        await watch.close()
        assert await own_nats.consumers("KV_view") == []
        await bus.close()

    run(main())


def test_what_is_subscribed_to_while_a_login_ends_is_heard(
    own_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = Connection._exchange

    async def main() -> None:
        control = await own_nats.bus()
        proving, proved = asyncio.Event(), asyncio.Event()

        async def far_away(
            self: Connection, client: Client, subject: str | None, payload: bytes,
            headers: dict[str, str] | None,
        ) -> Msg:
            if subject is None:
                proving.set()
                await proved.wait()
            return await exchange(self, client, subject, payload, headers)

        monkeypatch.setattr(Connection, "_exchange", far_away)
        sydney = await own_nats.bus(own_nats.site("sydney"), wait_s=0.0)
        await proving.wait()
        heard: list[str] = []
        await sydney.subscribe(subjects.DIGESTS, lambda subject, _: heard.append(subject))
        proved.set()
        await until(lambda: sydney.connected, "the login has ended")
        for _ in range(3):
            await control.publish("digest.ashburn", b"")
        await until(lambda: heard != [], "the digest")
        await sydney.close()
        await control.close()

    run(main())


def test_what_is_no_nats_server_does_not_end_the_search_for_one(own_nats: NatsServer) -> None:
    async def main() -> None:
        async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"x" * 1_000_000)  # no line
            writer.close()

        stranger = await asyncio.start_server(babble, "127.0.0.1", 0)
        url = f"nats://127.0.0.1:{stranger.sockets[0].getsockname()[1]}"
        bus = await open_bus(
            [url, own_nats.plan.url], own_nats.control, name="test", clock=HostClock(),
            rng=Random(), wait_s=10.0,
        )
        assert bus.connected
        await bus.close()
        stranger.close()

    run(main())


def test_a_seed_that_is_damaged_is_said(own_nats: NatsServer) -> None:
    async def main() -> None:
        damaged = replace(own_nats.site("sydney"), seed="SUA")
        bus = await own_nats.bus(damaged, wait_s=0.5)
        with pytest.raises(BusUnavailable, match="not a NATS"):
            await bus.publish_durable("usage.sydney", b"", message_id="m", timeout_s=0.2)
        await bus.close()

    run(main())

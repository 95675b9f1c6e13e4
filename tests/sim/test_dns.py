"""A name server on virtual time: follows the signed view, digests and probes, and what it does when
sites drain, die or come back, when entries are forged, and when the bus is gone."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from isochrone.adapters.packaged import load_blocs, load_round_trips
from isochrone.core.ids import ModelName, OrgId, PolicyId, SiteName
from isochrone.core.rng import stream
from isochrone.core.steering.reach import FAILURES
from isochrone.core.world.model import Deployment, EngineSpec
from isochrone.core.world.site import Link, Site, SiteLinks
from isochrone.core.world.tenant import Policy
from isochrone.dns.probes import Probes
from isochrone.dns.process import Dns, Ports
from isochrone.dns.settings import DnsSettings
from isochrone.twin import loop as virtual
from isochrone.twin.clock import VirtualClock
from isochrone.twin.fakes.bus import FakeHub
from isochrone.twin.loop import VirtualLoop
from isochrone.twin.network import Wire
from isochrone.wire import fleet, subjects
from isochrone.wiring.dns_file import parse_dns
from tests.builders import a_digest, a_site
from tests.fixtures.name_server import ZONE, an_address

SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(32))
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\x01")
FILE = """
[dns]
zone = "api.example.net"
identity = "{identity}"
[[name_server]]
name = "ns1.example.net"
[[name]]
label = "acme"
policy = "p1"
[unknown]
site = "berlin"
"""
PLACES = {"berlin": (13.4, "DE"), "frankfurt": (8.7, "DE"), "paris": (2.4, "FR")}
NOW = ("berlin", "frankfurt", "paris")


class Gateway(asyncio.Protocol):
    """Answers /ready as a gateway does."""

    def __init__(self, stage: "Stage", name: str) -> None:
        self._stage, self._name = stage, name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert data.startswith(b"GET /ready HTTP/1.1\r\n")
        if self._name not in self._stage.hanging:
            status = b"503 Not" if self._name in self._stage.unready else b"200 OK"
            self._transport.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 2\r\n\r\nok")


class NoSocket:
    """Datagrams are handed to the server by the test."""

    port = 1

    async def close(self) -> None:
        return


class Stage:
    """Three sites with a gateway each, of which Berlin and Paris have engines, a hub, a server."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop, self.clock = loop, VirtualClock(loop)
        self.hub = FakeHub(self.clock, latency_ms=1.0)
        self.wire = Wire(loop)
        self.control = self.hub.bus()
        self.stop = asyncio.Event()
        self.silent: set[str] = set()      # agents
        self.hanging: set[str] = set()     # gateways
        self.unready: set[str] = set()
        self.sites: dict[str, Site] = {}
        self.serial = 0
        self.sequence = 0

    async def prepare(self) -> None:
        await self.control.ensure_bucket(subjects.VIEW_BUCKET)
        for number, (name, (longitude, country)) in enumerate(PLACES.items()):
            await self.listen(name, 4000 + number)
            site = replace(
                a_site(name, country, longitude_deg=longitude), port=4000 + number,
                host=f"192.0.2.{number + 1}", public_url="https://api.example.net/v1",
            )
            self.sites[name] = site
            await self.publish(subjects.site_key(name), site)
        for name in ("berlin", "paris"):
            deployment = Deployment(
                site=SiteName(name), model=ModelName("m"), replicas=1, context_tokens=2048,
                engine=EngineSpec(kind="openai", source="http://127.0.0.1/v1"),
            )
            await self.publish(subjects.deployment_key(name, "m"), deployment)
        await self.link(paris=9.0, frankfurt=12.5)

    async def link(self, **rtt_ms: float) -> None:
        links = tuple(
            Link(peer=SiteName(peer), rtt_ms=ms, source="probed") for peer, ms in rtt_ms.items()
        )
        await self.publish(
            subjects.links_key("berlin"), SiteLinks(site=SiteName("berlin"), links=links)
        )

    async def listen(self, name: str, port: int) -> None:
        await self.wire.process(name).listen(lambda: Gateway(self, name), "", port)

    async def publish(
        self, key: str, noun: object, *, signer: Ed25519PrivateKey = SIGNER,
        serial: int | None = None,
    ) -> None:
        self.serial += 1
        await self.control.put(
            subjects.VIEW_BUCKET, key,
            fleet.sign(
                noun, bucket=subjects.VIEW_BUCKET, key=key, serial=serial or self.serial,
                signer=signer,
            ),
        )

    async def say_digests(self) -> None:
        while True:
            self.sequence += 1
            for name in ("berlin", "paris"):
                if name not in self.silent:
                    digest = a_digest(name, sequence=self.sequence)
                    await self.control.publish(
                        subjects.digest_subject(name), fleet.encode(digest)
                    )
            await asyncio.sleep(1)

    def start(self) -> None:
        # Any file will do for the identity, which the composition root reads.
        file = parse_dns(
            FILE.format(identity=__file__), source="dns.toml", path=Path(__file__), serial=1
        )

        async def listen_udp(factory: object, host: str, port: int) -> NoSocket:
            return NoSocket()

        settings: DnsSettings = replace(file.settings, most_addresses=1, tie_ms=0, tie_share=0)
        self.dns = Dns(
            settings, file.told,
            Ports(
                clock=self.clock, network=self.wire.process("dns"), rng=stream(1, "dns"),
                bus=self.hub.bus(), listen_udp=listen_udp,
            ),
            control_key=SIGNER.public_key().public_bytes_raw().hex(),
            blocs=load_blocs(), by_distance=load_round_trips().by_distance,
        )

    def ask(self, label: str = "") -> str:
        """The site that a client at Berlin is sent to, or how it was refused."""
        asked = dns.message.make_query(f"{label}.{ZONE}" if label else ZONE, "A")
        said = self.dns.service.over_udp(asked.to_wire(), an_address("203.0.113.1"))
        assert said is not None
        answer = dns.message.from_wire(said)
        if answer.rcode() != dns.rcode.NOERROR:
            return dns.rcode.to_text(answer.rcode())
        if not answer.answer:
            return "nobody"
        (record,) = answer.answer[0]
        return NOW[int(str(record).rpartition(".")[2]) - 1]

    async def until(self, label: str, expected: str, *, limit_s: float) -> float:
        """Seconds until `label` is answered so."""
        began_s = self.loop.time()
        while self.ask(label) != expected:
            waited_s = self.loop.time() - began_s
            assert waited_s < limit_s, f"{label!r} is still answered {self.ask(label)}"
            await asyncio.sleep(0.05)
        return self.loop.time() - began_s





def on_stage(body: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        stage = Stage()
        await stage.prepare()
        stage.start()
        digests = asyncio.create_task(stage.say_digests())
        listening = asyncio.Event()
        running = asyncio.create_task(stage.dns.run(stage.stop, lambda _: listening.set()))
        async with asyncio.timeout(30):
            await listening.wait()
        await body(stage)
        stage.stop.set()
        await running
        digests.cancel()
        await asyncio.wait([digests])

    virtual.run(main())


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
        for name in NOW:
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


def test_without_a_view_it_fails_and_heals() -> None:
    async def main() -> None:
        stage = Stage()
        await stage.prepare()
        stage.hub.down()
        stage.start()
        listening = asyncio.Event()
        running = asyncio.create_task(stage.dns.run(stage.stop, lambda _: listening.set()))
        async with asyncio.timeout(30):
            await listening.wait()
        assert stage.ask("de") == "SERVFAIL"
        stage.hub.up()
        digests = asyncio.create_task(stage.say_digests())
        await stage.until("de", "berlin", limit_s=20)
        stage.stop.set()
        await running
        digests.cancel()
        await asyncio.wait([digests])

    virtual.run(main())


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

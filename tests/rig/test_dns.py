"""One address, with real processes: a resolver that is not ours asks the name server where to go,
over UDP and TCP, and the official client's requests get there."""

import asyncio
import json
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.resolver
import openai
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from isochrone.adapters.nats.bus import NatsBus
from isochrone.core.ids import ModelName, OrgId, PolicyId, SiteName
from isochrone.core.world.model import Deployment, EngineSpec
from isochrone.core.world.tenant import Policy
from isochrone.wire import fleet, subjects
from isochrone.wire.identity import SiteIdentity
from tests.builders import a_digest, a_site
from tests.fixtures.nats import NatsServer
from tests.rig.alone import MODEL, a_gateway, an_engine, config_text
from tests.rig.cloud import isochrone
from tests.rig.name_server import ZONE, NameServer, a_name_server, free_port
from tests.rig.waiting import wait_until

pytestmark = pytest.mark.rig

GERMANY, AUSTRALIA = "127.0.0.2", "127.0.0.3"
CLIENT_DE, CLIENT_AU = "198.51.100.0/25", "198.51.100.128/25"


def config(port: int, **settings: object) -> str:
    """Two sites, Frankfurt and Sydney, and clients near each."""
    more = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    return f"""
[dns]
zone = "{ZONE}"
port = 0
ttl_s = 1
{more}
[[name_server]]
name = "ns1.example.net"
[[site]]
name = "frankfurt"
country = "DE"
latitude = 50.11
longitude = 8.68
addresses = ["{GERMANY}", "::1"]
port = {port}
[[site]]
name = "sydney"
country = "AU"
latitude = -33.87
longitude = 151.21
addresses = ["{AUSTRALIA}"]
port = {port}
[[subnet]]
network = "198.51.100.0/24"
country = "DE"
[[subnet]]
network = "{CLIENT_AU}"
country = "AU"
"""


def message(server: NameServer, name: str, type_: str, client: str) -> dns.message.Message:
    """One exchange over UDP, as it came."""
    address, _, length = client.partition("/")
    asked = dns.message.make_query(
        name, type_, use_edns=0, options=[dns.edns.ECSOption(address, int(length))]
    )
    return dns.query.udp(asked, "127.0.0.1", port=server.port, timeout=5)


def test_a_resolver_is_told_the_nearest_allowed_ingress(tmp_path: Path) -> None:
    with a_name_server(tmp_path, config(443, probe="none")) as server:
        for tcp in (False, True):
            assert server.addresses("", CLIENT_DE, tcp=tcp) == {GERMANY}
            assert server.addresses("", CLIENT_AU, tcp=tcp) == {AUSTRALIA}
            assert server.addresses("de", CLIENT_AU, tcp=tcp) == {GERMANY}
            assert server.addresses("au", CLIENT_DE, tcp=tcp) == {AUSTRALIA}
            assert server.addresses("fr", CLIENT_DE, tcp=tcp) == set()
            assert server.addresses("", CLIENT_AU, type_="AAAA", tcp=tcp) == {"::1"}
        with pytest.raises(dns.resolver.NXDOMAIN):
            server.resolver().resolve(f"nothing.{ZONE}", "A")
        answer = message(server, ZONE, "A", CLIENT_AU)
        (echo,) = answer.options
        assert isinstance(echo, dns.edns.ECSOption)
        assert (echo.address, echo.srclen, echo.scopelen) == ("198.51.100.128", 25, 25)
        assert answer.answer[0].ttl == 1


def test_an_explanation_comes_over_tcp_because_the_datagram_says_so(tmp_path: Path) -> None:
    with a_name_server(tmp_path, config(443, probe="none")) as server:
        assert message(server, f"de.{ZONE}", "TXT", CLIENT_AU).flags & dns.flags.TC
        # The resolver is not told to use TCP: it goes on there by itself.
        (record,) = server.resolver(CLIENT_AU).resolve(f"de.{ZONE}", "TXT")
        lines = [text.decode() for text in record.strings]
        assert lines[0] == "may enter in: DE"
        assert "not sydney: transit: the site is in AU, the policy allows DE" in lines


def test_nothing_of_others_is_answered(tmp_path: Path) -> None:
    with a_name_server(tmp_path, config(443, probe="none")) as server:
        for name, type_ in (("example.org", "A"), (ZONE, "ANY"), (ZONE, "AXFR")):
            answer = message(server, name, type_, CLIENT_DE)
            assert answer.rcode() == dns.rcode.REFUSED
            assert not answer.answer


def gateway_text(engine: str, host: str, port: int) -> str:
    text = config_text(engine, gateway=f'host = "{host}"\n')
    return text.replace("port = 0", f"port = {port}")


def test_requests_follow_the_address_and_a_dead_gateway_leaves_it(tmp_path: Path) -> None:
    port = free_port(GERMANY, AUSTRALIA)
    text = config(port, probe_interval_s=0.2, probe_timeout_s=1.0)
    with (
        an_engine() as engine,
        a_gateway(tmp_path / "de", gateway_text(engine.url, GERMANY, port)) as frankfurt,
        a_gateway(tmp_path / "au", gateway_text(engine.url, AUSTRALIA, port)),
        a_name_server(tmp_path, text) as server,
    ):
        assert said_hello(server, CLIENT_DE, port)
        assert server.addresses("", CLIENT_DE) == {GERMANY}
        frankfurt.stop(signal.SIGKILL)
        wait_until(
            lambda: server.addresses("", CLIENT_DE) == {AUSTRALIA}, "Frankfurt is left out"
        )
        assert said_hello(server, CLIENT_DE, port)
        answer = message(server, f"de.{ZONE}", "A", CLIENT_DE)
        assert answer.rcode() == dns.rcode.SERVFAIL, "and never sent to Sydney"
        assert not answer.answer
        frankfurt.start()
        wait_until(lambda: server.addresses("de", CLIENT_AU) == {GERMANY}, "Frankfurt is back")


def said_hello(server: NameServer, client: str, port: int) -> bool:
    """Whether the official client is answered where the resolver sends it."""
    (address,) = server.addresses("", client)
    with openai.OpenAI(
        base_url=f"http://{address}:{port}/v1", api_key="secret", max_retries=0, timeout=20
    ) as asking:
        answer = asking.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hello!"}]
        )
    return bool(answer.choices[0].message.content)


def test_a_changed_file_is_taken_and_a_bad_one_is_not(tmp_path: Path) -> None:
    feed = tmp_path / "feed.csv"
    feed.write_text("192.0.2.0/24,AU,,,\n")
    text = config(443, probe="none", subnet_files=["feed.csv"])
    with a_name_server(tmp_path, text) as server:
        assert server.addresses("", "192.0.2.0/24") == {AUSTRALIA}
        feed.write_text("192.0.2.0/24,DE,,,\n")
        wait_until(
            lambda: server.addresses("", "192.0.2.0/24") == {GERMANY}, "the feed is read again"
        )
        server.edit('name = "frankfurt"\n', 'name = "frankfurt"\ndraining = true\n')
        wait_until(lambda: server.addresses("", CLIENT_DE) == {AUSTRALIA}, "Frankfurt is drained")
        reloads = len(server.logged("reloaded"))
        server.edit('country = "AU"\nlatitude', 'country = "Australia"\nlatitude')
        wait_until(lambda: bool(server.logged("reload_refused")), "the fault is told")
        assert server.addresses("", CLIENT_DE) == {AUSTRALIA}
        server.edit('country = "Australia"', 'country = "AU"')
        server.edit("draining = true\n", "")
        wait_until(lambda: len(server.logged("reloaded")) > reloads, "the good file is taken")
        wait_until(lambda: server.addresses("", CLIENT_DE) == {GERMANY}, "Frankfurt is back")
        reloads = len(server.logged("reloaded"))
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(server.logged("reloaded")) > reloads, "SIGHUP forces it")


def test_it_answers_at_every_address_that_it_is_given(tmp_path: Path) -> None:
    text = config(443, probe="none", hosts=["127.0.0.1", "::1", "127.0.0.9"])
    with a_name_server(tmp_path, text) as server:
        wait_until(lambda: len(server.logged("dns_listening")) == 3, "it listens everywhere")
        asked = dns.message.make_query(f"au.{ZONE}", "A")
        for host in ("127.0.0.1", "::1", "127.0.0.9"):
            for exchange in (dns.query.udp, dns.query.tcp):
                answer = exchange(asked, host, port=server.port, timeout=5)
                assert str(answer.answer[0][0]) == AUSTRALIA


def test_it_stops_at_once_and_in_good_order(tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with a_name_server(tmp_path, config(443, probe="none")) as server:
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as idle:
                assert server.addresses("", CLIENT_DE) == {GERMANY}
                assert server.stop(number) == 0
                assert idle.recv(1) == b"", "what is idle is closed"
            counts = server.logged("dns_counted")[-1]
            assert counts["udp"] >= 1
            assert counts["outcomes"]["served"] >= 1
            server.output.unlink()


def test_a_port_that_is_taken_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        path = tmp_path / "dns.toml"
        path.write_text(config(443, probe="none").replace("port = 0", f"port = {port}"))
        done = isochrone("dns", "--config", path)
    assert done.returncode == 1
    assert done.stderr.startswith("isochrone: the name server cannot run: ")
    assert done.stderr.count("\n") == 1


def test_check_and_help_say_what_the_file_means(tmp_path: Path) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "dns.toml"
    done = isochrone("check", example)
    assert done.returncode == 0, done.stderr
    assert "name server of api.example.net: sites 4 of the file" in done.stdout
    assert "a good dns file" in done.stdout
    told = isochrone("dns", "--help").stdout
    for word in ("nearest ingress", "de.", "eu-ch", "EDNS", "identity", "SIGHUP", "examples/dns"):
        assert word in told, word
    bad = tmp_path / "dns.toml"
    bad.write_text(config(443).replace(f'zone = "{ZONE}"', ""))
    done = isochrone("check", bad)
    assert done.returncode == 2
    assert "missing key 'zone'" in done.stderr


# -- with the signed view ------------------------------------------------------------------------

SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(32))
SITES = {
    "berlin": a_site("berlin", "DE", longitude_deg=13.0),
    "paris": a_site("paris", "FR", longitude_deg=2.0),
}


class Fleet:
    """Control and agents of two sites on a real NATS server, as far as a name server hears them."""

    def __init__(self, nats: NatsServer, control: NatsBus) -> None:
        self.nats = nats
        self.control = control
        self.silent: set[str] = set()
        self._serial = 0
        self._sequence = 0

    async def publish(self, key: str, noun: object) -> None:
        self._serial += 1
        bucket = subjects.VIEW_BUCKET
        value = fleet.sign(noun, bucket=bucket, key=key, serial=self._serial, signer=SIGNER)
        await self.control.put(bucket, key, value)

    async def begin(self) -> None:
        await self.control.ensure_bucket(subjects.VIEW_BUCKET)
        for number, (name, site) in enumerate(SITES.items(), start=2):
            await self.publish(subjects.site_key(name), replace(site, host=f"127.0.0.{number}"))
            deployment = Deployment(
                site=SiteName(name), model=ModelName("m"), replicas=1, context_tokens=2048,
                engine=EngineSpec(kind="openai", source="http://127.0.0.1/v1"),
            )
            await self.publish(subjects.deployment_key(name, "m"), deployment)

    async def report(self) -> None:
        """Every site's digest, as its own agent sends it."""
        agents = {name: await self.nats.bus(self.nats.site(name)) for name in SITES}
        try:
            while True:
                self._sequence += 1
                for name in SITES.keys() - self.silent:
                    digest = fleet.encode(a_digest(name, sequence=self._sequence))
                    await agents[name].publish(subjects.digest_subject(name), digest)
                await asyncio.sleep(0.2)
        finally:
            for agent in agents.values():
                await agent.close()


async def until_resolved(
    server: NameServer, label: str, expected: set[str], *, limit_s: float = 20.0
) -> None:
    async with asyncio.timeout(limit_s):
        while await asyncio.to_thread(server.addresses, label) != expected:
            await asyncio.sleep(0.05)


def identity_file(folder: Path, nats: NatsServer) -> None:
    """What joining wrote for the site at which the name server stands."""
    credentials = nats.site("berlin")
    identity = SiteIdentity(
        site="berlin", country="DE", nats_urls=(nats.plan.url,), nats_jwt=credentials.jwt,
        nats_seed=credentials.seed, peer_key="", peer_secret="",
        control_key=SIGNER.public_key().public_bytes_raw().hex(), control_url="",
        host="127.0.0.1", port=4000,
    )
    (folder / "identity.json").write_text(json.dumps(asdict(identity)))


VIEW_CONFIG = f"""
[dns]
zone = "{ZONE}"
port = 0
identity = "identity.json"
probe = "none"
digest_stale_s = 2
[[name_server]]
name = "ns1.example.net"
[[name]]
label = "acme"
policy = "p1"
[unknown]
site = "berlin"
"""

Scene = Callable[[Fleet, NameServer], Awaitable[None]]


def with_fleet(folder: Path, nats: NatsServer, scene: Scene) -> None:
    identity_file(folder, nats)

    async def main() -> None:
        control = await nats.bus()
        stage = Fleet(nats, control)
        await stage.begin()
        reporting = asyncio.create_task(stage.report())
        server = NameServer(folder, VIEW_CONFIG)
        try:
            await asyncio.to_thread(server.start)
            await scene(stage, server)
            assert await asyncio.to_thread(server.stop) == 0
        finally:
            reporting.cancel()
            await asyncio.wait([reporting])
            await control.close()
            if not server.ended:
                server.stop(signal.SIGKILL)

    asyncio.run(main())


BERLIN, PARIS = {"127.0.0.2"}, {"127.0.0.3"}


def test_the_signed_view_is_followed_over_nats(tmp_path: Path, own_nats: NatsServer) -> None:
    async def scene(stage: Fleet, server: NameServer) -> None:
        await until_resolved(server, "", BERLIN)
        assert server.addresses("fr") == PARIS
        berlin = replace(SITES["berlin"], host="127.0.0.2")
        await stage.publish(subjects.site_key("berlin"), replace(berlin, draining=True))
        await until_resolved(server, "", PARIS)
        assert server.addresses("de") == set()
        await stage.publish(subjects.site_key("berlin"), berlin)
        await until_resolved(server, "de", BERLIN)
        policy = Policy(
            id=PolicyId("p1"), org_id=OrgId("o"), residency=("any",), transit=("FR",)
        )
        await stage.publish(subjects.policy_key("p1"), policy)
        await until_resolved(server, "acme", PARIS)
        stage.silent.add("paris")
        await until_resolved(server, "acme", set())
        assert server.addresses("de") == BERLIN
        stage.silent.clear()
        await until_resolved(server, "acme", PARIS)

    with_fleet(tmp_path, own_nats, scene)


def test_the_loss_of_nats_changes_no_answer(tmp_path: Path, own_nats: NatsServer) -> None:
    async def scene(stage: Fleet, server: NameServer) -> None:
        await until_resolved(server, "de", BERLIN)
        own_nats.kill()
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + 6  # three times what makes a digest stale
        while loop.time() < ends_s:
            assert await asyncio.to_thread(server.addresses, "de") == BERLIN
            await asyncio.sleep(0.1)
        own_nats.start()
        await stage.publish(
            subjects.site_key("berlin"),
            replace(SITES["berlin"], host="127.0.0.2", draining=True),
        )
        await until_resolved(server, "de", set(), limit_s=40)

    with_fleet(tmp_path, own_nats, scene)

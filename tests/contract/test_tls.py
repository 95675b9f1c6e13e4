"""TLS of the live sockets on both loops: who is let in, what is renewed, what stays refused."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest
import uvloop
from structlog.testing import capture_logs

from isochrone.adapters.clock import SystemClock
from isochrone.adapters.network.sockets import SocketListener, SocketNetwork
from isochrone.adapters.network.tls import ServerTls, certificate_of, client_context
from isochrone.agent.probe import Prober
from isochrone.core.errors import InvalidInput
from isochrone.core.ids import SiteName
from isochrone.core.world.site import Site
from isochrone.ports.network import Address, Certificate
from tests.fixtures.certificates import Authority

Run = Callable[[Callable[[], Awaitable[None]]], None]

DEADLINE_S = 25.0


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def go(main: Callable[[], Awaitable[None]]) -> None:
        async def within() -> None:
            async with asyncio.timeout(DEADLINE_S):
                await main()

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(within())

    return go


class Echo(asyncio.Protocol):
    """Sends back what it gets."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class Caller(asyncio.Protocol):
    """One connection to an Echo."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._more = asyncio.Event()
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._more.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._more.set()

    async def echoed(self, data: bytes) -> bool:
        """Whether all of `data` comes back."""
        self._received.clear()
        self.transport.write(data)
        while len(self._received) < len(data) and not self.lost:
            self._more.clear()
            await self._more.wait()
        return self._received == data

    @property
    def serial(self) -> str:
        found: ssl.SSLObject = self.transport.get_extra_info("ssl_object")
        return str((found.getpeercert() or {})["serialNumber"])


async def listening(certificate: Certificate) -> SocketListener:
    return await SocketNetwork().listen(Echo, "127.0.0.1", 0, tls=certificate)


async def call(
    network: SocketNetwork, listener: SocketListener, *, name: str = "", rtt_ms: float = 0.0
) -> Caller:
    address = Address(
        host="127.0.0.1", port=listener.port, tls=True, tls_name=name, rtt_ms=rtt_ms
    )
    return await network.connect(Caller, address, timeout_s=20)


def test_bytes_travel_both_ways(run: Run, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate = authority.certificate("gateway.test", "127.0.0.1")

    async def main() -> None:
        listener = await listening(certificate)
        network = SocketNetwork(authorities=authority.file)
        for name in ("", "gateway.test"):
            caller = await call(network, listener, name=name, rtt_ms=5.0)
            assert await caller.echoed(b"x" * 1_000_000)
            secured: ssl.SSLObject = caller.transport.get_extra_info("ssl_object")
            assert secured.selected_alpn_protocol() == "http/1.1"
            assert secured.version() == "TLSv1.3"
            caller.transport.close()
        await listener.close()

    run(main)


def test_strangers_are_not_trusted(run: Run, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ours")
    stranger = Authority(tmp_path / "theirs")

    async def main() -> None:
        ours = SocketNetwork(authorities=authority.file)
        for signer, certified, network, name in (
            (stranger, "127.0.0.1", ours, ""),
            (authority, "127.0.0.1", SocketNetwork(), ""),
            (authority, "127.0.0.2", ours, ""),
            (authority, "other.test", ours, "gateway.test"),
            (authority, "127.0.0.1", ours, "gateway.test"),
        ):
            listener = await listening(signer.certificate(certified))
            with pytest.raises(ssl.SSLCertVerificationError):
                await call(network, listener, name=name)
            await listener.close()

    run(main)


def test_plain_text_gets_nothing_from_a_tls_port(run: Run, tmp_path: Path) -> None:
    certificate = Authority(tmp_path).certificate("127.0.0.1")

    async def main() -> None:
        listener = await listening(certificate)
        address = Address(host="127.0.0.1", port=listener.port)
        caller = await SocketNetwork().connect(Caller, address, timeout_s=20)
        assert not await caller.echoed(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 10)
        await listener.close()

    run(main)


def test_a_renewed_certificate_serves_new_connections_and_drops_none(
    run: Run, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    certificate = authority.certificate("127.0.0.1")

    async def main() -> None:
        listener = await listening(certificate)
        network = SocketNetwork(authorities=authority.file)
        old = await call(network, listener)
        assert await old.echoed(b"before")
        authority.certificate("127.0.0.1")
        while (new := await call(network, listener)).serial == old.serial:
            new.transport.close()
            await asyncio.sleep(0.05)
        assert await new.echoed(b"hello")
        assert await old.echoed(b"after" * 10_000)
        assert not old.lost
        await listener.close()
        assert await old.echoed(b"after the port is closed")

    run(main)


# -- without sockets: handshakes in memory ---------------------------------------------------------


def shake(
    server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> ssl.SSLObject:
    """The client's end after a whole handshake and one byte each way. Raises SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(
        to_client, to_server, server_hostname="gateway.test", session=session
    )
    far = server.wrap_bio(to_server, to_client, server_side=True)
    for step in (near.do_handshake, far.do_handshake, near.do_handshake, far.do_handshake):
        try:
            step()
        except ssl.SSLWantReadError:
            continue
    far.write(b"!")
    assert near.read(1) == b"!"  # session tickets travel before it
    return near


def serial_of(server: ServerTls, client: ssl.SSLContext) -> str:
    return str((shake(server.context, client).getpeercert() or {})["serialNumber"])


def test_sessions_are_resumed_also_after_a_renewal(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = ServerTls(authority.certificate("gateway.test"))
    client = client_context(authority.file)
    first = shake(server.context, client)
    assert not first.session_reused
    assert shake(server.context, client, first.session).session_reused
    authority.certificate("gateway.test")
    server.refresh()
    again = shake(server.context, client, first.session)
    assert again.session_reused
    assert shake(server.context, client, again.session).session_reused


@pytest.mark.parametrize(
    ("ciphers", "taken"), [("ECDHE+AESGCM", True), ("ECDHE+AES:!AESGCM:!AESCCM", False)]
)
def test_old_clients_need_good_ciphers(ciphers: str, taken: bool, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = ServerTls(authority.certificate("gateway.test"))
    client = client_context(authority.file)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers(ciphers)
    if taken:
        assert shake(server.context, client).version() == "TLSv1.2"
    else:
        with pytest.raises(ssl.SSLError):
            shake(server.context, client)


@pytest.mark.parametrize("how", ["gone", "garbage", "another key", "encrypted key"])
def test_a_broken_pair_changes_nothing_until_a_good_one_comes(how: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate = authority.certificate("gateway.test")
    server, client = ServerTls(certificate), client_context(authority.file)
    before = serial_of(server, client)
    if how == "gone":
        certificate.key.unlink()
    elif how == "garbage":
        certificate.chain.write_text("-----BEGIN CERTIFICATE-----\n?\n")
    elif how == "another key":
        other = authority.certificate("gateway.test", file="other")
        certificate.key.write_bytes(other.key.read_bytes())
    else:
        authority.certificate("gateway.test", password="secret")
    with capture_logs() as logs:
        server.refresh()
        server.refresh()
    assert [line["event"] for line in logs] == ["certificate_refused"]
    assert serial_of(server, client) == before
    authority.certificate("gateway.test")
    with capture_logs() as logs:
        server.refresh()
    assert [line["event"] for line in logs] == ["certificate_renewed"]
    assert serial_of(server, client) != before


def test_nothing_starts_with_files_that_cannot_be_used(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    good = authority.certificate("gateway.test")
    missing = tmp_path / "missing.pem"
    for pair in (
        Certificate(chain=missing, key=good.key),
        Certificate(chain=good.chain, key=missing),
        Certificate(chain=good.key, key=good.chain),
        authority.certificate("gateway.test", file="locked", password="secret"),
    ):
        with pytest.raises(InvalidInput, match=r"missing|PEM"):
            ServerTls(pair)
    for file in (missing, good.key):
        with pytest.raises(InvalidInput, match="authorities"):
            SocketNetwork(authorities=file)


def test_settings_name_a_whole_pair_or_none(tmp_path: Path) -> None:
    good = Authority(tmp_path).certificate("gateway.test")
    assert certificate_of(None, None) is None
    assert certificate_of(good.chain, good.key) == good
    for chain, key in ((good.chain, None), (None, good.key)):
        with pytest.raises(InvalidInput, match="belong together"):
            certificate_of(chain, key)
    with pytest.raises(InvalidInput, match="PEM"):
        certificate_of(good.key, good.key)


class Health(asyncio.Protocol):
    """A gateway as far as probes go."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


def test_peers_with_tls_are_probed(run: Run, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate = authority.certificate("paris.test")

    async def main() -> None:
        listener = await SocketNetwork().listen(Health, "127.0.0.1", 0, tls=certificate)
        sites = {
            SiteName(name): Site(
                name=SiteName(name), country=None, operator=None, parent=None, latitude_deg=0.0,
                longitude_deg=0.0, host="127.0.0.1", port=listener.port, peer_key="00",
                public_url=f"https://{name}.test:{listener.port}/v1",
            )
            for name in ("paris", "oslo")
        }
        prober = Prober(
            SiteName("sydney"), SocketNetwork(authorities=authority.file), SystemClock(),
            sites=sites, interval_s=1.0,
        )
        for _ in range(2):  # with a handshake, and over the kept connection
            await prober.probe_all()
            assert list(prober.round_trips) == ["paris"]  # the certificate is not for oslo
        await listener.close()

    run(main)

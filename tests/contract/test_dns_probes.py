"""Probes of gateways that end TLS, on live sockets: a certificate for another name is no answer."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from isochrone.adapters.network.sockets import SocketNetwork
from isochrone.dns.probes import Probes
from tests.builders import a_site
from tests.fixtures.certificates import Authority

DEADLINE_S = 20.0


class Ready(asyncio.Protocol):
    """Answers whatever is asked as a ready gateway does."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


@pytest.mark.parametrize(
    ("certified", "trusted", "url", "answers"),
    [
        ("api.example.net", True, "https://api.example.net:{port}/v1", True),
        ("other.example.net", True, "https://api.example.net:{port}/v1", False),
        ("api.example.net", False, "https://api.example.net:{port}/v1", False),
        ("api.example.net", False, "http://api.example.net:{port}/v1", False),
        ("api.example.net", False, "", True),  # nobody said its name: it is connected to only
    ],
)
def test_a_gateway_must_prove_its_name(
    tmp_path: Path, certified: str, trusted: bool, url: str, answers: bool
) -> None:
    authority = Authority(tmp_path / "ours")
    other = Authority(tmp_path / "theirs", "another authority")
    certificate = authority.certificate(certified)

    async def main() -> None:
        network = SocketNetwork(authorities=authority.file if trusted else other.file)
        listener = await network.listen(Ready, "127.0.0.1", 0, tls=certificate)
        probes = Probes(network, kind="ready", interval_s=5, timeout_s=5)
        site = replace(
            a_site("berlin", "DE"), port=listener.port,
            public_url=url.format(port=listener.port),
        )
        probes.sites = {site.name: site}
        running = asyncio.create_task(probes.run())
        async with asyncio.timeout(DEADLINE_S):
            await probes.began.wait()
        assert probes.reaches[site.name].answers == answers
        running.cancel()
        await asyncio.wait([running])
        await listener.close()

    asyncio.run(main())

"""Idle connections of a real gateway: what each costs. IDLE_CONNECTIONS=10000 opens so many."""

import os
import resource
import socket
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.rig.alone import MODEL, Alone, a_gateway, an_engine, config_text

CONNECTIONS = int(os.environ.get("IDLE_CONNECTIONS", "600"))
MOST_BYTES_EACH = 10_000  # so that ten thousand cost less than 100 MB

pytestmark = pytest.mark.rig

BODY = f'{{"model":"{MODEL}","messages":[{{"role":"user","content":"hi"}}]}}'.encode()
ASK = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\nauthorization: Bearer secret\r\n"
    b"x-number: %d\r\ncontent-length: %d\r\n\r\n%b"
)


@pytest.fixture(autouse=True)
def enough_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def used_bytes(gateway: Alone) -> int:
    """Memory that is the gateway's own, or its share of what it shares."""
    lines = Path(f"/proc/{gateway.pid}/smaps_rollup").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Pss:"))) * 1024


def connect(gateway: Alone) -> socket.socket:
    parts = urlsplit(gateway.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return socket.create_connection((parts.hostname, parts.port), timeout=30)


def ask(connection: socket.socket, number: int) -> None:
    """One whole request and its answer; every head is another one."""
    connection.sendall(ASK % (number, len(BODY), BODY))
    got = connection.recv(65_536)
    assert got.startswith(b"HTTP/1.1 200 "), got


def test_idle_connections_are_cheap(tmp_path: Path) -> None:
    """Half of them have had an answer."""
    with an_engine() as engine, a_gateway(tmp_path / "alone", config_text(engine.url)) as gateway:
        with ExitStack() as stack:
            for number in range(100):  # what is remembered of heads, prompts, keys is not counted
                first = connect(gateway)
                ask(first, number % 20)
                first.close()
            before = used_bytes(gateway)
            open_ones = [stack.enter_context(connect(gateway)) for _ in range(CONNECTIONS)]
            for number, connection in enumerate(open_ones[::2]):
                ask(connection, number % 20)
            each = (used_bytes(gateway) - before) / CONNECTIONS
            print(f"{CONNECTIONS} idle connections, {each:.0f} bytes each")
            ask(open_ones[-1], 0)
            assert each < MOST_BYTES_EACH
        assert not gateway.ended

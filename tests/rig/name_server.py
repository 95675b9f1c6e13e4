"""A name server as a real process, and a resolver that is not ours to ask it with."""

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dns.edns
import dns.message
import dns.rcode
import dns.resolver

from tests.rig.cloud import COMMAND, environment
from tests.rig.waiting import wait_until

ZONE = "api.example.net"
DEADLINE_S = 20.0


class NameServer:
    """One `isochrone dns` with a file in a folder of its own."""

    def __init__(self, folder: Path, text: str) -> None:
        folder.mkdir(exist_ok=True)
        self.config = folder / "dns.toml"
        self.output = folder / "dns.jsonl"
        self.config.write_text(text)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "NameServer":
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [*COMMAND, "dns", "--config", str(self.config)],
                env=environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )
        wait_until(lambda: self.ended or bool(self.logged("dns_listening")), "it listens")
        assert not self.ended, self.output.read_text()
        return self

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    @property
    def port(self) -> int:
        return int(self.logged("dns_listening")[-1]["port"])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it; returns its exit code."""
        assert self.process is not None
        if not self.ended:
            self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Events of this name in the log."""
        lines = self.output.read_text().split("\n")[:-1]
        entries = [json.loads(line) for line in lines if line.startswith("{")]
        return [entry for entry in entries if entry.get("event") == event]

    def edit(self, before: str, after: str) -> None:
        """Replace a part of the file, as an editor does."""
        text = self.config.read_text()
        assert before in text
        self.config.write_text(text.replace(before, after))

    def resolver(self, client: str | None = None) -> dns.resolver.Resolver:
        """A resolver that asks this server alone, on behalf of a client in `198.51.100.0/24`."""
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers = ["127.0.0.1"]
        resolver.port = self.port
        resolver.lifetime = 5.0
        options: list[dns.edns.Option] = []
        if client is not None:
            address, _, length = client.partition("/")
            options.append(dns.edns.ECSOption(address, int(length)))
        resolver.use_edns(0, payload=1232, options=options)
        return resolver

    def addresses(
        self, label: str = "", client: str | None = None, *, type_: str = "A", tcp: bool = False
    ) -> set[str]:
        """What a name is resolved to; empty where it has none or the server fails."""
        name = f"{label}.{ZONE}" if label else ZONE
        try:
            answer = self.resolver(client).resolve(name, type_, tcp=tcp)
        except (dns.resolver.NoAnswer, dns.resolver.NoNameservers):
            return set()
        return {record.address for record in answer}


@contextmanager
def a_name_server(folder: Path, text: str) -> Iterator[NameServer]:
    """It runs while the block does; what a test left running is stopped."""
    server = NameServer(folder, text)
    try:
        yield server.start()
    finally:
        if not server.ended:
            server.stop(signal.SIGKILL)


def free_port(*hosts: str) -> int:
    """A TCP port that is free at all of these addresses."""
    while True:
        with socket.socket() as probe:
            probe.bind((hosts[0], 0))
            port: int = probe.getsockname()[1]
            try:
                for host in hosts[1:]:
                    with socket.socket() as other:
                        other.bind((host, port))
            except OSError:
                continue
            return port

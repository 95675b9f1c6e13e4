"""Chooses the TCP ports of a local cloud: named by the user, kept from the last start, or free.

Between choosing a port and a child binding it there are seconds in which a second `isochrone up`
could choose the same one. A claim closes that gap: an abstract unix socket per port, held for
the life of `up`; the kernel drops it with the process, so that no claim is ever left behind.
"""

import errno
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from isochrone.core.errors import InvalidInput

HOST = "127.0.0.1"
FIRST_PORT = 4100
STEP = 10
TRIES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """One port for each site's gateway in the order of the world, then control, NATS and console.
    """

    gateways: tuple[int, ...]
    control: int
    nats: int
    console: int

    @property
    def all(self) -> tuple[int, ...]:
        return (*self.gateways, self.control, self.nats, self.console)


class Claims:
    """The ports that this process has claimed; `release` or the end of the process frees them."""

    def __init__(self, host: str = HOST) -> None:
        self.host = host
        self._held: dict[int, socket.socket | None] = {}

    def take(self, ports: Sequence[int]) -> int | None:
        """Claim all of `ports` and return None, or claim nothing and return the first in use."""
        taken: list[int] = []
        for port in ports:
            if port in self._held:
                continue
            if not self._take_one(port):
                for one in taken:
                    self._drop(one)
                return port
            taken.append(port)
        return None

    def release(self) -> None:
        for port in list(self._held):
            self._drop(port)

    def _take_one(self, port: int) -> bool:
        claim: socket.socket | None = None
        if sys.platform == "linux":
            claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                claim.bind(f"\0isochrone-port-{port}")
            except OSError:
                claim.close()
                return False
        if not _bindable(self.host, port):
            if claim is not None:
                claim.close()
            return False
        self._held[port] = claim
        return True

    def _drop(self, port: int) -> None:
        claim = self._held.pop(port)
        if claim is not None:
            claim.close()


def choose_ports(
    sites: int, *, wanted: int | None, kept: Ports | None, claims: Claims
) -> Ports:
    """Claim the ports for `sites` gateways, control, NATS and the console.

    `wanted` is the first gateway's port, the others and control follow it; a port in use raises
    InvalidInput. Without it the ports of the last start are `kept` where they are free, otherwise
    the first free block from 4100 is taken.
    """
    if wanted is not None:
        return _wanted(sites, wanted, kept, claims)
    if kept is not None and len(kept.gateways) == sites and claims.take(kept.all) is None:
        return kept
    for block in range(TRIES):
        ports = _block(sites, FIRST_PORT + block * max(STEP, sites + 3))
        if ports.all[-1] > 65535:
            break
        if claims.take(ports.all) is None:
            return ports
    raise InvalidInput(["no block of free ports was found; name one with --port"])


def _wanted(sites: int, first: int, kept: Ports | None, claims: Claims) -> Ports:
    ports = _block(sites, first)
    if first < 1 or ports.control > 65535:
        raise InvalidInput(
            [f"--port {first}: the cloud needs {sites + 1} ports in 1..65535, starting there"]
        )
    busy = claims.take((*ports.gateways, ports.control))
    if busy is not None:
        raise InvalidInput(
            [
                f"port {busy} on {claims.host} is in use (needed: {first}..{ports.control}); "
                "stop what uses it, or choose another with --port"
            ]
        )
    # Nobody types the port of NATS, and the console's is printed, so they give way instead of
    # failing the start.
    was = ports if kept is None else kept
    return replace(
        ports, nats=_giving_way(claims, was.nats, ports.nats),
        console=_giving_way(claims, was.console, ports.console),
    )


def _giving_way(claims: Claims, *wished: int) -> int:
    """Claim the first of these ports that is free, else any."""
    for port in wished:
        if port <= 65535 and claims.take([port]) is None:
            return port
    while True:
        port = _any_free(claims.host)
        if claims.take([port]) is None:
            return port


def _block(sites: int, first: int) -> Ports:
    gateways = tuple(range(first, first + sites))
    return Ports(
        gateways=gateways, control=first + sites, nats=first + sites + 1, console=first + sites + 2
    )


def _bindable(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: connections in TIME_WAIT of the last start do not count as use.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                raise InvalidInput(
                    [f"--host {host} is no address of this machine; name one that others reach"]
                ) from error
            if error.errno == errno.EACCES:
                raise InvalidInput(
                    [f"port {port} may only be used by an administrator; choose one above 1023"]
                ) from error
            return False
    return True


def _any_free(host: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])

"""Where one try of a request goes, an engine or a peer gateway, and what is sent there.

What is the same for every request to one target is worked out once and kept while its replica, or
its site, is the one in the view.
"""

from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from typing import Final
from urllib.parse import urlsplit

import structlog

from isochrone.core.errors import Unavailable
from isochrone.core.ids import SiteName
from isochrone.core.world.model import Replica
from isochrone.core.world.site import Site
from isochrone.ports.network import Address
from isochrone.wire import peer
from isochrone.wire.hop_tls import hop_tls_name
from isochrone.wire.peer import HopHead
from isochrone.wire.peer_codes import started

# Of the client's headers only these go on: others may hold secrets that are not for engines, and
# content codings that metering could not read.
FORWARDED = (
    b"content-type", b"accept", b"user-agent", b"traceparent", b"tracestate", b"openai-beta",
    b"anthropic-version", b"anthropic-beta",
)
log = structlog.get_logger()

HOPS_KEPT: Final = 256
CREDENTIAL_NS: Final = 1_000_000_000  # a key that was replaced in its file counts after this


class Target:
    """`replica` for an engine; `peer_key` for the gateway of another site, with its `rtt_ms`, and
    `answers`, with which the codes of its answers begin.

    `where` are the lines of an answer's head that say where it ran.
    """

    __slots__ = (
        "_headers", "_hops", "_starts", "address", "answers", "base_path", "country", "host",
        "peer_key", "replica", "rtt_ms", "site", "until_ns", "where",
    )

    def __init__(
        self, address: Address, site: SiteName, country: str | None, *, host: str,
        base_path: str = "/v1", headers: str = "", replica: Replica | None = None,
        peer_key: bytes | None = None, rtt_ms: float = 0.0,
    ) -> None:
        self.address = address
        self.site = site
        self.country = country
        self.where = where_lines(site, country)
        self.host = host
        self.base_path = base_path
        self.replica = replica
        self.peer_key = peer_key
        self.answers = None if peer_key is None else started(peer_key)
        self.rtt_ms = rtt_ms
        self.until_ns = 0
        self._headers = headers
        self._starts: dict[str, bytes] = {}
        self._hops: dict[tuple[str, str, str, str, bytes], tuple[bytes, blake2b]] = {}

    def start_of(self, path: str) -> bytes:
        """The first lines of a request to `path` (as the client names it) at this target."""
        known = self._starts.get(path)
        if known is None:
            own_path = self.base_path + path.removeprefix("/v1")
            text = f"POST {own_path} HTTP/1.1\r\nhost: {self.host}\r\n{self._headers}"
            known = self._starts[path] = text.encode("latin-1")
        return known

    def hop_start(self, ingress: SiteName, said: tuple[str, str, str, str, bytes]) -> (
        tuple[bytes, blake2b]
    ):
        """(first lines of a request's head, with what its code begins) at this peer, for a path,
        key id, class, narrowed residency, and the client's headers that go on."""
        assert self.peer_key is not None
        known = self._hops.get(said)
        if known is None:
            path, key_id, class_, residency, forwarded = said
            head = HopHead("POST", path, ingress, self.site, key_id, class_, residency)
            start = self.start_of(path) + head.lines().encode("latin-1") + forwarded
            if len(self._hops) >= HOPS_KEPT:
                self._hops.clear()
            known = self._hops[said] = (start, started(self.peer_key, head.covered()))
        return known


class Targets:
    """Prepared targets. `read_credential` finds the key of an upstream; raises Unavailable."""

    def __init__(self, read_credential: Callable[[str | None], str | None]) -> None:
        self._read_credential = read_credential
        self._engines: dict[str, Target] = {}
        self._peers: dict[SiteName, tuple[Site, Target]] = {}
        self._blamed: dict[str, str] = {}

    def blame(self, replica: Replica, why: str) -> None:
        """Say in the log, once until it works or fails otherwise, why nobody can use a replica:
        clients are told of all sites together and cannot know."""
        if self._blamed.get(replica.id) != why:
            self._blamed[replica.id] = why
            log.warning("replica_unusable", replica=replica.id, site=replica.site, why=why)

    def engine(self, replica: Replica, country: str | None, now_ns: int) -> Target:
        """The target for a replica. Raises Unavailable, and ValueError for a URL that is none."""
        known = self._engines.get(replica.id)
        if (
            known is not None
            and known.replica is replica
            and known.country == country
            and (replica.credential is None or now_ns < known.until_ns)
        ):
            return known
        secret = replica.engine_key
        try:
            address, host, base_path = place_of(replica.base_url)
            if secret is None:
                secret = self._read_credential(replica.credential)
                self._blamed.pop(replica.id, None)
        except (Unavailable, ValueError) as error:
            self.blame(replica, str(error))
            raise
        headers = "" if secret is None else f"authorization: Bearer {secret}\r\n"
        target = Target(
            address, replica.site, country, host=host, base_path=base_path, headers=headers,
            replica=replica,
        )
        target.until_ns = now_ns + CREDENTIAL_NS
        self._engines[replica.id] = target
        return target

    def peer(self, site: Site, key: bytes, emulated_rtt_ms: float, rtt_ms: float) -> Target:
        """The target for the gateway of another site."""
        known = self._peers.get(site.name)
        if known is not None and known[0] is site:
            target = known[1]
            if target.address.rtt_ms == emulated_rtt_ms and target.rtt_ms == rtt_ms:
                return target
        tls_name = hop_tls_name(site.public_url, site.port)
        address = Address(
            host=site.host, port=site.port, rtt_ms=emulated_rtt_ms, tls=tls_name is not None,
            tls_name=tls_name or "",
        )
        target = Target(
            address, site.name, site.country, host=f"{site.host}:{site.port}", peer_key=key,
            rtt_ms=rtt_ms,
        )
        self._peers[site.name] = (site, target)
        return target


def where_lines(site: SiteName, country: str | None) -> str:
    """The lines of an answer's head that say where it was served or refused."""
    return f"{peer.SITE}: {site}\r\n{peer.COUNTRY}: {country or 'unknown'}\r\n"


@lru_cache(maxsize=4096)
def place_of(base_url: str) -> tuple[Address, str, str]:
    """(address, host header, base path) of an engine's base URL; raises ValueError."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError(f"{base_url} is not an http(s) URL")
    if not parts.path.isascii():
        raise ValueError(f"the path of {base_url} is to be percent-encoded")
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    name = parts.hostname.encode("idna").decode("ascii")
    said = parts.netloc.rpartition("@")[2]
    if not said.isascii():
        said = name if parts.port is None else f"{name}:{port}"
    return Address(host=name, port=port, tls=tls), said, parts.path.rstrip("/")


def forwarded_lines(headers: dict[bytes, bytes]) -> bytes:
    """The client's headers that go on, as lines of a head."""
    lines = [name + b": " + headers[name] + b"\r\n" for name in FORWARDED if name in headers]
    if b"content-type" not in headers:
        lines.append(b"content-type: application/json\r\n")
    return b"".join(lines)


def request_bytes(
    path: str, host: str, headers: list[tuple[str, str]], kept: dict[bytes, bytes], body: bytes
) -> bytes:
    """A POST request that is not a client's own. Of `kept` only FORWARDED go along."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    text = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n{lines}"
    return text.encode("latin-1") + forwarded_lines(kept) + b"\r\n" + body

"""Where one try of a request goes, an engine or a peer gateway, and what is sent there."""

from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from isochrone.core.ids import SiteName
from isochrone.core.world.model import Replica
from isochrone.core.world.site import Site
from isochrone.ports.network import Address

# Of the client's headers only these go on: others may hold secrets that are not for engines, and
# content codings that metering could not read.
FORWARDED = (
    b"content-type", b"accept", b"user-agent", b"traceparent", b"tracestate", b"openai-beta",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`replica` for an engine of this site; `peer_key` for the gateway of another site."""

    address: Address
    site: SiteName
    country: str | None
    replica: Replica | None = None
    peer_key: bytes | None = None


@lru_cache(maxsize=4096)
def place_of(base_url: str) -> tuple[Address, str, str]:
    """(address, host header, base path) of an engine's base URL; raises ValueError."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{base_url} is not an http(s) URL")
    tls = parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    address = Address(host=parts.hostname, port=port, tls=tls)
    return address, parts.netloc.rpartition("@")[2], parts.path.rstrip("/")


def engine_target(replica: Replica, country: str | None) -> Target:
    """The target for a replica of this site; raises ValueError for a URL that is none."""
    address, _, _ = place_of(replica.base_url)
    return Target(address=address, site=replica.site, country=country, replica=replica)


def peer_target(site: Site, key: bytes, rtt_ms: float) -> Target:
    """The target for the gateway of another site."""
    address = Address(host=site.host, port=site.port, rtt_ms=rtt_ms)
    return Target(address=address, site=site.name, country=site.country, peer_key=key)


def request_bytes(
    path: str, host: str, headers: list[tuple[str, str]], kept: dict[bytes, bytes], body: bytes
) -> bytes:
    """A POST request. `kept` are the client's headers, of which only FORWARDED go along."""
    lines = [f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in headers]
    head = "".join(lines).encode("latin-1")
    for name in FORWARDED:
        value = kept.get(name)
        if value is not None:
            head += name + b": " + value + b"\r\n"
    if b"content-type" not in kept:
        head += b"content-type: application/json\r\n"
    return head + b"\r\n" + body

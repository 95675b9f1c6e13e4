"""Lets a site join: makes its one-time token, and gives it its identity for that token.

A token may be spent once. Joining again with the same token and the same keys before it expires
gives the same answer, so that a reply lost on the way can be had again.
"""

import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from isochrone.core.errors import InvalidInput, Untrusted
from isochrone.core.ids import SiteName
from isochrone.core.world.tenant import Scope
from isochrone.ports.estate import Estate, Joining, SiteToken
from isochrone.ports.tenants import Once
from isochrone.wire.identity import JoinReply, JoinRequest

_NOBODY = SiteName("nobody")
TOKEN_LIFE_NS = 3600 * 1_000_000_000
PEER_KEY_BYTES = 32
# As the DNS has it: every gateway, agent and name server writes it into heads of its own.
_HOST = re.compile(r"[A-Za-z0-9._:%-]+")


class SiteCredentials(Protocol):
    """Makes what a site logs in to the bus with."""

    def __call__(self, site: SiteName, nats_key: str, issued_at: int, /) -> str:
        """The JWT for the owner of `nats_key`. Raises InvalidInput or Untrusted for a bad key."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """Where a joined site finds the rest of the cloud; `control_key` is Ed25519 public, hex."""

    nats_urls: tuple[str, ...]
    control_key: str
    control_url: str


def hash_of(secret: str) -> str:
    """How secrets are kept and looked up: sha256, hex. They are random, so no salt is needed."""
    return sha256(secret.encode()).hexdigest()


def invite(
    estate: Estate, scope: Scope, site: SiteName, secret: str, *, now: int, once: Once | None
) -> SiteToken:
    """Store the token with which `site` may join. Raises NotFound for an unknown site."""
    token = SiteToken(
        secret_sha256=hash_of(secret), site=site, created_at=now, expires_at=now + TOKEN_LIFE_NS
    )
    return estate.add_token(scope, token, once=once)


def join(
    estate: Estate, request: JoinRequest, hub: Hub, credentials: SiteCredentials, *, now: int
) -> JoinReply:
    """Spend the token. Raises InvalidInput with every problem, or Untrusted for the token."""
    problems = _problems(request)
    if problems:
        raise InvalidInput(problems)
    try:
        credentials(_NOBODY, request.nats_key, now)  # before the token is spent for it
    except Untrusted as error:
        raise InvalidInput([f"nats_key: {error.message}"]) from error
    joined = estate.join(
        Joining(
            token_sha256=hash_of(request.token),
            peer_key=request.peer_key,
            nats_key=request.nats_key,
            host=request.host,
            port=request.port,
            public_url=request.public_url,
        ),
        now=now,
    )
    site = joined.site
    return JoinReply(
        site=site.name,
        country=site.country,
        nats_urls=hub.nats_urls,
        nats_jwt=credentials(site.name, request.nats_key, joined.joined_at),
        control_key=hub.control_key,
        control_url=hub.control_url,
    )


def _problems(request: JoinRequest) -> list[str]:
    problems = []
    if not _is_peer_key(request.peer_key):
        problems.append("peer_key: must be an X25519 public key, 64 hex digits")
    if _HOST.fullmatch(request.host) is None:
        problems.append(
            "host: must be the name, as the DNS has it, or address where the gateway listens"
        )
    if not 0 < request.port < 65536:
        problems.append(f"port: must be 1..65535, not {request.port}")
    if not request.public_url.startswith(("http://", "https://")):
        problems.append("public_url: must start with http:// or https://")
    elif not request.public_url.endswith("/v1"):
        problems.append("public_url: must end in /v1")
    elif not _has_host(request.public_url):
        problems.append("public_url: must name a host, and a port only where that is 1..65535")
    return problems


def _has_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and parts.username is None and parts.port != 0
    except ValueError:
        return False
    return named and not any(character.isspace() for character in url)


def _is_peer_key(text: str) -> bool:
    """A few points give one secret with everybody, which nobody's gateway would compute."""
    try:
        raw = bytes.fromhex(text)
        if len(raw) != PEER_KEY_BYTES or text != text.lower():
            return False
        X25519PrivateKey.from_private_bytes(bytes(PEER_KEY_BYTES)).exchange(
            X25519PublicKey.from_public_bytes(raw)
        )
    except ValueError:
        return False
    return True

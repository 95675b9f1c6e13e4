"""How a site joins: the request with a one-time token, and the identity that comes back.

The site makes its own key pairs and sends only the public halves. The identity file that
`isochrone site join` writes (mode 0600) is `SiteIdentity` as JSON, private halves included; agent
and gateways of the site read it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRequest:
    """Sent once with the token. `peer_key` X25519 public, hex; `nats_key` NATS user nkey (U...).
    `host`, `port`, `public_url`: where this site's gateway will listen."""

    token: str
    peer_key: str
    nats_key: str
    host: str
    port: int
    public_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinReply:
    """What control answers: names, the NATS user JWT and control's public key (Ed25519, hex)."""

    site: str
    country: str | None
    nats_urls: tuple[str, ...]
    nats_jwt: str
    control_key: str
    control_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteIdentity:
    """Everything a site's processes need to prove who they are and to check control's signature.

    `nats_seed` is the NATS user seed (S...), `peer_secret` the X25519 private key in hex.
    """

    site: str
    country: str | None
    nats_urls: tuple[str, ...]
    nats_jwt: str
    nats_seed: str
    peer_key: str
    peer_secret: str
    control_key: str
    control_url: str
    host: str
    port: int

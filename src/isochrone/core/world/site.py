"""Site: a place with a gateway and perhaps engines; and the round trips it has to other sites."""

from dataclasses import dataclass
from typing import Literal

from isochrone.core.ids import SiteName

RttSource = Literal["emulated", "probed", "stated", "table", "distance"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One kind of machine at a site; `kind` is `cpu` or a name of the packaged GPU table."""

    kind: str
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A site as every gateway sees it. An attribute that is None denies any rule that asks for it.

    `country` is ISO 3166-1 alpha-2; `operator` runs the site and `parent` owns the operator in the
    end. `host` and `port` are where its gateway takes clients and peers; `public_url` ends in /v1.
    `peer_key` is the site's X25519 public key in hex, None until the site has joined.
    """

    name: SiteName
    country: str | None
    operator: str | None
    parent: str | None
    latitude_deg: float
    longitude_deg: float
    host: str
    port: int
    public_url: str
    peer_key: str | None
    hardware: tuple[Hardware, ...] = ()
    draining: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Round trip between this site and `peer`, and where the figure comes from.

    `emulated` means that the peer hop adds this delay because the sites share a machine. `via` are
    the countries that it passes, those of both ends included; None denies any rule that asks.
    """

    peer: SiteName
    rtt_ms: float
    source: RttSource
    via: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLinks:
    """All links of one site; only that site's gateway and agent need them."""

    site: SiteName
    links: tuple[Link, ...]

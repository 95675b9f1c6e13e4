"""What a name server knows of the fleet, whoever told it: the signed view, or its own file."""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from isochrone.core.estimate.round_trip import Position
from isochrone.core.ids import PolicyId, SiteName
from isochrone.core.steering.ingress import Ingress
from isochrone.core.world.site import Site
from isochrone.core.world.tenant import Policy

IpAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Estate:
    """`joined`: sites that may take clients at all. `reporting`: sites with engines, whose agents
    owe digests. `links`: site -> peer -> ms, only of sites that clients are said to be at."""

    sites: Mapping[SiteName, Site]
    joined: frozenset[SiteName]
    reporting: frozenset[SiteName]
    links: Mapping[SiteName, Mapping[SiteName, float]]
    policies: Mapping[PolicyId, Policy]


def ingresses_of(
    estate: Estate, stated: Mapping[SiteName, tuple[IpAddress, ...]]
) -> tuple[Ingress, ...]:
    """The sites as clients enter them. Addresses are those that the name server's file states,
    else the one in the site's public URL, else the one at which its gateway takes clients; a host
    name is no address."""
    return tuple(
        Ingress(
            site=site.name,
            country=site.country,
            operator=site.operator,
            parent=site.parent,
            position=Position(
                latitude_deg=site.latitude_deg, longitude_deg=site.longitude_deg
            ),
            joined=site.name in estate.joined,
            draining=site.draining,
            ipv4=_packed(addresses, IPv4Address),
            ipv6=_packed(addresses, IPv6Address),
        )
        for site in estate.sites.values()
        for addresses in (stated.get(site.name) or _own_addresses(site),)
    )


def usable_address(text: str) -> IpAddress | None:
    """The address that `text` is, None for a host name and for what no client can connect to."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if address.is_unspecified or address.is_multicast:
        return None
    return address


def _own_addresses(site: Site) -> tuple[IpAddress, ...]:
    try:
        public = urlsplit(site.public_url).hostname
    except ValueError:
        public = None
    for text in (public, site.host):
        address = usable_address(text or "")
        if address is not None:
            return (address,)
    return ()


def _packed(addresses: tuple[IpAddress, ...], kind: type[IpAddress]) -> tuple[bytes, ...]:
    return tuple(each.packed for each in addresses if isinstance(each, kind))

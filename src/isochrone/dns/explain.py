"""Says in lines of text how a name is answered for a client, and why not otherwise."""

from collections import Counter
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

from isochrone.core.residency.rule import render_axis
from isochrone.core.rng import Random
from isochrone.core.steering.place import AtSite, Family, Found, Nowhere, Place, Subnet
from isochrone.core.steering.steer import Openings, Steering, Ties, Unbound, left_out, steer

MOST_LEFT_OUT = 12  # named; the others are counted


def explanation(
    openings: Openings, found: Found, *, resolver: Subnet, client: Subnet | None,
    most: int, ties: Ties, rng: Random,
) -> Sequence[str]:
    """Who asks and from where, what is answered in each family, and who was left out, nearest
    first. What chance decides is drawn anew for each explanation."""
    lines = [_rule(openings), _who(resolver, client), _where(found)]
    told: Steering | None = None
    families: tuple[Family, ...] = (4, 6)
    for family in families:
        steering = steer(openings, found.place, family, most=most, ties=ties, rng=rng)
        lines += _answered(steering)
        if told is None or told.outcome != "served":
            told = steering
    assert told is not None, "there are two families"
    others = left_out(told)
    lines += [f"not {each.site}: {each.rule}: {each.detail}" for each in others[:MOST_LEFT_OUT]]
    more = others[MOST_LEFT_OUT:]
    if more:
        rules = Counter(each.rule for each in more)
        counted = ", ".join(f"{rule} {count}" for rule, count in sorted(rules.items()))
        lines.append(f"and {len(more)} more sites: {counted}")
    return lines


def _rule(openings: Openings) -> str:
    if isinstance(openings.binding, Unbound):
        return f"nothing may enter: {openings.binding.detail}"
    return f"may enter in: {render_axis(openings.binding)}"


def _who(resolver: Subnet, client: Subnet | None) -> str:
    said = "no client subnet" if client is None else f"client subnet {subnet_text(client)}"
    return f"resolver {address_text(resolver)}, {said}"


def _where(found: Found) -> str:
    if found.subnet is None:
        return f"no subnet is known for it, so: {place_text(found.place)}"
    return f"{subnet_text(found.subnet)} is {place_text(found.place)}"


def _answered(steering: Steering) -> list[str]:
    if not steering.chosen:
        return [f"IPv{steering.family}: {steering.outcome}"]
    return [
        f"IPv{steering.family}: {each.ingress.site} "
        f"{_text(each.ingress.addresses(steering.family)[0])} {each.rtt_ms:.1f} ms"
        for each in steering.chosen
    ]


def place_text(place: Place) -> str:
    """A place as people write it."""
    if isinstance(place, AtSite):
        return f"at site {place.site}"
    if isinstance(place, Nowhere):
        return "nowhere in particular"
    return f"at {place.latitude_deg:.2f}, {place.longitude_deg:.2f}"


def address_text(subnet: Subnet) -> str:
    """The first address of a subnet."""
    return str(IPv4Address(subnet.bits) if subnet.family == 4 else IPv6Address(subnet.bits))


def subnet_text(subnet: Subnet) -> str:
    return f"{address_text(subnet)}/{subnet.length}"


def _text(address: bytes) -> str:
    return str(IPv4Address(address) if len(address) == 4 else IPv6Address(address))

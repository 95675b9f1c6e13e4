"""Where clients are, as far as an address tells: subnets of addresses and their places.

Of several subnets that hold an address the longest counts. What is found also says for which block
of addresses it holds (the *scope* of RFC 7871), so that a resolver shares it with these and no
others: a block with a longer subnet inside is never given as one.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from isochrone.core.estimate.round_trip import Position
from isochrone.core.ids import SiteName

Family = Literal[4, 6]

WIDTH_BITS: dict[Family, int] = {4: 32, 6: 128}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subnet:
    """A block of addresses. `bits` is its first address as a whole number of 32 or 128 bits; those
    beyond `length` are zero."""

    family: Family
    bits: int
    length: int

    def __post_init__(self) -> None:
        width = WIDTH_BITS[self.family]
        assert 0 <= self.length <= width, "a subnet is no longer than an address"
        assert self.bits >> width == 0, "more bits than an address has"
        assert self.bits & ((1 << (width - self.length)) - 1) == 0, "bits beyond the length"

    def within(self, length: int) -> "Subnet":
        """The block of `length` bits that holds this one; itself where it is no longer."""
        if length >= self.length:
            return self
        shift = WIDTH_BITS[self.family] - length
        return Subnet(family=self.family, bits=self.bits >> shift << shift, length=length)


@dataclass(frozen=True, slots=True, kw_only=True)
class AtSite:
    """Clients whose packets reach the fleet at this site: its links say how far the others are."""

    site: SiteName


@dataclass(frozen=True, slots=True)
class Nowhere:
    """Nothing is known: every ingress is as near as any other."""


Place = Position | AtSite | Nowhere

NOWHERE = Nowhere()


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The place of a client. `subnet` is the one that told it, None where none did. `scope` is the
    length of the block around the client for which the same holds; where it is longer than the
    client's own, the client's was too short to know."""

    place: Place
    subnet: Subnet | None
    scope: int


class Places:
    """Subnets and their places; of two entries for one subnet the later counts.

    `unknown` is the place of everybody else. Finding costs one look-up a length that occurs and two
    bisections.
    """

    def __init__(self, entries: Iterable[tuple[Subnet, Place]], unknown: Place = NOWHERE) -> None:
        self.unknown = unknown
        told = dict(entries)
        self.count = len(told)
        self._families: dict[Family, _OneFamily] = {}
        families: tuple[Family, ...] = (4, 6)
        for family in families:
            own = {subnet: place for subnet, place in told.items() if subnet.family == family}
            self._families[family] = _OneFamily(family, own)

    def find(self, client: Subnet) -> Found:
        """Where this client is: the place of the longest subnet that holds all of its block."""
        family = self._families[client.family]
        length = family.longest(client)
        scope = family.scope(client, length or 0)
        if length is None:
            return Found(place=self.unknown, subnet=None, scope=scope)
        subnet = client.within(length)
        return Found(place=family.place(subnet), subnet=subnet, scope=scope)


class _OneFamily:
    def __init__(self, family: Family, told: dict[Subnet, Place]) -> None:
        self._width = WIDTH_BITS[family]
        by_length: dict[int, dict[int, Place]] = {}
        for subnet, place in told.items():
            by_length.setdefault(subnet.length, {})[subnet.bits] = place
        self._by_length = sorted(by_length.items(), reverse=True)
        self._places = by_length
        blocks = sorted((subnet.bits, subnet.length) for subnet in told)
        self._starts = [bits for bits, _ in blocks]
        self._lengths = [length for _, length in blocks]

    def place(self, subnet: Subnet) -> Place:
        return self._places[subnet.length][subnet.bits]

    def longest(self, client: Subnet) -> int | None:
        for length, blocks in self._by_length:
            shift = self._width - length
            if length <= client.length and client.bits >> shift << shift in blocks:
                return length
        return None

    def scope(self, client: Subnet, length: int) -> int:
        """The least length, from the one that matched on, whose block holds no longer subnet.

        The nearest subnet on either side shares the most bits with the client, so those two decide.
        Subnets that hold the client's first address and are longer than its block are within it.
        """
        scope = length
        above = bisect_right(self._starts, client.bits)
        if above < len(self._starts):
            scope = max(scope, self._shared(client.bits, self._starts[above]) + 1)
        for below in range(above - 1, -1, -1):
            start, subnet_length = self._starts[below], self._lengths[below]
            shared = self._shared(client.bits, start)
            if shared < subnet_length:
                return max(scope, shared + 1)
            if subnet_length > client.length:
                scope = max(scope, subnet_length)
        return scope

    def _shared(self, one: int, other: int) -> int:
        """How many leading bits two addresses have in common."""
        return self._width - (one ^ other).bit_length()

"""Compiles axes into bit sets over the sites of a view, and over the links to them.

Bit i is site i in the order given. The attributes of all sites are turned into sets once; an axis
is then a few unions and intersections, made when a policy or the view changes and kept.
"""

from collections.abc import Iterable, Mapping, Sequence, Set

from isochrone.core.ids import SiteName
from isochrone.core.residency.blocs import Blocs
from isochrone.core.residency.bounds import Bounds
from isochrone.core.residency.rule import passed_by, stated_by, value_of
from isochrone.core.residency.terms import SITE_ATTRIBUTES, Attribute, Axis, Meaning, meaning_of
from isochrone.core.world.site import Link, Site

SETS_KEPT = 4096  # axes remembered beside those of policies: requests may ask for any


class SiteSets:
    """Sets for the sites of one view, seen from `own_site`. Remembers; owned by one event loop."""

    def __init__(
        self, sites: Sequence[Site], links: Mapping[SiteName, Link], own_site: SiteName,
        blocs: Blocs,
    ) -> None:
        self.everywhere = (1 << len(sites)) - 1
        self.bit_of = {site.name: 1 << bit for bit, site in enumerate(sites)}
        self._blocs = blocs
        self._with: dict[Attribute, dict[str, int]] = {}
        self._stating: dict[Attribute, int] = {"via": 0}
        for attribute in SITE_ATTRIBUTES:
            self._with[attribute], self._stating[attribute] = _index(attribute, sites, blocs)
        self._here = self.bit_of.get(own_site, 0)  # on the way to itself a site passes nothing
        self._passing: dict[str, int] = {}
        for name, bit in self.bit_of.items():
            countries = passed_by(links.get(name), blocs)
            if countries is not None:
                self._stating["via"] |= bit
                for country in countries:
                    self._passing[country] = self._passing.get(country, 0) | bit
        self._kept: dict[Axis, int] = {}
        self._asked: dict[Axis, int] = {}

    def keep(self, axes: Iterable[Axis]) -> None:
        """Compile the axes of policies, which are then never forgotten."""
        for axis in axes:
            if axis not in self._kept:
                self._kept[axis] = self._sites(meaning_of(axis, self._blocs))

    def admitted(self, axis: Axis) -> int:
        """The sites that an axis admits."""
        known = self._kept.get(axis)
        if known is None:
            known = self._asked.get(axis)
        if known is None:
            known = self._sites(meaning_of(axis, self._blocs))
            if len(self._asked) >= SETS_KEPT:
                self._asked.clear()
            self._asked[axis] = known
        return known

    def reached(self, axis: Axis) -> int:
        """The sites to which a link leads that an axis of transit admits, and the own site."""
        meaning = meaning_of(axis, self._blocs)
        if not meaning.asks_of_links:
            return self.everywhere
        if meaning.unknown is not None:
            return self._here
        reached = self._stating["via"]
        allowed = meaning.allows.get("via")
        denied = meaning.denies.get("via", frozenset())
        for country, passing in self._passing.items():
            if (allowed is not None and country not in allowed) or country in denied:
                reached &= ~passing
        return reached | self._here

    def processing(self, bounds: Bounds) -> int:
        """The sites that may process within these bounds."""
        admitted = self.everywhere
        for _, axis in bounds.processing:
            admitted &= self.admitted(axis)
        return admitted

    def in_reach(self, bounds: Bounds) -> int:
        """The sites to which a request within these bounds may travel from the own site."""
        reached = self.everywhere
        for _, axis in bounds.transit:
            reached &= self.reached(axis)
        return reached

    def _sites(self, meaning: Meaning) -> int:
        if meaning.unknown is not None:
            return 0
        allows = [each for each in meaning.allows if each != "via"]
        if not meaning.anywhere and not allows:
            return 0
        admitted = self.everywhere
        for attribute in allows:
            admitted &= self._any_of(attribute, meaning.allows[attribute])
        for asked, values in meaning.denies.items():
            if asked != "via":
                admitted &= self._stating[asked] & ~self._any_of(asked, values)
        return admitted

    def _any_of(self, attribute: Attribute, values: Set[str]) -> int:
        having, union = self._with[attribute], 0
        for value in values:
            union |= having.get(value, 0)
        return union


def _index(
    attribute: Attribute, sites: Sequence[Site], blocs: Blocs
) -> tuple[dict[str, int], int]:
    """(sites by what they state, sites that state anything)."""
    as_stated: dict[str | None, list[int]] = {}
    for bit, site in enumerate(sites):
        as_stated.setdefault(stated_by(attribute, site), []).append(bit)
    having: dict[str, int] = {}
    stating = 0
    for stated, bits in as_stated.items():
        value = value_of(attribute, stated, blocs)
        if value is not None:
            union = 0
            for bit in bits:
                union |= 1 << bit
            having[value] = having.get(value, 0) | union
            stating |= union
    return having, stating

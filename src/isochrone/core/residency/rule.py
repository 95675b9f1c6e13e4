"""Whether one axis of a policy admits a site or a link: what is not clearly allowed is denied.

This is the rule itself, site by site, with the fact that decided; `site_sets.py` compiles the same
rule into bit sets. See docs/residency.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from isochrone.core.residency.blocs import Blocs
from isochrone.core.residency.terms import (
    SITE_ATTRIBUTES,
    Attribute,
    Axis,
    Meaning,
    brief_axis,
    meaning_of,
    name_key,
)
from isochrone.core.residency.terms import check_axis as check_axis
from isochrone.core.residency.terms import parse_axis as parse_axis
from isochrone.core.residency.terms import render_axis as render_axis
from isochrone.core.world.site import Link
from isochrone.core.world.tenant import ANY

DenialRule = Literal["residency", "transit", "attribute_missing", "policy_unknown"]


class Placed(Protocol):
    """What rules ask of: a site, or a place where clients enter one. None: not stated."""

    @property
    def name(self) -> str: ...

    @property
    def country(self) -> str | None: ...

    @property
    def operator(self) -> str | None: ...

    @property
    def parent(self) -> str | None: ...


UNBOUND: Axis = (ANY,)
POLICY, REQUEST = "the policy", "the request"  # whose axis it is, in the words of a denial


@dataclass(frozen=True, slots=True)
class Admitted:
    """The axis admits the site, or the link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """The axis does not admit it: by which rule, and the fact that decided."""

    rule: DenialRule
    detail: str


Verdict = Admitted | Denied

ADMITTED = Admitted()


def admits(axis: Axis, site: Placed, blocs: Blocs, *, whose: str = POLICY) -> Verdict:
    """Decide for one site. An attribute that an axis asks for and the site does not state denies,
    also where the axis only asks in order to deny."""
    if axis == UNBOUND:
        return ADMITTED
    meaning = meaning_of(axis, blocs)
    said = f"{whose} allows {brief_axis(axis)}"
    if meaning.unknown is not None:
        detail = f"nobody understands {meaning.unknown}, {said}"
        return Denied(rule="residency", detail=detail)
    asked = _asked(meaning)
    if not meaning.anywhere and not any(attribute in meaning.allows for attribute in asked):
        return Denied(rule="residency", detail=said)
    for attribute in asked:
        if value_of(attribute, stated_by(attribute, site), blocs) is None:
            detail = f"{_missing(attribute, site)}, {said}"
            return Denied(rule="attribute_missing", detail=detail)
    for attribute in asked:
        value = value_of(attribute, stated_by(attribute, site), blocs)
        allowed, denied = meaning.allows.get(attribute), meaning.denies.get(attribute, ())
        if (allowed is not None and value not in allowed) or value in denied:
            return Denied(rule="residency", detail=f"{_fact(attribute, site)}, {said}")
    return ADMITTED


def admits_link(axis: Axis, link: Link | None, blocs: Blocs, *, whose: str = POLICY) -> Verdict:
    """Decide for the way to another site: every country that it passes has to be admitted. Only
    `via:` terms ask of links; a link that does not state what it passes is then denied."""
    meaning = meaning_of(axis, blocs)
    if not meaning.asks_of_links:
        return ADMITTED
    said = f"{whose} allows transit by {brief_axis(axis)}"
    countries = passed_by(link, blocs)
    if countries is None:
        detail = f"the way there does not state the countries that it passes, {said}"
        return Denied(rule="attribute_missing", detail=detail)
    allowed, denied = meaning.allows.get("via"), meaning.denies.get("via", frozenset())
    wrong = [
        country for country in sorted(countries)
        if (allowed is not None and country not in allowed) or country in denied
    ]
    if wrong or meaning.unknown is not None:
        passes = ", ".join(wrong or sorted(countries)) or "no country"
        return Denied(rule="transit", detail=f"the way there passes {passes}, {said}")
    return ADMITTED


def admits_all(
    axes: Iterable[tuple[str, Axis]], site: Placed, blocs: Blocs
) -> Verdict:
    """Decide for one site by several axes, each with the words for whose it is."""
    for whose, axis in axes:
        verdict = admits(axis, site, blocs, whose=whose)
        if isinstance(verdict, Denied):
            return verdict
    return ADMITTED


def stated_by(attribute: Attribute, site: Placed) -> str | None:
    """What a site states of an attribute, as it states it."""
    if attribute == "place":
        return site.country
    if attribute == "site":
        return site.name
    return site.operator if attribute == "operator" else site.parent


def value_of(attribute: Attribute, stated: str | None, blocs: Blocs) -> str | None:
    """What is stated as axes compare it; None where nothing is stated that counts."""
    if attribute == "place":
        return stated if stated in blocs.countries else None
    if attribute == "site" or stated is None:
        return stated
    return name_key(stated) or None


def passed_by(link: Link | None, blocs: Blocs) -> frozenset[str] | None:
    """The countries that a link states; None where it states none, or one that nobody knows."""
    if link is None or not link.via or not blocs.countries.issuperset(link.via):
        return None
    return frozenset(link.via)


def _asked(meaning: Meaning) -> list[Attribute]:
    """The attributes of sites that an axis asks for, in a fixed order."""
    return [each for each in SITE_ATTRIBUTES if each in meaning.allows or each in meaning.denies]


def _fact(attribute: Attribute, site: Placed) -> str:
    if attribute == "operator":
        return f"the site is run by {site.operator}"
    if attribute == "parent":
        return f"the site's operator belongs to {site.parent}"
    if attribute == "site":
        return f"the site is {site.name}"
    return f"the site is in {site.country}"


def _missing(attribute: Attribute, site: Placed) -> str:
    if attribute == "place" and site.country is not None:
        return f"the site's country {site.country} is unknown"
    noun = "country" if attribute == "place" else attribute
    return f"the site states no {noun}"

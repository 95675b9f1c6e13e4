"""Terms of an axis: how people write them, and what a list of them means.

A term allows, or with a minus in front denies: `DE` and `EEA` a place (a country or a bloc),
`operator:NAME` who runs a site, `parent:NAME` who owns the operator in the end, `site:NAME` the
site itself, `via:DE` what a link passes. See docs/residency.md.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal
from unicodedata import normalize

from isochrone.core.residency.blocs import Blocs
from isochrone.core.world.tenant import ANY

Axis = tuple[str, ...]
Attribute = Literal["place", "operator", "parent", "site", "via"]

SITE_ATTRIBUTES: tuple[Attribute, ...] = ("place", "operator", "parent", "site")
DENY = "-"
_NOUNS: Mapping[Attribute, str] = {
    "place": "country", "operator": "operator", "parent": "parent", "site": "site",
}
BRIEF_LETTERS = 60  # a fleet's sites, all refused, then fit into the record of a request
_NAMED: Mapping[str, Attribute] = {
    "operator": "operator", "parent": "parent", "site": "site", "via": "via",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """An axis taken apart; values are country codes, name keys and site names.

    `anywhere`: it has `any`. `allows`: for each attribute that it allows values of, these values;
    all attributes have to agree. `denies`: likewise, and one that agrees is enough. `unknown`: the
    first denying term that nobody understands, so that nothing at all is admitted.
    """

    anywhere: bool
    allows: Mapping[Attribute, Set[str]]
    denies: Mapping[Attribute, Set[str]]
    unknown: str | None

    @property
    def asks_of_links(self) -> bool:
        """Whether it says anything about the way between sites."""
        return "via" in self.allows or "via" in self.denies


def meaning_of(axis: Axis, blocs: Blocs) -> Meaning:
    """What a list of terms means. A term that allows and that nobody understands admits nothing."""
    allows: dict[Attribute, set[str]] = {}
    denies: dict[Attribute, set[str]] = {}
    unknown = None
    for term in axis:
        if term == ANY:
            continue
        attribute, value, is_denial = _parts(term)
        values = _values(attribute, value, blocs)
        if is_denial and not values:
            unknown = unknown or term
        side = denies if is_denial else allows
        side.setdefault(attribute or "place", set()).update(values)
    return Meaning(anywhere=ANY in axis, allows=allows, denies=denies, unknown=unknown)


def name_key(name: str) -> str:
    """The key by which names of companies are compared: letters and digits in one case, a hyphen
    for whatever stands between them, so that `Acme, Inc.` and `acme-inc` are one. May be empty."""
    plain = normalize("NFKC", name).casefold()
    words = "".join(letter if letter.isalnum() else " " for letter in plain).split()
    return "-".join(words)


def parse_term(text: str) -> str:
    """A term in its one canonical form; what nobody understands stays as it is."""
    text = text.strip()
    sign = DENY if text.startswith(DENY) else ""
    named, colon, value = text[len(sign) :].strip().partition(":")
    named, value = named.strip(), value.strip()
    if not colon:
        return ANY if not sign and named.lower() == ANY else sign + named.upper()
    attribute = _NAMED.get(named.lower())
    if attribute is None:
        return text
    if attribute == "via":
        value = value.upper()
    elif attribute == "site":
        value = value.lower()
    else:
        value = name_key(value)
    return f"{sign}{attribute}:{value}"


def parse_axis(text: str) -> Axis:
    """The axis in `DE,EEA`, `any` or `EEA,-FR,parent:acme`, in canonical terms. Check it with
    `check_axis`."""
    return tuple(parse_term(term) for term in text.split(",") if term.strip())


def render_axis(axis: Axis) -> str:
    """The axis as people write it: `DE,EEA`; `nothing` when it is empty."""
    return ",".join(axis) if axis else "nothing"


def brief_axis(axis: Axis) -> str:
    """The axis for a sentence that is said of every site: cut where it is long."""
    whole = render_axis(axis)
    if len(whole) <= BRIEF_LETTERS:
        return whole
    shown = whole[: BRIEF_LETTERS + 1].split(",")[:-1]
    return ",".join([*shown, f"... ({len(axis)} in all)"])


def check_axis(axis: Axis, blocs: Blocs, *, links: bool = False) -> list[str]:
    """Every problem of an axis that somebody wants to store; empty when it is usable. `links`: it
    bounds transit, so that it may ask of links too."""
    return check_wish(axis, blocs, links=links) or _nothing_left((axis,), blocs)


def check_wish(axis: Axis, blocs: Blocs, *, links: bool = False) -> list[str]:
    """The same of what one request asks for, which may well leave no site: it is told so."""
    if not axis:
        return [f"the list is empty: name countries or blocs, or {ANY!r}"]
    problems: list[str] = []
    seen: set[str] = set()
    for term in axis:
        if term in seen:
            problems.append(f"{term!r} is listed twice")
        seen.add(term)
        problems += _problems_of(term, blocs, links=links)
    meaning = meaning_of(axis, blocs)
    allows = [attribute for attribute in meaning.allows if attribute != "via"]
    if meaning.anywhere and allows:
        problems.append(
            f"{ANY!r} stands alone or beside what is denied: drop it, or drop the other terms"
        )
    if not meaning.anywhere and not allows:
        problems.append(f"nothing is allowed: name what is, or {ANY!r}")
    return problems


def check_together(residency: Axis, caches: Axis | None, blocs: Blocs) -> list[str]:
    """What is wrong with the two axes of one policy that each are usable: a site that processes
    also caches, so both have to admit it."""
    if caches is None:
        return []
    return [
        f"residency and caches: {fault}" for fault in _nothing_left((residency, caches), blocs)
    ]


def _nothing_left(axes: Sequence[Axis], blocs: Blocs) -> list[str]:
    """Whether axes that all have to admit can admit no site whatever it states. Which sites there
    are is not asked: one that they admit may join later."""
    meanings = [meaning_of(axis, blocs) for axis in axes]
    for attribute in SITE_ATTRIBUTES:
        denied = {value for each in meanings for value in each.denies.get(attribute, ())}
        allowed = [each.allows[attribute] for each in meanings if attribute in each.allows]
        if attribute == "place" and denied:
            allowed.append(blocs.countries)
        if allowed and not frozenset(allowed[0]).intersection(*allowed[1:]) - denied:
            return [
                f"no {_NOUNS[attribute]} is left, so that no site can ever be allowed: what is "
                "allowed has to go beyond what is denied"
                if len(axes) == 1 else
                f"no {_NOUNS[attribute]} is left that both allow, so that no site can ever process"
            ]
    return []


def _parts(term: str) -> tuple[Attribute | None, str, bool]:
    """(attribute, value, whether it denies) of a canonical term; None where nobody knows it."""
    is_denial = term.startswith(DENY)
    named, colon, value = (term[1:] if is_denial else term).partition(":")
    if not colon:
        return "place", named, is_denial
    return _NAMED.get(named), value, is_denial


def _values(attribute: Attribute | None, value: str, blocs: Blocs) -> Set[str]:
    """The attribute values that a term stands for; empty for one that nobody understands."""
    if attribute is None or not value:
        return frozenset()
    if attribute in ("place", "via"):
        return blocs.countries_of(value)
    return frozenset((value,))


def _problems_of(term: str, blocs: Blocs, *, links: bool) -> list[str]:
    if term == ANY:
        return []
    attribute, value, _ = _parts(term)
    if attribute is None:
        named = ", ".join(f"{name}:" for name in _NAMED)
        return [f"{term!r} asks of something unknown; expected a country, a bloc, or {named}"]
    if attribute == "via" and not links:
        return [f"{term!r} asks of links, which only transit has"]
    if _values(attribute, value, blocs):
        return []
    if attribute in ("place", "via"):
        return [_unknown_place(term, value, blocs)]
    return [f"{term!r} names nothing"]


def _unknown_place(term: str, value: str, blocs: Blocs) -> str:
    names = sorted(blocs.members)
    close = get_close_matches(value.upper(), names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return (
        f"{term!r} is neither an ISO 3166-1 alpha-2 country code nor a bloc "
        f"({', '.join(names)}){hint}"
    )

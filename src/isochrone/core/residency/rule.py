"""Whether one axis of a policy admits a country: everything that is not clearly allowed is denied.

An axis is a tuple of country codes and bloc names, or `("any",)`. It is used twice: `residency`
bounds the serving site, `transit` the ingress. See docs/residency.md.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from isochrone.core.residency.blocs import Blocs
from isochrone.core.world.tenant import ANY

DenialRule = Literal["residency", "transit", "attribute_missing", "policy_unknown"]

UNBOUND = (ANY,)


@dataclass(frozen=True, slots=True)
class Admitted:
    """The axis admits the country."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """The axis does not admit the country: by which rule, and the fact that decided."""

    rule: DenialRule
    detail: str


Verdict = Admitted | Denied

ADMITTED = Admitted()


def allowed_countries(axis: tuple[str, ...], blocs: Blocs) -> frozenset[str] | None:
    """Countries that the axis admits; None means every place, stated or not.

    Only `("any",)` itself is unbound: `any` beside other terms admits nothing of its own, and an
    unknown term admits nothing.
    """
    if axis == UNBOUND:
        return None
    allowed: frozenset[str] = frozenset()
    for term in axis:
        allowed |= blocs.countries_of(term)
    return allowed


def admits(axis: tuple[str, ...], country: str | None, blocs: Blocs) -> Verdict:
    """Decide for one country; a missing or unknown country is admitted by `("any",)` only."""
    allowed = allowed_countries(axis, blocs)
    if allowed is None:
        return ADMITTED
    if country is None:
        return Denied(
            rule="attribute_missing",
            detail=f"the site states no country, the policy allows {render_axis(axis)}",
        )
    if country not in blocs.countries:
        return Denied(
            rule="attribute_missing",
            detail=f"the site's country {country} is unknown, the policy allows "
            f"{render_axis(axis)}",
        )
    if country in allowed:
        return ADMITTED
    return Denied(
        rule="residency", detail=f"the site is in {country}, the policy allows {render_axis(axis)}"
    )


def check_axis(axis: tuple[str, ...], blocs: Blocs) -> list[str]:
    """Every problem of an axis that somebody wants to store; empty when it is usable."""
    if not axis:
        return [f"the list is empty: name countries or blocs, or {ANY!r}"]
    problems = []
    if ANY in axis and len(axis) > 1:
        problems.append(f"{ANY!r} stands alone: drop it, or drop the other terms")
    seen = set()
    for term in axis:
        if term in seen:
            problems.append(f"{term!r} is listed twice")
        seen.add(term)
        if term != ANY and not blocs.countries_of(term):
            problems.append(_unknown_term(term, blocs))
    return problems


def render_axis(axis: tuple[str, ...]) -> str:
    """The axis as people write it: `DE,EEA`; `nothing` when it is empty."""
    return ",".join(axis) if axis else "nothing"


def parse_axis(text: str) -> tuple[str, ...]:
    """The axis in `DE,EEA` or `any`; codes may be in lower case. Check it with `check_axis`."""
    terms = (term.strip() for term in text.split(","))
    return tuple(ANY if term.lower() == ANY else term.upper() for term in terms if term)


def _unknown_term(term: str, blocs: Blocs) -> str:
    names = sorted(blocs.members)
    close = get_close_matches(term.upper(), names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return (
        f"{term!r} is neither an ISO 3166-1 alpha-2 country code nor a bloc "
        f"({', '.join(names)}){hint}"
    )

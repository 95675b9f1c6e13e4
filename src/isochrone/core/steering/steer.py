"""Which ingresses a name is answered with, for clients at one place, and why not with the others.

The rule of entry and the health of the sites make the *openings* of a rule, which many answers
share; an answer adds the place. Nothing that the rule forbids, and nothing unhealthy, is ever
answered: where that leaves nobody, nobody is answered, and the outcome says which of the two it
was. See docs/dns.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from isochrone.core.ids import SiteName
from isochrone.core.residency.blocs import Blocs
from isochrone.core.residency.rule import Admitted, admits
from isochrone.core.rng import Random
from isochrone.core.steering.ingress import Ingress, IngressMap
from isochrone.core.steering.place import Family, Place

UnfitRule = Literal["not_joined", "draining", "digest_stale", "unreachable"]
SteeringRule = Literal[
    "policy_unknown", "view_too_old", "transit", "attribute_missing", "not_joined", "draining",
    "digest_stale", "unreachable", "no_address", "farther", "not_drawn",
]
Mask = np.ndarray[tuple[Any, ...], np.dtype[np.bool_]]
Outcome = Literal["served", "no_address", "none_healthy", "none_allowed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfit:
    """An ingress that must not get clients now, and the fact that says so."""

    rule: UnfitRule
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unbound:
    """Nothing can be allowed, whatever the site: the policy of the name is missing or too old."""

    rule: Literal["policy_unknown", "view_too_old"]
    detail: str


Binding = tuple[str, ...] | Unbound  # the transit axis of a name, or why there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class NotAnswered:
    """An ingress that was left out, by which rule, and the fact that decided."""

    site: SiteName
    rule: SteeringRule
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ties:
    """How near counts as equal: within `share` of the nearest round trip or `ms`, the larger."""

    ms: float = 3.0
    share: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Openings:
    """Where the requests of one rule may enter now. Arrays have a cell for each ingress of `map`:
    `allowed` by the rule at a site that has joined, `is_open` also healthy."""

    map: IngressMap
    binding: Binding
    unfit: Mapping[SiteName, Unfit]
    blocs: Blocs
    allowed: Mask
    is_open: Mask
    reachable_by: Mapping[Family, Mask]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """An ingress to answer with, and the round trip that is expected to it."""

    ingress: Ingress
    rtt_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """An answer. `chosen` is empty unless the outcome is `served`:

    no_address     somebody is open, but has no address of this family; or nobody who is allowed
                   has any
    none_healthy   the rule allows some ingress with an address, and none of these is healthy
    none_allowed   the rule allows no ingress of a site that has joined

    `depends`: a client elsewhere might get another answer.
    """

    openings: Openings
    place: Place
    family: Family
    chosen: tuple[Chosen, ...]
    outcome: Outcome
    depends: bool
    within_ms: float


def openings_of(
    ingress_map: IngressMap, binding: Binding, unfit: Mapping[SiteName, Unfit], blocs: Blocs
) -> Openings:
    """Compile a rule and the present health. `unfit` may name sites that joined and do not drain
    only; those two are known of the ingress itself."""
    ingresses = ingress_map.ingresses
    allowed = np.array(
        [
            each.joined
            and not isinstance(binding, Unbound)
            and isinstance(admits(binding, each, blocs), Admitted)
            for each in ingresses
        ],
        dtype=np.bool_,
    )
    fit = np.array([unfitness(each, unfit) is None for each in ingresses], dtype=np.bool_)
    families: tuple[Family, ...] = (4, 6)
    return Openings(
        map=ingress_map, binding=binding, unfit=unfit, blocs=blocs, allowed=allowed,
        is_open=allowed & fit,
        reachable_by={
            family: np.array([bool(each.addresses(family)) for each in ingresses], dtype=np.bool_)
            for family in families
        },
    )


def unfitness(ingress: Ingress, unfit: Mapping[SiteName, Unfit]) -> Unfit | None:
    """Why this ingress must not get clients; None when it may."""
    if not ingress.joined:
        return Unfit(rule="not_joined", detail="the site has not joined")
    if ingress.draining:
        return Unfit(rule="draining", detail="the site is being drained")
    return unfit.get(ingress.site)


def steer(
    openings: Openings, place: Place, family: Family, *, most: int, ties: Ties, rng: Random
) -> Steering:
    """The nearest open ingresses with an address of this family: at most `most` of those that count
    as equally near, drawn by `rng` in random order."""
    rtt_ms = openings.map.rtt_ms(place)
    able = openings.is_open & openings.reachable_by[family]
    candidates = np.flatnonzero(able)
    if not len(candidates):
        return Steering(
            openings=openings, place=place, family=family, chosen=(), outcome=_why_none(openings),
            depends=False, within_ms=0.0,
        )
    costs_ms = rtt_ms[candidates]
    nearest_ms = float(costs_ms.min())
    within_ms = nearest_ms + max(ties.ms, ties.share * nearest_ms)
    near = candidates[costs_ms <= within_ms]
    drawn = [int(near[number]) for number in rng.sample(range(len(near)), min(most, len(near)))]
    return Steering(
        openings=openings, place=place, family=family,
        chosen=tuple(
            Chosen(ingress=openings.map.ingresses[number], rtt_ms=float(rtt_ms[number]))
            for number in drawn
        ),
        outcome="served", depends=len(candidates) > 1, within_ms=within_ms,
    )


def _why_none(openings: Openings) -> Outcome:
    addressed = openings.reachable_by[4] | openings.reachable_by[6]
    if (openings.is_open & addressed).any():
        return "no_address"
    if (openings.allowed & addressed).any():
        return "none_healthy"
    return "no_address" if openings.allowed.any() else "none_allowed"


def left_out(steering: Steering) -> tuple[NotAnswered, ...]:
    """Why each of the other ingresses was not answered, nearest first. Rules in the order in which
    they are asked; the first that refuses is named."""
    chosen = {each.ingress.site for each in steering.chosen}
    openings = steering.openings
    rtt_ms = openings.map.rtt_ms(steering.place)
    return tuple(
        _refusal(steering, openings.map.ingresses[number], float(rtt_ms[number]))
        for number in np.argsort(rtt_ms, kind="stable")
        if openings.map.ingresses[number].site not in chosen
    )


def _refusal(steering: Steering, ingress: Ingress, rtt_ms: float) -> NotAnswered:
    openings = steering.openings
    binding = openings.binding
    if isinstance(binding, Unbound):
        return NotAnswered(site=ingress.site, rule=binding.rule, detail=binding.detail)
    verdict = admits(binding, ingress, openings.blocs)
    if not isinstance(verdict, Admitted):
        rule: SteeringRule = (
            "attribute_missing" if verdict.rule == "attribute_missing" else "transit"
        )
        return NotAnswered(site=ingress.site, rule=rule, detail=verdict.detail)
    unfit = unfitness(ingress, openings.unfit)
    if unfit is not None:
        return NotAnswered(site=ingress.site, rule=unfit.rule, detail=unfit.detail)
    if not ingress.addresses(steering.family):
        detail = f"the site has no IPv{steering.family} address"
        return NotAnswered(site=ingress.site, rule="no_address", detail=detail)
    if rtt_ms > steering.within_ms:
        detail = f"{rtt_ms:.1f} ms away; up to {steering.within_ms:.1f} ms counts as nearest"
        return NotAnswered(site=ingress.site, rule="farther", detail=detail)
    detail = f"as near as what was answered ({rtt_ms:.1f} ms); others were drawn"
    return NotAnswered(site=ingress.site, rule="not_drawn", detail=detail)

"""Checks the axes of a policy as callers give them: terms that allow or deny, or `any`."""

from collections.abc import Sequence

from pydantic import BaseModel

from isochrone.control.api.shapes import Body
from isochrone.core.errors import InvalidInput
from isochrone.core.ids import OrgId, PolicyId
from isochrone.core.residency.blocs import Blocs
from isochrone.core.residency.terms import Axis, check_axis, check_together, parse_axis
from isochrone.core.world.tenant import ANY, Policy

MOST_TERMS = 300
MOST_LETTERS = 100  # of a term


class PolicyAxes(Body):
    """Each axis lists terms: country codes and blocs (`DE`, `EEA`), `operator:NAME`, `parent:NAME`,
    `site:NAME`, each with a minus in front to deny it, or `any`. Kinds of attribute have to agree,
    values of one kind widen. `transit` may have `via:` terms, which ask of links. Without `caches`
    they are bound as `residency` is."""

    residency: tuple[str, ...] = (ANY,)
    transit: tuple[str, ...] = (ANY,)
    caches: tuple[str, ...] | None = None
    logs: tuple[str, ...] = (ANY,)


class AxesShape(BaseModel):
    """The axes of a policy; `caches` is null where they are bound as `residency` is."""

    residency: list[str]
    transit: list[str]
    caches: list[str] | None
    logs: list[str]


def axes_of(policy: Policy) -> AxesShape:
    return AxesShape(
        residency=list(policy.residency), transit=list(policy.transit),
        caches=None if policy.caches is None else list(policy.caches), logs=list(policy.logs),
    )


def policy_of(
    wish: PolicyAxes, *, policy_id: str, org_id: OrgId, blocs: Blocs, also: Sequence[str] = ()
) -> Policy:
    """The policy with all axes in their one canonical order; raises InvalidInput with all faults.

    Codes may be given in lower case, names of companies as they are written. `also`: faults that
    were found before.
    """
    problems: list[str] = list(also)
    axes: dict[str, tuple[str, ...]] = {}
    given = (
        ("residency", wish.residency), ("transit", wish.transit), ("caches", wish.caches),
        ("logs", wish.logs),
    )
    for name, terms in given:
        if terms is None:
            continue
        axis = tuple(term for text in terms for term in parse_axis(text))
        faults = too_much(axis) or check_axis(axis, blocs, links=name == "transit")
        problems += [f"{name}: {fault}" for fault in faults]
        axes[name] = tuple(sorted(axis))
    if not problems:
        problems += check_together(axes["residency"], axes.get("caches"), blocs)
    if problems:
        raise InvalidInput(problems)
    return Policy(
        id=PolicyId(policy_id), org_id=org_id, residency=axes["residency"],
        transit=axes["transit"], caches=axes.get("caches"), logs=axes["logs"],
    )


def too_much(axis: Axis) -> list[str]:
    """What is wrong with its size: every gateway holds every policy and all that was sold."""
    if len(axis) > MOST_TERMS:
        return [f"{len(axis)} terms; at most {MOST_TERMS} are possible"]
    longest = max(map(len, axis), default=0)
    if longest > MOST_LETTERS:
        return [f"a term of {longest} letters; at most {MOST_LETTERS} are possible"]
    return []

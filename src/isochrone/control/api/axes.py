"""Checks the two axes of a policy as callers give them: countries, blocs, or `any`."""

from collections.abc import Sequence

from isochrone.core.errors import InvalidInput
from isochrone.core.ids import OrgId, PolicyId
from isochrone.core.residency.blocs import Blocs
from isochrone.core.residency.rule import check_axis, parse_axis
from isochrone.core.world.tenant import Policy

MOST_TERMS = 300


def policy_of(
    residency: Sequence[str], transit: Sequence[str], *, policy_id: str, org_id: OrgId, blocs: Blocs
) -> Policy:
    """The policy with both axes in their one canonical order; raises InvalidInput with all faults.

    Codes may be given in lower case.
    """
    problems: list[str] = []
    axes = []
    for name, terms in (("residency", residency), ("transit", transit)):
        axis = tuple(term for text in terms for term in parse_axis(text))
        faults = check_axis(axis, blocs)
        if len(axis) > MOST_TERMS:
            faults = [f"{len(axis)} terms; at most {MOST_TERMS} are possible"]
        problems += [f"{name}: {fault}" for fault in faults]
        axes.append(tuple(sorted(axis)))
    if problems:
        raise InvalidInput(problems)
    return Policy(id=PolicyId(policy_id), org_id=org_id, residency=axes[0], transit=axes[1])

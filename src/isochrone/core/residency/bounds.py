"""What bounds one request: the axes of its key's policy, and what its own headers narrow.

Every axis of a request is a list of axes all of which have to admit. A header only adds to that
list, so it cannot widen anything; that is why narrowing needs no arithmetic of terms.
"""

from dataclasses import dataclass

from isochrone.core.residency.rule import POLICY, REQUEST, UNBOUND, Verdict, render_axis
from isochrone.core.residency.terms import Axis
from isochrone.core.world.tenant import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Narrowing:
    """What the headers of a request ask for beyond its policy; `("any",)` asks for nothing.

    `residency` narrows processing and caches, `transit` the ingress and the links.
    """

    residency: Axis = UNBOUND
    transit: Axis = UNBOUND

    @property
    def hop_text(self) -> str:
        """What has to travel with a hop, for the destination to check; empty for nothing. Transit
        is judged where the request enters."""
        return "" if self.residency == UNBOUND else render_axis(self.residency)

    @property
    def text(self) -> str:
        """All of it: no two wishes have the same."""
        return f"{render_axis(self.residency)}\n{render_axis(self.transit)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Axes that all have to admit, each with the words for whose it is; without the unbound.

    A site that processes also caches, since every engine keeps the prompts that it has computed:
    so `processing` has the axes of caches too. `caches` alone bounds what others remember.
    """

    processing: tuple[tuple[str, Axis], ...]
    caches: tuple[tuple[str, Axis], ...]
    transit: tuple[tuple[str, Axis], ...]
    logs: tuple[tuple[str, Axis], ...]


def bounds_of(policy: Policy, narrowing: Narrowing | None) -> Bounds:
    """The bounds of one request under its policy."""
    narrowed = UNBOUND if narrowing is None else narrowing.residency
    entering = UNBOUND if narrowing is None else narrowing.transit
    caches = policy.residency if policy.caches is None else policy.caches
    return Bounds(
        processing=_bound((POLICY, policy.residency), (CACHES, caches), (REQUEST, narrowed)),
        caches=_bound((CACHES, caches), (REQUEST, narrowed)),
        transit=_bound((POLICY, policy.transit), (REQUEST, entering)),
        logs=_bound((POLICY, policy.logs)),
    )


CACHES = "the policy of caches"


def _bound(*axes: tuple[str, Axis]) -> tuple[tuple[str, Axis], ...]:
    """Without those that bound nothing, and without one that says what another said before."""
    kept: list[tuple[str, Axis]] = []
    for whose, axis in axes:
        if axis != UNBOUND and all(axis != known for _, known in kept):
            kept.append((whose, axis))
    return tuple(kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What one site may do for the requests of a policy.

    `caches`: remember anything that was computed of a prompt. `logs`: write down what the customer
    wrote for its own reference. `references_leave`: such a reference may go into records that leave
    the site for a place that no view knows, as usage does.
    """

    processing: Verdict
    caches: bool
    logs: bool
    references_leave: bool

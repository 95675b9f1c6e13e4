"""Holds what answers are decided from: the ingresses, who is unfit, the openings of each rule.

Openings are compiled when a rule is first asked for and kept until the estate or the health
changes, so that a query costs a look-up and a few array operations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isochrone.core.estimate.round_trip import DistanceRtt
from isochrone.core.ids import PolicyId, SiteName
from isochrone.core.residency.blocs import Blocs
from isochrone.core.steering.ingress import IngressMap
from isochrone.core.steering.steer import Binding, Openings, Unbound, Unfit, openings_of
from isochrone.dns.estate import Estate, IpAddress, ingresses_of

MOST_OPENINGS = 256  # rules are spelled by whoever asks: `de-fr`, `de-it`, ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OfPolicy:
    """The transit axis of this policy, as the view has it."""

    policy: PolicyId


Rule = tuple[str, ...] | OfPolicy


class Director:
    """Owned by one event loop. `estate` is None until something is known."""

    def __init__(self, blocs: Blocs, by_distance: Sequence[DistanceRtt]) -> None:
        self.blocs = blocs
        self.estate: Estate | None = None
        self.view_age_s = 0.0
        self._by_distance = by_distance
        self._addresses: Mapping[SiteName, tuple[IpAddress, ...]] = {}
        self._map: IngressMap | None = None
        self._unfit: Mapping[SiteName, Unfit] = {}
        self._openings: dict[Binding, Openings] = {}

    def learn(
        self, estate: Estate, addresses: Mapping[SiteName, tuple[IpAddress, ...]]
    ) -> None:
        """Take in what is known now; `addresses` as the file states them."""
        if estate == self.estate and addresses == self._addresses:
            return
        self.estate, self._addresses = estate, addresses
        ingresses = ingresses_of(estate, addresses)
        self._map = IngressMap(ingresses, estate.links, self._by_distance)
        self._openings.clear()

    def judge(self, unfit: Mapping[SiteName, Unfit], view_age_s: float) -> None:
        """Take in who is unfit now, and how old the view is."""
        self.view_age_s = view_age_s
        if unfit != self._unfit:
            self._unfit = unfit
            self._openings.clear()

    @property
    def unfit(self) -> Mapping[SiteName, Unfit]:
        return self._unfit

    def openings(self, rule: Rule) -> Openings | None:
        """Where requests under this rule may enter now; None while nothing is known."""
        if self._map is None:
            return None
        binding = self._binding(rule)
        openings = self._openings.get(binding)
        if openings is None:
            if len(self._openings) >= MOST_OPENINGS:
                self._openings.clear()
            openings = openings_of(self._map, binding, self._unfit, self.blocs)
            self._openings[binding] = openings
        return openings

    def _binding(self, rule: Rule) -> Binding:
        if not isinstance(rule, OfPolicy):
            return rule
        policy = None if self.estate is None else self.estate.policies.get(rule.policy)
        if policy is None:
            detail = "the name's policy is not in the view, so nothing is allowed"
            return Unbound(rule="policy_unknown", detail=detail)
        if self.view_age_s > policy.max_view_age_s:
            detail = f"the view is older than the {policy.max_view_age_s:g} s of the policy"
            return Unbound(rule="view_too_old", detail=detail)
        return policy.transit

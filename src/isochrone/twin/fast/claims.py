"""What tenants of the simulation were sold, and which of their requests that pays for.

As `gateway/entitled.py` does with each gateway's allowance. Here a tenant has one allowance, as if
its sites had lent one another all that they asked for: loans and letters are judged elsewhere, see
docs/entitlements.md.
"""

from isochrone.core.admission.allowance import Allowance
from isochrone.core.admission.class_line import NEVER_NS
from isochrone.core.admission.classes import ON_DEMAND, RESERVED
from isochrone.core.admission.entitlement import OUTPUT_WEIGHT
from isochrone.twin.fast.arrivals import Arrival
from isochrone.twin.fast.fleet import Fleet


class Claims:
    """Of one run. `any_sold`: whether anything was; `tok_s[site]`: of all tenants together."""

    def __init__(self, fleet: Fleet) -> None:
        self.tok_s = [0.0] * len(fleet.sites)
        self._allowances: list[Allowance | None] = []
        for tenant in fleet.tenants:
            sold = 0
            for site, tok_s in tenant.sold_tok_s.items():
                self.tok_s[site] += tok_s
                sold += tok_s
            allowance = Allowance(0)
            allowance.set_slice(sold, NEVER_NS, 0)
            self._allowances.append(allowance if sold else None)
        self.any_sold = sum(self.tok_s) > 0.0

    def claim(self, arrival: Arrival, now_ns: int) -> int:
        """What a request takes of what was sold to its tenant; 0 where that does not pay for it."""
        allowance = self._allowances[arrival.tenant]
        tokens = arrival.prompt_tokens + OUTPUT_WEIGHT * arrival.expected_tokens
        return tokens if allowance is not None and allowance.spend(tokens, now_ns) else 0

    def settle(self, arrival: Arrival, claimed: int, used: bool, now_ns: int) -> None:
        """One that was paid for has ended, or, unless it was `used`, never began."""
        allowance = self._allowances[arrival.tenant]
        assert allowance is not None, "it was claimed from it"
        tokens = arrival.prompt_tokens + OUTPUT_WEIGHT * arrival.output_tokens if used else 0
        allowance.settle(claimed, tokens, now_ns)


def rank_of(arrival: Arrival, claimed: int) -> int:
    """The class in which a request is served."""
    return ON_DEMAND if arrival.class_ == RESERVED and not claimed else arrival.class_

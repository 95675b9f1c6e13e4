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
from isochrone.twin.fast.gateways import Place, Sent


class Claims:
    """Of one run. `tok_s[site]`: what was sold there to all tenants together."""

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
        self._any_sold = sum(self.tok_s) > 0.0

    def began(self, sent: Sent, arrival: Arrival, now_ns: int) -> None:
        """Say in which class a request is served: of the class `reserved` what its tenant was sold
        pays for, else on demand; as it says itself where nobody was sold anything."""
        sent.rank = arrival.class_
        if not self._any_sold or sent.rank != RESERVED:
            return
        allowance = self._allowances[arrival.tenant]
        tokens = arrival.prompt_tokens + OUTPUT_WEIGHT * arrival.expected_tokens
        if allowance is not None and allowance.spend(tokens, now_ns):
            sent.claimed = tokens
        else:
            sent.rank = ON_DEMAND

    def ended(self, sent: Sent, arrival: Arrival, used: bool, now_ns: int) -> None:
        """Settle what it took, if it took any; all of that comes back unless it was `used`."""
        allowance = self._allowances[arrival.tenant]
        if sent.claimed and allowance is not None:
            tokens = arrival.prompt_tokens + OUTPUT_WEIGHT * arrival.output_tokens if used else 0
            allowance.settle(sent.claimed, tokens, now_ns)

    def promise(self, place: Place, site: int, now_ns: int) -> None:
        """Tell the queue of a site what is in force there."""
        if self._any_sold:
            place.queue.promises(self.tok_s[site], now_ns)

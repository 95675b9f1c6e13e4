"""Which requests are `reserved`: those that what was sold to their organisation pays for.

The ingress spends, from its allowance, what a request is expected to use, and settles it at the
end. What it cannot pay for and sends to another site, that site pays for in the same way, if it
can, or has the entitlement's cashier pay (`paying.py`). Else, or where the chosen site is outside
the entitlement's residency, the request is served as `on_demand`. See docs/entitlements.md.
"""

from typing import Final

from isochrone.core.admission.allowance import BURST_S, Allowance
from isochrone.core.admission.entitlement import OUTPUT_WEIGHT, in_force
from isochrone.core.admission.payments import PAY_NS, Payment, Purse
from isochrone.core.ids import EntitlementId, ModelName, OrgId, SiteName
from isochrone.core.metering.event import Tokens
from isochrone.core.residency.rule import Admitted, admits
from isochrone.core.routing.choice import UnpaidBecause
from isochrone.core.routing.table import RoutingTable
from isochrone.core.world.entitlement import Entitlement
from isochrone.core.world.tenant import ApiKey, Class
from isochrone.gateway.request import InferenceRequest
from isochrone.gateway.view_cache import ViewCache

MEAN_OVER: Final = 16  # requests, of which the output is averaged
_LINES: Final[dict[str, str]] = {
    class_: f"x-isochrone-class: {class_}\r\n" for class_ in ("reserved", "on_demand")
}


class Served:
    """The sites that an axis admits, worked out as they are asked for."""

    __slots__ = ("_axis", "_known", "_table", "_view")

    def __init__(self, axis: tuple[str, ...], view: ViewCache) -> None:
        self._axis = axis
        self._view = view
        self._table: RoutingTable = view.table
        self._known: dict[SiteName, bool] = {}

    def admits(self, site: SiteName) -> bool:
        """False for a site that is unknown, or whose attributes are."""
        table = self._view.table
        if table is not self._table:
            self._table = table
            self._known.clear()
        known = self._known.get(site)
        if known is None:
            noun = table.view.sites.get(site)
            known = noun is not None and isinstance(
                admits(self._axis, noun, table.blocs), Admitted
            )
            self._known[site] = known
        return known


class Sold:
    """One entitlement as requests spend it here. `honoured` and `refused` count requests,
    `used_tokens` what the former used, weighted. `purse`: where it may be paid elsewhere, too."""

    __slots__ = (
        "allowance", "entitlement", "honoured", "mean_output", "most_tokens", "purse", "refused",
        "served", "used_tokens",
    )

    def __init__(
        self, entitlement: Entitlement, allowance: Allowance, served: Served,
        purse: Purse | None = None,
    ) -> None:
        self.entitlement = entitlement
        self.purse = purse
        self.allowance = allowance
        self.served = served
        self.most_tokens: int = entitlement.tok_s * BURST_S
        self.mean_output = 0.0  # of an answer, in tokens; 0 before the first
        self.honoured = 0
        self.refused = 0
        self.used_tokens = 0

    @property
    def is_open(self) -> bool:
        """Whether it is in its window, as far as is known here."""
        purse = self.purse
        return purse is None or purse.is_open

    def expected_tokens(self, prompt: int, most_output: int) -> int:
        """What a request will use, weighted: its prompt, and output as of late or as it limits.
        Whatever is more than all sites may ever have saved up is a debt in the end."""
        output, mean = most_output, self.mean_output
        if 0.0 < mean < output:
            output = int(mean) + 1
        tokens = prompt + OUTPUT_WEIGHT * output
        return tokens if tokens < self.most_tokens else self.most_tokens

    def count(self, tokens: Tokens, paid_there: int = 0) -> int:
        """A request that it has paid for has ended; what it used, weighted, beyond what another
        site has paid and counted."""
        output = tokens.output
        used = max(_weighted(tokens) - paid_there, 0)
        self.honoured += used > 0 and not paid_there
        self.used_tokens += used
        if output:
            mean = self.mean_output
            self.mean_output = mean + (output - mean) / MEAN_OVER if mean else float(output)
        return used


def _weighted(tokens: Tokens) -> int:
    return tokens.input_uncached + tokens.input_cached + OUTPUT_WEIGHT * tokens.output


_NOTHING_SOLD: Final[tuple[Sold, ...]] = ()
_NOTHING_TO_ASK: Final[tuple[tuple[Sold, int, bool], ...]] = ()


class Claim:
    """What one request takes of what was sold. `asked`: the class that it is for. `unpaid`: the
    gateway that it is sent to is to pay for it, as nothing here can. `payment`: what the cashier
    was asked for, or has paid."""

    __slots__ = (
        "_asked_ns", "_class", "_counts", "_empty", "_lines", "_not_paid", "_options", "_output",
        "_paid_there", "_prompt", "_spent", "_to_ask", "_tokens", "_told", "asked", "payment",
        "unpaid",
    )

    def __init__(
        self, options: tuple[Sold, ...], asked: Class, request: InferenceRequest, lines: str
    ) -> None:
        self.asked: Class = asked
        self.unpaid = False
        self.payment: Payment | None = None
        self._class: Class = asked
        self._options = options
        self._prompt = request.prompt_tokens
        self._output = request.output_tokens
        self._lines = lines
        self._spent: Sold | None = None
        self._tokens = 0
        self._counts = True  # as demand of this site
        self._empty: Sold | None = None  # what could not pay for it, the last that was tried
        self._to_ask = _NOTHING_TO_ASK  # whose cashier may, with what, and the demand that it is
        self._asked_ns = -1  # when the first of those was asked
        self._not_paid: UnpaidBecause = "spent"  # of what could not
        self._told = False  # the gateway that was to pay said in which class it serves it
        self._paid_there = 0  # by that one, for the part of the answer that it served

    def at(
        self, site: SiteName, now_ns: int, another: bool, *, begun: Tokens | None = None
    ) -> Class:
        """The class in which the request is served at a site; spends what that takes, or gives
        back what was spent for a site where it does not count. `another`: a gateway stands there
        that may pay for it. `begun`: its client has been told the class, and so much of the answer:
        it may lose what that says, and gains nothing."""
        spent = self._spent
        if begun is not None and self._class != self.asked:
            self.unpaid = False
            return self._class
        if begun is not None and self._told:
            self._paid_there = _weighted(begun)
        if spent is not None:
            if spent.served.admits(site):
                return self._class
            if self.payment is not None:
                self.give_up(now_ns)
            else:
                spent.allowance.settle(self._tokens, 0, now_ns, counts=self._counts)
            self._spent = None
        elif self.payment is not None:
            if not another and self._empty is not None and self._empty.served.admits(site):
                return self._class  # it may come yet
            self.give_up(now_ns)
        reserved = self.asked == "reserved"
        another = another and reserved
        self._class, self._empty, self._told = "on_demand", None, False
        self._not_paid, self._to_ask, self._asked_ns = "spent", _NOTHING_TO_ASK, -1
        for sold in self._options:
            if sold.is_open and sold.served.admits(site):
                tokens, purse = sold.expected_tokens(self._prompt, self._output), sold.purse
                counts = not reserved or purse is None or purse.counts(tokens, now_ns)
                self._tokens, self._counts = tokens, counts
                if sold.allowance.spend(tokens, now_ns, another_may=another, counts=counts):
                    self._spent, self._class = sold, self.asked
                    self._empty, self._to_ask = None, _NOTHING_TO_ASK
                    break
                self._empty = sold
                if reserved and purse is not None:
                    self._to_ask += ((sold, tokens, counts),)
        self.unpaid = another and self._empty is not None
        return self._class

    def answered(self, class_: Class) -> Class:
        """The gateway that was to pay for it serves it in this class, and counts it."""
        self._class, self._empty, self.unpaid = class_, None, False
        self._told, self._to_ask = True, _NOTHING_TO_ASK
        return class_

    @property
    def unpaid_because(self) -> UnpaidBecause | None:
        """Why it is not served in the class that it is for; None where it is, or nobody has been
        asked to serve it."""
        if self._class == self.asked:
            return None
        if self._told:
            return "spent_there"
        if self._empty is not None:
            return self._not_paid
        return "residency" if any(each.is_open for each in self._options) else "nothing_sold"

    @property
    def lines(self) -> str:
        """Lines of the answer's head: those that it was made with, and the class where it may
        differ from what was asked for."""
        return self._lines + _LINES[self._class] if self.asked == "reserved" else self._lines

    def settle(self, tokens: Tokens, now_ns: int) -> None:
        """The request has ended, in whatever way; call it once."""
        spent, payment = self._spent, self.payment
        if spent is not None:
            used = spent.count(tokens, self._paid_there)
            if payment is not None and spent.purse is not None:
                spent.purse.settle(payment, used)
            else:
                spent.allowance.settle(self._tokens, used, now_ns, counts=self._counts)
            return
        if self._empty is not None:
            self._empty.refused += 1
        if payment is not None:
            self.give_up(now_ns, late=tokens.output > 0)

    # What nothing here can pay for, a cashier may.

    def ask(self, now_ns: int) -> Payment | None:
        """Ask it, where that is of use; what was asked for. Of several entitlements that of the
        first, and once that has refused, for as long as one may take to pay, that of the next."""
        if self.payment is not None or self.unpaid:
            return None
        if self._to_ask and self._asked_ns >= 0 and now_ns - self._asked_ns > PAY_NS:
            self._to_ask = _NOTHING_TO_ASK
        while self._to_ask:
            (sold, tokens, counts), self._to_ask = self._to_ask[0], self._to_ask[1:]
            purse = sold.purse
            assert purse is not None, "there is one where anybody is to be asked"
            payment = purse.ask(tokens, counts, now_ns)
            if payment is not None:
                self._empty, self._tokens, self._counts = sold, tokens, counts
                if self._asked_ns < 0:
                    self._asked_ns = now_ns
                self.payment = payment
                return payment
        return None

    def paid(self) -> Class:
        """It has paid in time."""
        self._to_ask = _NOTHING_TO_ASK
        self._spent, self._empty, self._class = self._empty, None, self.asked
        return self._class

    def give_up(self, now_ns: int, *, late: bool = False) -> None:
        """Nothing is wanted of the cashier. `late`: it was slower than the answer."""
        payment, self.payment = self.payment, None
        if payment is not None:
            late = late and payment.asked_ns == self._asked_ns  # others were asked before it
            refused = payment.state == "refused"
            self._not_paid = "spent_at_cashier" if refused else "cashier_late"
            payment.purse.give_up(payment, now_ns, late=late)


class Entitled:
    """What was sold, by whom it is for. Mutable, owned by one event loop. `past`: by model,
    requests honoured and refused and tokens used, of what is sold no more."""

    def __init__(self) -> None:
        self.past: dict[ModelName, tuple[int, int, int]] = {}
        self._sold: dict[EntitlementId, Sold] = {}
        self._by_use: dict[tuple[OrgId, ModelName, Class], tuple[Sold, ...]] = {}

    def claim(
        self, key: ApiKey, request: InferenceRequest, class_: Class, lines: str
    ) -> Claim | None:
        """What the request may take; None where its class needs none and nothing was sold in it.
        `lines` are those that its answer's head has anyway."""
        options: tuple[Sold, ...] | None = None
        if self._by_use:
            options = self._by_use.get((key.org_id, request.model, class_))
        if options is None:
            if class_ != "reserved":
                return None
            options = _NOTHING_SOLD
        project = key.project_id
        for sold in options:
            if sold.entitlement.project_id not in (None, project):
                options = tuple(
                    [each for each in options if each.entitlement.project_id in (None, project)]
                )
                break
        return Claim(options, class_, request, lines)

    def sold(self) -> list[Sold]:
        """Everything that is known to be sold."""
        return list(self._sold.values())

    def in_force(self, site: SiteName, now_ns: int) -> dict[ModelName, int]:
        """What may be honoured here now of the class `reserved`, where it may be served at this
        site, in weighted tokens/s by model."""
        return in_force(
            [(each.entitlement, each.allowance) for each in self._sold.values()
             if each.served.admits(site)],
            now_ns,
        )

    def set_sold(self, sold: list[Sold]) -> None:
        """From now on it is this. In the order in which a request should use it: what is for a
        project alone before what all of an organisation share, what ends sooner before what ends
        later."""
        before, self._sold = self._sold, {each.entitlement.id: each for each in sold}
        for id_, each in before.items():
            if self._sold.get(id_) is not each:
                model = each.entitlement.model
                honoured, refused, used = self.past.get(model, (0, 0, 0))
                self.past[model] = (
                    honoured + each.honoured, refused + each.refused, used + each.used_tokens
                )
        by_use: dict[tuple[OrgId, ModelName, Class], list[Sold]] = {}
        for each in sorted(sold, key=_order):
            noun = each.entitlement
            by_use.setdefault((noun.org_id, noun.model, noun.class_), []).append(each)
        self._by_use = {use: tuple(found) for use, found in by_use.items()}


def _order(sold: Sold) -> tuple[bool, int, str]:
    noun = sold.entitlement
    return noun.project_id is None, noun.ends_at, noun.id

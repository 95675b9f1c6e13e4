"""Which requests are `reserved`: those that what was sold to their organisation pays for.

The ingress spends, from its allowance, what a request is expected to use, and settles it at the
end. What it cannot pay for and sends to another site, that site pays for in the same way, if it
can. Else, or where the chosen site is outside the entitlement's residency, the request is served as
`on_demand`. See docs/entitlements.md.
"""

from typing import Final

from isochrone.core.admission.allowance import BURST_S, Allowance
from isochrone.core.admission.entitlement import OUTPUT_WEIGHT, in_force
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
    `used_tokens` what the former used, weighted."""

    __slots__ = (
        "allowance", "entitlement", "honoured", "mean_output", "most_tokens", "refused", "served",
        "used_tokens",
    )

    def __init__(self, entitlement: Entitlement, allowance: Allowance, served: Served) -> None:
        self.entitlement = entitlement
        self.allowance = allowance
        self.served = served
        self.most_tokens: int = entitlement.tok_s * BURST_S
        self.mean_output = 0.0  # of an answer, in tokens; 0 before the first
        self.honoured = 0
        self.refused = 0
        self.used_tokens = 0

    def expected_tokens(self, prompt: int, most_output: int) -> int:
        """What a request will use, weighted: its prompt, and output as of late or as it limits.
        Whatever is more than all sites may ever have saved up is a debt in the end."""
        output, mean = most_output, self.mean_output
        if 0.0 < mean < output:
            output = int(mean) + 1
        tokens = prompt + OUTPUT_WEIGHT * output
        return tokens if tokens < self.most_tokens else self.most_tokens

    def settle(self, expected_tokens: int, tokens: Tokens, now_ns: int) -> None:
        """A request that spent from it has ended."""
        output = tokens.output
        used = tokens.input_uncached + tokens.input_cached + OUTPUT_WEIGHT * output
        self.allowance.settle(expected_tokens, used, now_ns)
        self.honoured += used > 0
        self.used_tokens += used
        if output:
            mean = self.mean_output
            self.mean_output = mean + (output - mean) / MEAN_OVER if mean else float(output)


_NOTHING_SOLD: Final[tuple[Sold, ...]] = ()


class Claim:
    """What one request takes of what was sold. `asked`: the class that it is for. `unpaid`: the
    gateway that it is sent to is to pay for it, as nothing here can."""

    __slots__ = (
        "_class", "_empty", "_lines", "_options", "_output", "_prompt", "_spent", "_tokens",
        "_told", "asked", "unpaid",
    )

    def __init__(
        self, options: tuple[Sold, ...], asked: Class, request: InferenceRequest, lines: str
    ) -> None:
        self.asked: Class = asked
        self.unpaid = False
        self._class: Class = asked
        self._options = options
        self._prompt = request.prompt_tokens
        self._output = request.output_tokens
        self._lines = lines
        self._spent: Sold | None = None
        self._tokens = 0
        self._empty: Sold | None = None  # what could not pay for it
        self._told = False  # the gateway that was to pay said in which class it serves it

    def at(self, site: SiteName, now_ns: int, another: bool) -> Class:
        """The class in which the request is served at a site; spends what that takes, or gives
        back what was spent for a site where it does not count. `another`: a gateway stands there
        that may pay for it."""
        spent = self._spent
        if spent is not None:
            if spent.served.admits(site):
                return self._class
            spent.allowance.settle(self._tokens, 0, now_ns)
            self._spent = None
        another = another and self.asked == "reserved"
        self._class, self._empty, self._told = "on_demand", None, False
        for sold in self._options:
            if sold.served.admits(site):
                tokens = sold.expected_tokens(self._prompt, self._output)
                if sold.allowance.spend(tokens, now_ns, another_may=another):
                    self._spent, self._tokens, self._class = sold, tokens, self.asked
                    self._empty = None
                    break
                self._empty = sold
        self.unpaid = another and self._empty is not None
        return self._class

    def answered(self, class_: Class) -> Class:
        """The gateway that was to pay for it serves it in this class, and counts it."""
        self._class, self._empty, self.unpaid = class_, None, False
        self._told = True
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
            return "spent"
        return "residency" if self._options else "nothing_sold"

    @property
    def lines(self) -> str:
        """Lines of the answer's head: those that it was made with, and the class where it may
        differ from what was asked for."""
        return self._lines + _LINES[self._class] if self.asked == "reserved" else self._lines

    def settle(self, tokens: Tokens, now_ns: int) -> None:
        """The request has ended, in whatever way; call it once."""
        if self._spent is not None:
            self._spent.settle(self._tokens, tokens, now_ns)
        elif self._empty is not None:
            self._empty.refused += 1


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

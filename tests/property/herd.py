"""A cloud in virtual time: many ingresses that choose by themselves, sites that serve, digests.

Everything that decides is the product's: `choose`, `Loads` and its credits at each ingress,
`spare_requests` at each site. What is imitated is physics: a site's slots serve its queue in the
order of arrival, at the rates that its digest says.
"""

from collections import deque
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

from isochrone.core.estimate.service import Rates, Servers, Work
from isochrone.core.ids import PolicyId, SiteName
from isochrone.core.rng import stream
from isochrone.core.routing.choose import choose
from isochrone.core.routing.credits import spare_requests
from isochrone.core.routing.loads import Dispatch, Loads
from isochrone.core.routing.prefix import Prefixes
from isochrone.core.routing.table import RoutingTable
from isochrone.core.world.digest import DeploymentLoad, SiteDigest
from tests.builders import MODEL, SECOND_NS, a_site, a_table, a_view

PROMPT_TOKENS, OUTPUT_TOKENS = 200, 120
RATES = Rates(prefill_tok_s=8000.0, decode_tok_s=100.0)
ARRIVED_KEPT = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The sites of a region are nearest to its ingresses; `hot` of the demand comes from the first
    region beyond its share. `load`: demand over what all sites can serve. `credits`: whether
    digests say them. `away`: a site that has no replica between two instants, in seconds."""

    ingresses: int = 1100
    sites: int = 60
    regions: int = 10
    slots: int = 32
    load: float = 0.85
    hot: float = 0.2
    seconds: int = 10
    warm_s: int = 4
    credits: bool = True
    away: tuple[int, float, float] | None = None
    seed: int = 1


@dataclass(slots=True)
class Station:
    """One site: requests that wait, and those that run."""

    name: SiteName
    slots: int
    waiting: "deque[Asked]" = field(default_factory=deque)
    running: int = 0
    came: int = 0
    arrived: float = 0.0
    sequence: int = 0
    away: bool = False

    @property
    def here(self) -> int:
        return self.running + len(self.waiting)

    @property
    def servers(self) -> Servers:
        return Servers(ready=self.slots // 8, slots=self.slots, rates=RATES)

    def digest(self, says_credits: bool) -> SiteDigest:
        self.sequence += 1
        self.arrived += (1 - ARRIVED_KEPT) * (self.came - self.arrived)
        self.came = 0
        prompt_tokens, output_tokens = (
            len(self.waiting) * PROMPT_TOKENS, self.here * OUTPUT_TOKENS
        )
        load = DeploymentLoad(
            model=MODEL, revision=None, ready=self.servers.ready, slots=self.slots,
            running=self.running, waiting=len(self.waiting), pending_prompt_tokens=prompt_tokens,
            pending_output_tokens=output_tokens, prefill_tok_s=RATES.prefill_tok_s,
            decode_tok_s=RATES.decode_tok_s,
        )
        if says_credits:
            pending = Work(prompt_tokens=prompt_tokens, output_tokens=output_tokens)
            spare = spare_requests(
                self.servers, pending, prompt_tokens=PROMPT_TOKENS, output_tokens=OUTPUT_TOKENS,
                arrived=self.arrived,
            )
            load = replace(load, arrived=self.arrived, spare=spare)
        return SiteDigest(
            site=self.name, epoch=1, sequence=self.sequence, at=0, loads=(load,)
        )


@dataclass(slots=True)
class Asked:
    """One request, at the site that was chosen by the ingress whose loads count it."""

    station: Station
    ticket: Dispatch
    loads: Loads


@dataclass(slots=True)
class Seen:
    """What came of it: at each digest of the first site, the requests by slot at every site; how
    many choices there were, and how many went past the nearest site."""

    backlogs: list[list[float]] = field(default_factory=list)
    choices: int = 0
    pushed: int = 0

    def worst_ratio(self) -> float:
        """The longest queue of any site at any instant over the mean of all sites then."""
        return max(max(each) / (sum(each) / len(each)) for each in self.backlogs)


class Cloud:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = stream(plan.seed, "herd")
        self.seen = Seen()
        self.stations = [
            Station(SiteName(f"s{number:02}"), plan.slots * (1 + number % 3))
            for number in range(plan.sites)
        ]
        self.at = {station.name: station for station in self.stations}
        self.tables = [self._table(region) for region in range(plan.regions)]
        self.loads = [Loads() for _ in range(plan.ingresses)]
        self.prefixes = Prefixes()
        self.events: list[tuple[int, int, int, object]] = []
        self.number = 0

    def _table(self, region: int) -> RoutingTable:
        """As the gateways of a region see it: its own sites are 5 ms away, others 30 ms more for
        each region between."""
        plan, sites = self.plan, [a_site("ingress")]
        rtt_ms = {}
        for number, station in enumerate(self.stations):
            apart = abs(number % plan.regions - region)
            rtt_ms[str(station.name)] = 5.0 + 30.0 * min(apart, plan.regions - apart)
            sites.append(a_site(station.name))
        names = [str(station.name) for station in self.stations]
        view = a_view(sites, own_site="ingress", rtt_ms=rtt_ms, serving=names)
        table = a_table(view)
        return replace(table, joined=(1 << plan.ingresses) - 1)  # bits: how many have joined

    def later(self, at_ns: int, kind: int, what: object) -> None:
        self.number += 1
        heappush(self.events, (at_ns, self.number, kind, what))

    def run(self) -> Seen:
        plan = self.plan
        serve_s = OUTPUT_TOKENS / RATES.decode_tok_s + PROMPT_TOKENS / RATES.prefill_tok_s
        slots = sum(station.slots for station in self.stations)
        rate = plan.load * slots / serve_s
        for number, station in enumerate(self.stations):
            self.later(int(number / plan.sites * SECOND_NS), 1, station)
        self.later(SECOND_NS, 0, rate)
        while self.events:
            now_ns, _, kind, what = heappop(self.events)
            if now_ns > plan.seconds * SECOND_NS:
                break
            if kind == 0:
                self._ask(now_ns)
                self.later(now_ns + int(self.rng.expovariate(rate) * SECOND_NS), 0, None)
            elif kind == 1:
                assert isinstance(what, Station)
                self._tell(what, now_ns)
            else:
                assert isinstance(what, Asked)
                (self._arrive if kind == 2 else self._end)(what, now_ns)
        return self.seen

    def _ask(self, now_ns: int) -> None:
        plan, rng = self.plan, self.rng
        ingress = int(rng.random() * plan.ingresses)
        if rng.random() < plan.hot:
            ingress -= ingress % plan.regions  # of the first region
        loads, table = self.loads[ingress], self.tables[ingress % plan.regions]
        choice = choose(
            table, loads, self.prefixes, model=MODEL, policy_id=PolicyId("anywhere"),
            class_="on_demand", prompt_tokens=PROMPT_TOKENS, output_tokens=OUTPUT_TOKENS,
            blocks=(), tried=(), now_ns=now_ns, rng=rng,
        )
        if choice.site is None:
            return
        if now_ns > plan.warm_s * SECOND_NS:
            self.seen.choices += 1
            self.seen.pushed += choice.pushed
        ticket = loads.dispatched(
            choice.site, MODEL, PROMPT_TOKENS, OUTPUT_TOKENS, now_ns, rtt_ms=choice.rtt_ms,
            pushed=choice.pushed,
        )
        arrives_ns = now_ns + int(choice.rtt_ms / 2 * 1e6)
        self.later(arrives_ns, 2, Asked(self.at[choice.site], ticket, loads))

    def _arrive(self, asked: "Asked", now_ns: int) -> None:
        station = asked.station
        station.came += 1
        station.waiting.append(asked)
        self._serve(station, now_ns)

    def _serve(self, station: Station, now_ns: int) -> None:
        while station.waiting and station.running < station.slots:
            asked = station.waiting.popleft()
            station.running += 1
            tokens = OUTPUT_TOKENS * self.rng.uniform(0.5, 1.5)
            serve_s = tokens / RATES.decode_tok_s + PROMPT_TOKENS / RATES.prefill_tok_s
            self.later(now_ns + int(serve_s * SECOND_NS), 3, asked)

    def _end(self, asked: "Asked", now_ns: int) -> None:
        asked.station.running -= 1
        asked.loads.finished(asked.ticket)
        self._serve(asked.station, now_ns)

    def _tell(self, station: Station, now_ns: int) -> None:
        plan = self.plan
        if plan.away is not None:
            number, from_s, until_s = plan.away
            if station is self.stations[number]:
                station.away = from_s * SECOND_NS <= now_ns < until_s * SECOND_NS
        digest = station.digest(plan.credits)
        if station.away:
            nothing = replace(digest.loads[0], ready=0, arrived=None, spare=None)
            digest = replace(digest, loads=(nothing,))
        for loads in self.loads:
            loads.heard(digest, now_ns)
        if station is self.stations[0] and now_ns > plan.warm_s * SECOND_NS:
            self.seen.backlogs.append([
                each.here / each.slots for each in self.stations if not each.away
            ])
        self.later(now_ns + SECOND_NS, 1, station)

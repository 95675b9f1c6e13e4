"""A cloud that is offered more than it can serve, in virtual time.

Everything that decides is the product's: `choose` with its loads and credits, and a `RetryBudget`
at each ingress; `SiteQueue` and `spare_requests` at each site. What is imitated: a slot serves one
request at a time, and a client waits for its first token for `patience_s` and no longer.
"""

from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

from isochrone.core.admission.classes import ClassRule, SitePolicy
from isochrone.core.admission.fair_order import Ticket
from isochrone.core.admission.retry_budget import RetryBudget
from isochrone.core.admission.site_queue import Refused as TurnedAway
from isochrone.core.admission.site_queue import SiteQueue, Start, TurnAway
from isochrone.core.estimate.service import Rates, Servers, Work
from isochrone.core.ids import PolicyId, SiteName
from isochrone.core.rng import stream
from isochrone.core.routing.choice import Refused
from isochrone.core.routing.choose import choose
from isochrone.core.routing.credits import spare_requests
from isochrone.core.routing.loads import Dispatch, Loads
from isochrone.core.routing.prefix import Prefixes
from isochrone.core.world.digest import DeploymentLoad, SiteDigest
from tests.builders import MODEL, SECOND_NS, a_site, a_table, a_view

PROMPT_TOKENS, OUTPUT_TOKENS = 100, 50
RATES = Rates(prefill_tok_s=8000.0, decode_tok_s=50.0)
SERVE_S = OUTPUT_TOKENS / RATES.decode_tok_s + PROMPT_TOKENS / RATES.prefill_tok_s
MOST_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`load`: demand over what all sites can serve, of which `hot` enters at the first ingress.
    `wait_s`: how long a request may wait at a site. `budgeted`: whether retries are."""

    load: float = 3.0
    hot: float = 0.3
    sites: int = 5
    ingresses: int = 10
    slots: int = 12
    seconds: int = 14
    warm_s: int = 4
    patience_s: float = 2.0
    wait_s: float = 1.5
    budgeted: bool = True
    seed: int = 1


@dataclass(slots=True, eq=False)
class Asked:
    """One request of a client."""

    ingress: int
    began_ns: int
    tried: list[Refused] = field(default_factory=list)
    site: "Serving | None" = None
    counted: Dispatch | None = None
    ticket: Ticket | None = None


@dataclass(slots=True, eq=False)
class Serving:
    name: SiteName
    queue: SiteQueue
    waiting: dict[Ticket, Asked] = field(default_factory=dict)
    came: int = 0
    arrived: float = 0.0
    sequence: int = 0


@dataclass(slots=True)
class Seen:
    """Of the time after the warm-up. `good`: began to be answered while the client waited."""

    requests: int = 0
    attempts: int = 0
    good: int = 0
    refused: int = 0
    too_late: int = 0
    tried_twice: int = 0


class Overload:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = stream(plan.seed, "overload")
        self.seen = Seen()
        rule = ClassRule(share=3.0, queue_most=100_000, wait_ms=plan.wait_s * 1000)
        policy = replace(SitePolicy(), on_demand=rule)
        slot_ns = SERVE_S * SECOND_NS / OUTPUT_TOKENS
        self.sites = [
            Serving(SiteName(f"s{number}"), SiteQueue(policy, plan.slots, slot_ns))
            for number in range(plan.sites)
        ]
        self.at = {site.name: site for site in self.sites}
        self.loads = [Loads() for _ in range(plan.ingresses)]
        self.budgets = [RetryBudget(0.1, 1.0) for _ in range(plan.ingresses)]
        names = [str(site.name) for site in self.sites]
        self.tables = [
            a_table(a_view(
                [a_site(f"i{ingress}"), *map(a_site, names)], serving=names,
                rtt_ms={name: 5.0 + 20.0 * ((number - ingress) % plan.sites)
                        for number, name in enumerate(names)},
            ))
            for ingress in range(plan.ingresses)
        ]
        self.prefixes = Prefixes()
        self.events: list[tuple[int, int, str, object]] = []
        self.number = 0

    @property
    def capacity(self) -> float:
        """Requests a second that all sites can serve."""
        return self.plan.sites * self.plan.slots / SERVE_S

    def run(self) -> Seen:
        plan, rate = self.plan, self.plan.load * self.capacity
        for number, site in enumerate(self.sites):
            self._later(int(number / plan.sites * SECOND_NS), "tell", site)
        self._later(SECOND_NS, "ask", None)
        while self.events[0][0] < plan.seconds * SECOND_NS:
            now_ns, _, kind, what = heappop(self.events)
            if kind == "ask":
                self._begin(now_ns)
                self._later(now_ns + int(self.rng.expovariate(rate) * SECOND_NS), "ask", None)
            elif kind == "tell":
                assert isinstance(what, Serving)
                self._tell(what, now_ns)
            else:
                assert isinstance(what, Asked)
                (self._arrive if kind == "arrive" else self._end)(what, now_ns)
        return self.seen

    def _later(self, at_ns: int, kind: str, what: object) -> None:
        self.number += 1
        heappush(self.events, (at_ns, self.number, kind, what))

    def _counts(self, now_ns: int) -> bool:
        return now_ns > self.plan.warm_s * SECOND_NS

    # -- the ingress, as gateway/tries.py does it ------------------------------------------------

    def _begin(self, now_ns: int) -> None:
        hot = self.rng.random() < self.plan.hot
        asked = Asked(0 if hot else int(self.rng.random() * self.plan.ingresses), now_ns)
        self.seen.requests += self._counts(now_ns)
        self.budgets[asked.ingress].deposit(now_ns)
        self._try(asked, now_ns)

    def _try(self, asked: Asked, now_ns: int) -> None:
        loads = self.loads[asked.ingress]
        choice = choose(
            self.tables[asked.ingress], loads, self.prefixes, model=MODEL,
            policy_id=PolicyId("anywhere"), class_="on_demand", prompt_tokens=PROMPT_TOKENS,
            output_tokens=OUTPUT_TOKENS, blocks=(), tried=asked.tried, now_ns=now_ns, rng=self.rng,
        )
        if choice.site is None:
            self.seen.refused += self._counts(now_ns)
            return
        site = asked.site = self.at[choice.site]
        self.seen.tried_twice += any(site.name == each.site for each in asked.tried)
        self.seen.attempts += self._counts(now_ns)
        asked.counted = loads.dispatched(
            site.name, MODEL, PROMPT_TOKENS, OUTPUT_TOKENS, now_ns, rtt_ms=choice.rtt_ms,
            pushed=choice.pushed,
        )
        self._later(now_ns + int(choice.rtt_ms / 2 * 1e6), "arrive", asked)

    def _refused(self, asked: Asked, why: TurnedAway, now_ns: int) -> None:
        assert asked.site is not None
        assert asked.counted is not None
        self.loads[asked.ingress].finished(asked.counted)
        asked.tried.append(
            Refused(site=asked.site.name, rule="tried_before", detail=f"refused: {why.reason}")
        )
        may = not self.plan.budgeted or self.budgets[asked.ingress].try_spend(now_ns)
        if len(asked.tried) < MOST_TRIES and may:
            self._try(asked, now_ns)
        else:
            self.seen.refused += self._counts(now_ns)

    # -- the site ----------------------------------------------------------------------------------

    def _arrive(self, asked: Asked, now_ns: int) -> None:
        site = asked.site
        assert site is not None
        site.came += 1
        site.queue.tick(now_ns)
        found = site.queue.offer(
            "on_demand", "tenant", OUTPUT_TOKENS, most_tokens=OUTPUT_TOKENS, now_ns=now_ns
        )
        if isinstance(found, Ticket):
            asked.ticket = found
            site.waiting[found] = asked
            if found.state == "running":
                self._serve(asked, now_ns)
        else:
            self._refused(asked, found, now_ns)
        self._apply(site, now_ns)

    def _serve(self, asked: Asked, now_ns: int) -> None:
        late = now_ns - asked.began_ns > self.plan.patience_s * SECOND_NS
        if self._counts(now_ns):
            self.seen.good += not late
            self.seen.too_late += late
        serve_s = SERVE_S * self.rng.uniform(0.5, 1.5)
        self._later(now_ns + int(serve_s * SECOND_NS), "end", asked)

    def _end(self, asked: Asked, now_ns: int) -> None:
        site, ticket = asked.site, asked.ticket
        assert site is not None
        assert ticket is not None
        assert asked.counted is not None
        self.loads[asked.ingress].finished(asked.counted)
        del site.waiting[ticket]
        site.queue.finished(ticket, OUTPUT_TOKENS, now_ns)
        self._apply(site, now_ns)

    def _apply(self, site: Serving, now_ns: int) -> None:
        commands, site.queue.outbox = site.queue.outbox, []
        for command in commands:
            if isinstance(command, Start):
                self._serve(site.waiting[command.ticket], now_ns)
            elif isinstance(command, TurnAway):
                self._refused(site.waiting.pop(command.ticket), command.refused, now_ns)

    def _tell(self, site: Serving, now_ns: int) -> None:
        site.sequence += 1
        site.arrived += 0.7 * (site.came - site.arrived)
        site.came = 0
        queue, slots = site.queue, self.plan.slots
        pending = Work(
            requests=queue.running + queue.queued, prompt_tokens=queue.queued * PROMPT_TOKENS,
            output_tokens=(queue.running + queue.queued) * OUTPUT_TOKENS,
        )
        spare = spare_requests(
            Servers(ready=slots // 4, slots=slots, rates=RATES), pending,
            prompt_tokens=PROMPT_TOKENS, output_tokens=OUTPUT_TOKENS, arrived=site.arrived,
        )
        digest = SiteDigest(site=site.name, epoch=1, sequence=site.sequence, at=0, loads=(
            DeploymentLoad(
                model=MODEL, revision=None, ready=slots // 4, slots=slots, running=queue.running,
                waiting=queue.queued, pending_prompt_tokens=pending.prompt_tokens,
                pending_output_tokens=pending.output_tokens, prefill_tok_s=RATES.prefill_tok_s,
                decode_tok_s=RATES.decode_tok_s, arrived=site.arrived, spare=spare,
            ),
        ))
        for loads in self.loads:
            loads.heard(digest, now_ns)
        self._later(now_ns + SECOND_NS, "tell", site)

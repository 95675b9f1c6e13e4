"""The board follows: after whatever happened, its costs are those of weighing every site anew."""

from dataclasses import dataclass, field
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isochrone.core.estimate.service import Rates, Servers, Work, queue_ms
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.routing.choose import TARGET_MS
from isochrone.core.routing.chosen import Choice
from isochrone.core.routing.loads import Dispatch, Loads
from isochrone.core.routing.table import RoutingTable
from isochrone.core.world.digest import DeploymentLoad
from isochrone.core.world.tenant import Class
from tests.builders import (
    MODEL,
    SECOND_NS,
    a_choice,
    a_digest,
    a_load,
    a_policy,
    a_site,
    a_table,
    a_view,
)

NAMES = [SiteName(name) for name in ("ashburn", "frankfurt", "oslo", "sydney")]
PROMPT_TOKENS, OUTPUT_TOKENS = 300, 70
ASKED: tuple[tuple[str, Class], ...] = (("anywhere", "on_demand"), ("eea", "batch"))


def tables() -> tuple[RoutingTable, RoutingTable]:
    """Two views of the same sites: the second has other round trips, and one site less."""
    countries = dict(zip(NAMES, ("US", "DE", "NO", "AU"), strict=True))
    policies = [a_policy("eea", ("EEA",))]
    sites = [a_site(name, country) for name, country in countries.items()]
    near: dict[str, float] = dict.fromkeys(NAMES, 20.0)
    far: dict[str, float] = dict.fromkeys(NAMES, 90.0)
    return (
        a_table(a_view(sites, own_site="sydney", rtt_ms=near, policies=policies)),
        a_table(a_view(sites[1:], own_site="sydney", rtt_ms=far, policies=policies)),
    )


@dataclass
class Sent:
    """A request as the naive reckoning remembers it."""

    site: SiteName
    prompt_tokens: int
    output_tokens: int
    arrives_ns: int
    ticket: Dispatch
    counted: bool = False


@dataclass
class Naive:
    """What happened, kept as it happened; everything is reckoned from the start each time."""

    loads: Loads = field(default_factory=Loads)
    now_ns: int = 0
    sequence: int = 0
    said: dict[SiteName, DeploymentLoad | None] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)
    told_ms: dict[SiteName, list[float]] = field(default_factory=dict)

    def hear(self, site: SiteName, load: DeploymentLoad | None) -> None:
        self.sequence += 1
        loads = () if load is None else (load,)
        digest = a_digest(site, *(loads or (a_load_of_another_model(),)), sequence=self.sequence)
        assert self.loads.heard(digest, self.now_ns)
        self.said[site] = load
        if load is None or not load.ready:
            self.told_ms[site] = []
        else:
            self.told_ms.setdefault(site, []).append(queue_ms(servers_of(load), Work(
                requests=load.running + load.waiting, prompt_tokens=load.pending_prompt_tokens,
                output_tokens=load.pending_output_tokens,
            )))
        for each in self.sent:
            each.counted = each.counted or (
                each.site == site and each.arrives_ns <= self.now_ns
            )

    def dispatch(self, site: SiteName, prompt_tokens: int, output_tokens: int) -> None:
        rtt_ms = 1000.0  # as long as one of the waits: arrivals and digests meet
        ticket = self.loads.dispatched(
            site, MODEL, prompt_tokens, output_tokens, self.now_ns, rtt_ms=rtt_ms
        )
        arrives_ns = self.now_ns + SECOND_NS
        self.sent.append(Sent(site, prompt_tokens, output_tokens, arrives_ns, ticket))

    def finish(self, which: int) -> None:
        if self.sent:
            self.loads.finished(self.sent.pop(which % len(self.sent)).ticket)

    def rule(self, site: SiteName) -> str | None:
        """Why the site cannot take a request now; None if it can."""
        known = self.loads.of(site)
        if known is None or site not in self.said:
            return "digest_stale"
        if not self.loads.may_try(known, self.now_ns):
            return "unreachable"
        if self.loads.stale_ms(known, self.now_ns) > self.loads.stale_after_ms:
            return "digest_stale"
        load = self.said[site]
        return None if load is not None and load.ready > 0 else "no_ready_replica"

    def cost_ms(self, site: SiteName, rtt_ms: float, class_: Class) -> float:
        load = self.said.get(site)
        if self.rule(site) is not None or load is None:
            return inf
        own = [each for each in self.sent if each.site == site and not each.counted]
        ahead = Work(
            requests=load.running + load.waiting + len(own),
            prompt_tokens=load.pending_prompt_tokens + sum(one.prompt_tokens for one in own),
            output_tokens=load.pending_output_tokens + sum(one.output_tokens for one in own),
        )
        told_ms = self.told_ms[site]
        usual_ms = told_ms[0]
        for later_ms in told_ms[1:]:
            usual_ms = 0.8 * usual_ms + 0.2 * later_ms
        belief = 300.0 / (300.0 + usual_ms + told_ms[-1])
        lean_ms = belief * (usual_ms - told_ms[-1])
        cost_ms = rtt_ms + max(queue_ms(servers_of(load), ahead) + lean_ms, 0.0)
        cost_ms += 1000.0 * PROMPT_TOKENS / load.prefill_tok_s
        return cost_ms + (1000.0 * OUTPUT_TOKENS / load.decode_tok_s if class_ == "batch" else 0)


def servers_of(load: DeploymentLoad) -> Servers:
    rates = Rates(prefill_tok_s=load.prefill_tok_s, decode_tok_s=load.decode_tok_s)
    return Servers(ready=load.ready, slots=max(load.slots, load.ready), rates=rates)


def a_load_of_another_model() -> DeploymentLoad:
    return DeploymentLoad(
        model=ModelName("other"), revision=None, ready=1, slots=1, running=0, waiting=0,
        pending_prompt_tokens=0, pending_output_tokens=0, prefill_tok_s=1.0, decode_tok_s=1.0,
    )


LOADS = st.builds(
    a_load,
    ready=st.sampled_from([1, 1, 2, 0]), slots=st.integers(0, 4), running=st.integers(0, 6),
    waiting=st.integers(0, 6), prompt_tokens=st.integers(0, 5000),
    output_tokens=st.integers(0, 5000), prefill_tok_s=st.sampled_from([50.0, 1000.0]),
    decode_tok_s=st.sampled_from([10.0, 100.0]),
)
SITES = st.sampled_from(NAMES)
TOKENS = st.integers(0, 4000)
STEPS = st.one_of(
    st.tuples(st.just("hear"), SITES, LOADS),
    st.tuples(st.just("hear"), SITES, LOADS),
    st.tuples(st.just("hear"), SITES, st.none()),
    st.tuples(st.just("dispatch"), SITES, TOKENS),
    st.tuples(st.just("dispatch"), SITES, TOKENS),
    st.tuples(st.just("finish"), TOKENS),
    st.tuples(st.just("lost"), SITES),
    st.tuples(st.just("deaf")),
    st.tuples(st.just("hearing")),
    st.tuples(st.just("wait"), st.sampled_from([0.001, 1.0, 2.0, 5.1])),
    st.tuples(st.just("view")),
)


def take(step: tuple[object, ...], naive: Naive) -> None:
    match step:
        case ("hear", str() as site, DeploymentLoad() | None as load):
            naive.hear(SiteName(site), load)
        case ("dispatch", str() as site, int() as tokens):
            naive.dispatch(SiteName(site), tokens, tokens // 2)
        case ("finish", int() as which):
            naive.finish(which)
        case ("lost", str() as site):
            naive.loads.lost(SiteName(site), naive.now_ns)
        case ("deaf",):
            naive.loads.deaf(naive.now_ns)
        case ("hearing",):
            naive.loads.hearing(naive.now_ns)
        case ("wait", float() as wait_s):
            naive.now_ns += int(wait_s * SECOND_NS)


def check(choice: Choice, naive: Naive, class_: Class) -> None:
    sites = choice.ground.open_sites
    expected = [naive.cost_ms(each.site, each.rtt_ms, class_) for each in sites]
    assert choice.costs.tolist() == pytest.approx(expected, rel=1e-5)
    rules = {each.site: naive.rule(each.site) for each in sites}
    assert {each.site: each.rule for each in choice.refused} == {
        site: rule for site, rule in rules.items() if rule is not None
    }
    assert choice.eligible == sum(cost_ms < inf for cost_ms in expected)
    if choice.eligible:
        cheapest_ms = min(expected)
        assert choice.site == sites[choice.index].site
        if choice.because in ("local", "explored"):
            assert expected[choice.index] <= TARGET_MS
        else:
            assert expected[choice.index] <= max(cheapest_ms + 3, cheapest_ms * 1.05) * (1 + 1e-9)
        terms = choice.rtt_ms + choice.prefill_ms + choice.decode_ms
        assert choice.cost_ms >= terms * (1 - 1e-9)
    else:
        assert (choice.site, choice.index) == (None, -1)


@settings(max_examples=150)
@given(st.lists(st.lists(STEPS, min_size=1, max_size=4), min_size=1, max_size=12))
def test_a_board_is_what_weighing_every_site_anew_gives(
    rounds: list[list[tuple[object, ...]]]
) -> None:
    naive, views, table = Naive(), tables(), 0
    for steps in rounds:
        for step in steps:
            take(step, naive)
            if step[0] == "view":
                table = 1 - table
        for policy_id, class_ in ASKED:
            choice = a_choice(
                views[table], naive.loads, policy_id=policy_id, class_=class_,
                prompt_tokens=PROMPT_TOKENS, output_tokens=OUTPUT_TOKENS, now_ns=naive.now_ns,
            )
            check(choice, naive, class_)

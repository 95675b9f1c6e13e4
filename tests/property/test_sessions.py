"""Sessions over random worlds that change under them: they move once a hold, and nowhere else."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from isochrone.core.ids import PolicyId, SiteName
from isochrone.core.residency.bounds import Narrowing
from isochrone.core.residency.rule import Admitted, admits
from isochrone.core.rng import stream
from isochrone.core.routing.choice import Refused, Rule
from isochrone.core.routing.loads import Loads
from isochrone.core.routing.prefix import BLOCK_TOKENS, Prefixes
from isochrone.core.routing.sessions import HOLD_NS, MOST_LIMIT_MS, Sessions
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
    some_blocs,
)

COUNTRIES = {"sydney": "AU", "lyon": "FR", "bonn": "DE", "oslo": "NO"}
NAMES = sorted(COUNTRIES)
POLICIES = {"anywhere": ("any",), "eu": ("EU",), "de": ("DE",)}
MOST = 6
NOTHING: tuple[str, ...] = ("any",)


class SessionsMachine(RuleBasedStateMachine):
    """One gateway: digests, losses, time, and requests of a few sessions under several policies."""

    @initialize(rtts=st.lists(st.floats(0, 400), min_size=4, max_size=4))
    def begin(self, rtts: list[float]) -> None:
        self.now_ns = 0
        self.sequence = 0
        self.view = a_view(
            [a_site(name, COUNTRIES[name]) for name in NAMES], own_site="sydney",
            rtt_ms=dict(zip(NAMES, rtts, strict=True)),
            policies=[a_policy(name, terms) for name, terms in POLICIES.items()],
        )
        self.table = a_table(self.view)
        self.loads = Loads(stale_after_ms=1e9)
        self.prefixes = Prefixes(most=64)
        self.sessions = Sessions(most=MOST)
        self.rng = stream(3, "sessions")
        self.moved: dict[int, tuple[int, SiteName]] = {}  # when a home moved last, and from where
        for name in NAMES:
            self.digest(name, 0, 1)

    @rule(name=st.sampled_from(NAMES), waiting=st.integers(0, 20_000), ready=st.sampled_from(
        [0, 1, 1, 1, 2]
    ))
    def digest(self, name: str, waiting: int, ready: int) -> None:
        self.sequence += 1
        load = a_load(ready=ready, prompt_tokens=waiting)
        self.loads.heard(a_digest(name, load, sequence=self.sequence), self.now_ns)

    @rule(name=st.sampled_from(NAMES))
    def lose(self, name: str) -> None:
        self.loads.lost(SiteName(name), self.now_ns)

    @rule(by_s=st.sampled_from([1, 5, 10, 40, 2000]))
    def wait(self, by_s: int) -> None:
        self.now_ns += by_s * SECOND_NS

    @rule(
        session=st.integers(0, 9), policy=st.sampled_from(sorted(POLICIES)),
        narrowed=st.sampled_from([NOTHING, NOTHING, ("FR", "NO")]), blocks=st.integers(0, 12),
        tried=st.sampled_from([[], [], [], ["sydney"], ["bonn", "lyon"], ["oslo"]]),
        by=st.sampled_from(["unreachable", "saturated"]),
    )
    def ask(
        self, session: int, policy: str, narrowed: tuple[str, ...], blocks: int, tried: list[str],
        by: Rule,
    ) -> None:
        session = session * 10 + sorted(POLICIES).index(policy)  # each policy has its own homes
        home = self.sessions.home(session, self.now_ns)
        prompt = [session * 100 + number for number in range(blocks)]
        choice = a_choice(
            self.table, self.loads, policy_id=policy, blocks=prompt, prefixes=self.prefixes,
            prompt_tokens=max(blocks * BLOCK_TOKENS, 20), now_ns=self.now_ns, rng=self.rng,
            home=home, narrowing=None if narrowed == NOTHING else Narrowing(residency=narrowed),
            tried=[Refused(site=SiteName(each), rule=by, detail="") for each in tried],
        )
        if choice.site is None:
            return
        self.sessions.went(session, choice.site, choice.verdict, self.now_ns)
        if prompt:
            self.prefixes.saw(choice.site, MODEL, prompt, self.now_ns, tokens=len(prompt) * 256)
        self.check_allowed(choice.site, policy, narrowed, tried)
        if home is not None:
            self.check_home(session, home.site, home.is_held(self.now_ns), choice)

    def check_allowed(
        self, site: SiteName, policy: str, narrowed: tuple[str, ...], tried: list[str]
    ) -> None:
        noun = self.view.sites[site]
        for axis in (self.view.policies[PolicyId(policy)].residency, narrowed):
            assert isinstance(admits(axis, noun, some_blocs()), Admitted)
        assert site not in tried

    def check_home(self, session: int, home: SiteName, held: bool, choice: Any) -> None:
        names = [each.site for each in choice.ground.open_sites]
        costs = dict(zip(names, choice.costs.tolist(), strict=True))
        home_ms, least_ms = costs.get(home, float("inf")), min(costs.values())
        dearer_ms = home_ms - least_ms
        tie_ms = max(3.0, 0.05 * least_ms)
        if choice.verdict == "kept":
            assert choice.site == home
            assert dearer_ms <= max(MOST_LIMIT_MS, 1.05 * tie_ms) + tie_ms + 1e-2
            assert dearer_ms <= choice.limit_ms + tie_ms + 1e-2
        elif choice.verdict == "gone":
            assert home_ms == float("inf")
        else:
            assert choice.verdict == ("overflow" if held else "moved")
            assert dearer_ms > choice.limit_ms
            assert home_ms - costs[choice.site] > choice.limit_ms
            assert choice.site != home
        after = self.sessions.home(session, self.now_ns)
        assert after is not None
        assert (after.site == home) == (choice.verdict in ("kept", "overflow"))
        if choice.verdict == "moved":
            moved_ns, _ = self.moved.get(session, (-HOLD_NS, home))
            assert self.now_ns - moved_ns >= HOLD_NS, "at most one move by cost a hold"
        if choice.verdict in ("moved", "gone"):
            self.moved[session] = (self.now_ns, home)

    @invariant()
    def bounded(self) -> None:
        if hasattr(self, "sessions"):
            assert len(self.sessions) <= MOST
            assert len(self.prefixes) <= 64


SessionsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestSessions = SessionsMachine.TestCase

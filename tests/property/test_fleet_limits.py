"""Limits over sites are never passed by more than the bound, whatever happens, and what is left of
them can be used."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from isochrone.core.limits.terms import bootstrap_of
from isochrone.core.rng import stream
from isochrone.core.world.limit import LimitKind
from tests.fixtures.limited_fleet import SITES, LimitedFleet, a_limit

FOUR = SITES[:4]
names = st.sampled_from(FOUR)
kinds: st.SearchStrategy[LimitKind] = st.sampled_from(
    ("requests_per_min", "tokens_per_min", "concurrent", "budget")
)
STEPS = 25
WINDOW_NS = 54_900_000_000  # of a minute in buckets, on clocks that run apart


def judge(fleet: LimitedFleet) -> None:
    """No more is used than the limit and the bound allow."""
    kind, amount = fleet.limit.kind, fleet.limit.amount
    # A gateway that starts anew has forgotten what it used without a grant.
    bound = amount + fleet.lives() * bootstrap_of(amount, len(fleet.sites))
    if kind == "budget":
        assert fleet.spent() + fleet.held() <= bound + fleet.error
    elif kind == "concurrent":
        assert len(fleet.running) <= bound
    elif kind == "requests_per_min":
        assert fleet.admitted_within(WINDOW_NS) <= bound
    else:
        used = sum([used for at_ns, used in fleet.ended if at_ns > fleet.now_ns - WINDOW_NS])
        assert used + fleet.held() <= bound + fleet.error


class AnyFleet(RuleBasedStateMachine):
    """Gateways crash, come back and are cut off; letters are lost, doubled and late by up to more
    than a grant lasts; requests come anywhere and use more or less than they were estimated at."""

    @initialize(
        kind=kinds, amount=st.sampled_from((3, 40, 1_000, 20_000)), seed=st.integers(0, 10_000)
    )
    def open(self, kind: LimitKind, amount: int, seed: int) -> None:
        self.fleet = LimitedFleet(a_limit(kind, amount), seed, FOUR)
        self.kind, self.amount = kind, amount

    @rule(
        loss=st.sampled_from((0, 20, 60)), doubled=st.sampled_from((0, 50)),
        delay_ms=st.sampled_from((5, 400, 3_000, 20_000)),
    )
    def weather(self, loss: int, doubled: int, delay_ms: int) -> None:
        self.fleet.loss, self.fleet.doubled, self.fleet.delay_ms = loss, doubled, delay_ms

    @rule(
        name=names, part=st.sampled_from((2, 10, 50, 400)), used=st.sampled_from((0, 60, 100, 130)),
        lasts_ms=st.sampled_from((10, 2_000, 40_000)), count=st.integers(1, 8),
    )
    def ask(self, name: str, part: int, used: int, lasts_ms: int, count: int) -> None:
        for _ in range(count):
            if self.kind in ("requests_per_min", "concurrent"):
                self.fleet.request(name, 1, 1, lasts_ms)
            else:
                estimate = max(self.amount // part, 1)
                self.fleet.request(name, estimate, estimate * used // 100, lasts_ms)

    @rule(name=names)
    def crash_or_start(self, name: str) -> None:
        if self.fleet.places[name].limits is None:
            self.fleet.start(name)
        else:
            self.fleet.crash(name)

    @rule(name=names)
    def restart_at_once(self, name: str) -> None:
        self.fleet.crash(name)
        self.fleet.start(name)

    @rule(name=names)
    def cut_or_join(self, name: str) -> None:
        self.fleet.cut ^= {name}

    @rule(ms=st.sampled_from((20, 300, 2_000, 8_000, 30_000, 80_000)))
    def wait(self, ms: int) -> None:
        self.fleet.pass_ms(ms)

    @invariant()
    def the_limit_holds_within_the_bound(self) -> None:
        if not hasattr(self, "fleet"):
            return
        judge(self.fleet)

    def teardown(self) -> None:
        """The weather clears and all stand: what is left can be used, anywhere."""
        if not hasattr(self, "fleet"):
            return
        fleet = self.fleet
        fleet.cut.clear()
        fleet.loss = fleet.doubled = 0
        fleet.delay_ms = 30
        for name in FOUR:
            if fleet.places[name].limits is None:
                fleet.start(name)
        # Streams of a gateway that died may go on elsewhere for as long as a request may last.
        fleet.pass_ms(760_000 if self.kind == "concurrent" else 160_000)
        left = self.amount if self.kind != "budget" else self.amount - fleet.spent()
        if self.kind == "budget" and fleet.lives() > len(FOUR):
            return  # what a gateway that died had been granted counts until the book has it
        if left > 0:
            before = len(fleet.admitted)
            fleet.request(FOUR[1], left, left, 10)
            fleet.pass_ms(5_000)
            assert len(fleet.admitted) == before + 1


@given(seed=st.integers(0, 1 << 30), kind=kinds)
@settings(max_examples=80)
def test_a_limit_that_all_want_holds_through_every_fault(
    seed: int, kind: LimitKind
) -> None:
    """Everybody asks for more than there is, of a limit without a bootstrap, so that each grant too
    many shows; pairs of gateways lose one another, so that several want to decide."""
    rng = stream(seed, "faults")
    fleet = LimitedFleet(a_limit(kind, 40), seed, FOUR, delay_ms=rng.choice((5, 80, 400)))
    assert bootstrap_of(40, len(FOUR)) == 0
    for _ in range(STEPS):
        fault, name = rng.randrange(9), rng.choice(FOUR)
        if fault == 0 and fleet.places[name].limits is not None:
            fleet.crash(name)
        elif fault in (0, 1) and fleet.places[name].limits is None:
            fleet.start(name)
        elif fault == 1:
            fleet.crash(name)
            fleet.start(name)
        elif fault in (2, 3):
            fleet.severed ^= {frozenset((name, rng.choice([n for n in FOUR if n != name])))}
        elif fault == 4:
            fleet.severed.clear()
        elif fault == 5:
            fleet.loss, fleet.doubled = rng.choice((0, 30)), rng.choice((0, 40))
            fleet.delay_ms = rng.choice((5, 80, 400, 3_000, 9_000))
        for _ in range(rng.randrange(1, 12)):
            estimate = 1 if kind in ("requests_per_min", "concurrent") else rng.randint(1, 9)
            lasts_ms = rng.choice((10, 900, 9_000))
            fleet.request(rng.choice(FOUR), estimate, rng.randint(0, estimate), lasts_ms)
            fleet.pass_ms(rng.choice((0, 20, 200)))
            judge(fleet)
        fleet.pass_ms(rng.choice((100, 1_000, 5_000, 20_000)))
        judge(fleet)


TestAnyFleet = AnyFleet.TestCase
TestAnyFleet.settings = settings(max_examples=60, stateful_step_count=30)

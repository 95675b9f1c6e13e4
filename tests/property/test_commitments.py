"""What was sold is never honoured twice, whatever happens, and is reachable while sites stand."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from isochrone.core.admission.allowance import BURST_S, Allowance
from isochrone.core.admission.entitlement import choose_voters, divide_sold
from isochrone.core.admission.loans import LOAN_NS, Ask, BorrowedSlice, LentSlice
from isochrone.core.admission.payments import PAY_NS
from isochrone.core.admission.stewards import TERM_NS, Candidate, Stand, Voter
from isochrone.core.ids import SiteName
from isochrone.core.world.entitlement import Voters
from tests.fixtures.sold_cloud import (
    ID,
    MS,
    SECOND_NS,
    TICK_NS,
    WALL,
    SoldCloud,
    an_entitlement,
)

HOMES = ("ashburn", "frankfurt", "oslo", "sydney")
SPARE = "tokyo"  # has no slice
ALL = (*HOMES, SPARE)
VOTERS = ("ashburn", "frankfurt", "oslo")
names = st.sampled_from(ALL)
slices = st.lists(st.integers(1, 500), min_size=4, max_size=4).map(
    lambda each: dict(zip(HOMES, each, strict=True))
)


class AnyCloud(RuleBasedStateMachine):
    """Sites crash, come back and are cut off; letters are lost, doubled and late by up to more
    than a term; demand moves about. `SoldCloud` checks after every event that the parts add up."""

    @initialize(tok_s=slices, seed=st.integers(0, 10_000))
    def open(self, tok_s: dict[str, int], seed: int) -> None:
        self.cloud = SoldCloud(an_entitlement(tok_s), VOTERS, seed, extra=(SPARE,))

    @rule(
        loss=st.sampled_from((0, 20, 60)), doubled=st.sampled_from((0, 50)),
        delay_ms=st.sampled_from((20, 3_000, 20_000)),
    )
    def weather(self, loss: int, doubled: int, delay_ms: int) -> None:
        self.cloud.loss, self.cloud.doubled, self.cloud.delay_ms = loss, doubled, delay_ms

    @rule(name=names, share=st.sampled_from((0, 50, 300)))
    def ask(self, name: str, share: int) -> None:
        self.cloud.places[name].asks = self.cloud.entitlement.tok_s * share // 100

    @rule(
        ingress=names, serving=names, share=st.sampled_from((1, 40, 400)),
        answers_ms=st.sampled_from((30, 60_000)), count=st.sampled_from((1, 1, 5)),
    )
    def come_in(
        self, ingress: str, serving: str, share: int, answers_ms: int, count: int
    ) -> None:
        """What the site that serves them cannot pay for, the cashier may, in time or too late."""
        tokens = max(self.cloud.entitlement.tok_s * share // 100, 1)
        for _ in range(count):
            self.cloud.come_in(ingress, serving, tokens, answers_ms=answers_ms)

    @rule(name=names)
    def crash_or_start(self, name: str) -> None:
        if self.cloud.places[name].commitments is None:
            self.cloud.start(name)
        else:
            self.cloud.crash(name)

    @rule(name=names)
    def restart_at_once(self, name: str) -> None:
        self.cloud.crash(name)
        self.cloud.start(name)

    @rule(name=names)
    def cut_or_join(self, name: str) -> None:
        self.cloud.cut ^= {name}

    @rule(name=names)
    def lose_and_find_the_entitlement(self, name: str) -> None:
        place = self.cloud.places[name]
        if place.commitments is not None:
            clock_ns = place.clock_ns(self.cloud.now_ns)
            place.commitments.drop(self.cloud.entitlement.id, clock_ns)
            place.commitments.take(self.cloud.entitlement, clock_ns)

    @rule(name=names)
    def freeze_or_thaw(self, name: str) -> None:
        """A process that stood still for however long goes on as if nothing had been."""
        place = self.cloud.places[name]
        place.frozen = not place.frozen and place.commitments is not None

    @precondition(lambda self: self.cloud.may_elect())
    @rule(voters=st.lists(names, unique=True, min_size=1).filter(lambda each: len(each) % 2 == 1))
    def change_the_voters(self, voters: list[str]) -> None:
        """All at once, if it has to be."""
        self.cloud.elect(tuple(voters))

    @rule(name=names)
    def hear_of_the_voters(self, name: str) -> None:
        self.cloud.tell(name)

    @rule(ms=st.sampled_from((100, 2_000, 7_000, 25_000)))
    def wait(self, ms: int) -> None:
        self.cloud.pass_ms(ms)

    @invariant()
    def no_more_is_honoured_than_was_sold(self) -> None:
        if not hasattr(self, "cloud"):
            return
        sold = self.cloud.entitlement.tok_s
        # As they were paid for; and as that was known where they are served, a letter later.
        for honoured, letter_s in ((self.cloud.honoured, 0.0), (self.cloud.begun, PAY_NS / 1e9)):
            after = 0
            for at_ns, tokens in reversed(honoured[-200:]):  # in every window that ends now
                after += tokens
                window_s = (self.cloud.now_ns - at_ns) / 1e9
                assert after <= sold * (window_s + BURST_S + letter_s) * 1.002 + 1

    def teardown(self) -> None:
        """The weather clears, most voters stand: whoever asks for all of it gets it."""
        if not hasattr(self, "cloud"):
            return
        cloud = self.cloud
        cloud.cut.clear()
        cloud.loss = cloud.doubled = 0
        cloud.delay_ms = 50
        for name in (*cloud.elected.sites, *cloud.elected.former, SPARE):
            if cloud.places[name].commitments is None:
                cloud.start(name)
        for name, place in cloud.places.items():
            place.asks, place.frozen = 0, False
            cloud.tell(name)
        if not cloud.elected.epoch:
            cloud.crash(min(VOTERS))
        cloud.places[SPARE].asks = 2 * cloud.entitlement.tok_s
        cloud.pass_ms(120_000)
        assert cloud.usable(SPARE) == cloud.entitlement.tok_s


TestAnyCloud = AnyCloud.TestCase
TestAnyCloud.settings = settings(max_examples=60, stateful_step_count=30)


@given(
    tok_s=slices, seed=st.integers(0, 1000), asking=st.sampled_from(ALL),
    dead=st.sets(names, max_size=3),
)
@settings(max_examples=30)
def test_all_that_was_sold_is_reachable_from_any_site_that_stands(
    tok_s: dict[str, int], seed: int, asking: str, dead: set[str]
) -> None:
    """As long as more than half of the voters stand: within a term, the time to notice that a
    steward is gone, and a few seconds; and then without a break."""
    dead -= {asking}
    for voter in VOTERS:
        if len(dead & set(VOTERS)) > 1:
            dead.discard(voter)
    cloud = SoldCloud(an_entitlement(tok_s), VOTERS, seed, extra=(SPARE,))
    cloud.pass_ms(30_000)
    assert all(cloud.usable(home) == tok_s[home] for home in HOMES)
    for name in dead:
        cloud.crash(name)
    cloud.places[asking].asks = 2 * cloud.entitlement.tok_s
    cloud.pass_ms(50_000)
    for _ in range(60):
        cloud.pass_ms(500)
        assert cloud.usable(asking) == cloud.entitlement.tok_s
        assert cloud.floor_tok_s(asking) == cloud.entitlement.tok_s, "and it is kept for it"


@given(tok_s=slices, seed=st.integers(0, 1000), delay_ms=st.sampled_from((20, 200)))
@settings(max_examples=25)
def test_sites_that_want_what_a_dead_home_had_in_step_are_not_in_each_others_way(
    tok_s: dict[str, int], seed: int, delay_ms: int
) -> None:
    """They stand at the same instants, and each votes for itself."""
    cloud = SoldCloud(an_entitlement(tok_s), VOTERS, seed, delay_ms=delay_ms)
    for place in cloud.places.values():
        place.drift_ppm = 0
    cloud.pass_ms(30_000)
    cloud.crash("oslo")
    for name in ("ashburn", "frankfurt"):
        cloud.places[name].asks = 2 * cloud.entitlement.tok_s
    cloud.pass_ms(60_000)
    assert cloud.all_usable() == cloud.entitlement.tok_s


@given(tok_s=slices, seed=st.integers(0, 1000), home=st.sampled_from(HOMES))
@settings(max_examples=25)
def test_a_home_that_needs_its_slice_has_it_back_within_a_loan(
    tok_s: dict[str, int], seed: int, home: str
) -> None:
    cloud = SoldCloud(an_entitlement(tok_s), VOTERS, seed, extra=(SPARE,))
    cloud.places[SPARE].asks = 2 * cloud.entitlement.tok_s
    cloud.pass_ms(40_000)
    assert cloud.usable(SPARE) == cloud.entitlement.tok_s
    cloud.places[home].asks = 20 * tok_s[home]
    # One look to notice the demand, then at most one loan that was just renewed.
    cloud.pass_ms((LOAN_NS + 2 * TICK_NS) // MS + 1_000)
    assert cloud.usable(home) >= tok_s[home]


@given(tok_s=slices, seed=st.integers(0, 1000), home=st.sampled_from(HOMES))
@settings(max_examples=25)
def test_a_home_that_comes_back_gets_its_slice_back(
    tok_s: dict[str, int], seed: int, home: str
) -> None:
    cloud = SoldCloud(an_entitlement(tok_s), VOTERS, seed, extra=(SPARE,))
    cloud.places[SPARE].asks = 2 * cloud.entitlement.tok_s
    cloud.pass_ms(30_000)
    cloud.crash(home)
    cloud.pass_ms(60_000)
    assert cloud.usable(SPARE) == cloud.entitlement.tok_s
    cloud.start(home)
    cloud.places[home].asks = 20 * tok_s[home]
    cloud.pass_ms(3 * TERM_NS // MS)
    assert cloud.usable(home) >= tok_s[home]


@given(tok_s=slices, seed=st.integers(0, 1000), home=st.sampled_from(HOMES))
@settings(max_examples=25)
def test_a_steward_that_starts_anew_waits_for_what_it_lent_in_its_former_life(
    tok_s: dict[str, int], seed: int, home: str
) -> None:
    cloud = SoldCloud(an_entitlement(tok_s), VOTERS, seed, extra=(SPARE,))
    cloud.places[SPARE].asks = 2 * cloud.entitlement.tok_s
    cloud.pass_ms(40_000)
    assert cloud.usable(SPARE) == cloud.entitlement.tok_s
    cloud.crash(home)
    cloud.start(home)
    cloud.places[home].asks = 20 * tok_s[home]
    cloud.pass_ms(3 * TERM_NS // MS)
    assert cloud.usable(home) >= tok_s[home]


def test_a_vote_that_comes_after_standing_down_counts_nothing() -> None:
    """Else it would make a steward of one whose vote is free again."""
    voters = (SiteName("ashburn"),)
    candidate = Candidate(SiteName("oslo"), SiteName("sydney"), 1)
    voter = Voter(SiteName("ashburn"), -TERM_NS)
    vote = voter.hear(candidate.stand(1, 0), 0)
    assert vote is not None
    down = candidate.stand_down(SECOND_NS)
    assert down is not None
    voter.release(down)
    candidate.hear(vote, Voters(sites=voters))
    assert candidate.until_ns == 0


def test_another_life_of_the_same_site_is_another_candidate() -> None:
    """What its former life lent may still be used."""
    voter = Voter(SiteName("ashburn"), -TERM_NS)
    former = Stand(home=SiteName("oslo"), site=SiteName("oslo"), life=1, number=1)
    later = Stand(home=SiteName("oslo"), site=SiteName("oslo"), life=2, number=9)
    assert voter.hear(former, 0) is not None
    vote = voter.hear(later, SECOND_NS)
    assert vote is not None
    assert vote.steward == "oslo"
    vote = voter.hear(later, TERM_NS)
    assert vote is not None
    assert vote.steward is None


def test_numbers_are_never_used_twice_in_a_life() -> None:
    cloud = SoldCloud(an_entitlement({"oslo": 10}), ("oslo",), 1, extra=("tokyo",))
    cloud.crash("oslo")
    commitments = cloud.places["tokyo"].commitments
    assert commitments is not None
    allowance = commitments.allowance(ID)
    assert allowance is not None
    seen: list[int] = []
    stands = 0
    began_ns = cloud.places["tokyo"].clock_ns(0)
    for step in range(1, 200):
        now_ns = began_ns + step * SECOND_NS
        allowance.spend(10, now_ns)
        for letter in commitments.tick(now_ns, WALL, cloud.rng):
            if isinstance(letter.message, Ask | Stand):
                seen.append(letter.message.number)
                stands += isinstance(letter.message, Stand)
    assert stands > 5, "it stood for the home that is gone, gave up, and stood again"
    assert len(set(seen)) == len(seen)


@given(tok_s=slices, seed=st.integers(0, 1000))
@settings(max_examples=15)
def test_a_site_that_is_cut_off_stops_before_others_begin(
    tok_s: dict[str, int], seed: int
) -> None:
    cloud = SoldCloud(an_entitlement(tok_s), VOTERS, seed, extra=(SPARE,))
    cloud.pass_ms(30_000)
    cloud.cut.add("sydney")
    cloud.places["sydney"].asks = cloud.places[SPARE].asks = 2 * cloud.entitlement.tok_s
    cloud.pass_ms(TERM_NS // MS + 1)
    assert cloud.usable("sydney") == 0
    cloud.pass_ms(45_000)
    assert cloud.usable(SPARE) == cloud.entitlement.tok_s


@given(
    tok_s=slices, seed=st.integers(0, 1000), dead=st.sampled_from(VOTERS),
    told=st.lists(names, unique=True),
)
@settings(max_examples=25)
def test_a_voter_that_left_for_good_is_replaced(
    tok_s: dict[str, int], seed: int, dead: str, told: list[str]
) -> None:
    """At once as far as the sum goes, whoever hears of it when; and once all have heard of it, one
    more of the voters may fail."""
    cloud = SoldCloud(an_entitlement(tok_s), VOTERS, seed, extra=(SPARE,))
    cloud.pass_ms(30_000)
    cloud.crash(dead)
    cloud.elect((*(name for name in VOTERS if name != dead), "sydney"))
    for place in cloud.places.values():
        place.asks = cloud.entitlement.tok_s
    for name in told:
        cloud.tell(name)
        cloud.pass_ms(3_000)
    for name in cloud.places:
        cloud.tell(name)
    cloud.pass_ms(20_000)
    cloud.elect(cloud.elected.sites)  # those before are done with
    for name in cloud.places:
        cloud.tell(name)
        cloud.places[name].asks = 0
    cloud.crash(min(name for name in VOTERS if name != dead))
    cloud.places[SPARE].asks = 2 * cloud.entitlement.tok_s
    cloud.pass_ms(60_000)
    assert cloud.usable(SPARE) == cloud.entitlement.tok_s


@given(st.integers(0, 5_000), st.integers(0, 1000))
@settings(max_examples=20)
def test_new_voters_name_nobody_whom_the_former_ones_did_not(offset_ms: int, seed: int) -> None:
    """The steward's term, by a voter that is replaced, goes on unheard."""
    cloud = SoldCloud(an_entitlement({"oslo": 10}), ("ashburn",), seed, extra=("ashburn", "tokyo"))
    cloud.pass_ms(20_000 + offset_ms)
    cloud.places["oslo"].asks = cloud.places["tokyo"].asks = 20
    cloud.cut.add("oslo")
    cloud.elect(("tokyo",))
    cloud.tell("tokyo")
    cloud.pass_ms(40_000)  # and what is honoured is judged all the time
    assert cloud.usable("tokyo") == 10


def test_whoever_counts_by_former_voters_gets_no_vote_from_one_that_knows() -> None:
    cloud = SoldCloud(an_entitlement({"oslo": 10}), ("ashburn",), 1, extra=("ashburn", "tokyo"))
    cloud.pass_ms(20_000)
    assert cloud.usable("oslo") == 10
    cloud.elect(("tokyo",))
    cloud.tell("ashburn")
    cloud.pass_ms(TERM_NS // MS)
    assert cloud.usable("oslo") == 0
    cloud.tell("oslo")
    cloud.pass_ms(5_000)
    assert cloud.usable("oslo") == 0, "the new voter does not know that it is one"
    cloud.tell("tokyo")
    cloud.pass_ms(5_000)
    assert cloud.usable("oslo") == 10


@given(tok_s=slices, seed=st.integers(0, 1000))
@settings(max_examples=10)
def test_nothing_is_honoured_outside_the_window(tok_s: dict[str, int], seed: int) -> None:
    ends_at = WALL + 40 * SECOND_NS
    cloud = SoldCloud(an_entitlement(tok_s, ends_at=ends_at), VOTERS, seed)
    cloud.places["oslo"].asks = cloud.entitlement.tok_s
    cloud.pass_ms(39_000)
    assert cloud.usable("oslo") > 0
    cloud.pass_ms(1_000)
    assert cloud.all_usable() == 0
    given_ = len(cloud.honoured)
    cloud.pass_ms(10_000)
    assert len(cloud.honoured) == given_


@given(
    st.integers(1, 1_000),
    st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 4_000), st.integers(0, 150)),
             max_size=60),
)
def test_an_allowance_gives_no_more_than_its_slice_and_a_burst(
    tok_s: int, steps: list[tuple[int, int, int]]
) -> None:
    """Requests that used less than expected give the rest back; more is a debt."""
    allowance, now_ns = Allowance(0), 0
    used: list[tuple[int, int]] = []
    allowance.set_slice(tok_s, 1 << 62, 0)
    for gap_ms, tokens, percent in steps:
        now_ns += gap_ms * MS
        left = allowance.left(now_ns)
        if allowance.spend(tokens, now_ns):
            assert tokens <= left
            real = tokens * min(percent, 100) // 100
            allowance.settle(tokens, real, now_ns)
            used.append((now_ns, real))
        else:
            assert tokens > left
            wait_ns = allowance.wait_ns(tokens, now_ns)
            assert (wait_ns is None) == (tokens > tok_s * BURST_S)
    for number, (begin_ns, _) in enumerate(used):
        total = 0
        for at_ns, real in used[number:]:
            total += real
            assert total <= tok_s * ((at_ns - begin_ns) / 1e9 + BURST_S) + 1e-6


@given(
    st.integers(1, 100_000),
    st.dictionaries(st.sampled_from(ALL).map(SiteName), st.integers(1, 1000), min_size=1),
)
def test_slices_add_up_to_what_was_sold(tok_s: int, weights: dict[SiteName, int]) -> None:
    slices_ = divide_sold(tok_s, weights)
    assert sum(each.tok_s for each in slices_) == tok_s
    whole = sum(weights.values())
    for each in slices_:
        assert each.tok_s > 0
        assert abs(each.tok_s - tok_s * weights[each.site] / whole) < 1


@given(st.lists(names.map(SiteName), unique=True, min_size=1))
def test_voters_are_an_odd_number_of_the_first_sites(sites: list[SiteName]) -> None:
    voters = choose_voters(sites)
    assert len(voters) % 2 == 1
    assert voters == tuple(sites[: len(voters)])
    assert len(voters) >= len(sites) - 1 or len(voters) == 5


drifts = st.integers(-900, 900)


def real_ns(clock_ns: int, drift_ppm: int) -> float:
    """The true instant at which a clock shows this, both from 0."""
    return clock_ns / (1 + drift_ppm / 1e6)


@given(drifts, drifts, st.integers(0, 3_600_000), st.integers(0, 14_000), st.integers(0, 14_000))
def test_a_term_is_over_before_the_votes_for_it_lapse(
    fast_ppm: int, slow_ppm: int, at_ms: int, there_ms: int, back_ms: int
) -> None:
    """Whatever the clocks, as long as none is wrong by a part in a thousand."""
    candidate = Candidate(SiteName("oslo"), SiteName("sydney"), 1)
    voter = Voter(SiteName("ashburn"), -TERM_NS)
    asked_real_ns = at_ms * MS
    stand = candidate.stand(1, int(asked_real_ns * (1 + slow_ppm / 1e6)))
    heard_real_ns = asked_real_ns + there_ms * MS
    heard_ns = int(heard_real_ns * (1 + fast_ppm / 1e6))
    vote = voter.hear(stand, heard_ns)
    assert vote is not None
    candidate.hear(vote, Voters(sites=(SiteName("ashburn"),)))
    rival = Stand(home=SiteName("oslo"), site=SiteName("tokyo"), life=1, number=1)
    over_real_ns = real_ns(candidate.until_ns, slow_ppm)
    still = voter.hear(rival, int(over_real_ns * (1 + fast_ppm / 1e6)))
    assert still is not None
    assert still.steward == "sydney"


@given(drifts, drifts, st.integers(0, 3_600_000), st.integers(0, 4_000))
def test_a_loan_is_over_before_its_lender_uses_it_again(
    fast_ppm: int, slow_ppm: int, at_ms: int, there_ms: int
) -> None:
    slice_ = LentSlice(100)
    borrowed = BorrowedSlice(ID, SiteName("oslo"), SiteName("tokyo"), 1)
    asked_real_ns = at_ms * MS
    ask = borrowed.ask(1, 60, int(asked_real_ns * (1 + slow_ppm / 1e6)))
    lent_ns = int((asked_real_ns + there_ms * MS) * (1 + fast_ppm / 1e6))
    loan = slice_.hear(ask, 0, lent_ns + TERM_NS, lent_ns)
    assert loan is not None
    borrowed.hear(loan)
    over_real_ns = real_ns(borrowed.until_ns, slow_ppm)
    assert slice_.own_tok_s(int(over_real_ns * (1 + fast_ppm / 1e6))) == 40

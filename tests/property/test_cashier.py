"""What a cashier pays for is never honoured twice, whatever becomes of the letters about it."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from isochrone.core.admission.allowance import BURST_S, Allowance
from isochrone.core.admission.cashier import cashiers_of
from isochrone.core.admission.payments import PAY_NS
from isochrone.core.ids import SiteName
from tests.fixtures.sold_cloud import ID, MS, SECOND_NS, SoldCloud, an_entitlement

CASHIER = "oslo"
SERVING = ("bern", "rome")
SOLD = 100
BUCKET = SOLD * BURST_S

steps = st.one_of(
    st.tuples(
        st.just("come"), st.sampled_from((*SERVING, CASHIER)), st.sampled_from((3, 20, 60, 100)),
        st.sampled_from((1, 4, 12)), st.sampled_from((30, 60_000)),
    ),
    st.tuples(
        st.just("weather"), st.sampled_from((0, 20)), st.sampled_from((0, 60)),
        st.sampled_from((20, 600, 6_000)),
    ),
    st.tuples(st.just("wait"), st.sampled_from((50, 700, 2_000, 6_000, 9_000))),
    st.tuples(st.just("wait"), st.sampled_from((50, 700, 2_000, 6_000, 9_000))),
    st.tuples(st.just("freeze"), st.sampled_from((*SERVING, CASHIER)), st.integers(100, 8_000)),
    st.tuples(st.just("crash"), st.sampled_from((*SERVING, CASHIER))),
)


def check(cloud: SoldCloud) -> None:
    """In every window that ends now no more is honoured than was sold for it, and the burst: as it
    was paid for, and as that was known where it is served, a letter later."""
    for honoured, letter_s in ((cloud.honoured, 0.0), (cloud.begun, PAY_NS / 1e9)):
        after = 0
        for at_ns, tokens in reversed(honoured):
            after += tokens
            window_s = (cloud.now_ns - at_ns) / 1e9 + letter_s
            assert after <= SOLD * (window_s + BURST_S) * 1.002 + 1


def take(cloud: SoldCloud, step: tuple[Any, ...]) -> None:
    what, *rest = step
    if what == "come":
        site, percent, count, answers_ms = rest
        for _ in range(count):
            cloud.come_in(site, site, BUCKET * percent // 100, answers_ms=answers_ms)
    elif what == "weather":
        cloud.loss, cloud.doubled, cloud.delay_ms = rest
    elif what == "wait":
        cloud.pass_ms(rest[0])
    elif what == "freeze":
        cloud.places[rest[0]].frozen = cloud.places[rest[0]].commitments is not None
        cloud.pass_ms(rest[1])
        cloud.places[rest[0]].frozen = False
    else:
        cloud.crash(rest[0])
        cloud.start(rest[0])


@given(seed=st.integers(0, 10_000), events=st.lists(steps, min_size=10, max_size=60))
@settings(max_examples=150)
def test_letters_that_are_lost_doubled_and_late_let_nothing_in_that_was_not_sold(
    seed: int, events: list[tuple[Any, ...]]
) -> None:
    """Sites ask for far more than there is, so that whatever is there too much is used at once."""
    cloud = SoldCloud(an_entitlement({CASHIER: SOLD}), (CASHIER,), seed, extra=SERVING)
    cloud.pass_ms(20_000)
    for event in events:
        take(cloud, event)
        for site in (*SERVING, CASHIER):
            cloud.come_in(site, site, BUCKET // 25, answers_ms=60_000)
        cloud.pass_ms(10)
        check(cloud)
        while cloud.come_in(CASHIER, CASHIER, BUCKET // 50).reserved:
            check(cloud)


@given(
    seed=st.integers(0, 10_000), percent=st.sampled_from((20, 90, 100)),
    times=st.sampled_from((3, 10)), gap_ms=st.sampled_from((300, 2_000)),
)
@settings(max_examples=10)
def test_requests_that_use_more_than_was_paid_for_are_paid_in_the_end(
    seed: int, percent: int, times: int, gap_ms: int
) -> None:
    """Also those that all saved up could not pay for: they leave debts, which come first."""
    cloud = SoldCloud(an_entitlement({CASHIER: SOLD}), (CASHIER,), seed, extra=SERVING)
    cloud.pass_ms(20_000)
    began_ns, tokens = cloud.now_ns, BUCKET * percent // 100
    requests = []
    for _ in range(300_000 // gap_ms):
        requests.append(cloud.come_in("rome", "rome", tokens, used=times * tokens))
        cloud.pass_ms(gap_ms)
    used = sum(each.used for each in requests if each.reserved)
    passed_s = (cloud.now_ns - began_ns) / SECOND_NS
    # Before it was known that they use more: as many as could be paid for at once, and those whose
    # letters met the first debts on their way.
    begun = (BUCKET // tokens + 3) * times * tokens
    assert 0 < used <= SOLD * (passed_s + BURST_S) + begun


@given(
    tok_s=st.integers(1, 200),
    events=st.lists(
        st.tuples(
            st.integers(0, 4_000), st.integers(1, 900),
            st.sampled_from(("here", "honoured", "not honoured")), st.integers(0, 9_000),
            st.integers(0, 300),
        ),
        max_size=40,
    ),
)
@settings(max_examples=300)
def test_what_comes_back_late_is_no_more_than_what_would_be_there_without_it(
    tok_s: int, events: list[tuple[int, int, str, int, int]]
) -> None:
    """However late: payments that are given back, and slices that grow and shrink meanwhile."""
    allowance, now_ns, rate = Allowance(0), 0, tok_s
    allowance.set_slice(rate, 1 << 62, 0)
    most = tok_s
    coming_back: list[tuple[int, int]] = []
    honoured: list[tuple[int, int]] = []
    for number, (gap_ms, tokens, kind, back_ms, new_rate) in enumerate(events):
        until_ns = now_ns + gap_ms * MS
        for at_ns, back in sorted(each for each in coming_back if each[0] <= until_ns):
            allowance.give_back(back, at_ns)
            coming_back.remove((at_ns, back))
        now_ns = until_ns
        if new_rate < 40:
            rate = new_rate
            allowance.set_slice(rate, 1 << 62, now_ns)
            most = max(most, rate)
        if kind == "here":
            paid = allowance.spend(tokens, now_ns)
        else:
            paid = allowance.spend_for_another(number, tokens, now_ns, counts=True)
        if paid and kind == "not honoured":
            coming_back.append((now_ns + back_ms * MS, number))
        elif paid:
            honoured.append((now_ns, tokens))
        after = 0
        for at_ns, each in reversed(honoured):
            after += each
            assert after <= most * ((now_ns - at_ns) / SECOND_NS + BURST_S) + 1e-6


def test_a_payment_that_comes_back_is_there_again() -> None:
    allowance = Allowance(0)
    allowance.set_slice(100, 1 << 62, 0)
    now_ns = 5 * SECOND_NS
    assert allowance.spend_for_another(1, 500, now_ns, counts=True)
    assert not allowance.spend(1, now_ns)
    allowance.give_back(1, now_ns + SECOND_NS)
    assert allowance.left(now_ns + SECOND_NS) == 500, "full, as it would have been"
    allowance.give_back(1, now_ns + SECOND_NS)
    assert allowance.spend(500, now_ns + SECOND_NS)
    assert not allowance.spend(1, now_ns + SECOND_NS)


def test_the_cashier_is_the_same_wherever_it_is_worked_out() -> None:
    homes = [SiteName(f"site {number}") for number in range(9)]
    voters = (SiteName("oslo"), homes[3])
    ranked = cashiers_of(ID, homes, voters)
    assert ranked == cashiers_of(ID, homes[::-1], voters[::-1])
    assert set(ranked[:3]) <= set(homes)
    assert set(voters) <= set(ranked)
    assert len(set(ranked)) == len(ranked)
    without = [each for each in homes if each != ranked[0]]
    assert cashiers_of(ID, without, voters)[0] == ranked[1], "the next is everybody's next"

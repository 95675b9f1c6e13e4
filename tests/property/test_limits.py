"""Limits hold in every window, starve nobody and give back; the retry budget bounds attempts."""

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from isochrone.core.admission.limits import BUCKET_NS, BUCKETS
from isochrone.core.admission.retry_budget import WINDOW_S, RetryBudget
from isochrone.core.ids import KeyId, OrgId, PolicyId, ProjectId
from isochrone.core.rng import stream
from isochrone.core.world.tenant import ApiKey, Limits
from isochrone.gateway.key_counts import HEADER_CELLS, SLOT_CELLS
from isochrone.gateway.limits import KeyLimits
from isochrone.twin.fakes.counters import SharedRows
from tests.builders import SECOND_NS

START_NS = 500 * BUCKET_NS
MINUTE_NS = BUCKETS * BUCKET_NS
STRICT_NS = MINUTE_NS - BUCKET_NS  # no such window holds more than the limit


@dataclass(frozen=True)
class Arrival:
    """`gap_ms` after the one before, at one of three workers; it runs for `runs_ms`."""

    gap_ms: int
    worker: int
    estimate: int
    used: int
    runs_ms: int


arrivals = st.lists(
    st.builds(
        Arrival,
        gap_ms=st.one_of(st.just(0), st.integers(0, 9_000)),
        worker=st.integers(0, 2),
        estimate=st.integers(0, 40),
        used=st.integers(0, 40),
        runs_ms=st.one_of(st.just(0), st.integers(0, 90_000)),
    ),
    max_size=60,
)


def a_key(limits: Limits) -> ApiKey:
    return ApiKey(
        id=KeyId("key"), secret_sha256="00", org_id=OrgId("org"), project_id=ProjectId("project"),
        policy_id=PolicyId("anywhere"), limits=limits,
    )


def some_workers() -> list[KeyLimits]:
    rows = SharedRows(workers=3, cells=HEADER_CELLS + 64 * SLOT_CELLS)
    return [KeyLimits(rows.open(index)) for index in range(3)]


def most_in_a_window(counted: Sequence[tuple[int, int]], window_ns: int) -> int:
    """The most that (instant, count) pairs hold in any half-open window of this length."""
    return max(
        (
            sum(count for at_ns, count in counted if end_ns - window_ns < at_ns <= end_ns)
            for end_ns, _ in counted
        ),
        default=0,
    )


@given(arrivals)
def test_no_window_holds_more_than_the_limit(arriving: list[Arrival]) -> None:
    limits = Limits(requests_per_min=10, tokens_per_min=100, concurrent=4)
    key, workers, now_ns = a_key(limits), some_workers(), START_NS
    running: list[tuple[int, Arrival, int]] = []  # end, arrival, tokens used
    requests: list[tuple[int, int]] = []
    tokens: list[tuple[int, int]] = []
    for each in arriving:
        now_ns += each.gap_ms * 1_000_000
        for end in sorted(running, key=lambda one: one[0]):
            if end[0] <= now_ns:
                running.remove(end)
                tokens.append((end[0], end[2]))
                workers[end[1].worker].settle(key, end[1].estimate, end[2], end[0])
        refusal = workers[each.worker].admit(key, each.estimate, now_ns)
        if refusal is None:
            requests.append((now_ns, 1))
            used = min(each.used, each.estimate)
            running.append((now_ns + each.runs_ms * 1_000_000, each, used))
            assert len(running) <= 4
        elif refusal.retry_after_s is not None and refusal.reason == "rate_limit_requests":
            # Honest: not sooner, and then it is so for this limit.
            assert most_in_a_window(requests, MINUTE_NS) >= 10
    assert most_in_a_window(requests, STRICT_NS) <= 10
    assert most_in_a_window(tokens, STRICT_NS) <= 100
    assert most_in_a_window(requests, MINUTE_NS) <= 2 * 10


@given(st.integers(1, 240), st.integers(0, BUCKET_NS - 1), st.integers(0, 2))
def test_a_steady_stream_at_its_limit_is_never_refused(
    per_min: int, offset_ns: int, worker: int
) -> None:
    limits, key = some_workers(), a_key(Limits(requests_per_min=per_min))
    for number in range(3 * per_min):
        now_ns = START_NS + offset_ns + -(-number * MINUTE_NS // per_min)
        assert limits[(worker + number) % 3].admit(key, 0, now_ns) is None
        limits[(worker + number) % 3].settle(key, 0, 0, now_ns)


@given(arrivals)
def test_a_minute_after_the_last_end_everything_is_free_again(arriving: list[Arrival]) -> None:
    key, workers = a_key(Limits(requests_per_min=10, tokens_per_min=100)), some_workers()
    now_ns = START_NS
    for each in arriving:
        now_ns += each.gap_ms * 1_000_000
        if workers[each.worker].admit(key, each.estimate, now_ns) is None:
            now_ns += each.runs_ms * 1_000_000
            workers[each.worker].settle(key, each.estimate, each.used, now_ns)
    for worker in workers:
        lines = worker.headers(key, now_ns + MINUTE_NS)
        assert "remaining-requests: 10\r\n" in lines
        assert "remaining-tokens: 100\r\n" in lines


@given(
    st.integers(0, 50), st.integers(0, 20), st.integers(0, 10_000),
    st.lists(st.integers(0, 3_000), min_size=1, max_size=400),
)
def test_attempts_stay_within_the_budget_while_half_of_them_fail(
    ratio_percent: int, min_per_s: int, seed: int, gaps_ms: list[int]
) -> None:
    rng, budget = stream(seed, "failures"), RetryBudget(ratio_percent / 100, min_per_s)
    now_ns, attempts = 0, 0
    for gap_ms in gaps_ms:
        now_ns += gap_ms * 1_000_000
        budget.deposit(now_ns)
        attempts += 1
        while rng.random() < 0.5 and budget.try_spend(now_ns):
            attempts += 1
    least = min_per_s * (now_ns // SECOND_NS + WINDOW_S)
    assert attempts <= (100 + ratio_percent) * len(gaps_ms) / 100 + least
    assert budget.spent == attempts - len(gaps_ms)

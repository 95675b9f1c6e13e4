"""The simulated engine against what is known exactly: queues of theory, conservation of work."""

import math
import tracemalloc
from collections.abc import Sequence
from math import factorial, inf
from random import Random
from statistics import mean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isochrone.core.estimate.batching import Physics
from isochrone.twin.fast.block_cache import BlockCache
from isochrone.twin.fast.replica import BLOCK_TOKENS, Job, SimulatedReplica

HUGE = 10**9
RUNS = 8
TICKS = 10_000  # tokens a second: fine enough to stand for continuous service times


def servers(count: int) -> Physics:
    """`count` servers that serve one token in 1/TICKS s, with prompts that cost nothing."""
    return Physics(step_s=1 / TICKS, prefill_tok_s=1e15, slots=count, kv_tokens=HUGE)


def play(
    replica: SimulatedReplica, arrivals: Sequence[tuple[float, Job]]
) -> dict[int, Job]:
    """Offer each at its time and let everything end; the ended by ident."""
    ended: dict[int, Job] = {}

    def run_until(limit_s: float) -> None:
        while replica.next_s <= limit_s and replica.next_s < inf:
            for job in replica.advance(replica.next_s):
                if job.ended_s >= 0:
                    ended[job.ident] = job

    for at_s, job in arrivals:
        run_until(at_s)
        replica.offer(job, at_s)
    run_until(1e18)
    return ended


def erlang_c(count: int, load: float) -> float:
    """The probability to wait of M/M/c; `load` is in servers."""
    top = load**count / factorial(count) * count / (count - load)
    return top / (sum(load**k / factorial(k) for k in range(count)) + top)


def agree(found: Sequence[float], expected: float) -> bool:
    """Whether the mean of independent runs is within four of its standard errors."""
    return abs(mean(found) - expected) <= 4 * stdev(found) / math.sqrt(len(found))


@pytest.mark.parametrize(("count", "used"), [(1, 0.7), (8, 0.48), (16, 0.61), (32, 0.72)])
def test_many_servers_wait_as_erlang_says(count: int, used: float) -> None:
    """M/M/c: the last three are the shares of capacity at which one in twenty waits."""
    late, waits_s = [], []
    for seed in range(RUNS):
        rng, now_s, arrivals = Random(seed), 0.0, []
        for ident in range(15_000):
            now_s += rng.expovariate(used * count)  # the mean service time is one second
            served = max(round(rng.expovariate(1.0) * TICKS), 1)
            arrivals.append((now_s, Job(ident, 1, served + 1)))
        ended = play(SimulatedReplica(servers(count)), arrivals)
        assert len(ended) == len(arrivals)
        waits = [job.started_s - job.arrived_s for job in ended.values()]
        late.append(mean(wait > 1e-12 for wait in waits))
        waits_s.append(mean(waits))
    expected = erlang_c(count, used * count)
    if count > 1:
        assert expected == pytest.approx(0.05, abs=0.01)
    assert agree(late, expected)
    assert agree(waits_s, expected / (count * (1 - used)))
    assert max(late) < 2 * expected


def test_one_request_takes_what_physics_says() -> None:
    physics = Physics(
        step_s=0.01, stream_s=0.001, context_token_s=1e-6, prefill_tok_s=1000.0, slots=4,
        kv_tokens=10_000,
    )
    job = play(SimulatedReplica(physics), [(5.0, Job(0, 500, 200))])[0]
    assert job.first_s == pytest.approx(5.5)
    assert job.ended_s - 5.0 == pytest.approx(physics.alone_ms(500, 200) / 1000, rel=0.01)


def test_streams_slow_down_while_a_prompt_is_read_and_together() -> None:
    physics = Physics(
        step_s=0.01, stream_s=0.01, prefill_tok_s=1000.0, chunk_tokens=100, slots=4,
        kv_tokens=HUGE,
    )
    ended = play(
        SimulatedReplica(physics), [(0.0, Job(0, 100, 1001)), (1.0, Job(1, 1000, 2))]
    )
    first, second = ended[0], ended[1]
    # A step takes 20 ms alone, and 100 ms more with a chunk: ten chunks take 1.2 s.
    assert first.first_s == pytest.approx(0.1)
    assert second.first_s == pytest.approx(2.2)
    assert second.ended_s == pytest.approx(2.23)  # a step of two streams
    tokens_by_then = 0.9 / 0.02 + 1.2 / 0.12 + 1
    assert first.ended_s == pytest.approx(2.23 + (1000 - tokens_by_then) * 0.02)


def test_what_is_cached_is_not_read_again() -> None:
    physics = Physics(step_s=0.01, prefill_tok_s=1000.0, slots=1, kv_tokens=10_000)
    blocks = list(range(4))
    prompt = 4 * BLOCK_TOKENS + 100
    arrivals = [
        (0.0, Job(0, prompt, 1, blocks)), (10.0, Job(1, prompt, 1, blocks)),
        (20.0, Job(2, 4 * BLOCK_TOKENS, 1, blocks)), (30.0, Job(3, prompt, 1, [9, *blocks[1:]])),
    ]
    ended = play(SimulatedReplica(physics), arrivals)
    took_ms = [round(1000 * (ended[i].first_s - ended[i].arrived_s)) for i in range(4)]
    assert took_ms == [prompt, 100, 1, prompt]


def test_a_prompt_is_read_more_slowly_the_longer_it_is() -> None:
    """Each token waits for the tokens before it, cached or not; all of them are counted once."""
    physics = Physics(
        step_s=0.01, prefill_tok_s=1000.0, prefill_context_s=1e-6, slots=2, kv_tokens=10_000
    )
    replica = SimulatedReplica(physics)
    blocks = [1, 2]
    ended = play(replica, [(0.0, Job(0, 1024, 1, blocks)), (9.0, Job(1, 1024, 3, blocks))])
    before_s = sum(1e-3 + 1e-6 * place for place in range(512))
    whole_s = sum(1e-3 + 1e-6 * place for place in range(1024))
    assert ended[0].first_s == pytest.approx(whole_s, abs=1e-3)
    assert ended[1].first_s - 9.0 == pytest.approx(whole_s - before_s, abs=1e-3)
    assert ended[1].ended_s - 9.0 == pytest.approx(whole_s - before_s + 0.02, abs=1e-3)
    assert physics.alone_ms(1024, 1) == pytest.approx(1000.0 * whole_s, abs=1.0)
    assert replica.read_tokens == pytest.approx(1024 + 512)


def test_memory_and_slots_bound_what_is_let_in() -> None:
    physics = Physics(step_s=0.01, prefill_tok_s=1e6, slots=3, kv_tokens=1000)
    replica = SimulatedReplica(physics)
    for ident, size in enumerate((400, 500, 200, 50)):
        replica.offer(Job(ident, size, 10), 0.0)
    assert (replica.waiting, replica.open_jobs) == (2, 4)  # nobody overtakes the third
    with pytest.raises(ValueError, match="never fits"):
        replica.offer(Job(9, 1000, 1), 0.0)
    assert [job.ident for job in replica.fail()] == [0, 1, 2, 3]
    assert (replica.open_jobs, replica.next_s) == (0, inf)


def test_least_recently_used_blocks_go_first_and_beginnings_last() -> None:
    cache = BlockCache(4)
    assert cache.use([1, 2, 3]) == 0
    assert cache.use([1, 5]) == 1
    assert cache.leading([1, 2, 3]) == 3
    assert cache.use([7]) == 0
    assert cache.leading([1, 2, 3]) == 2, "the end of what was used longest ago"
    assert len(cache) == 4


def test_a_conversation_that_goes_on_for_ever_takes_no_more_memory() -> None:
    cache = BlockCache(1_000)
    tracemalloc.start()
    try:
        for turn in range(20_000):
            assert cache.use(list(range(1, 17))) == (16 if turn else 0)
        now_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now_bytes < 40_000
    assert (len(cache), cache.leading([1, 2, 99])) == (16, 2)


JOBS = st.lists(
    st.tuples(st.floats(0, 5), st.integers(1, 400), st.integers(1, 60)), min_size=1, max_size=25
)


@given(JOBS, st.integers(1, 4), st.integers(500, 2000))
def test_work_is_conserved(
    jobs: list[tuple[float, int, int]], slots: int, kv_tokens: int
) -> None:
    """Everything ends once, in a possible order of its own instants, with all of its tokens."""
    physics = Physics(
        step_s=0.01, stream_s=0.002, context_token_s=1e-6, prefill_tok_s=5000.0, slots=slots,
        kv_tokens=kv_tokens,
    )
    arrivals, now_s = [], 0.0
    for ident, (gap_s, prompt, output) in enumerate(jobs):
        now_s += gap_s
        arrivals.append((now_s, Job(ident, prompt, output)))
    replica = SimulatedReplica(physics)
    ended = play(replica, arrivals)
    assert set(ended) == set(range(len(jobs)))
    for job in ended.values():
        assert job.arrived_s <= job.started_s <= job.first_s <= job.ended_s
        alone_s = (job.prompt_tokens - job.cached_tokens) / physics.prefill_tok_s
        assert job.first_s - job.started_s >= alone_s * (1 - 1e-9)
        assert job.ended_s - job.first_s >= (job.output_tokens - 1) * physics.step_s * (1 - 1e-9)
    assert replica.written_tokens == pytest.approx(sum(output for _, _, output in jobs))
    assert replica.open_jobs == 0
    assert replica.busy_s <= max(job.ended_s for job in ended.values())


def test_the_same_calls_give_the_same_results() -> None:
    def run() -> list[tuple[float, float, float]]:
        rng, now_s, arrivals = Random(7), 0.0, []
        for ident in range(2000):
            now_s += rng.expovariate(20.0)
            arrivals.append((now_s, Job(ident, rng.randint(1, 800), rng.randint(1, 300))))
        physics = Physics(
            step_s=0.005, stream_s=0.0005, context_token_s=1e-7, prefill_tok_s=20_000.0,
            slots=64, kv_tokens=60_000,
        )
        ended = play(SimulatedReplica(physics), arrivals)
        return [(job.started_s, job.first_s, job.ended_s) for _, job in sorted(ended.items())]

    assert run() == run()

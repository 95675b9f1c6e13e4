"""The greatest throughput of a scaled engine within bounds of latency, played on the twin's engine.

MLPerf's Server and Interactive scenarios let requests come by pure chance and bound the 99th
percentiles of the first token and of the time of each further one. Prompts all have the mean
length; answers are exponential up to the longest one, or all of one length where nearly all are cut
there. How much of prompts a step reads is tuned, as whoever hands in a result would.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from random import Random

from tools.calibrate.mlperf import Mix

from isochrone.core.estimate.batching import Physics
from isochrone.core.estimate.saturation import saturated_rps
from isochrone.twin.fast.replica import Job, SimulatedReplica

SEED = 1
LEAST_REQUESTS = 3_000
ROUNDS = 9  # of halving: the rate is known to 0.3 %
CHUNKS = (512, 1024, 2048)  # tokens of prompts that a step reads


def most_tokens_s(physics: Physics, mix: Mix, bounds_s: tuple[float, float]) -> float:
    """Tokens/s of the replica at the greatest rate that keeps both bounds, with the chunk that lets
    it be greatest."""
    return max(
        _most_tokens_s(replace(physics, chunk_tokens=chunk), mix, bounds_s) for chunk in CHUNKS
    )


def _most_tokens_s(physics: Physics, mix: Mix, bounds_s: tuple[float, float]) -> float:
    answers = _answers(physics, mix)
    usual = sum(answers) / len(answers)
    low, high = 0.0, 1.2 * saturated_rps(physics, mix.prompt, usual)
    for _ in range(ROUNDS):
        rate = (low + high) / 2
        if _keeps(physics, mix, answers, rate, bounds_s):
            low = rate
        else:
            high = rate
    return low * usual


def _answers(physics: Physics, mix: Mix) -> list[int]:
    """Enough to fill the replica several times; the same for every rate."""
    fit = min(physics.slots, int(physics.kv_tokens / (mix.prompt + mix.output)))
    rng = Random(SEED)
    count = max(LEAST_REQUESTS, 6 * fit)
    if mix.output >= mix.longest:
        return [mix.longest] * count
    return [
        max(1, min(round(rng.expovariate(1.0 / mix.output)), mix.longest)) for _ in range(count)
    ]


def _keeps(
    physics: Physics, mix: Mix, answers: Sequence[int], rate_rps: float,
    bounds_s: tuple[float, float],
) -> bool:
    """Whether requests at this rate have both bounds, the first third of them not counted."""
    rng, now_s, jobs = Random(SEED), 0.0, []
    replica = SimulatedReplica(physics, cache_tokens=0)
    for ident, answer in enumerate(answers):
        now_s += rng.expovariate(rate_rps)
        while replica.next_s <= now_s:
            replica.advance(replica.next_s)
        jobs.append(Job(ident, round(mix.prompt), answer))
        replica.offer(jobs[-1], now_s)
    while replica.next_s < inf:
        replica.advance(replica.next_s)
    counted = jobs[len(jobs) // 3:]
    first_s = _p99([job.first_s - job.arrived_s for job in counted])
    token_s = _p99([
        (job.ended_s - job.first_s) / (job.output_tokens - 1) for job in counted
        if job.output_tokens > 1
    ])
    return first_s <= bounds_s[0] and token_s <= bounds_s[1]


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]

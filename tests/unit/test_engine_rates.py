"""What the agent learns from engine counters, and how it reads them from each engine family."""

import json
from dataclasses import replace

import pytest

from isochrone.adapters.engines.counters import LoadReader, family_of, read_series
from isochrone.adapters.engines.llamacpp import with_slots
from isochrone.core.estimate.engine_rates import (
    arrived,
    learn,
    pending_output_tokens,
    pending_prompt_tokens,
    seeded,
)
from isochrone.core.estimate.service import Rates
from isochrone.core.ids import ModelName
from isochrone.core.routing.site_load import Reading, load_of
from isochrone.core.world.digest import DeploymentLoad
from isochrone.core.world.engine_load import UNKNOWN_LOAD, EngineLoad
from isochrone.wire import fleet

SEED = seeded(Rates(prefill_tok_s=100.0, decode_tok_s=10.0))
IDLE = EngineLoad(
    running=0, waiting=0, prompt_tokens_total=0, cached_tokens_total=0, output_tokens_total=0,
    prefill_tok_s=None, decode_tok_s=None,
)

VLLM = """
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="a } b"} 2.0
vllm:prompt_tokens_total{engine="0"} 1000.0
vllm:prefix_cache_hits_total{engine="0"} 400.0
vllm:generation_tokens_total{engine="0"} 5e2
vllm:request_prefill_time_seconds_sum{engine="0"} 2.0
vllm:inter_token_latency_seconds_sum{engine="0"} 10.0
vllm:inter_token_latency_seconds_count{engine="0"} 490.0
vllm:request_success_total{finished_reason="stop"} 7.0
vllm:request_success_total{finished_reason="length"} 1.0
vllm:some_gauge NaN
a broken line
"""


def test_a_seed_holds_until_there_is_work() -> None:
    assert SEED.rates == Rates(prefill_tok_s=100.0, decode_tok_s=10.0)
    assert learn(SEED, IDLE, IDLE) == SEED
    assert learn(SEED, UNKNOWN_LOAD, UNKNOWN_LOAD) == SEED


def test_work_replaces_the_seed_and_later_work_replaces_earlier() -> None:
    known, before = SEED, IDLE
    for rate in (1000.0, 400.0):
        for _ in range(20):
            assert before.prompt_tokens_total is not None
            assert before.output_tokens_total is not None
            after = replace(
                before, prompt_tokens_total=before.prompt_tokens_total + 4000,
                output_tokens_total=before.output_tokens_total + 1000,
                prefill_tok_s=10 * rate, decode_tok_s=rate,
            )
            known, before = learn(known, before, after), after
        assert known.rates.prefill_tok_s == pytest.approx(10 * rate, rel=0.01)
        assert known.rates.decode_tok_s == pytest.approx(rate, rel=0.01)


def test_a_single_token_says_little() -> None:
    odd = replace(IDLE, output_tokens_total=1, decode_tok_s=1_000_000.0)
    assert learn(SEED, IDLE, odd).rates.decode_tok_s < 11


def test_an_engine_that_started_anew_teaches_nothing() -> None:
    old = replace(IDLE, output_tokens_total=900, prompt_tokens_total=900)
    assert learn(SEED, old, replace(IDLE, decode_tok_s=5.0, prefill_tok_s=5.0)) == SEED


def test_lengths_come_from_request_counts_or_from_ages() -> None:
    known = SEED
    before = replace(IDLE, requests_total=0)
    after = replace(
        before, requests_total=3000, output_tokens_total=60_000, prompt_tokens_total=900_000
    )
    counted = learn(known, before, after)
    assert counted.output_tokens == pytest.approx(20, rel=0.1)
    assert counted.prompt_tokens == pytest.approx(300, rel=0.02)
    busy = replace(IDLE, running=4, running_output_tokens=4 * 50)
    for _ in range(100):
        known = learn(known, busy, busy)
    assert known.output_tokens == pytest.approx(50, rel=0.01)


def test_pending_work_counts_what_runs_and_what_waits() -> None:
    load = replace(IDLE, running=2, waiting=3, running_prompt_tokens=100)
    assert pending_prompt_tokens(SEED, load) == 100 + 3 * SEED.prompt_tokens
    assert pending_output_tokens(SEED, load) == 5 * SEED.output_tokens
    assert pending_output_tokens(SEED, UNKNOWN_LOAD) == 0


def test_series_of_vllm() -> None:
    series = read_series(VLLM)
    assert family_of(series) == "vllm"
    reader = LoadReader(family="vllm")
    assert reader.read(series) == EngineLoad(
        running=4, waiting=2, prompt_tokens_total=600, cached_tokens_total=400,
        output_tokens_total=500, prefill_tok_s=300.0, decode_tok_s=49.0, requests_total=8,
    )
    again = reader.read(series)
    assert (again.prefill_tok_s, again.decode_tok_s) == (None, None), "no work since"


def test_what_a_cache_holds_is_in_the_labels_of_vllm_and_a_series_of_sglang() -> None:
    labels = 'block_size="16",cache_dtype="auto",num_gpu_blocks="{}",num_gpu_blocks_override="7"'
    config = "".join(
        f"vllm:cache_config_info{{engine=\"{engine}\",{labels.format(blocks)}}} 1.0\n"
        for engine, blocks in ((0, 1000), (1, 500))
    )
    assert LoadReader(family="vllm").read(read_series(config)).kept_tokens == 24_000
    silent = 'vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0\n'
    assert LoadReader(family="vllm").read(read_series(silent)).kept_tokens is None
    said = read_series("sglang:max_total_num_tokens 90000.0\n")
    assert LoadReader(family="sglang").read(said).kept_tokens == 90_000


def test_what_running_requests_take_of_a_cache() -> None:
    config = 'vllm:cache_config_info{{engine="{}",block_size="16",num_gpu_blocks="1000"}} 1.0\n'
    two = config.format(0) + config.format(1) + (
        'vllm:kv_cache_usage_perc{engine="0"} 0.5\nvllm:kv_cache_usage_perc{engine="1"} 0.1\n'
    )
    assert LoadReader(family="vllm").read(read_series(two)).held_tokens == 9_600
    older = config.format(0) + "vllm:gpu_cache_usage_perc 0.25\n"
    assert LoadReader(family="vllm").read(read_series(older)).held_tokens == 4_000
    sizeless = read_series("vllm:kv_cache_usage_perc 0.25\n")
    assert LoadReader(family="vllm").read(sizeless).held_tokens is None
    said = read_series("sglang:max_total_num_tokens 90000.0\nsglang:num_used_tokens 1200.0\n")
    assert LoadReader(family="sglang").read(said).held_tokens == 1_200
    slots = [
        {"is_processing": True, "n_prompt_tokens": 300, "n_prompt_tokens_processed": 100,
         "n_prompt_tokens_cache": 50, "next_token": [{"n_decoded": 0}]},
        {"is_processing": True, "n_prompt_tokens": 27, "n_prompt_tokens_processed": 20,
         "n_prompt_tokens_cache": 0, "next_token": [{"n_decoded": 7}]},
        {"is_processing": False},
    ]
    load = with_slots(UNKNOWN_LOAD, json.dumps(slots).encode())
    assert (load.held_tokens, load.running_prompt_tokens, load.running_output_tokens) == (
        177, 150, 7,
    )
    assert with_slots(UNKNOWN_LOAD, b"[]").held_tokens == 0
    assert with_slots(UNKNOWN_LOAD, b"away").held_tokens is None


def test_missing_series_are_unknown() -> None:
    assert LoadReader(family="sglang").read({"sglang:num_running_reqs": 1.0}) == replace(
        UNKNOWN_LOAD, running=1
    )
    assert family_of(read_series("process_cpu_seconds_total 3\n")) is None


@pytest.mark.parametrize(
    "page",
    [
        "<html>\n   \n<p>not here</p>\n\xa0\n</html>\n",
        "vllm:num_requests_running 1e308\nvllm:num_requests_running 1e308\n",
        "vllm:num_requests_running 1e30\nvllm:prompt_tokens_total -1e300\n",
        'vllm:cache_config_info{block_size="16",num_gpu_blocks="1' + "0" * 400 + '"} 1\n',
    ],
    ids=["blank lines of a page", "an endless sum", "more than a number holds", "endless blocks"],
)
def test_what_no_engine_counts_is_unknown(page: str) -> None:
    load = LoadReader(family="vllm").read(read_series(page))
    assert load == UNKNOWN_LOAD
    fleet.encode(load)


def a_reading(
    *, running: int | None, waiting: int = 0, output: int | None = 0, requests: int | None = None
) -> EngineLoad:
    return replace(
        UNKNOWN_LOAD, running=running, waiting=waiting, output_tokens_total=output,
        requests_total=requests,
    )


KNOWN = seeded(Rates(prefill_tok_s=1000.0, decode_tok_s=100.0))  # answers of 128 tokens


@pytest.mark.parametrize(("before", "after", "expected"), [
    (a_reading(running=0), a_reading(running=3), 1.5),
    (a_reading(running=3, output=1000), a_reading(running=3, output=1512), 2.0),
    (a_reading(running=3, output=1000), a_reading(running=1, output=1512), 1.0),
    (a_reading(running=4), a_reading(running=4, waiting=6), 3.0),
    (a_reading(running=4, requests=10), a_reading(running=4, requests=15, output=9999), 2.5),
    (a_reading(running=9), a_reading(running=0), 0.0),
    (a_reading(running=0, output=5000), a_reading(running=2, output=128), 1.0),  # it restarted
    (a_reading(running=None), a_reading(running=2), None),
    (a_reading(running=2), a_reading(running=None), None),
    (a_reading(running=0, output=None), a_reading(running=2, output=None), None),
])
def test_what_came_is_what_ended_and_what_is_more(
    before: EngineLoad, after: EngineLoad, expected: float | None
) -> None:
    assert arrived(None, before, after, KNOWN, elapsed_s=2.0) == expected


def test_what_came_lately_fades() -> None:
    idle, busy = a_reading(running=0), a_reading(running=10)
    assert arrived(2.0, idle, busy, KNOWN, elapsed_s=1.0) == pytest.approx(7.6)
    assert arrived(7.6, busy, busy, KNOWN, elapsed_s=1.0) == pytest.approx(2.28)


NONSENSE = [
    "vllm:num_requests_running 9e15\nvllm:num_requests_waiting 9e15\n"
    "vllm:prompt_tokens_total 9e15\nvllm:generation_tokens_total 9e15\n"
    "vllm:request_success_total 1\n",
    "vllm:num_requests_running 1\nvllm:prompt_tokens_total 9e15\n"
    "vllm:generation_tokens_total 9e15\nvllm:request_prefill_time_seconds_sum 9e15\n"
    "vllm:inter_token_latency_seconds_count 1e-300\n"
    "vllm:inter_token_latency_seconds_sum 9e15\n",
]


@pytest.mark.parametrize("page", NONSENSE, ids=["counts", "rates"])
def test_nonsense_within_bounds_makes_a_digest_that_can_be_told(page: str) -> None:
    before = replace(IDLE, requests_total=0)
    load = LoadReader(family="vllm").read(read_series(page))
    known = learn(SEED, before, load)
    came = arrived(None, before, load, known, elapsed_s=1.0)
    said = load_of(ModelName("m"), [Reading(4, load, came)], known)
    assert fleet.decode(fleet.encode(said), DeploymentLoad) == said
    assert said.decode_tok_s > 0.0
    assert said.prefill_tok_s > 0.0

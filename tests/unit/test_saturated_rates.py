"""Rates from full engines: the fit against throughputs made from known rates, the committed rows
against the committed measurements, and the errors that the docs state."""

from dataclasses import replace
from functools import cache
from math import inf
from pathlib import Path

import pytest
from tools.calibrate import judge, mlperf
from tools.calibrate.facts import CHIPS, MODELS, kv_tokens
from tools.calibrate.mlperf import MIXES, Result
from tools.calibrate.saturated import (
    SLOTS,
    Factors,
    Saturated,
    Served,
    by_engine,
    error_of,
    fit_saturated,
    fitted,
    gpu_s_of,
    left_out_errors,
    rates_of,
    read_saturated,
)
from tools.calibrate.served import most_tokens_s

from isochrone.adapters.packaged import load_engine_rates
from isochrone.core.estimate.batching import Physics
from isochrone.core.estimate.engine_rates_table import PRECISIONS, EngineRates, row_of
from isochrone.core.estimate.saturation import saturated_rps
from isochrone.twin.fast.replica import Job, SimulatedReplica

EXCERPTS = Path(__file__).parent / "excerpts"
DOCS = Path(__file__).parents[2] / "docs" / "twin-world.md"
LENGTHS = ((1024, 1024), (1024, 8192), (1024, 32768), (8192, 1024), (32768, 1024))
OF = Served(hardware="H200-SXM-141GB", model="llama3-70b", gpus=2, precision="fp8")
KNOWN = Factors(reading=2.5, writing=4.0, memory=1.25)
FIELDS = (
    "prefill_tok_s", "prefill_context_us", "step_ms", "stream_ms", "context_token_us",
    "decode_error", "left_out_error",
)


@cache
def engines() -> dict[Served, list[Saturated]]:
    return by_engine(list(read_saturated(EXCERPTS)))


@cache
def fits() -> dict[Served, tuple[Factors, EngineRates]]:
    return fit_saturated(engines())


def made(of: Served, factors: Factors, lengths: tuple[tuple[int, int], ...]) -> list[Saturated]:
    """What an engine with these factors would be measured to do."""
    rates = rates_of(of, factors, table="", engine="")
    return [
        Saturated(of=of, prompt=prompt, output=output, gpu_s=gpu_s_of(rates, prompt, output))
        for prompt, output in lengths
    ]


# -- known rates come back --------------------------------------------------------------------


@pytest.mark.parametrize("of", [
    OF, Served(hardware="B200-SXM-180GB", model="gpt-oss-120b", gpus=1, precision="fp4"),
    Served(hardware="A100-SXM4-80GB", model="llama3-8b", gpus=1, precision="bf16"),
])
def test_throughputs_made_from_known_rates_give_them_back(of: Served) -> None:
    found = fitted(made(of, KNOWN, LENGTHS), None)
    assert (found.reading, found.writing, found.memory) == pytest.approx((2.5, 4.0, 1.25), rel=1e-6)
    # A wrong guess of what is usual pulls it off by little, the right one not at all.
    pulled = fitted(made(of, KNOWN, LENGTHS), KNOWN)
    assert pulled.reading == pytest.approx(2.5, rel=1e-6)
    wrong = Factors(reading=5.0, writing=8.0, memory=2.5)
    pulled = fitted(made(of, KNOWN, LENGTHS), wrong)
    for each in made(of, KNOWN, LENGTHS):
        assert abs(error_of(rates_of(of, pulled, table="", engine=""), each)) < 0.08


def test_a_length_left_out_is_met_and_an_ill_defined_factor_is_taken_from_elsewhere() -> None:
    points = made(OF, KNOWN, LENGTHS)
    for _, error in left_out_errors(points, KNOWN):
        assert abs(error) < 1e-6
    # Answers of one length cannot tell reading from context: the usual factors decide.
    blurred = [each for each in points if each.output == 1024]
    assert fitted(blurred, KNOWN).memory == pytest.approx(1.25, rel=1e-6)


def test_a_replica_is_what_its_facts_and_factors_say() -> None:
    rates = rates_of(OF, KNOWN, table="t", engine="e")
    assert rates.prefill_tok_s == pytest.approx(2 * 1979e12 / (2.5 * 2 * 70.6e9))
    assert rates.step_ms == pytest.approx(1.25 * 70.6e9 / (2 * 4800e9) * 1e3)
    assert rates.stream_ms == pytest.approx(4.0 * 2 * 70.6e9 / (2 * 1979e12) * 1e3)
    assert rates.context_token_us == pytest.approx(1.25 * 163_840 / (2 * 4800e9) * 1e6)
    assert rates.kv_tokens == int((2 * 141 * 0.9 - 70.6) * 1e9 / 163_840)
    # Weights that stay in 4 bits, whatever the engine computes in.
    assert kv_tokens("H100-SXM5-80GB", "gpt-oss-120b", 1, "fp8") > 0
    assert kv_tokens("H100-SXM5-80GB", "llama3-70b", 1, "bf16") == 0


def test_a_scale_makes_the_offline_result_and_says_how_far_it_was() -> None:
    of = mlperf.served("H200-SXM-141GB", "llama2-70b", "fp8")
    measured = 0.8 * mlperf.predicted(of, KNOWN)
    result = Result(
        of=of, scenario="Offline", engine="vllm",
        tokens_s=(0.9 * measured, measured, 1.1 * measured),
    )
    row, = mlperf.scaled([result], {OF: KNOWN})
    assert mlperf.tokens_s_of(row, MIXES["llama2-70b"]) == pytest.approx(measured)
    assert row.left_out_error == pytest.approx(0.25)
    assert row.decode_error == pytest.approx(0.1)
    assert (row.engine, row.gpus, row.precision) == ("vllm", 1, "fp8")


# -- a full engine -----------------------------------------------------------------------------


@pytest.mark.parametrize("context_s", [0.0, 2e-7])
def test_a_full_engine_of_the_twin_does_what_the_formula_says(context_s: float) -> None:
    physics = Physics(
        step_s=0.01, stream_s=1e-4, context_token_s=1e-7, prefill_tok_s=20_000.0,
        prefill_context_s=context_s, slots=64, kv_tokens=40_000,
    )
    replica, ended = SimulatedReplica(physics, cache_tokens=0), 0
    for ident in range(1_500):
        replica.offer(Job(ident, 800, 100 + ident % 101), 0.0)
    at_s = begun = done = 0.0
    while replica.next_s < inf:
        at_s = replica.next_s
        ended += sum(job.ended_s >= 0 for job in replica.advance(at_s))
        if ended <= 300:
            begun = at_s
        if ended <= 1_300:
            done = at_s
    # Not closer: streams begin one after the other, so fewer run than could.
    assert 1_000 / (done - begun) == pytest.approx(saturated_rps(physics, 800, 150), rel=0.06)


def test_longer_requests_and_fewer_slots_cost_throughput_on_every_engine() -> None:
    for of, (_, rates) in fits().items():
        base = gpu_s_of(rates, 1024, 1024)
        assert gpu_s_of(rates, 4096, 1024) > base, of
        assert gpu_s_of(rates, 1024, 4096) > base, of
        few, many = (rates.physics(slots=slots) for slots in (64, SLOTS))
        assert saturated_rps(few, 1024, 1024) < saturated_rps(many, 1024, 1024), of


def test_a_newer_chip_does_more_for_each_gpu() -> None:
    def tokens_s(hardware: str, model: str, gpus: int, precision: str) -> float:
        row = row_of(load_engine_rates(), hardware, model, gpus, precision)
        assert row is not None
        return 1024 / gpu_s_of(row, 1024, 1024)

    chips = (
        ("H100-SXM5-80GB", 2, "fp8"), ("H200-SXM-141GB", 2, "fp8"), ("B200-SXM-180GB", 1, "fp4"),
        ("GB200-186GB", 1, "fp4"),
    )
    found = [tokens_s(chip, "llama3-70b", gpus, precision) for chip, gpus, precision in chips]
    assert found == sorted(found)
    assert tokens_s("MI325X-256GB", "llama2-70b", 1, "fp8") > tokens_s(
        "MI300X-192GB", "llama2-70b", 1, "fp8"
    )


# -- what is committed -------------------------------------------------------------------------


def test_the_committed_rows_are_what_the_tool_makes_of_the_committed_measurements() -> None:
    results = mlperf.read_results(EXCERPTS)
    scaled = mlperf.scaled(results, {of: factors for of, (factors, _) in fits().items()})
    expected = [*(rates for _, rates in fits().values()), *scaled]
    packaged = [
        each for each in load_engine_rates() if each.table in ("tensorrt-llm-max", "mlperf")
    ]
    assert len(packaged) == len(expected) == 51
    for row, made_now in zip(packaged, expected, strict=True):
        same = replace(row, **{field: getattr(made_now, field) for field in FIELDS})
        assert same == made_now
        for field in FIELDS:
            assert getattr(row, field) == pytest.approx(getattr(made_now, field), rel=6e-4)


def test_the_docs_state_the_errors() -> None:
    text = DOCS.read_text(encoding="utf-8")
    results = mlperf.read_results(EXCERPTS)
    factors = {of: factors for of, (factors, _) in fits().items()}
    lines = [
        *judge.tensorrt_lines(engines()), *judge.factor_lines(factors),
        *judge.offline_lines(results, factors),
        *judge.wider_lines(results, mlperf.scaled(results, factors), load_engine_rates()),
    ]
    assert len(lines) > 50
    for line in lines:
        assert line in text, line


@pytest.mark.parametrize(("hardware", "scenario"), [
    ("H200-SXM-141GB", "Server"), ("H200-NVL-141GB", "Interactive"),
])
def test_the_twin_keeps_bounds_of_latency_at_the_measured_rate(
    hardware: str, scenario: str
) -> None:
    """The scale is from the Offline scenario alone."""
    row = row_of(load_engine_rates(), hardware, "llama2-70b", 1, "fp8")
    assert row is not None
    result, = (
        each for each in mlperf.read_results(EXCERPTS)
        if (each.of.hardware, each.of.model, each.scenario) == (hardware, "llama2-70b", scenario)
    )
    mix = MIXES["llama2-70b"]
    played = most_tokens_s(row.physics(slots=SLOTS), mix, mix.bounds_s[scenario])
    assert played == pytest.approx(result.usual, rel=0.1)


def test_what_was_known_before_is_chosen_as_before() -> None:
    table = load_engine_rates()
    for each in table:
        if each.precision == "bf16":
            chosen = row_of(table, each.hardware, each.model, each.gpus)
            assert chosen is not None
            assert chosen.precision == "bf16"
            measured = chosen.table != "derived"
            assert measured or each.table == "derived"
    usual = row_of(table, "H100-SXM5-80GB", "llama3-8b", 1)
    assert usual is not None
    assert (usual.table, usual.engine, usual.step_ms) == ("llm-inference-bench", "vllm", 7.764)
    # Asked for, or the only one: the precision that was measured.
    for precision, found in (("fp8", "fp8"), (None, "bf16"), ("fp4", None)):
        row = row_of(table, "H100-SXM5-80GB", "llama3-8b", 1, precision)
        assert (row.precision if row else None) == found
    only = row_of(table, "GB200-186GB", "gpt-oss-120b", 1)
    assert only is not None
    assert only.precision == "fp4"


def test_no_row_is_faster_than_its_chip_but_where_the_docs_say_so() -> None:
    """Reading and writing within the peak; memory within what the data sheet says, nearly."""
    for of, (factors, _) in fits().items():
        assert factors.writing > 1.0, of
        assert factors.memory > 0.9, of
        odd = (of.hardware, of.model) == ("H200-SXM-141GB", "llama4-maverick")
        assert factors.reading > (0.85 if odd else 1.0), of
        assert of.hardware in CHIPS
        assert of.model in MODELS
        assert of.precision in PRECISIONS

"""MLPerf's results of language models, and rates scaled to them.

MLPerf has one mix of lengths for a model, so it cannot tell reading and writing apart. It checks
rates that were fitted elsewhere, and it scales them: the factors (`saturated.py`) of the same chip,
or the usual ones where the other table has not got it, times what makes its Offline throughput that
of the median submission.

Only the closed division counts, where the model is the same for all, of systems with one kind of
accelerator that is not virtual. How an engine was spread over GPUs is not stated: taken is the
least number (1, 2, 4 ...) whose memory holds `LEAST_REQUESTS` beside the weights.
"""

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, mode

from tools.calibrate.facts import Precision, kv_tokens
from tools.calibrate.saturated import Factors, Served, gpu_s_of, median_factors, rates_of

from isochrone.core.estimate.engine_rates_table import EngineRates

TABLE = "mlperf"
FILE = "mlperf_inference_v5_1_llm.csv"
LEAST_REQUESTS = 128
COLUMNS = (
    "ID", "Availability", "Category", "Accelerator", "model", "Scenario", "weight_data_types",
    "Software", "per_accelerator",
)
HARDWARE = {
    "NVIDIA H100-SXM-80GB": "H100-SXM5-80GB", "NVIDIA H200-SXM-141GB": "H200-SXM-141GB",
    "NVIDIA H200-NVL-141GB": "H200-NVL-141GB", "NVIDIA B200-SXM-180GB": "B200-SXM-180GB",
    "NVIDIA GB200": "GB200-186GB", "NVIDIA GB300": "GB300-288GB", "NVIDIA L40S": "L40S",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "RTX-PRO-6000-SE-96GB",
    "AMD Instinct MI300X 192GB HBM3": "MI300X-192GB",
    "AMD Instinct MI325X 256GB HBM3e": "MI325X-256GB",
}
PRECISION: Mapping[str, Precision] = {"fp8": "fp8", "fp4": "fp4"}
# llama2-70b-99.9 is the same run again; 405b was entered under two names.
MODEL_NAMES = {
    "llama2-70b-99": "llama2-70b", "llama3.1-8b": "llama3-8b", "llama3.1-405b": "llama3.1-405b",
    "llama3_1-405b": "llama3.1-405b", "mixtral-8x7b": "mixtral-8x7b", "deepseek-r1": "deepseek-r1",
}
# DeepSeek-R1's answers reach from a few to 20,000 tokens, so a mean says too little to fit anything
# to; how long Mixtral's prompts are is not known.
CHECKED_ONLY = ("deepseek-r1", "mixtral-8x7b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Mean tokens of prompts and answers, the longest answer, and the bounds at the 99th percentile
    of first tokens and of the time of each further one, by scenario."""

    prompt: float
    output: float
    longest: int
    bounds_s: Mapping[str, tuple[float, float]]


# Answers: the mean that a submission must keep to (8B: nearly all are cut at 128). Bounds: those of
# the submission checker of v5.1. Prompts: 405B as published; 70B as others counted; about, for 8B.
# Those of Mixtral and DeepSeek-R1 are guesses.
MIXES = {
    "llama2-70b": Mix(prompt=221, output=294.45, longest=1024, bounds_s={
        "Server": (2.0, 0.2), "Interactive": (0.45, 0.04),
    }),
    "llama3-8b": Mix(prompt=778, output=128, longest=128, bounds_s={
        "Server": (2.0, 0.1), "Interactive": (0.5, 0.03),
    }),
    "llama3.1-405b": Mix(prompt=9400, output=684.68, longest=20_000, bounds_s={
        "Server": (6.0, 0.175), "Interactive": (4.5, 0.08),
    }),
    "mixtral-8x7b": Mix(prompt=300, output=144.84, longest=1024, bounds_s={"Server": (2.0, 0.2)}),
    "deepseek-r1": Mix(prompt=800, output=3886.23, longest=20_000, bounds_s={
        "Server": (2.0, 0.08),
    }),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Tokens/s that each submission of a scenario writes, a GPU. `engine`: of most of them."""

    of: Served
    scenario: str
    engine: str
    tokens_s: tuple[float, ...]

    @property
    def usual(self) -> float:
        """Of the median submission."""
        return median(self.tokens_s)


def read_results(folder: Path) -> list[Result]:
    """What counts, in the order of names."""
    found: dict[tuple[str, str, Precision, str], list[float]] = defaultdict(list)
    engines: dict[tuple[str, str, Precision, str], list[str]] = defaultdict(list)
    for row in _rows_that_count(folder):
        key = (
            HARDWARE[row["Accelerator"]], MODEL_NAMES[row["model"]],
            PRECISION[row["weight_data_types"]], row["Scenario"],
        )
        found[key].append(float(row["per_accelerator"]))
        engines[key].append("vllm" if "vllm" in row["Software"].lower() else "tensorrt-llm")
    return [
        Result(
            of=served(*key[:3]), scenario=key[3], engine=mode(engines[key]),
            tokens_s=tuple(tokens_s),
        )
        for key, tokens_s in sorted(found.items())
    ]


def _rows_that_count(folder: Path) -> Iterator[dict[str, str]]:
    with (folder / FILE).open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            counts = row["Category"] == "closed" and row["Availability"] == "available"
            known = row["Accelerator"] in HARDWARE and row["model"] in MODEL_NAMES
            if counts and known and row["weight_data_types"] in PRECISION:
                yield row


def write_excerpt(folder: Path, out: Path) -> None:
    """The rows that count, and of them the columns that are read and the ID to quote."""
    with (out / FILE).open("w", encoding="utf-8", newline="") as file:
        columns = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        columns.writeheader()
        columns.writerows(_rows_that_count(folder))


def served(hardware: str, model: str, precision: Precision) -> Served:
    """On the least number of GPUs that holds enough requests of the model's mix."""
    mix, gpus = MIXES[model], 1
    while kv_tokens(hardware, model, gpus, precision) < LEAST_REQUESTS * (mix.prompt + mix.output):
        gpus *= 2
    return Served(hardware=hardware, model=model, gpus=gpus, precision=precision)


def factors_for(of: Served, fits: Mapping[Served, Factors]) -> tuple[Factors, bool]:
    """Of this model in the other table, or of its dense one (Llama 70B) for a model that is not
    there; and whether they are this chip's own."""
    known = {each.model for each in fits}
    model = of.model if of.model in known else "llama3-70b"
    same = {each: found for each, found in fits.items() if each.model == model}
    own = [found for each, found in same.items() if each.hardware == of.hardware]
    return median_factors(own or list(same.values())), bool(own)


def tokens_s_of(rates: EngineRates, mix: Mix) -> float:
    """Of one GPU, when it is never short of requests of this mix."""
    return mix.output / gpu_s_of(rates, mix.prompt, mix.output)


def predicted(of: Served, factors: Factors) -> float:
    """Tokens/s of a GPU in the Offline scenario."""
    return tokens_s_of(rates_of(of, factors, table=TABLE, engine=""), MIXES[of.model])


def slower(factors: Factors, times: float) -> Factors:
    """All of them, and so all rates."""
    return Factors(
        reading=factors.reading * times, writing=factors.writing * times,
        memory=factors.memory * times,
    )


def scaled(results: Sequence[Result], fits: Mapping[Served, Factors]) -> list[EngineRates]:
    """A row for each engine with an Offline result. Its `decode_error` is how far submissions are
    from their median, its `left_out_error` how far the throughput was from what was predicted."""
    found = []
    for result in results:
        of = result.of
        if result.scenario != "Offline" or of.model in CHECKED_ONLY:
            continue
        factors, _ = factors_for(of, fits)
        expected = predicted(of, factors)
        rates = rates_of(
            of, slower(factors, expected / result.usual), table=TABLE, engine=result.engine
        )
        found.append(replace(
            rates,
            decode_error=median(abs(each / result.usual - 1.0) for each in result.tokens_s),
            left_out_error=abs(expected / result.usual - 1.0),
        ))
    return found


def by_other_models(
    results: Sequence[Result], fits: Mapping[Served, Factors]
) -> Iterator[tuple[Result, float]]:
    """Offline of each model, the scale taken from the chip's other models."""
    offline = [
        each for each in results
        if each.scenario == "Offline" and each.of.model not in CHECKED_ONLY
    ]
    for result in offline:
        others = [
            each.usual / predicted(each.of, factors_for(each.of, fits)[0]) for each in offline
            if each.of.hardware == result.of.hardware and each.of.model != result.of.model
        ]
        if others:
            expected = predicted(result.of, factors_for(result.of, fits)[0]) * median(others)
            yield result, expected / result.usual - 1.0

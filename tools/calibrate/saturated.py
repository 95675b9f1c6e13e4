"""Rates from the greatest throughput of engines, by lengths of prompt and answer (TensorRT-LLM).

A table says how many tokens/s a GPU writes when the engine is never short of requests, so one
request takes that GPU

    output / (tokens/s) = x * reading + y * writing + z * memory

with the times that the chip would need at its peaks: `reading` the prompt's products and, growing
with its square, its attention; `writing` those of the answer; `memory` the weights and the context
that are read from memory for each token, the weights once for all streams together. How many those
are is what the memory lets in. Several lengths tell the factors x, y and z apart: x is known best
by long prompts, z by long answers. Least squares of relative errors, each factor pulled a little
(`PULL`) to what the same model has on other chips, as a few lengths leave the three ill-defined.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from tools.calibrate.facts import (
    CHIPS,
    MODELS,
    PRECISIONS,
    Precision,
    kv_bytes,
    kv_tokens,
    weight_gb,
)
from tools.calibrate.least_squares import least_squares

from isochrone.core.estimate.engine_rates_table import EngineRates
from isochrone.core.estimate.saturation import saturated_rps

TABLE = "tensorrt-llm-max"
FILE = "trtllm_max_throughput_per_gpu.csv"
SLOTS = 2048  # of a GPU: the engine's own default of its greatest batch
PULL = 0.2    # a factor of twice the usual weighs as an error of 20 % of one length
OWN_LENGTHS = 4  # from so many on, factors are also found without being pulled
HARDWARE = {
    "H100": "H100-SXM5-80GB", "H200": "H200-SXM-141GB", "B200": "B200-SXM-180GB",
    "GB200": "GB200-186GB", "RTX PRO 6000 SE": "RTX-PRO-6000-SE-96GB",
}
MODEL_NAMES = {
    "DeepSeek-R1-0528": "deepseek-r1", "GPT-OSS-120B": "gpt-oss-120b", "GPT-OSS-20B": "gpt-oss-20b",
    "Llama-3.3-70B": "llama3-70b", "Llama-4-Maverick": "llama4-maverick",
    "Qwen3-235B-A22B": "qwen3-235b-a22b", "Qwen3-30B-A3B": "qwen3-30b-a3b",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model on one replica."""

    hardware: str
    model: str
    gpus: int
    precision: Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturated:
    """`gpu_s`: of one GPU, that a request of this length takes. The two lengths that differ by a
    few tokens (1,000 and 1,024 of both) are one `length`."""

    of: Served
    prompt: int
    output: int
    gpu_s: float

    @property
    def length(self) -> tuple[int, int]:
        return (1024, 1024) if self.prompt == self.output else (self.prompt, self.output)


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """How many times the time at the chip's peak reading, writing and memory take."""

    reading: float
    writing: float
    memory: float


def read_saturated(folder: Path) -> Iterator[Saturated]:
    """All rows of the table."""
    with (folder / FILE).open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            precision = next(each for each in PRECISIONS if each == row["precision"].lower())
            gpus = 1
            for number in re.findall(r"\d+", row["parallelism"]):
                gpus *= int(number)
            yield Saturated(
                of=Served(
                    hardware=HARDWARE[row["gpu"]], model=MODEL_NAMES[row["model"]], gpus=gpus,
                    precision=precision,
                ),
                prompt=int(row["isl"]), output=int(row["osl"]),
                gpu_s=int(row["osl"]) / float(row["output_tokens_per_s_per_gpu"]),
            )


def rates_of(of: Served, factors: Factors, *, table: str, engine: str) -> EngineRates:
    """The replica with these factors; errors are not known yet."""
    chip, model = CHIPS[of.hardware], MODELS[of.model]
    flop_s = chip.peak(of.precision) * of.gpus * 1e12
    # Attention is not computed in 4 bits.
    attention_flop_s = chip.peak("bf16" if of.precision == "bf16" else "fp8") * of.gpus * 1e12
    byte_s = chip.memory_gb_s * of.gpus * 1e9
    token_s = 2e9 * model.active / flop_s
    return EngineRates(
        table=table, hardware=of.hardware, engine=engine, model=of.model, gpus=of.gpus,
        precision=of.precision, prefill_tok_s=1.0 / (factors.reading * token_s),
        prefill_context_us=factors.reading * model.attention_mflop * 1e12 / attention_flop_s,
        step_ms=1e3 * factors.memory * weight_gb(of.model, of.precision) * 1e9 / byte_s,
        stream_ms=1e3 * factors.writing * token_s,
        context_token_us=1e6 * factors.memory * kv_bytes(of.model, of.precision) / byte_s,
        kv_tokens=kv_tokens(of.hardware, of.model, of.gpus, of.precision),
        prefill_error=None, decode_error=None,
    )


def gpu_s_of(rates: EngineRates, prompt: float, output: float) -> float:
    """Of one GPU, for a request, by the rates: what the twin's engine takes when it is full."""
    physics = rates.physics(slots=SLOTS * rates.gpus)
    return rates.gpus / saturated_rps(physics, prompt, output)


def fitted(points: Sequence[Saturated], usual: Factors | None) -> Factors:
    """The factors of one engine; not pulled where `usual` is None."""
    rows, values, scale = [], [], []
    for each in points:
        rows.append(_times(each.of, each.prompt, each.output))
        values.append(each.gpu_s)
        scale.append(each.gpu_s)
    if usual is not None:
        for place, factor in enumerate((usual.reading, usual.writing, usual.memory)):
            rows.append([float(place == other) for other in range(3)])
            values.append(factor)
            scale.append(factor / PULL)
    reading, writing, memory = least_squares(rows, values, scale)
    return Factors(reading=reading, writing=writing, memory=memory)


def _times(of: Served, prompt: float, output: float) -> list[float]:
    """GPU seconds of a request at factors 1: reading, writing, memory. Each is what the whole takes
    more with that factor at 2."""
    one = gpu_s_of(_at(of, 1.0, 1.0, 1.0), prompt, output)
    return [
        gpu_s_of(_at(of, *factors), prompt, output) - one
        for factors in ((2.0, 1.0, 1.0), (1.0, 2.0, 1.0), (1.0, 1.0, 2.0))
    ]


def _at(of: Served, reading: float, writing: float, memory: float) -> EngineRates:
    factors = Factors(reading=reading, writing=writing, memory=memory)
    return rates_of(of, factors, table=TABLE, engine="tensorrt-llm")


def by_engine(points: Sequence[Saturated]) -> dict[Served, list[Saturated]]:
    """In the order of their names."""
    found: dict[Served, list[Saturated]] = defaultdict(list)
    for each in points:
        found[each.of].append(each)
    order = sorted(
        found, key=lambda of: (of.hardware, of.model, of.gpus, PRECISIONS.index(of.precision))
    )
    return {of: found[of] for of in order}


def free_factors(engines: Mapping[Served, Sequence[Saturated]]) -> dict[Served, Factors]:
    """Of the engines with enough lengths to tell factors apart without being pulled."""
    return {
        of: fitted(points, None) for of, points in engines.items()
        if len({each.length for each in points}) >= OWN_LENGTHS
    }


def usual_factors(of: Served, free: Mapping[Served, Factors]) -> Factors:
    """The medians of the same model on other chips, else of all models on other chips: never from
    this chip."""
    others = {each: found for each, found in free.items() if each.hardware != of.hardware}
    same = [found for each, found in others.items() if each.model == of.model]
    return median_factors(same or list(others.values()))


def median_factors(found: Sequence[Factors]) -> Factors:
    """Of each factor by itself, of those above zero."""
    return Factors(
        reading=median([each.reading for each in found if each.reading > 0] or [1.0]),
        writing=median([each.writing for each in found if each.writing > 0] or [1.0]),
        memory=median([each.memory for each in found if each.memory > 0] or [1.0]),
    )


def error_of(rates: EngineRates, point: Saturated) -> float:
    """Predicted over measured throughput, less 1."""
    return point.gpu_s / gpu_s_of(rates, point.prompt, point.output) - 1.0


def fit_saturated(
    engines: Mapping[Served, Sequence[Saturated]]
) -> dict[Served, tuple[Factors, EngineRates]]:
    """Each engine with its errors: of all its lengths, and of each length by the others."""
    free = free_factors(engines)
    found = {}
    for of, points in engines.items():
        usual = usual_factors(of, free)
        factors = fitted(points, usual)
        rates = rates_of(of, factors, table=TABLE, engine="tensorrt-llm")
        left_out = [abs(error) for _, error in left_out_errors(points, usual)]
        found[of] = (factors, replace(
            rates, decode_error=median(abs(error_of(rates, each)) for each in points),
            left_out_error=median(left_out),
        ))
    return found


def left_out_errors(
    points: Sequence[Saturated], usual: Factors
) -> Iterator[tuple[Saturated, float]]:
    """Each row of one engine, predicted from its other lengths."""
    for length in sorted({each.length for each in points}):
        rest = [each for each in points if each.length != length]
        factors = fitted(rest, usual)
        for each in points:
            if each.length == length:
                rates = rates_of(each.of, factors, table=TABLE, engine="tensorrt-llm")
                yield each, error_of(rates, each)


def other_chip_errors(
    engines: Mapping[Served, Sequence[Saturated]]
) -> Iterator[tuple[Saturated, float]]:
    """Each row, predicted from the same model on other chips alone."""
    free = free_factors(engines)
    for of, points in engines.items():
        if not any(each.model == of.model and each.hardware != of.hardware for each in free):
            continue
        rates = rates_of(of, usual_factors(of, free), table=TABLE, engine="tensorrt-llm")
        for point in points:
            yield point, error_of(rates, point)

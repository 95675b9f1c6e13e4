"""Fits the physics of engines to public measurements and writes `isochrone/data/engine_rates.csv`.

    python -m tools.calibrate.fit FOLDER [--excerpt FILE]

FOLDER has the tables named in `points.py`. For each engine, model and number of GPUs, least squares
of relative errors, all coefficients at least 0:

    reading  = batch * prompt / prefill_tok_s
    writing  = output * (step + stream * batch + context_token * batch * (prompt + output / 2))

Where a table has only the sum of both (LLM-Inference-Bench), reading and a part of writing cannot
be told apart; the rate of reading is then taken from the share of the chip's peak that the tables
with both reach. Where the times to read several prompts at once do not add up (some tables seem to
have that of one of them), single prompts alone are used; a fit that is off by more than
`USELESS` is left out. Rows `derived` are pairs that nobody measured: the shares of peak and of
memory bandwidth that are usual among the measured ones.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
from tools.calibrate.points import Engine, Point, read_points

from isochrone.core.estimate.engine_rates_table import EngineRates, decode_s, prefill_s

OUT = Path(__file__).parents[2] / "src" / "isochrone" / "data" / "engine_rates.csv"
LEAST_POINTS = 12
USELESS = 0.3  # relative error at the median
# Parameters (10^9) and bytes of KV cache a token, both at 2 bytes a value.
MODELS = {
    "llama2-7b": (6.74, 524_288), "llama3-8b": (8.03, 131_072), "mistral-7b": (7.24, 131_072),
    "qwen2-7b": (7.62, 57_344), "llama3-70b": (70.6, 327_680), "llama2-70b": (69.0, 327_680),
    "qwen2-72b": (72.7, 327_680), "bloom-176b": (176.2, 4_014_080), "llama3.2-3b": (3.21, 114_688),
}
# Memory GB, memory GB/s, dense bf16 TFLOP/s, as in vendors' data sheets.
CHIPS = {
    "A100-SXM4-40GB": (40, 1555, 312), "A100-SXM4-80GB": (80, 2039, 312),
    "H100-SXM5-80GB": (80, 3350, 989), "H200-SXM-141GB": (141, 4800, 989),
    "B200-SXM-180GB": (180, 7700, 2250), "MI300X-192GB": (192, 5300, 1307),
    "L40S": (48, 864, 362), "RTX-PRO-6000-SE-96GB": (96, 1597, 503),
}
DERIVED = (("llama3-8b", 1), ("llama3-70b", 4), ("llama3-70b", 8))
MEMORY_USED = 0.9
EXCERPT = (
    Engine(table="splitwise", hardware="H100-SXM5-80GB", engine="vllm", model="llama2-70b", gpus=8),
    Engine(table="splitwise", hardware="A100-SXM4-80GB", engine="vllm", model="llama2-70b", gpus=8),
    Engine(table="sageserve", hardware="A100-SXM4-80GB", engine="vllm", model="llama3-8b", gpus=2),
    Engine(
        table="llm-inference-bench", hardware="H100-SXM5-80GB", engine="vllm", model="llama3-8b",
        gpus=1,
    ),
)


def main() -> None:
    """Fit, write, and print the errors."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--excerpt", type=Path, help="write the points that tests judge by")
    given = arguments.parse_args()
    points = defaultdict(list)
    for point in read_points(given.folder):
        points[point.of].append(point)
    fits = fit_all(points)
    with OUT.open("w", encoding="utf-8", newline="") as file:
        columns = csv.writer(file, lineterminator="\n")
        names = tuple(EngineRates.__slots__)
        columns.writerow(names)
        columns.writerows([_cell(getattr(each, name)) for name in names] for each in fits)
    for each in fits:
        print(each)
    if given.excerpt:
        _write_excerpt(given.excerpt, [each for of in EXCERPT for each in points[of]])


def fit_all(points: Mapping[Engine, Sequence[Point]]) -> list[EngineRates]:
    """Measured engines in the order of their names, then the derived ones."""
    of_phases = [
        _fitted(of, each, None) for of, each in points.items()
        if len(each) >= LEAST_POINTS and each[0].what != "whole"
    ]
    of_phases = [each for each in of_phases if _useful(each)]
    share = median(_share(each) for each in of_phases)
    of_whole = [
        _fitted(of, each, share) for of, each in points.items()
        if len(each) >= LEAST_POINTS and each[0].what == "whole"
    ]
    measured = sorted(
        of_phases + [each for each in of_whole if _useful(each)],
        key=lambda each: (each.table, each.hardware, each.engine, each.model, each.gpus),
    )
    return measured + _derived(measured, share)


def _useful(fit: EngineRates) -> bool:
    return max(fit.prefill_error or 0.0, fit.decode_error or 0.0) <= USELESS


def _fitted(of: Engine, points: Sequence[Point], share: float | None) -> EngineRates:
    if share is not None:
        rate = share * CHIPS[of.hardware][2] * of.gpus * 1e12 / (2e9 * MODELS[of.model][0])
        return _with_errors(_written(of, points, rate), points)
    whole = _with_errors(_written(of, points, _read_rate(points)), points)
    if (whole.prefill_error or 0.0) <= USELESS:
        return whole
    single = [each for each in points if each.what != "prefill" or each.batch == 1]
    return _with_errors(_written(of, single, _read_rate(single)), single)


def _read_rate(points: Sequence[Point]) -> float:
    reading = [each for each in points if each.what == "prefill"]
    return 1.0 / _least_squares(
        [[each.batch * each.prompt] for each in reading], [each.seconds for each in reading]
    )[0]


def _written(of: Engine, points: Sequence[Point], rate: float) -> EngineRates:
    """With the coefficients of writing, given the rate of reading; errors are not known yet."""
    kept = []
    for each in points:
        read_s = each.batch * each.prompt / rate if each.what == "whole" else 0.0
        if each.what != "prefill" and each.seconds > read_s:
            kept.append((each, each.seconds - read_s))
    step, stream, context = _least_squares(
        [
            [
                each.output, each.output * each.batch,
                each.output * each.batch * (each.prompt + each.output / 2),
            ]
            for each, _ in kept
        ],
        [left for _, left in kept], [each.seconds for each, _ in kept],
    )
    return EngineRates(
        table=of.table, hardware=of.hardware, engine=of.engine, model=of.model, gpus=of.gpus,
        prefill_tok_s=rate, step_ms=step * 1e3, stream_ms=stream * 1e3,
        context_token_us=context * 1e6, kv_tokens=_kv_tokens(of.hardware, of.model, of.gpus),
        prefill_error=None, decode_error=None,
    )


def _with_errors(fit: EngineRates, points: Sequence[Point]) -> EngineRates:
    errors = {what: errors_of(fit, points, what) for what in ("prefill", "decode", "whole")}
    return replace(
        fit, prefill_error=median(errors["prefill"]) if errors["prefill"] else None,
        decode_error=median(errors["decode"] or errors["whole"]),
    )


def errors_of(fit: EngineRates, points: Iterable[Point], what: str) -> list[float]:
    """|fitted / measured - 1| of each point of a kind."""
    found = []
    for each in points:
        if each.what != what:
            continue
        read_s = prefill_s(fit, each.prompt, each.batch) if what != "decode" else 0.0
        write_s = decode_s(fit, each.prompt, each.batch, each.output) if what != "prefill" else 0.0
        found.append(abs((read_s + write_s) / each.seconds - 1.0))
    return found


def _least_squares(
    rows: Sequence[Sequence[float]], values: Sequence[float], scale: Sequence[float] | None = None
) -> list[float]:
    """Coefficients >= 0 with the least squares of errors over `scale` (the values themselves)."""
    weights = 1.0 / np.array(values if scale is None else scale)
    matrix, target = np.array(rows) * weights[:, None], np.array(values) * weights
    used = list(range(matrix.shape[1]))
    while True:
        found = np.linalg.lstsq(matrix[:, used], target, rcond=None)[0]
        if (found >= 0).all():
            break
        del used[int(found.argmin())]
    whole = [0.0] * matrix.shape[1]
    for place, value in zip(used, found.tolist(), strict=True):
        whole[place] = value
    return whole


def _share(fit: EngineRates) -> float:
    """Of the peak that reading reaches."""
    peak = CHIPS[fit.hardware][2] * fit.gpus * 1e12
    return fit.prefill_tok_s * 2e9 * MODELS[fit.model][0] / peak


def _derived(measured: Sequence[EngineRates], share: float) -> list[EngineRates]:
    usual = [each for each in measured if each.engine == "vllm" and each.step_ms > 0]
    bandwidth = median(
        2.0 * MODELS[each.model][0] / (each.step_ms / 1e3 * CHIPS[each.hardware][1] * each.gpus)
        for each in usual
    )
    # What a stream adds to a step is work of the chip's, as reading a token is.
    stream = median(each.stream_ms / 1e3 * each.prefill_tok_s for each in usual)
    found = []
    for hardware, (_, memory, peak) in CHIPS.items():
        for model, gpus in DERIVED:
            billions, kv_bytes = MODELS[model]
            if _kv_tokens(hardware, model, gpus) < 16_384:
                continue
            rate = share * peak * gpus * 1e12 / (2e9 * billions)
            found.append(EngineRates(
                table="derived", hardware=hardware, engine="vllm", model=model, gpus=gpus,
                prefill_tok_s=rate, step_ms=2e3 * billions / (bandwidth * memory * gpus),
                stream_ms=1e3 * stream / rate,
                context_token_us=kv_bytes / (bandwidth * memory * gpus * 1e3),
                kv_tokens=_kv_tokens(hardware, model, gpus), prefill_error=None, decode_error=None,
            ))
    return found


def _kv_tokens(hardware: str, model: str, gpus: int) -> int:
    billions, kv_bytes = MODELS[model]
    return max(int((CHIPS[hardware][0] * gpus * MEMORY_USED - 2 * billions) * 1e9 / kv_bytes), 0)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write_excerpt(path: Path, points: Sequence[Point]) -> None:
    """One of five, so that all lengths and batches are there."""
    with path.open("w", encoding="utf-8", newline="") as file:
        columns = csv.writer(file, lineterminator="\n")
        columns.writerow(
            ["table", "hardware", "engine", "model", "gpus", "what", "prompt", "batch", "output",
             "seconds"]
        )
        for each in points[::5]:
            columns.writerow([
                each.of.table, each.of.hardware, each.of.engine, each.of.model, each.of.gpus,
                each.what, each.prompt, each.batch, each.output, f"{each.seconds:.6g}",
            ])


if __name__ == "__main__":
    main()

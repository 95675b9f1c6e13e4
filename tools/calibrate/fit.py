"""Fits the physics of engines to public measurements and writes `isochrone/data/engine_rates.csv`.

    python -m tools.calibrate.fit FOLDER [--excerpts FOLDER]

FOLDER has the tables named in `points.py`, `saturated.py` and `mlperf.py`; how the last two are
used is said there. For each engine, model and number of GPUs of the first, least squares of
relative errors, all coefficients at least 0:

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
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from tools.calibrate import mlperf, saturated
from tools.calibrate.facts import CHIPS, MODELS, kv_bytes, kv_tokens
from tools.calibrate.least_squares import least_squares
from tools.calibrate.points import Engine, Point, read_points

from isochrone.core.estimate.engine_rates_table import EngineRates, decode_s, prefill_s

OUT = Path(__file__).parents[2] / "src" / "isochrone" / "data" / "engine_rates.csv"
LEAST_POINTS = 12
USELESS = 0.3  # relative error at the median
DERIVED = (("llama3-8b", 1), ("llama3-70b", 4), ("llama3-70b", 8))
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
    arguments.add_argument("--excerpts", type=Path, help="write there what tests judge by")
    given = arguments.parse_args()
    points = defaultdict(list)
    for point in read_points(given.folder):
        points[point.of].append(point)
    measured, derived = fit_all(points)
    full = saturated.fit_saturated(
        saturated.by_engine(list(saturated.read_saturated(given.folder)))
    )
    scaled = mlperf.scaled(
        mlperf.read_results(given.folder), {of: factors for of, (factors, _) in full.items()}
    )
    fits = [*measured, *(rates for _, rates in full.values()), *scaled, *derived]
    with OUT.open("w", encoding="utf-8", newline="") as file:
        columns = csv.writer(file, lineterminator="\n")
        names = tuple(EngineRates.__slots__)
        columns.writerow(names)
        columns.writerows([_cell(getattr(each, name)) for name in names] for each in fits)
    for each in fits:
        print(each)
    if given.excerpts:
        _write_excerpt(
            given.excerpts / "engine_measurements.csv",
            [each for of in EXCERPT for each in points[of]],
        )
        shutil.copy(given.folder / saturated.FILE, given.excerpts)
        mlperf.write_excerpt(given.folder, given.excerpts)


def fit_all(
    points: Mapping[Engine, Sequence[Point]]
) -> tuple[list[EngineRates], list[EngineRates]]:
    """Measured engines in the order of their names, and the derived ones."""
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
    return measured, _derived(measured, share)


def _useful(fit: EngineRates) -> bool:
    return max(fit.prefill_error or 0.0, fit.decode_error or 0.0) <= USELESS


def _fitted(of: Engine, points: Sequence[Point], share: float | None) -> EngineRates:
    if share is not None:
        peak = CHIPS[of.hardware].peak("bf16") * of.gpus * 1e12
        rate = share * peak / (2e9 * MODELS[of.model].billions)
        return _with_errors(_written(of, points, rate), points)
    whole = _with_errors(_written(of, points, _read_rate(points)), points)
    if (whole.prefill_error or 0.0) <= USELESS:
        return whole
    single = [each for each in points if each.what != "prefill" or each.batch == 1]
    return _with_errors(_written(of, single, _read_rate(single)), single)


def _read_rate(points: Sequence[Point]) -> float:
    reading = [each for each in points if each.what == "prefill"]
    return 1.0 / least_squares(
        [[each.batch * each.prompt] for each in reading], [each.seconds for each in reading]
    )[0]


def _written(of: Engine, points: Sequence[Point], rate: float) -> EngineRates:
    """With the coefficients of writing, given the rate of reading; errors are not known yet."""
    kept = []
    for each in points:
        read_s = each.batch * each.prompt / rate if each.what == "whole" else 0.0
        if each.what != "prefill" and each.seconds > read_s:
            kept.append((each, each.seconds - read_s))
    step, stream, context = least_squares(
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
        precision="bf16", prefill_tok_s=rate, prefill_context_us=0.0, step_ms=step * 1e3,
        stream_ms=stream * 1e3, context_token_us=context * 1e6,
        kv_tokens=kv_tokens(of.hardware, of.model, of.gpus), prefill_error=None,
        decode_error=None,
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


def _share(fit: EngineRates) -> float:
    """Of the peak that reading reaches."""
    peak = CHIPS[fit.hardware].peak("bf16") * fit.gpus * 1e12
    return fit.prefill_tok_s * 2e9 * MODELS[fit.model].billions / peak


def _derived(measured: Sequence[EngineRates], share: float) -> list[EngineRates]:
    usual = [each for each in measured if each.engine == "vllm" and each.step_ms > 0]
    bandwidth = median(
        2.0 * MODELS[each.model].billions
        / (each.step_ms / 1e3 * CHIPS[each.hardware].memory_gb_s * each.gpus)
        for each in usual
    )
    # What a stream adds to a step is work of the chip's, as reading a token is.
    stream = median(each.stream_ms / 1e3 * each.prefill_tok_s for each in usual)
    found = []
    for hardware, chip in CHIPS.items():
        memory, peak = chip.memory_gb_s, chip.peak("bf16")
        for model, gpus in DERIVED:
            billions = MODELS[model].billions
            if kv_tokens(hardware, model, gpus) < 16_384:
                continue
            rate = share * peak * gpus * 1e12 / (2e9 * billions)
            found.append(EngineRates(
                table="derived", hardware=hardware, engine="vllm", model=model, gpus=gpus,
                precision="bf16", prefill_tok_s=rate, prefill_context_us=0.0,
                step_ms=2e3 * billions / (bandwidth * memory * gpus), stream_ms=1e3 * stream / rate,
                context_token_us=kv_bytes(model, "bf16") / (bandwidth * memory * gpus * 1e3),
                kv_tokens=kv_tokens(hardware, model, gpus), prefill_error=None, decode_error=None,
            ))
    return found


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

"""Says how far predictions are from the public throughputs of full engines, as tables in Markdown.

    python -m tools.calibrate.judge tests/unit/excerpts

Every figure is of rows that the prediction did not use: `saturated.py` and `mlperf.py` say how they
are made. The bounded scenarios of MLPerf are played on the twin's engine (`served.py`), two
minutes of work. Errors are of throughput: predicted / measured - 1.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from tools.calibrate import mlperf, saturated
from tools.calibrate.facts import PRECISIONS, Precision
from tools.calibrate.mlperf import MIXES, Result
from tools.calibrate.saturated import SLOTS, Factors, Saturated, Served
from tools.calibrate.served import most_tokens_s

from isochrone.adapters.packaged import load_engine_rates
from isochrone.core.estimate.engine_rates_table import EngineRates, row_of


def main() -> None:
    """Print all tables."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path)
    given = arguments.parse_args()
    engines = saturated.by_engine(list(saturated.read_saturated(given.folder)))
    results = mlperf.read_results(given.folder)
    fits = {of: factors for of, (factors, _) in saturated.fit_saturated(engines).items()}
    scaled = mlperf.scaled(results, fits)
    for line in (
        *tensorrt_lines(engines), "", *factor_lines(fits), "", *offline_lines(results, fits), "",
        *wider_lines(results, scaled, load_engine_rates()), "",
        *bounded_lines(bounded_errors(results, scaled)),
    ):
        print(line)


def tensorrt_lines(engines: Mapping[Served, Sequence[Saturated]]) -> Iterator[str]:
    """TensorRT-LLM by model: the fit, a length left out, a chip left out."""
    free = saturated.free_factors(engines)
    own: list[tuple[Saturated, float]] = []
    without: list[tuple[Saturated, float]] = []
    for of, (_, rates) in saturated.fit_saturated(engines).items():
        own += [(each, saturated.error_of(rates, each)) for each in engines[of]]
        usual = saturated.usual_factors(of, free)
        without += saturated.left_out_errors(engines[of], usual)
    abroad = list(saturated.other_chip_errors(engines))
    yield "| TensorRT-LLM | engines | rows | fitted | a length left out | this chip left out |"
    yield "|---|---|---|---|---|---|"
    for model in (*sorted({of.model for of in engines}), None):
        of_model = [of for of in engines if model in (None, of.model)]
        columns = [
            _told(error for each, error in errors if each.of in of_model)
            for errors in (own, without, abroad)
        ]
        rows = sum(len(engines[of]) for of in of_model)
        yield f"| {model or 'all'} | {len(of_model)} | {rows} | {' | '.join(columns)} |"
    yield ""
    yield "| prompt, answer | a length left out |"
    yield "|---|---|"
    for length in sorted({each.length for each, _ in without}):
        told = _told(error for each, error in without if each.length == length)
        yield f"| {length[0]:,}, {length[1]:,} | {told} |"


def factor_lines(fits: Mapping[Served, Factors]) -> Iterator[str]:
    """How many times the time at the chip's peak each part takes: the range over engines."""
    yield "| model | reading | writing | memory |"
    yield "|---|---|---|---|"
    by_model: dict[str, list[Factors]] = defaultdict(list)
    for of, factors in fits.items():
        by_model[of.model].append(factors)
    for model, found in sorted(by_model.items()):
        cells = [
            f"{min(values):.1f} to {max(values):.1f}" for values in (
                [each.reading for each in found], [each.writing for each in found],
                [each.memory for each in found],
            )
        ]
        yield f"| {model} | {' | '.join(cells)} |"


def offline_lines(results: Sequence[Result], fits: Mapping[Served, Factors]) -> Iterator[str]:
    """MLPerf's Offline scenario, predicted without it."""
    yield "| MLPerf, Offline | hardware | GPUs | precision | measured | predicted | error |"
    yield "|---|---|---|---|---|---|---|"
    own: list[float] = []
    other: list[float] = []
    guessed: list[float] = []
    for result in results:
        if result.scenario != "Offline":
            continue
        factors, known = mlperf.factors_for(result.of, fits)
        expected = mlperf.predicted(result.of, factors)
        error = expected / result.usual - 1.0
        if result.of.model in mlperf.CHECKED_ONLY:
            guessed.append(error)
        else:
            (own if known else other).append(error)
        yield (
            f"| {result.of.model} | {result.of.hardware}{'' if known else ' *'} | {result.of.gpus} "
            f"| {result.of.precision} | {result.usual:,.0f} | {expected:,.0f} | {error:+.0%} |"
        )
    yield ""
    yield "| MLPerf, Offline, predicted by | rows | median, worst |"
    yield "|---|---|---|"
    models = [error for _, error in mlperf.by_other_models(results, fits)]
    for what, errors in (
        ("TensorRT-LLM's table of the same chip", own), ("the same of other chips (*)", other),
        ("that, scaled by the chip's other models", models),
        ("lengths not known: DeepSeek-R1, Mixtral", guessed),
    ):
        yield f"| {what} | {len(errors)} | {_told(errors)} |"


def wider_lines(
    results: Sequence[Result], scaled: Sequence[EngineRates], packaged: Sequence[EngineRates]
) -> Iterator[str]:
    """What the packaged bf16 row of the same replica would do of MLPerf's mix, as a part of what
    was measured with fewer bits."""
    yield "| bf16 beside MLPerf | hardware | row of | MLPerf's precision | part of it |"
    yield "|---|---|---|---|---|"
    measured = {result.of: result.usual for result in results if result.scenario == "Offline"}
    for row in scaled:
        wide = row_of(packaged, row.hardware, row.model, row.gpus, "bf16")
        if wide is not None:
            of = mlperf.served(row.hardware, row.model, _precision(row))
            part = mlperf.tokens_s_of(wide, MIXES[row.model]) / measured[of]
            yield f"| {row.model} | {row.hardware} | {wide.table} | {row.precision} | {part:.0%} |"


def _precision(row: EngineRates) -> Precision:
    return next(each for each in PRECISIONS if each == row.precision)


def bounded_errors(
    results: Sequence[Result], scaled: Sequence[EngineRates]
) -> list[tuple[Result, float, float]]:
    """Each Server and Interactive result with what the twin's engine does within the same bounds,
    scaled to the Offline result of the same chip and model, and the error of that."""
    rates = {(each.hardware, each.model, each.precision): each for each in scaled}
    found = []
    for result in results:
        row = rates.get((result.of.hardware, result.of.model, result.of.precision))
        if result.scenario == "Offline" or row is None:
            continue
        mix = MIXES[result.of.model]
        physics = row.physics(slots=SLOTS * row.gpus)
        expected = most_tokens_s(physics, mix, mix.bounds_s[result.scenario]) / row.gpus
        found.append((result, expected, expected / result.usual - 1.0))
    return found


def bounded_lines(found: Sequence[tuple[Result, float, float]]) -> Iterator[str]:
    """The same as tables."""
    yield "| MLPerf, bounded | scenario | hardware | measured | played | error |"
    yield "|---|---|---|---|---|---|"
    for result, expected, error in found:
        yield (
            f"| {result.of.model} | {result.scenario} | {result.of.hardware} | {result.usual:,.0f} "
            f"| {expected:,.0f} | {error:+.0%} |"
        )
    yield ""
    yield "| MLPerf, bounded | scenario | rows | median, worst |"
    yield "|---|---|---|---|"
    for scenario in ("Server", "Interactive"):
        for model in sorted({result.of.model for result, _, _ in found}):
            errors = [
                error for result, _, error in found
                if (result.scenario, result.of.model) == (scenario, model)
            ]
            if errors:
                yield f"| {model} | {scenario} | {len(errors)} | {_told(errors)} |"


def _told(errors: Iterable[float]) -> str:
    """Median of the sizes, and the worst with its sign."""
    known = list(errors)
    if not known:
        return "-"
    return f"{median(abs(each) for each in known):.1%}, {max(known, key=abs):+.0%}"


if __name__ == "__main__":
    main()

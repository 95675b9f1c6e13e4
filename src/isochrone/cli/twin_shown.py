"""Shows what simulations do and did: a progress bar, tables of rows, findings in words."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from isochrone.cli.show import print_table
from isochrone.core.errors import InvalidInput
from isochrone.core.percent import percent

if TYPE_CHECKING:
    from isochrone.twin.experiments.experiment import Results
    from isochrone.twin.fast.rows import Row
    from isochrone.twin.fast.summary import Summary
    from isochrone.twin.scenario import FleetOrder, Workload
    from isochrone.wiring.twin_comparison import Played

BYTES_PER_MB = 1_000_000.0
NOTE_S = 0.25


@contextmanager
def progress(
    what: str, total: int | None, file: Path | None = None
) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, and what to call with how many more there are. `file`
    always says the same as JSON (`wire/experiments.py`)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}"),
        TimeElapsedColumn(), console=console, disable=not console.is_terminal, transient=True,
    )
    task = bar.add_task(what, total=total)
    note = _noted_in(file, what, total) if file is not None else None
    with bar:
        def told(more: int) -> None:
            bar.advance(task, more)
            if note is not None:
                note(more)

        yield told


def _noted_in(file: Path, what: str, total: int | None) -> Callable[[int], None]:
    """Writes how far it is: at once, and then a few times a second at most, and at the end. What
    cannot be written then is left for the next time: it must not cost what is played."""
    import msgspec

    from isochrone.core.lifecycle.experiment import ExperimentProgress
    from isochrone.wiring.twin_report import write_text

    done, written_s = 0, monotonic()

    def write() -> None:
        told = ExperimentProgress(done=done, of=total, what=what)
        write_text(file, msgspec.json.encode(told).decode() + "\n")

    def note(more: int) -> None:
        nonlocal done, written_s
        done += more
        if done == total or monotonic() - written_s >= NOTE_S:
            written_s = monotonic()
            with suppress(InvalidInput):
                write()

    write()
    return note


def print_rows(played: "Sequence[Played]", *, sized: bool = False) -> None:
    """A table for each load: times in ms, and how many times those of the bound and the best
    baseline they are. `sized`: the smallest fleets were looked for."""
    from isochrone.twin.report.words import NONE_FOUND

    rows = [each.row for each in played]
    for load in dict.fromkeys(row.load for row in rows):
        same = [row for row in rows if row.load == load]
        print_table(
            ("policy", "TTFT mean", "p50", "p90", "p99", "in time", "good/s", "cached",
             "over borders MB", "mean / bound", "p99 / bound", "mean / best", "p99 / best",
             *(("GPUs for SLO",) if sized else ())),
            [
                (*_cells(row, same), *((row.gpus_for_slo or NONE_FOUND,) if sized else ()))
                for row in same
            ],
            title=f"{same[0].workload} at load {load:.3g} (times in ms)",
        )
        for each in played:
            if each.light is not None and each.row.load == load:
                print(
                    f"The way alone takes {each.light.mean_ms:.1f} ms in the mean and "
                    f"{each.light.p99_ms:.1f} ms at p99 at the speed of light."
                )


def _cells(row: "Row", rows: "Sequence[Row]") -> tuple[object, ...]:
    from isochrone.wiring.twin_comparison import BOUND, SAME_FLEET

    bound = next((each for each in rows if each.policy == BOUND), None)
    others = [each for each in rows if each.policy in SAME_FLEET]
    best_mean = min((each.ttft_ms_mean for each in others if each.ttft_ms_mean), default=None)
    best_p99 = min((each.ttft_ms_p99 for each in others if each.ttft_ms_p99), default=None)
    border = row.cross_border_bytes
    return (
        row.policy, row.ttft_ms_mean, row.ttft_ms_p50, row.ttft_ms_p90, row.ttft_ms_p99,
        percent(row.slo_attainment), row.goodput_rps, percent(row.hit_rate),
        None if border is None else border / BYTES_PER_MB,
        _times(row.ttft_ms_mean, bound.ttft_ms_mean if bound else None),
        _times(row.ttft_ms_p99, bound.ttft_ms_p99 if bound else None),
        _times(row.ttft_ms_mean, best_mean), _times(row.ttft_ms_p99, best_p99),
    )


def _times(value: float | None, other: float | None) -> str | None:
    return f"{value / other:.2f} x" if value and other else None


def print_results(results: "Results") -> None:
    """What follows, and the table."""
    from isochrone.twin.experiments.findings import findings_of
    from isochrone.twin.report.words import columns_of, rows_of

    columns = columns_of(results)
    print_table(
        [column.title for column in columns],
        [cells for _, cells in rows_of(results, columns)], title=results.title,
    )
    for each in findings_of(results):
        word = "" if each.good is None else "met: " if each.good else "MISSED: "
        print(f"- {word}{each.text}")


def print_summary(summary: "Summary") -> None:
    print(
        f"{summary.requests} requests after the warm-up: {summary.answered} answered, "
        f"{summary.refused} refused, {summary.broken} broken off, {summary.open} open; "
        f"{summary.retried} sent again"
    )
    print(
        f"{summary.gpus} GPUs, busy {percent(summary.busy_share)} of {summary.simulated_s:.1f} s; "
        f"trace {summary.trace}"
    )


def print_left_out(workloads: "Iterable[Workload]") -> None:
    """Rows of their traces that are no requests, where there are any."""
    from isochrone.wiring.twin_files import shown
    from isochrone.wiring.twin_traffic import traffic_of

    for workload in {each.files: each for each in workloads if each.kind == "recorded"}.values():
        rows = traffic_of(workload).left_out
        if rows:
            told = f"{len(rows)} rows of the trace, as {shown(rows[0])}"
            print(f"Left out, as they are no requests: {told}")


def print_engine(order: "FleetOrder") -> None:
    """What the fleet's engines are, and how well that is known."""
    from isochrone.core.estimate.engine_rates_table import described
    from isochrone.wiring.twin_world import engine_of

    print(f"Engines: {described(engine_of(order))}")

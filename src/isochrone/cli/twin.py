"""`isochrone twin`: simulates a fleet in virtual time, under our policy and other people's."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isochrone.cli.chaos import EPILOG, chaos
from isochrone.cli.show import print_table
from isochrone.core.errors import InvalidInput

if TYPE_CHECKING:
    from isochrone.twin.fast.rows import Row
    from isochrone.twin.fast.summary import Summary
    from isochrone.twin.scenario import Scenario

BYTES_PER_MB = 1_000_000.0

app = typer.Typer(
    help="Simulate a fleet in virtual time: before money is spent, and against other policies.",
    epilog="A first try: `isochrone twin compare eight-sites`. Scenarios are written as "
    "docs/twin-world.md has it; docs/twin.md says what is simulated.",
    no_args_is_help=True,
)
app.command(epilog=EPILOG)(chaos)

ScenarioArgument = Annotated[
    str, typer.Argument(help="A scenario: a TOML file or a packaged name, as `eight-sites`.")
]
TraceOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="Traffic instead of the scenario's: requests of Azure 2023 or Mooncake, coding "
        "sessions, or rates of ServeGen or Azure 2024. Twice for rates and lengths; rates alone "
        "take the packaged lengths.",
    ),
]
RttOption = Annotated[
    Path | None, typer.Option(help="Round trips instead of the scenario's: CSV of regions.")
]
SitesOption = Annotated[
    Path | None, typer.Option(help="Sites instead of the scenario's: CSV with positions.")
]
RequestsOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Play the first so many requests, however long they take to come. "
        "[default: those of length_s]",
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(min=0, max=2**31 - 1, help="Of all chance. [default: the scenario's]"),
]


@app.command(
    epilog="Examples: `isochrone twin run eight-sites` · "
    "`isochrone twin run my.toml --policy skywalker --load 0.9 --json row.json`"
)
def run(
    scenario: ScenarioArgument,
    policy: Annotated[
        str, typer.Option(help="`ours`, a baseline of docs/baselines.md, or `bound`.")
    ] = "ours",
    trace: TraceOption = None, rtt: RttOption = None, sites: SitesOption = None,
    load: Annotated[
        str | None,
        typer.Option(help="Part of what the fleet does with nothing cached. "
                     "[default: the scenario's]"),
    ] = None,
    requests: RequestsOption = None, seed: SeedOption = None,
    out: Annotated[
        Path | None, typer.Option("--json", help="File for the row, as `compare` writes it.")
    ] = None,
) -> None:
    """Simulate a scenario under one policy and sum up what clients would have seen."""
    from isochrone.wiring.twin_comparison import games, play

    chosen, loads = _chosen(scenario, trace, rtt, sites, seed, load, out)
    [game] = games(chosen, [policy], loads, requests)
    with progress(f"{policy}: requests", requests) as told:
        played = play(game, told)
    if out is not None:
        _keep([played.row], out)
    _print_rows([played.row])
    if played.summary is not None:
        _print_summary(played.summary)


@app.command(
    epilog="Examples: `isochrone twin compare eight-sites --json out.json` · "
    "`isochrone twin compare my.toml --trace mooncake.jsonl.gz --policies ours,llm_d,bound "
    "--loads 0.4,0.8`"
)
def compare(
    scenario: ScenarioArgument,
    trace: TraceOption = None, rtt: RttOption = None, sites: SitesOption = None,
    policies: Annotated[
        str | None,
        typer.Option(help="Names with commas between. [default: ours, every baseline, bound]"),
    ] = None,
    loads: Annotated[
        str | None,
        typer.Option(help="Parts of what the fleet does with nothing cached, with commas between. "
                     "[default: the scenario's]"),
    ] = None,
    requests: RequestsOption = None, seed: SeedOption = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes at a time. [default: one a core]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--json", help="File for the rows, one a policy and load.")
    ] = None,
) -> None:
    """Simulate a scenario under many policies, with the same requests for all, side by side.

    `bound` is no policy but what no policy can beat (docs/bound.md); `campus` has all engines at
    one site. The same seed gives the same file. Everything is checked before anything is played.
    """
    from isochrone.wiring.twin_comparison import POLICIES, games, play_all

    chosen, wanted = _chosen(scenario, trace, rtt, sites, seed, loads, out)
    names = [each.strip() for each in policies.split(",")] if policies else list(POLICIES)
    work = games(chosen, names, wanted, requests)
    with progress("runs", len(work)) as told:
        rows = play_all(work, jobs or os.cpu_count() or 1, lambda _: told(1))
    if out is not None:
        _keep(rows, out)
    _print_rows(rows)
    if out is not None:
        print(f"written to {out}")


def _chosen(
    scenario: str, trace: list[Path] | None, rtt: Path | None, sites: Path | None,
    seed: int | None, loads: str | None, out: Path | None,
) -> "tuple[Scenario, tuple[float, ...]]":
    """Raises InvalidInput with the problems of all of them."""
    from isochrone.wiring.twin_choice import Changes, chosen_loads, chosen_scenario

    problems: list[str] = []
    found: tuple[float, ...] = ()
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        problems.append(f"--json {out}: " + (
            "is a folder" if out.is_dir() else f"the folder {out.parent} does not exist"
        ))
    try:
        found = chosen_loads(loads) if loads is not None else ()
    except InvalidInput as error:
        problems += error.problems
    try:
        chosen = chosen_scenario(scenario, Changes(
            trace=tuple(str(each) for each in trace or ()), rtt=str(rtt) if rtt else None,
            sites=str(sites) if sites else None, seed=seed,
        ))
    except InvalidInput as error:
        raise InvalidInput([*problems, *error.problems]) from error
    if problems:
        raise InvalidInput(problems)
    return chosen, found


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, and what to call with how many more there are."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}"),
        TimeElapsedColumn(), console=console, disable=not console.is_terminal, transient=True,
    )
    task = bar.add_task(what, total=total)
    with bar:
        yield lambda more: bar.advance(task, more)


def _keep(rows: "Sequence[Row]", path: Path) -> None:
    """All rows or the file as it was."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(
            json.dumps([asdict(row) for row in rows], indent=2, allow_nan=False) + "\n",
            encoding="utf-8",
        )
        part.replace(path)
    except OSError as error:
        raise InvalidInput([f"--json {path}: cannot be written: {error.strerror}"]) from error
    finally:
        part.unlink(missing_ok=True)


def _print_rows(rows: "Sequence[Row]") -> None:
    """A table for each load: times in ms, and how many times those of the bound and the best
    baseline they are."""
    for load in dict.fromkeys(row.load for row in rows):
        same = [row for row in rows if row.load == load]
        print_table(
            ("policy", "TTFT mean", "p50", "p90", "p99", "in time", "good/s", "cached",
             "over borders MB", "mean / bound", "p99 / bound", "mean / best", "p99 / best"),
            [_cells(row, same) for row in same],
            title=f"{same[0].workload} at load {load:.3g} (times in ms)",
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
        _percent(row.slo_attainment), row.goodput_rps, _percent(row.hit_rate),
        None if border is None else border / BYTES_PER_MB,
        _times(row.ttft_ms_mean, bound.ttft_ms_mean if bound else None),
        _times(row.ttft_ms_p99, bound.ttft_ms_p99 if bound else None),
        _times(row.ttft_ms_mean, best_mean), _times(row.ttft_ms_p99, best_p99),
    )


def _times(value: float | None, other: float | None) -> str | None:
    return f"{value / other:.2f} x" if value and other else None


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _print_summary(summary: "Summary") -> None:
    print(
        f"{summary.requests} requests after the warm-up: {summary.answered} answered, "
        f"{summary.refused} refused, {summary.broken} broken off, {summary.open} open; "
        f"{summary.retried} sent again"
    )
    print(
        f"{summary.gpus} GPUs, busy {_percent(summary.busy_share)} of {summary.simulated_s:.1f} s; "
        f"trace {summary.trace}"
    )

"""`isochrone twin`: simulates a fleet in virtual time, under our policy and other people's."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isochrone.cli.chaos import EPILOG, chaos
from isochrone.cli.line import MOST
from isochrone.cli.outputs import check_outputs, problems_of
from isochrone.cli.twin_asked import Asked, PackagedOption, ProgressOption, read
from isochrone.cli.twin_plan import EPILOG as PLAN_EPILOG
from isochrone.cli.twin_plan import plan
from isochrone.cli.twin_shown import (
    print_engine,
    print_left_out,
    print_results,
    print_rows,
    print_summary,
    progress,
)
from isochrone.core.errors import InvalidInput

if TYPE_CHECKING:
    from isochrone.twin.experiments.experiment import Results
    from isochrone.twin.scenario import Scenario, Workload

app = typer.Typer(
    help="Simulate a fleet in virtual time: before money is spent, and against other policies.",
    epilog="A first try: `isochrone twin compare eight-sites`. Scenarios are written as "
    "docs/twin-world.md has it; docs/twin.md says what is simulated.",
    no_args_is_help=True,
)
app.command(epilog=EPILOG)(chaos)
app.command(epilog=PLAN_EPILOG)(plan)

ScenarioArgument = Annotated[
    str, typer.Argument(help="A scenario: a TOML file or a packaged name, as `eight-sites`.")
]
ExperimentArgument = Annotated[
    str,
    typer.Argument(
        help="An experiment or a scenario: a TOML file or a packaged name, as `policies`."
    ),
]
TraceOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="Traffic instead of the scenario's: requests of Azure 2023 or Mooncake, coding "
        "sessions, rates or lengths of ServeGen or Azure 2024, M365's week, or Vidur's lengths. "
        "Twice for rates and lengths; one alone takes the packaged other.",
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
        min=1, max=MOST, help="Play the first so many requests, however long they take to come. "
        "[default: those of length_s]",
    ),
]
PoliciesOption = Annotated[
    str | None,
    typer.Option(help="Names with commas between. [default: ours, every baseline, bound]"),
]
GpusOption = Annotated[
    float | None,
    typer.Option(
        "--gpus-for-slo", min=0.01, max=1.0,
        help="Also look for the smallest fleet on which this part of the requests is in time, as "
        "0.95: some ten runs more a policy.",
    ),
]
JobsOption = Annotated[
    int | None, typer.Option(min=1, max=MOST, help="Processes at a time. [default: one a core]")
]
ClusterOption = Annotated[
    str | None,
    typer.Option(help="Play on a Ray cluster at this address, or `auto`; needs isochrone[ray]."),
]
ParquetOption = Annotated[
    Path | None, typer.Option("--parquet", help="File for a table of all that came out.")
]
ResultsOption = Annotated[
    Path | None, typer.Option("--json", help="File for findings and table, as the page has them.")
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
    progress_json: ProgressOption = None,
) -> None:
    """Simulate a scenario under one policy and sum up what clients would have seen."""
    from isochrone.wiring.twin_comparison import games, play
    from isochrone.wiring.twin_report import write_rows

    chosen, loads = _chosen(
        scenario, trace, rtt, sites, seed, load, out, progress_json
    )
    if len(loads) > 1:
        raise InvalidInput([f'load "{load}": expected one; `isochrone twin compare` plays several'])
    [game] = games(chosen, [policy], loads, requests)
    with progress(f"{policy}: requests", requests, progress_json) as told:
        played = play(game, told)
    try:
        print_rows([played])
        if played.summary is not None:
            print_summary(played.summary)
        print_engine(chosen.fleet)
        print_left_out([chosen.workload])
    finally:  # whoever reads may be gone, or be a full disk: that must not cost what was played
        if out is not None:
            write_rows([played.row], out)


@app.command(
    epilog="Examples: `isochrone twin compare eight-sites --json out.json` · "
    "`isochrone twin compare my.toml --trace mooncake.jsonl.gz --policies ours,llm_d,bound "
    "--loads 0.4,0.8`"
)
def compare(
    scenario: ScenarioArgument,
    trace: TraceOption = None, rtt: RttOption = None, sites: SitesOption = None,
    policies: PoliciesOption = None,
    loads: Annotated[
        str | None,
        typer.Option(help="Parts of what the fleet does with nothing cached, with commas between. "
                     "[default: the scenario's]"),
    ] = None,
    requests: RequestsOption = None, seed: SeedOption = None, gpus: GpusOption = None,
    jobs: JobsOption = None, cluster: ClusterOption = None,
    out: Annotated[
        Path | None, typer.Option("--json", help="File for the rows, one a policy and load.")
    ] = None,
    progress_json: ProgressOption = None,
) -> None:
    """Simulate a scenario under many policies, with the same requests for all, side by side.

    `bound` is no policy but what no policy can beat (docs/bound.md); `campus` has all engines at
    one site. The same seed gives the same file. Everything is checked before anything is played.
    """
    from isochrone.wiring.twin_comparison import POLICIES, games
    from isochrone.wiring.twin_pool import play_all
    from isochrone.wiring.twin_report import write_rows

    chosen, wanted = _chosen(
        scenario, trace, rtt, sites, seed, loads, out, progress_json
    )
    names = [each.strip() for each in policies.split(",")] if policies else list(POLICIES)
    work = games(chosen, names, wanted, requests, gpus)
    with progress("runs", len(work), progress_json) as told:
        played = play_all(work, jobs or os.cpu_count() or 1, lambda _: told(1), cluster)
    try:
        print_rows(played, sized=gpus is not None)
        print_engine(chosen.fleet)
        print_left_out([chosen.workload])
    finally:
        if out is not None:
            write_rows([each.row for each in played], out)
    if out is not None:
        print(f"written to {_named(out)}")


@app.command(
    epilog="Examples: `isochrone twin sweep policies` · `isochrone twin sweep eight-sites --vary "
    "fleet.replicas=8,16,32 --vary workload.load=0.5,0.9 --parquet out.parquet`"
)
def sweep(
    experiment: ExperimentArgument,
    vary: Annotated[
        list[str] | None,
        typer.Option(help="A key of the scenario and its values, as fleet.replicas=8,16; of "
                     "several keys all combinations are played."),
    ] = None,
    policies: PoliciesOption = None, requests: RequestsOption = None, seed: SeedOption = None,
    gpus: GpusOption = None, jobs: JobsOption = None, cluster: ClusterOption = None,
    full: Annotated[
        bool, typer.Option("--full", help="As many requests as the experiment has for evidence.")
    ] = False,
    parquet: ParquetOption = None, out: ResultsOption = None,
    progress_json: ProgressOption = None,
) -> None:
    """Simulate a scenario again and again with other values, or an experiment, on all cores."""
    from isochrone.wiring.twin_report import write_results, write_table

    check_outputs({"--json": out, "--parquet": parquet, "--progress-json": progress_json})
    played = _played(Asked(
        wanted=experiment, vary=vary, policies=policies, requests=requests, seed=seed, gpus=gpus,
        full=full,
    ), jobs, cluster, progress_json)
    _told_and_kept(played, [(write_results, out), (write_table, parquet)])
    if parquet is not None:
        print(f"written to {_named(parquet)}")


@app.command(
    epilog="Examples: `isochrone twin report policies --out report.html` · "
    "`isochrone twin report my.toml --vary workload.load=0.4,0.6,0.8`"
)
def report(
    experiment: ExperimentArgument,
    vary: Annotated[
        list[str] | None, typer.Option(help="A key of the scenario and its values, as for `sweep`.")
    ] = None,
    policies: PoliciesOption = None, requests: RequestsOption = None, seed: SeedOption = None,
    gpus: GpusOption = None, jobs: JobsOption = None, cluster: ClusterOption = None,
    full: Annotated[
        bool, typer.Option("--full", help="As many requests as the experiment has for evidence.")
    ] = False,
    parquet: ParquetOption = None,
    out: Annotated[Path, typer.Option(help="The page that is written.")] = Path("report.html"),
    as_json: ResultsOption = None, progress_json: ProgressOption = None,
    packaged: PackagedOption = False,
) -> None:
    """As `sweep`, and write one page with plots and a map that needs nothing else."""
    from isochrone.wiring.twin_report import write_page, write_results, write_table

    check_outputs({
        "--out": out, "--json": as_json, "--parquet": parquet, "--progress-json": progress_json,
    })
    played = _played(Asked(
        wanted=experiment, vary=vary, policies=policies, requests=requests, seed=seed, gpus=gpus,
        full=full, packaged=packaged,
    ), jobs, cluster, progress_json)
    _told_and_kept(played, [
        (lambda results, path: write_page([results], path), out),
        (write_results, as_json), (write_table, parquet),
    ])
    print(
        f"written to {_named(out)}" + (f" and {_named(parquet)}" if parquet is not None else "")
    )


def _told_and_kept(
    played: "tuple[Results, list[Workload]]",
    files: "list[tuple[Callable[[Results, Path], None], Path | None]]",
) -> None:
    """Show what came out, and write it: whatever of that fails, all of the rest is done. Raises
    InvalidInput where some file cannot be written."""
    results, workloads = played
    problems: list[str] = []
    try:
        print_results(results)
        print_left_out(workloads)
    finally:
        for write, file in files:
            try:
                if file is not None:
                    write(results, file)
            except InvalidInput as error:
                problems += error.problems
    if problems:
        raise InvalidInput(problems)


def _played(
    asked: Asked, jobs: int | None, cluster: str | None, progress_json: Path | None
) -> "tuple[Results, list[Workload]]":
    """With what traffic was played. Raises InvalidInput with all problems, before anything is."""
    from isochrone.wiring.twin_experiment import play_experiment, work_of
    from isochrone.wiring.twin_files import shown
    from isochrone.wiring.twin_report import commit

    found, count = read(asked)
    with progress("runs", len(work_of(found, count)), progress_json) as told:
        results = play_experiment(
            found, requests=count, jobs=jobs or os.cpu_count() or 1, cluster=cluster,
            command="isochrone " + shown(shlex.join(sys.argv[1:])), commit=commit(),
            on_played=lambda _: told(1),
        )
    return results, [each.scenario.workload for each in found.settings]


def _named(file: Path) -> str:
    from isochrone.wiring.twin_files import shown

    return shown(str(file))


def _chosen(
    scenario: str, trace: list[Path] | None, rtt: Path | None, sites: Path | None,
    seed: int | None, loads: str | None, out: Path | None, progress_json: Path | None,
) -> "tuple[Scenario, tuple[float, ...]]":
    """Raises InvalidInput with the problems of all of them."""
    from isochrone.wiring.twin_choice import Changes, chosen_loads, chosen_scenario

    problems = problems_of(
        {"--json": out, "--progress-json": progress_json},
        read=[Path(scenario), *(trace or ()), rtt, sites],
    )
    found: tuple[float, ...] = ()
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

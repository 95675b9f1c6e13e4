"""`isochrone twin plan`: what an experiment would play, and about how long that takes."""

from typing import Annotated

import typer

from isochrone.cli.line import MOST
from isochrone.cli.show import print_json, print_table
from isochrone.cli.twin_asked import Asked, PackagedOption, read

EPILOG = "Examples: `isochrone twin plan` · `isochrone twin plan policies --requests 500`"


def plan(
    experiment: Annotated[
        str | None,
        typer.Argument(help="An experiment or a scenario: a file or a name. [default: all names]"),
    ] = None,
    vary: Annotated[
        list[str] | None, typer.Option(help="A key of the scenario and its values, as for `sweep`.")
    ] = None,
    policies: Annotated[
        str | None, typer.Option(help="Names with commas between. [default: the experiment's]")
    ] = None,
    requests: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="At each point. [default: the experiment's]")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**31 - 1, help="Of all chance.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="As many requests as the experiment has for evidence.")
    ] = False,
    packaged: PackagedOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check an experiment and say what it would play, and about how long, without playing it."""
    import msgspec

    from isochrone.wiring.twin_choice import packaged_scenarios
    from isochrone.wiring.twin_experiment import packaged_experiments
    from isochrone.wiring.twin_plan import plan_of

    every = (*packaged_experiments(), *packaged_scenarios())
    wanted = every if experiment is None else (experiment,)
    plans = []
    for name in wanted:
        found, count = read(Asked(
            wanted=name, vary=vary, policies=policies, requests=requests, seed=seed, full=full,
            packaged=packaged,
        ))
        plans.append(plan_of(found, name, count, checked=experiment is not None))
    if as_json:
        print_json(msgspec.to_builtins(plans))
        return
    print_table(
        ("experiment", "title", "policies", "loads", "points", "runs", "requests", "about"),
        [(each.name, each.title, each.policies, [f"{load:g}" for load in each.loads], each.points,
          each.runs, each.requests, _about(each.about_s)) for each in plans],
    )
    print("about: by one process (--jobs 1) on a usual machine")


def _about(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"

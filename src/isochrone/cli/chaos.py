"""`isochrone twin chaos`: the whole system in virtual time under faults, seed by seed, judged."""

import os
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated

import typer

from isochrone.cli.line import MOST
from isochrone.core.errors import InvalidInput

if TYPE_CHECKING:
    from isochrone.wiring.chaos import Played

SHOWN = 12  # problems of one seed
DEFAULT_SEEDS = 50
EPILOG = (
    "Examples: `isochrone twin chaos --seeds 200` · `isochrone twin chaos --seed 37 --trace`. "
    "docs/chaos.md says what is done to the system, and what was found that way."
)


def chaos(
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST,
            help=f"How many, from --seed on. [default: {DEFAULT_SEEDS}, or 1 with --seed]",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**31 - 1, help="The first one. [default: 0]")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Processes at a time. [default: one a core]")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Print all that happened; of one seed only.")
    ] = False,
) -> None:
    """Run the real control, gateways and agents in virtual time under faults, and judge each run.

    Every seed draws its own cloud, clients and faults; the same seed is always the same run, which
    its hash shows. Ends with 1 when a run was not right, and says how to play it again.
    """
    from isochrone.cli.twin_shown import progress
    from isochrone.wiring.chaos_runs import play_seeds

    count = seeds or (DEFAULT_SEEDS if seed is None else 1)
    if trace and count != 1:
        raise InvalidInput(["--trace: of one seed only; name it with --seed"])
    first = seed or 0
    wrong: list[Played] = []
    digests: dict[int, str] = {}
    requests = 0
    with progress("seeds", count) as told:
        for played in play_seeds(range(first, first + count), jobs or os.cpu_count() or 1):
            digests[played.seed] = played.digest
            requests += played.requests
            if played.found:
                wrong.append(played)
            told(1)
    if trace:
        print("\n".join(played.trace))
    for each in sorted(wrong, key=lambda each: each.seed):
        _print_wrong(each)
    whole = sha256("".join(digests[each] for each in sorted(digests)).encode()).hexdigest()
    named = f"seed {first}" if count == 1 else f"seeds {first} to {first + count - 1}"
    print(f"{named}: {requests} requests, {count - len(wrong)} right, {len(wrong)} wrong; "
          f"trace {digests[first] if count == 1 else whole}")
    if wrong:
        raise typer.Exit(1)


def _print_wrong(played: "Played") -> None:
    print(f"seed {played.seed} is wrong:")
    for problem in played.found[:SHOWN]:
        print(f"  {problem}")
    if len(played.found) > SHOWN:
        print(f"  and {len(played.found) - SHOWN} more")
    print(f"  again: isochrone twin chaos --seed {played.seed} --trace")

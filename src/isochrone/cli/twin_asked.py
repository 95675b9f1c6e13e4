"""What somebody asked for of an experiment: reads it, with what replaces parts of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from isochrone.wiring.twin_experiment import Experiment

PackagedOption = Annotated[
    bool,
    typer.Option("--packaged-files", help="Refuse a scenario that names files of this machine: for "
                 "one that somebody else wrote."),
]
ProgressOption = Annotated[
    Path | None,
    typer.Option("--progress-json", help="File that always says how far it is, for programs."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """None leaves what the experiment says. `packaged`: only packaged files may be named."""

    wanted: str
    vary: list[str] | None = None
    policies: str | None = None
    requests: int | None = None
    seed: int | None = None
    gpus: float | None = None
    full: bool = False
    packaged: bool = False


def read(asked: Asked) -> "tuple[Experiment, int | None]":
    """The experiment, and how many requests are played at a point: None for those of its length.
    Raises InvalidInput with all problems."""
    from dataclasses import replace

    from isochrone.wiring.twin_experiment import content_of, read_experiment, varied_by
    from isochrone.wiring.twin_files import shown
    from isochrone.wiring.twin_plan import need_packaged

    seed = asked.seed
    found = read_experiment(
        content_of(asked.wanted), source=shown(asked.wanted), vary=varied_by(asked.vary or ()),
        change=lambda each: replace(each, seed=each.seed if seed is None else seed),
    )
    if asked.policies is not None:
        names = tuple(each.strip() for each in asked.policies.split(","))
        found = replace(found, settings=tuple(
            replace(each, policies=names) for each in found.settings
        ))
    if asked.gpus is not None:
        found = replace(found, gpus_for=asked.gpus)
    if asked.packaged:
        need_packaged(found)
    return found, asked.requests or (found.full_requests if asked.full else None) or found.requests

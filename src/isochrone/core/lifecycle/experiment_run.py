"""Decides what becomes of an experiment that somebody has control play: waiting, running, over.

A run's life is a table of transitions. What control lost sight of, because it was stopped or killed
meanwhile, is `interrupted`: never `running` for ever, and never `done`.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from isochrone.core.errors import Conflict

RunState = Literal["waiting", "running", "stopping", "done", "failed", "stopped", "interrupted"]
RunEvent = Literal["begun", "stop_asked", "finished", "failed", "killed", "lost"]

TRANSITIONS: Mapping[tuple[RunState, RunEvent], RunState] = {
    ("waiting", "begun"): "running",
    ("waiting", "stop_asked"): "stopped",
    ("waiting", "failed"): "failed",
    ("running", "stop_asked"): "stopping",
    ("running", "finished"): "done",
    ("running", "failed"): "failed",
    ("running", "lost"): "interrupted",
    # Asked to stop: what had come to its end by then is done all the same.
    ("stopping", "stop_asked"): "stopping",
    ("stopping", "finished"): "done",
    ("stopping", "failed"): "stopped",
    ("stopping", "killed"): "stopped",
    ("stopping", "lost"): "stopped",
}
OPEN: tuple[RunState, ...] = ("waiting", "running", "stopping")
OWN_FILE = "scenario.toml"
LEAST_PACE, MOST_PACE = 0.1, 20.0
NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentOrder:
    """What is to be played. `wanted`: a packaged name, or for what `is_own`, a name that was given
    to it. Empty and None leave what the experiment says; `full`: as many requests as it has for
    evidence."""

    wanted: str
    is_own: bool = False
    policies: tuple[str, ...] = ()
    loads: tuple[float, ...] = ()
    requests: int | None = None
    seed: int | None = None
    full: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentRun:
    """One playing of an order. Instants are wall ns UTC; `runs` simulations were planned, for about
    `about_s` seconds; `problem` says why it failed."""

    id: str
    order: ExperimentOrder
    title: str
    state: RunState
    asked_by: str
    asked_at: int
    runs: int
    about_s: float
    begun_at: int | None = None
    ended_at: int | None = None
    problem: str | None = None

    @property
    def is_open(self) -> bool:
        return self.state in OPEN


def step(
    run: ExperimentRun, event: RunEvent, now: int, *, problem: str | None = None
) -> ExperimentRun:
    """Apply one event. Raises Conflict where it means nothing in this state."""
    state = TRANSITIONS.get((run.state, event))
    if state is None:
        raise Conflict(f"the run is {run.state}: {_MEANINGLESS[event]}")
    return replace(
        run, state=state,
        begun_at=now if event == "begun" else run.begun_at,
        ended_at=None if state in OPEN else now,
        problem=problem if state == "failed" else None,
    )


_MEANINGLESS: Mapping[RunEvent, str] = {
    "begun": "it cannot begin", "stop_asked": "there is nothing to stop",
    "finished": "it cannot finish", "failed": "it cannot fail", "killed": "nobody asked to stop it",
    "lost": "it cannot be lost",
}


def options_of(order: ExperimentOrder) -> list[str]:
    """What follows `isochrone twin report` or `plan`."""
    told = [OWN_FILE if order.is_own else order.wanted]
    if order.policies:
        told += ["--policies", ",".join(order.policies)]
    if order.loads:
        told += ["--vary", "workload.load=" + ",".join(f"{load:g}" for load in order.loads)]
    if order.requests is not None:
        told += ["--requests", str(order.requests)]
    if order.seed is not None:
        told += ["--seed", str(order.seed)]
    return [*told, "--full"] if order.full else told


def command_of(order: ExperimentOrder) -> str:
    """The command line that plays the same again."""
    return shlex.join(["isochrone", "twin", "report", *options_of(order)])


def pace_of(earlier: Sequence[ExperimentRun]) -> float:
    """How many times as long as was said the latest run took that is done; 1 without any."""
    done = [
        each for each in earlier
        if each.state == "done" and each.begun_at is not None and each.ended_at is not None
        and each.about_s > 0.0
    ]
    if not done:
        return 1.0
    latest = max(done, key=lambda each: each.ended_at or 0)
    took_s = ((latest.ended_at or 0) - (latest.begun_at or 0)) / NS_PER_S
    return min(max(took_s / latest.about_s, LEAST_PACE), MOST_PACE)

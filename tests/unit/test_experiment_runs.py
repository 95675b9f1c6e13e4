"""Runs of experiments: their life as a table, the command that repeats one, how long they take."""

from dataclasses import replace
from typing import get_args

import msgspec
import pytest

from isochrone.console.pages import experiments as page
from isochrone.core.errors import Conflict, InvalidInput
from isochrone.core.lifecycle.experiment_run import (
    OPEN,
    TRANSITIONS,
    ExperimentOrder,
    ExperimentRun,
    RunEvent,
    RunState,
    command_of,
    pace_of,
    step,
)

S = 1_000_000_000


def a_run(state: RunState = "waiting", **changes: object) -> ExperimentRun:
    run = ExperimentRun(
        id="r", order=ExperimentOrder(wanted="policies"), title="Policies", state=state,
        asked_by="principal:ada", asked_at=1, runs=10, about_s=20.0,
    )
    return replace(run, **changes)  # type: ignore[arg-type]


def lived(*events: RunEvent) -> ExperimentRun:
    run = a_run()
    for at, event in enumerate(events, start=2):
        run = step(run, event, at, problem="why" if event == "failed" else None)
    return run


@pytest.mark.parametrize(
    ("events", "state"),
    [
        (("begun", "finished"), "done"), (("begun", "failed"), "failed"),
        (("begun", "stop_asked", "killed"), "stopped"), (("stop_asked",), "stopped"),
        (("begun", "stop_asked", "stop_asked", "finished"), "done"),
        (("begun", "lost"), "interrupted"), (("begun", "stop_asked", "lost"), "stopped"),
    ],
)
def test_a_run_ends_as_what_happened(events: tuple[RunEvent, ...], state: RunState) -> None:
    run = lived(*events)
    assert (run.state, run.ended_at, run.is_open) == (state, len(events) + 1, False)
    assert run.problem == ("why" if state == "failed" else None)
    assert run.begun_at == (2 if events[0] == "begun" else None)


def test_what_is_over_stays_over_and_nothing_lasts_for_ever() -> None:
    for state in get_args(RunState):
        for event in get_args(RunEvent):
            if (state, event) in TRANSITIONS:
                assert state in OPEN
                continue
            with pytest.raises(Conflict, match=f"the run is {state}"):
                step(a_run(state), event, 5)
    running: tuple[RunState, ...] = ("running", "stopping")
    for state in running:
        assert TRANSITIONS[state, "lost"] not in OPEN, "no copy of control plays it any more"


def test_the_command_plays_the_same_again() -> None:
    order = ExperimentOrder(
        wanted="policies", policies=("ours", "bound"), loads=(0.5, 0.95), requests=100, seed=3,
    )
    assert command_of(order) == (
        "isochrone twin report policies --policies ours,bound --vary workload.load=0.5,0.95"
        " --requests 100 --seed 3"
    )
    assert command_of(ExperimentOrder(wanted="x", is_own=True, full=True)) == (
        "isochrone twin report scenario.toml --full"
    )


def test_the_latest_run_that_is_done_says_how_fast_this_machine_is() -> None:
    assert pace_of([]) == 1.0
    done = a_run("done", begun_at=0, ended_at=40 * S)
    assert pace_of([done, a_run("failed", begun_at=0, ended_at=900 * S)]) == 2.0
    assert pace_of([done, a_run("done", begun_at=0, ended_at=60 * S)]) == 3.0
    assert pace_of([a_run("done", begun_at=0, ended_at=10**6 * S)]) == 20.0


def test_what_is_filled_in_becomes_an_order_or_all_its_problems() -> None:
    filled = {"wanted": "policies", "policies": "ours,bound", "loads": "0.5, .8", "requests": "20",
              "seed": ""}
    assert page.order_in(filled) == {
        "wanted": "policies", "policies": ["ours", "bound"], "loads": [0.5, 0.8], "requests": 20,
    }
    own = {"wanted": "own", "content": "x = 1"}
    assert page.order_in({**own, "wanted": " "}) == own
    with pytest.raises(InvalidInput) as refused:
        page.order_in({"wanted": "x", "loads": "high", "requests": "-1", "seed": "many"})
    assert [each.partition(":")[0] for each in refused.value.problems] == [
        "loads", "requests", "seed",
    ]


def test_how_far_it_is_reads_well() -> None:
    run = page.Run(
        id="r", wanted="x", title="X", own=False, state="running", problem=None, command="",
        asked_by="", asked_at=0, begun_at=0, ended_at=None, runs=24, done=None, left_s=None,
    )
    assert page.far(run) == "is beginning"
    some = msgspec.structs.replace(run, done=3, left_s=90.0)
    assert page.far(some) == "3 of 24 simulations, about 2 min left"
    assert page.took(msgspec.structs.replace(run, ended_at=90 * S)) == "2 min"

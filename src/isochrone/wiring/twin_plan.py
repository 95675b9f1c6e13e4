"""Says what an experiment would play, and about how long that takes, without playing it."""

from collections.abc import Sequence

from isochrone.core.errors import InvalidInput
from isochrone.core.lifecycle.experiment import ExperimentPlan
from isochrone.twin.scenario import Scenario
from isochrone.wiring.twin_comparison import ground_of
from isochrone.wiring.twin_experiment import Experiment, Setting, file_of, work_of
from isochrone.wiring.twin_files import is_packaged

# What one process takes on the machine of benchmarks/twin.
START_S = 1.0
RUN_S = 0.12
REQUESTS_PER_S = 4_000.0
SIZING_RUNS = 10  # that looking for the smallest fleet adds to each
LOOKED_AT = 12  # points whose rate is worked out; others are taken for like them


def plan_of(
    experiment: Experiment, wanted: str, requests: int | None, *, checked: bool = True
) -> ExperimentPlan:
    """`requests` at each point, None for those of each scenario's length. `checked`: the files that
    it names are read, too. Raises InvalidInput with all problems."""
    if checked:
        work_of(experiment, requests)
    each = requests or _usual(experiment.settings)
    settings = experiment.settings
    loads = {one.scenario.workload.load for one in settings} - {None}
    played = sum(len(one.policies) for one in settings)
    runs = played * (1 if experiment.gpus_for is None else 1 + SIZING_RUNS)
    return ExperimentPlan(
        name=experiment.name, title=experiment.title, question=experiment.question,
        policies=tuple(dict.fromkeys(name for one in settings for name in one.policies)),
        loads=tuple(sorted(load for load in loads if load is not None)), points=len(settings),
        runs=played, requests=each * played,
        about_s=START_S + runs * (RUN_S + each / REQUESTS_PER_S),
        content=file_of(wanted).read_text(encoding="utf-8"),
    )


def need_packaged(experiment: Experiment) -> None:
    """Raises InvalidInput where a scenario names files other than packaged ones: whoever wrote it
    is not to read what else lies on this machine."""
    problems: list[str] = []
    for setting in experiment.settings:
        problems += [
            f"{file}: is no packaged file; only packaged ones may be named here"
            for file in _named(setting.scenario) if not is_packaged(file)
        ]
    if problems:
        raise InvalidInput(list(dict.fromkeys(problems)))


def _named(scenario: Scenario) -> list[str]:
    others = (scenario.sites, scenario.rtt, scenario.entries)
    return [*scenario.workload.files, *(each for each in others if each is not None)]


def _usual(settings: Sequence[Setting]) -> int:
    """Requests of one point, by the rates of the first ones."""
    looked_at = settings[:LOOKED_AT]
    sums = [
        ground_of(each.scenario, None).world.rate_rps * each.scenario.length_s
        for each in looked_at
    ]
    return max(1, round(sum(sums) / len(sums))) if sums else 1

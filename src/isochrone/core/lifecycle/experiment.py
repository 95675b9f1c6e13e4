"""What an experiment on the twin would play, how far it is, and what came of it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentPlan:
    """What would be played: each of `policies` at `points`, in `runs` simulations with `requests`
    in all. `loads` are parts of what the fleet does with nothing cached, empty where rates are
    stated. `about_s`: seconds of one process on a usual machine. `content`: the TOML file."""

    name: str
    title: str
    question: str
    policies: tuple[str, ...]
    loads: tuple[float, ...]
    points: int
    runs: int
    requests: int
    about_s: float
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentProgress:
    """`done` of `of` things that are played; `of` is None where nobody knows."""

    done: int
    of: int | None
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentFinding:
    """What follows, in words; `met` where something was aimed at."""

    text: str
    met: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentResults:
    """What came out: findings, and the table of the report, its cells as text."""

    title: str
    question: str
    command: str
    commit: str
    findings: tuple[ExperimentFinding, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

"""What a process that plays an experiment tells the one that started it: plan, progress, results.

JSON, in files and on standard output of `isochrone twin`; control and the twin meet nowhere else.
"""

from typing import TypeVar

import msgspec

from isochrone.core.errors import InvalidInput

S = TypeVar("S")


class ExperimentPlan(msgspec.Struct, frozen=True, kw_only=True):
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


class ExperimentProgress(msgspec.Struct, frozen=True, kw_only=True):
    """`done` of `of` things that are played; `of` is None where nobody knows."""

    done: int
    of: int | None
    what: str


class ExperimentFinding(msgspec.Struct, frozen=True, kw_only=True):
    """What follows, in words; `met` where something was aimed at."""

    text: str
    met: bool | None


class ExperimentResults(msgspec.Struct, frozen=True, kw_only=True):
    """What came out: findings, and the table of the report, its cells as text."""

    title: str
    question: str
    command: str
    commit: str
    findings: tuple[ExperimentFinding, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def decoded(kind: type[S], data: bytes, source: str) -> S:
    """Raises InvalidInput where this is no such message."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise InvalidInput([f"{source}: {error}"]) from error

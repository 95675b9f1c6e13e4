"""Experiments that control has played: their runs in the book, and what plays them.

Calls on the book are synchronous, one transaction each; instants and ids are arguments. They raise
StoreUnavailable when the book is away. Runs belong to the cloud, not to a tenant: for operators.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from isochrone.core.lifecycle.experiment import (
    ExperimentPlan,
    ExperimentProgress,
    ExperimentResults,
)
from isochrone.core.lifecycle.experiment_run import ExperimentOrder, ExperimentRun, RunEvent
from isochrone.core.world.tenant import Scope
from isochrone.ports.tenants import Once, Page


class Experiments(Protocol):
    """The runs in the book."""

    def add(
        self, scope: Scope, run: ExperimentRun, *, once: Once | None, most_open: int
    ) -> ExperimentRun:
        """Keep a waiting run; the earlier one for the same idempotency key. Raises Conflict when
        `most_open` runs are not over yet."""
        ...

    def runs(self, page: Page) -> Sequence[ExperimentRun]:
        """The latest first; `after` is an id."""
        ...

    def run(self, run_id: str) -> ExperimentRun:
        """Raises NotFound."""
        ...

    def open(self) -> Sequence[ExperimentRun]:
        """Those that are not over, the oldest first."""
        ...

    def step(
        self, scope: Scope, run_id: str, event: RunEvent, *, now: int, problem: str | None = None
    ) -> ExperimentRun:
        """Apply an event. Raises NotFound, and Conflict where it means nothing in its state."""
        ...

    def remove(self, scope: Scope, run_id: str) -> ExperimentRun:
        """Forget a run that is over. Raises NotFound, and Conflict while it is not over."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How playing came to its end by itself: with a report, or with a problem."""

    problem: str | None = None


Kept = Literal["report", "scenario"]


class Player(Protocol):
    """Plays experiments beside control and keeps what comes of them, in a place that all copies of
    control share. What is asynchronous is called on the loop's own thread."""

    async def packaged(self) -> Sequence[ExperimentPlan]:
        """All packaged experiments and scenarios. Raises Unavailable."""
        ...

    async def plan(self, order: ExperimentOrder, content: str) -> ExperimentPlan:
        """Check an order, of its own with this `content`, and say what would be played. Raises
        InvalidInput with all problems, Unavailable when that takes too long."""
        ...

    def keep(self, run_id: str, content: str) -> None:
        """Make the place of a run, before it is added to the book. Raises Unavailable."""
        ...

    async def play(self, run_id: str, order: ExperimentOrder) -> Ending:
        """Play a run to its end; cancelled, it has stopped everything when it returns."""
        ...

    def progress(self, run_id: str) -> ExperimentProgress | None:
        """How far it is; None before it says."""
        ...

    def results(self, run_id: str) -> ExperimentResults | None:
        """What came out; None where there is nothing."""
        ...

    def kept(self, run_id: str, what: Kept) -> str | None:
        """The report, a page of HTML by itself, or the scenario that was played."""
        ...

    def forget(self, run_id: str) -> None:
        """Remove all that is kept of a run; nothing happens where there is nothing."""
        ...

"""Experiments on the twin: what there is, what one would play, its runs, and what came of them.

Whoever asks only writes to the book that a run is wanted, or is to stop; the loop of
`control/experimenting.py` does it. Checking an order is the one thing that is done at once.
"""

import asyncio
from typing import Annotated

import structlog
from fastapi import APIRouter, Depends, Response, status
from pydantic import BaseModel, Field

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context, Playing
from isochrone.control.api.paging import Listed, Paging, paging
from isochrone.control.api.shapes import Body
from isochrone.control.api.writing import Repeat, repeat
from isochrone.control.experimenting import MOST_OPEN
from isochrone.core.errors import InvalidInput, NotFound, Unavailable
from isochrone.core.lifecycle.experiment import ExperimentPlan, ExperimentProgress
from isochrone.core.lifecycle.experiment_run import (
    NS_PER_S,
    ExperimentOrder,
    ExperimentRun,
    RunState,
    command_of,
    pace_of,
)
from isochrone.ports.experiments import Kept
from isochrone.ports.tenants import Page

MOST_CONTENT = 64 * 1024
LATEST = Page(most=20)
# The report has no scripts and asks for nothing; whatever was written into it, it may not either.
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"

PolicyName = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,60}$")]
Load = Annotated[float, Field(gt=0, le=4)]

log = structlog.get_logger()


class Order(Body):
    """`wanted` names a packaged experiment or scenario; or `content` has one of your own, as TOML
    (docs/twin-world.md), and `wanted` is what it is called. `loads` are parts of what the fleet
    does with nothing cached. What is left out is as the experiment has it."""

    wanted: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,59}$")]
    content: Annotated[str | None, Field(min_length=1, max_length=MOST_CONTENT)] = None
    policies: Annotated[tuple[PolicyName, ...], Field(max_length=50)] = ()
    loads: Annotated[tuple[Load, ...], Field(max_length=50)] = ()
    requests: Annotated[int | None, Field(ge=1, le=10_000_000)] = None
    seed: Annotated[int | None, Field(ge=0, lt=2**31)] = None
    full: bool = False

    def order(self) -> ExperimentOrder:
        return ExperimentOrder(
            wanted=self.wanted, is_own=self.content is not None, policies=self.policies,
            loads=self.loads, requests=self.requests, seed=self.seed, full=self.full,
        )


class PlanShape(BaseModel):
    """`runs` simulations with `requests` in all, by each policy at each of `points`; `about_s`
    says how long that takes here, by the latest run that is done."""

    name: str
    title: str
    question: str
    policies: list[str]
    loads: list[float]
    points: int
    runs: int
    requests: int
    about_s: float
    content: str


class RunShape(BaseModel):
    """A run. `done` of `runs` simulations are over, `left_s` is how long the others may take;
    `command` plays the same again. Instants are wall ns UTC."""

    id: str
    wanted: str
    title: str
    own: bool
    policies: list[str]
    loads: list[float]
    requests: int | None
    seed: int | None
    full: bool
    state: RunState
    problem: str | None
    command: str
    asked_by: str
    asked_at: int
    begun_at: int | None
    ended_at: int | None
    runs: int
    done: int | None
    left_s: float | None


class FindingShape(BaseModel):
    text: str
    met: bool | None


class ResultsShape(BaseModel):
    """What came of a run: findings, and the table of its report with cells as text."""

    findings: list[FindingShape]
    command: str
    commit: str
    columns: list[str]
    rows: list[list[str]]


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/experiments", tags=["experiments"])
    _add_planning(router, context)
    _add_runs(router, context)
    _add_results(router, context)
    return router


def _add_planning(router: APIRouter, context: Context) -> None:
    may, store = access(context), context.registry.experiments

    @router.get("/packaged")
    async def packaged(
        caller: Annotated[Caller, may("experiments.read")],
    ) -> Listed[PlanShape]:
        """What comes with the product, and what each would play as it is."""
        plans = await _playing(context).player.packaged()
        pace = pace_of(await asyncio.to_thread(store.runs, LATEST))
        return Listed(items=[_plan_shape(each, pace) for each in plans], next=None)

    @router.post("/plans")
    async def plan(body: Order, caller: Annotated[Caller, may("experiments.read")]) -> PlanShape:
        """Check an order and say what it would play, and about how long; nothing is begun."""
        planned = await _playing(context).player.plan(body.order(), body.content or "")
        return _plan_shape(planned, pace_of(await asyncio.to_thread(store.runs, LATEST)))

    @router.post("", status_code=status.HTTP_201_CREATED)
    async def begin(
        body: Order, caller: Annotated[Caller, may("experiments.write")],
        again: Annotated[Repeat, Depends(repeat)],
    ) -> RunShape:
        """Have an experiment played, as soon as none is playing. It is checked first, and refused
        with all that is wrong."""
        playing = _playing(context)
        planned = await playing.player.plan(body.order(), body.content or "")
        run = ExperimentRun(
            id=context.new_id(), order=body.order(), title=planned.title, state="waiting",
            asked_by=caller.id, asked_at=context.now(), runs=planned.runs, about_s=planned.about_s,
        )
        added = await asyncio.to_thread(_add, context, caller, again, body, run)
        playing.wake()
        return _shape(added, None, context.now())


def _add(
    context: Context, caller: Caller, again: Repeat, body: Order, run: ExperimentRun
) -> ExperimentRun:
    """Its place first: what is in the book can be played."""
    player = _playing(context).player
    player.keep(run.id, body.content or "")
    added = None
    try:
        added = context.registry.experiments.add(
            caller.scope, run, once=again.once(caller, body), most_open=MOST_OPEN
        )
    finally:
        if added is None or added.id != run.id:
            player.forget(run.id)
    return added


def _add_runs(router: APIRouter, context: Context) -> None:
    may, store = access(context), context.registry.experiments

    @router.get("")
    def runs(
        caller: Annotated[Caller, may("experiments.read")],
        page: Annotated[Paging, Depends(paging)],
    ) -> Listed[RunShape]:
        """All runs that are kept, the latest first."""
        rows, now = store.runs(page.page), context.now()
        return page.listed(
            rows, lambda row: _shape(row, _progress(context, row), now), lambda row: row.id
        )

    @router.get("/{run_id}")
    def run(run_id: str, caller: Annotated[Caller, may("experiments.read")]) -> RunShape:
        """One run, and how far it is."""
        found = store.run(run_id)
        return _shape(found, _progress(context, found), context.now())

    @router.post("/{run_id}/stop")
    def stop(run_id: str, caller: Annotated[Caller, may("experiments.write")]) -> RunShape:
        """Stop a run; what it has played so far is lost."""
        playing = _playing(context)
        found = store.step(caller.scope, run_id, "stop_asked", now=context.now())
        playing.wake()
        return _shape(found, _progress(context, found), context.now())

    @router.delete("/{run_id}")
    def remove(run_id: str, caller: Annotated[Caller, may("experiments.write")]) -> RunShape:
        """Remove a run that is over, with its report."""
        playing = _playing(context)
        removed = store.remove(caller.scope, run_id)
        playing.player.forget(removed.id)
        return _shape(removed, None, context.now())


def _add_results(router: APIRouter, context: Context) -> None:
    may, store = access(context), context.registry.experiments

    @router.get("/{run_id}/results")
    def results(
        run_id: str, caller: Annotated[Caller, may("experiments.read")]
    ) -> ResultsShape:
        """Findings and figures of a run that is done."""
        found = _playing(context).player.results(store.run(run_id).id)
        if found is None:
            raise NotFound(f"the run {run_id!r} has no results")
        return ResultsShape(
            findings=[FindingShape(text=each.text, met=each.met) for each in found.findings],
            command=found.command, commit=found.commit, columns=list(found.columns),
            rows=[list(each) for each in found.rows],
        )

    @router.get("/{run_id}/report", response_class=Response)
    def report(run_id: str, caller: Annotated[Caller, may("experiments.read")]) -> Response:
        """The report of a run that is done: a page of HTML that needs nothing else."""
        return Response(
            _kept(context, run_id, "report"), media_type="text/html; charset=utf-8",
            headers={"content-security-policy": REPORT_POLICY, "x-content-type-options": "nosniff"},
        )

    @router.get("/{run_id}/scenario", response_class=Response)
    def scenario(run_id: str, caller: Annotated[Caller, may("experiments.read")]) -> Response:
        """The scenario of a run of one's own, as it was given: TOML."""
        return Response(
            _kept(context, run_id, "scenario"), media_type="text/plain; charset=utf-8",
            headers={"x-content-type-options": "nosniff"},
        )


def _kept(context: Context, run_id: str, what: Kept) -> str:
    found = _playing(context).player.kept(context.registry.experiments.run(run_id).id, what)
    if found is None:
        raise NotFound(f"the run {run_id!r} has no {what}")
    return found


def _playing(context: Context) -> Playing:
    if context.experiments is None:
        raise Unavailable(
            "control plays no experiments here: its settings name no folder `experiments`"
            " (docs/experiments.md)"
        )
    return context.experiments


def _progress(context: Context, run: ExperimentRun) -> ExperimentProgress | None:
    """A damaged file is no progress, and no reason to hide the run."""
    if context.experiments is None or run.state not in ("running", "stopping"):
        return None
    try:
        return context.experiments.player.progress(run.id)
    except InvalidInput as error:
        log.warning("experiment_progress_unread", run=run.id, reason=error.message)
        return None


def _shape(run: ExperimentRun, progress: ExperimentProgress | None, now: int) -> RunShape:
    order = run.order
    left_s = None
    if progress is not None and progress.done and progress.of and run.begun_at is not None:
        took_s = (now - run.begun_at) / NS_PER_S
        left_s = round(took_s / progress.done * (progress.of - progress.done), 1)
    return RunShape(
        id=run.id, wanted=order.wanted, title=run.title, own=order.is_own,
        policies=list(order.policies), loads=list(order.loads), requests=order.requests,
        seed=order.seed, full=order.full, state=run.state, problem=run.problem,
        command=command_of(order), asked_by=run.asked_by, asked_at=run.asked_at,
        begun_at=run.begun_at, ended_at=run.ended_at, runs=run.runs,
        done=None if progress is None else progress.done, left_s=left_s,
    )


def _plan_shape(plan: ExperimentPlan, pace: float) -> PlanShape:
    return PlanShape(
        name=plan.name, title=plan.title, question=plan.question, policies=list(plan.policies),
        loads=list(plan.loads), points=plan.points, runs=plan.runs, requests=plan.requests,
        about_s=round(plan.about_s * pace, 1), content=plan.content,
    )

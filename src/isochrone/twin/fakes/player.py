"""Plays experiments in memory: the port of `ports/experiments.py` without a process."""

import asyncio
import tomllib
from collections.abc import Sequence

from isochrone.core.errors import InvalidInput
from isochrone.core.lifecycle.experiment import (
    ExperimentPlan,
    ExperimentProgress,
    ExperimentResults,
)
from isochrone.core.lifecycle.experiment_run import ExperimentOrder, command_of
from isochrone.ports.experiments import Ending, Kept

POLICIES = ("ours", "nearest", "bound")


class FakePlayer:
    """Knows the packaged name `eight-sites`. A run plays until `finish` or `fail` is called; with
    `at_once` it is done as soon as it begins."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.at_once = at_once
        self.playing: dict[str, asyncio.Future[Ending]] = {}
        self.contents: dict[str, str] = {}
        self.orders: dict[str, ExperimentOrder] = {}
        self._done: dict[str, ExperimentResults] = {}

    async def packaged(self) -> Sequence[ExperimentPlan]:
        return (await self.plan(ExperimentOrder(wanted="eight-sites"), ""),)

    async def plan(self, order: ExperimentOrder, content: str) -> ExperimentPlan:
        if order.is_own:
            try:
                tomllib.loads(content)
            except tomllib.TOMLDecodeError as error:
                raise InvalidInput([f"scenario.toml: not a TOML file: {error}"]) from error
            if "/" in content:
                raise InvalidInput(["it names a file that is no packaged file"])
        elif order.wanted != "eight-sites":
            raise InvalidInput([f"there is no file {order.wanted}, and nothing packaged"])
        for name in order.policies:
            if name not in POLICIES:
                raise InvalidInput([f"there is no policy {name}; known: {', '.join(POLICIES)}"])
        policies, loads = order.policies or POLICIES, order.loads or (0.6,)
        runs = len(policies) * len(loads)
        return ExperimentPlan(
            name=order.wanted, title=order.wanted, question="", policies=policies, loads=loads,
            points=len(loads), runs=runs, requests=runs * (order.requests or 100), about_s=2.0,
            content=content,
        )

    def keep(self, run_id: str, content: str) -> None:
        self.contents[run_id] = content

    async def play(self, run_id: str, order: ExperimentOrder) -> Ending:
        self.orders[run_id] = order
        if not self.at_once:
            self.playing[run_id] = asyncio.get_running_loop().create_future()
            try:
                ending = await self.playing[run_id]
            finally:
                del self.playing[run_id]
            if ending.problem is not None:
                return ending
        self._done[run_id] = ExperimentResults(
            title=order.wanted, question="", command=command_of(order), commit="abc",
            findings=(), columns=("policy", "p99"), rows=(("ours", "1"),),
        )
        return Ending()

    def finish(self, run_id: str, problem: str | None = None) -> None:
        """What plays comes to its end by itself."""
        self.playing[run_id].set_result(Ending(problem=problem))

    def progress(self, run_id: str) -> ExperimentProgress | None:
        if run_id not in self.playing and run_id not in self._done:
            return None
        return ExperimentProgress(done=1 if run_id in self._done else 0, of=1, what="runs")

    def results(self, run_id: str) -> ExperimentResults | None:
        return self._done.get(run_id)

    def kept(self, run_id: str, what: Kept) -> str | None:
        if what == "scenario":
            return self.contents.get(run_id) or None
        return f"<!doctype html>{run_id}" if run_id in self._done else None

    def forget(self, run_id: str) -> None:
        self.contents.pop(run_id, None)
        self._done.pop(run_id, None)

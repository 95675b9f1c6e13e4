"""Has experiments played that operators asked for: one at a time, whichever copy of control.

The book says what waits, what somebody asked to stop and what came of it; the copy that has the
lease plays. Runs that the book takes for running and that no copy plays were lost: with the one
that played them, which was stopped or killed.
"""

import asyncio
import contextlib
from functools import partial

import structlog

from isochrone.control.offload import Offload
from isochrone.core.errors import Conflict, NotFound, Unavailable
from isochrone.core.lifecycle.experiment_run import ExperimentRun, RunEvent
from isochrone.core.world.tenant import EVERY_TENANT
from isochrone.ports.clock import Clock
from isochrone.ports.experiments import Ending, Experiments, Player
from isochrone.ports.leases import Lease, Leases
from isochrone.ports.tenants import Page

LEASE = "experiments"
LEASE_NS = 15_000_000_000
IDLE_S, BUSY_S = 5.0, 1.0
MOST_KEPT = 50
MOST_OPEN = 5

log = structlog.get_logger()


class Experimenting:
    """The loop of one copy of control; `holder` names it in the lease. The latest `most_kept` runs
    are kept."""

    def __init__(
        self, store: Experiments, leases: Leases, player: Player, *, holder: str, clock: Clock,
        offload: Offload, most_kept: int = MOST_KEPT,
    ) -> None:
        self._store = store
        self._leases = leases
        self._player = player
        self._holder = holder
        self._clock = clock
        self._offload = offload
        self._most_kept = most_kept
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Look at the book now: something was asked for."""
        self._woken.set()

    async def run(self) -> None:
        """Play until cancelled; a book or a folder that is away is waited out."""
        while True:
            try:
                await self.turn()
            except Unavailable as error:
                log.warning("experiments_wait", reason=error.message)
            await self._wait(IDLE_S)

    async def turn(self) -> int:
        """Play all that waits, if no other copy does; return how many were played."""
        played = 0
        while await self._offload(self._store.open):
            lease = await self._offload(partial(
                self._leases.take, LEASE, self._holder, now=self._now(), ttl_ns=LEASE_NS
            ))
            if lease is None:
                return played
            try:
                played += await self._take_up(lease)
            finally:
                await self._let_go(lease)
        return played

    async def _take_up(self, lease: Lease) -> int:
        """Note what was lost, and play the run that waits longest."""
        waiting = []
        for run in await self._offload(self._store.open):
            if run.state == "waiting":
                waiting.append(run)
            else:
                await self._note(run, "lost")
        if not waiting:
            return 0
        run = waiting[0]
        try:
            await self._offload(
                partial(self._store.step, EVERY_TENANT, run.id, "begun", now=self._now())
            )
        except (Conflict, NotFound):  # somebody was faster to stop it
            return 0
        await self._play(run, lease)
        await self._offload(self._tidy)
        return 1

    async def _play(self, run: ExperimentRun, lease: Lease) -> None:
        log.info("experiment_begins", run=run.id, wanted=run.order.wanted)
        try:
            async with asyncio.TaskGroup() as tasks:
                playing = tasks.create_task(self._played(run), name=f"experiment {run.id}")
                watching = tasks.create_task(self._watch(run, lease, playing), name="watching")
                await asyncio.wait([playing])
                watching.cancel()
        except asyncio.CancelledError:
            # Control stops, and nothing of the run is there any more. Where the book does not take
            # that now, the next start finds out.
            with contextlib.suppress(Unavailable):
                await self._note(run, "lost")
            raise
        if playing.cancelled():
            await self._note_surely(run, "killed", None)
            return
        ending = playing.result()
        event: RunEvent = "finished" if ending.problem is None else "failed"
        await self._note_surely(run, event, ending.problem)

    async def _played(self, run: ExperimentRun) -> Ending:
        try:
            return await self._player.play(run.id, run.order)
        except Unavailable as error:
            return Ending(problem=error.message)

    async def _watch(
        self, run: ExperimentRun, lease: Lease, playing: "asyncio.Task[Ending]"
    ) -> None:
        """Ends `playing` when somebody asks to stop it, or another copy took over."""
        while True:
            await self._wait(BUSY_S)
            try:
                present = await self._offload(partial(self._store.run, run.id))
                renewed = await self._offload(
                    partial(self._leases.renew, lease, now=self._now(), ttl_ns=LEASE_NS)
                )
            except Unavailable as error:
                log.warning("experiment_goes_on_unseen", run=run.id, reason=error.message)
                continue
            except NotFound:
                renewed = None
            if renewed is None or present.state != "running":
                playing.cancel()
                return

    async def _note(
        self, run: ExperimentRun, event: RunEvent, *, problem: str | None = None
    ) -> None:
        """An ending that means nothing any more is left out: another copy noted one."""
        try:
            after = await self._offload(partial(
                self._store.step, EVERY_TENANT, run.id, event, now=self._now(), problem=problem
            ))
        except (Conflict, NotFound) as error:
            log.warning("experiment_ended_otherwise", run=run.id, event_=event, reason=str(error))
            return
        log.info("experiment_is_over", run=run.id, state=after.state, problem=problem)

    async def _note_surely(
        self, run: ExperimentRun, event: RunEvent, problem: str | None
    ) -> None:
        """The same, for as long as the book is away: the report is there, so it is worth waiting.
        """
        while True:
            try:
                await self._note(run, event, problem=problem)
                return
            except Unavailable as error:
                log.warning("experiment_waits_for_the_book", run=run.id, reason=error.message)
                await asyncio.sleep(BUSY_S)

    async def _let_go(self, lease: Lease) -> None:
        """Where the book is away the lease ends by itself."""
        with contextlib.suppress(Unavailable):
            await self._offload(partial(self._leases.release, lease))

    def _tidy(self) -> None:
        """The oldest runs go when there are too many."""
        kept = self._store.runs(Page(most=10_000))
        for run in kept[self._most_kept:]:
            if not run.is_open:
                with contextlib.suppress(NotFound):  # somebody removed it just now
                    self._store.remove(EVERY_TENANT, run.id)
                self._player.forget(run.id)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return
        self._woken.clear()

    def _now(self) -> int:
        return self._clock.wall_ns()

"""An asyncio event loop on virtual time: jumps to the next timer instead of waiting for it.

The clock starts at 0 and ticks in whole microseconds, because a float clock started at a real epoch
can spin for ever (adding a small time-out does not change the float). Timers with equal deadlines
fire in the order in which they were made, so that the bytes of one connection never swap and the
same seed gives the same run. A loop with nothing ready and nothing scheduled raises `Deadlock`,
which finds hangs for free. Threads, sockets and executors are refused: only ports may do I/O.
Ctrl-C comes between two steps: within one it could lose a wake-up that was taken from the queue,
and whoever waits for that would never end.
"""

import asyncio
import contextvars
import heapq
import itertools
import math
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

TICKS_PER_S = 1_000_000


class Deadlock(RuntimeError):
    """Every task waits for something that can never happen."""


class _Timer(asyncio.TimerHandle):
    """A timer handle ordered by deadline, then by the order of creation."""

    __slots__ = ("order",)

    order: int

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, _Timer):
            return NotImplemented
        return (self.when(), self.order) < (other.when(), other.order)


class _Jump:
    """Stands where BaseEventLoop expects a selector: `select` moves the clock."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop

    def select(self, timeout_s: float | None) -> list[Any]:
        if self._loop.interrupted:
            self._loop.interrupted = False
            raise KeyboardInterrupt
        if timeout_s is None:
            raise Deadlock("nothing is ready and no timer is set: every task waits for ever")
        if timeout_s > 0:
            self._loop.jump()
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """Run with `run(main)`; `loop.time()` is virtual seconds since 0."""

    # Read and filled by BaseEventLoop, whose stubs do not show them.
    _scheduled: list[_Timer]
    _clock_resolution: float

    def __init__(self) -> None:
        super().__init__()
        self.interrupted = False  # somebody pressed Ctrl-C, and has not been heard yet
        self._ticks = 0
        self._order = itertools.count()
        # Half a tick: a timer one tick ahead must not count as due.
        self._clock_resolution = 0.5 / TICKS_PER_S
        self._selector = _Jump(self)

    @property
    def ticks(self) -> int:
        """Virtual microseconds since the start."""
        return self._ticks

    def time(self) -> float:
        return self._ticks / TICKS_PER_S

    def jump(self) -> None:
        """Move the clock to the earliest timer. Called by the loop itself."""
        self._ticks = max(self._ticks, round(self._scheduled[0].when() * TICKS_PER_S))

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        due = math.ceil(when * TICKS_PER_S - 1e-3)
        if when > self.time():
            # However near, the future is not now: a caller that waits for `time() >= when` and
            # is woken without the clock having moved would try again for ever.
            due = max(due, self._ticks + 1)
        timer = _Timer(due / TICKS_PER_S, callback, args, self, context)
        timer.order = next(self._order)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True  # type: ignore[attr-defined]  # so that cancel() is counted
        return timer

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> Any:
        raise RuntimeError("no threads in virtual time: pass a port that works without them")

    def _process_events(self, event_list: list[Any]) -> None:
        """Nothing comes from outside."""

    def _write_to_self(self) -> None:
        """Wake-ups come from this thread only (finalisers of generators)."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end in virtual time, then close every task and generator left over."""
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    with _interrupted_between_steps(loop):
        try:
            return loop.run_until_complete(main)
        finally:
            left = sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            asyncio.set_event_loop(None)
            loop.close()


@contextmanager
def _interrupted_between_steps(loop: VirtualLoop) -> Iterator[None]:
    """Within the block SIGINT is heard by the loop, unless somebody takes it already. One that
    comes while an earlier one has not been heard is taken at once: that step may never end."""
    def interrupt(number: int, frame: object) -> None:
        loop.interrupted = not loop.interrupted
        if not loop.interrupted:
            raise KeyboardInterrupt

    is_free = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_free or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if loop.interrupted:  # after the last step
        raise KeyboardInterrupt

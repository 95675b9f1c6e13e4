"""The virtual loop: jumps, order of equal deadlines, deadlock detection, no threads."""

import asyncio
import os
import signal

import pytest

from isochrone.twin.clock import BASE_NS, VirtualClock
from isochrone.twin.loop import Deadlock, VirtualLoop, run


def test_a_year_passes_at_once_and_exactly() -> None:
    async def main() -> float:
        await asyncio.sleep(365 * 86_400)
        await asyncio.sleep(0.000_001)
        return asyncio.get_running_loop().time()

    assert run(main()) == 365 * 86_400 + 0.000_001


def test_equal_deadlines_fire_in_the_order_of_their_making() -> None:
    fired: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for i in range(50):
            loop.call_later(0.1, fired.append, i)
        await asyncio.sleep(0.2)

    run(main())
    assert fired == list(range(50))


def test_a_timer_one_tick_ahead_is_not_early() -> None:
    async def main() -> list[tuple[int, str]]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        seen: list[tuple[int, str]] = []
        loop.call_later(0.000_002, lambda: seen.append((loop.ticks, "two")))
        loop.call_later(0.000_001, lambda: seen.append((loop.ticks, "one")))
        await asyncio.sleep(1)
        return seen

    assert run(main()) == [(1, "one"), (2, "two")]


def test_a_hang_is_found_at_once() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run(main())


def test_timeouts_and_cancellation_work() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await asyncio.sleep(10)
        return asyncio.get_running_loop().time()

    assert run(main()) == 3


def test_ctrl_c_comes_between_two_steps() -> None:
    """Within a step it would end what is just being done, or lose what was to be done next."""
    done: list[str] = []

    async def pressing() -> None:
        await asyncio.sleep(1.0)
        os.kill(os.getpid(), signal.SIGINT)
        done.append("the step in which it came")
        try:
            await asyncio.sleep(1.0)
        finally:
            done.append("cancelled")

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(pressing())
            group.create_task(asyncio.sleep(5.0))

    with pytest.raises(KeyboardInterrupt):
        run(main())
    assert done == ["the step in which it came", "cancelled"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_after_the_last_step_is_not_lost() -> None:
    async def main() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(main())


def test_a_step_that_never_ends_is_ended_by_the_second() -> None:
    async def main() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it went on")

    with pytest.raises(KeyboardInterrupt):
        run(main())


def test_threads_are_refused() -> None:
    async def main() -> None:
        await asyncio.to_thread(lambda: None)

    with pytest.raises(RuntimeError, match="no threads"):
        run(main())


def test_the_clock_has_two_faces() -> None:
    async def main() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        clock = VirtualClock(loop, offset_ns=5)
        await asyncio.sleep(1.5)
        return clock.wall_ns(), clock.monotonic_ns()

    assert run(main()) == (BASE_NS + 1_500_000_005, 1_500_000_000)


def test_the_nearest_future_is_not_now() -> None:
    """Sums of floats miss a tick by the last bit; whoever waits for the rest must get there."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for start_us in range(1, 400):
            await asyncio.sleep(start_us / 1e6)
            ends_s = loop.time() + 0.1
            for _ in range(3):
                if loop.time() >= ends_s:
                    break
                await asyncio.wait([loop.create_future()], timeout=ends_s - loop.time())
            assert loop.time() >= ends_s

    run(main())

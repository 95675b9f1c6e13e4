"""Staying awake between the messages of quick exchanges, and only there."""

import asyncio

from isochrone.gateway.waking import MOST_IN_A_ROW, MOST_ROUNDS, SHORT_IN_A_ROW, Waking

AWAKE_US = 100.0
ROUND_US = 10


class Clock:
    """Moves by `round_us` with each look at it."""

    def __init__(self) -> None:
        self.now_ns = 1
        self.looks = 0
        self.round_us = 0

    def monotonic_ns(self) -> int:
        self.looks += 1
        self.now_ns += self.round_us * 1000
        return self.now_ns

    def wall_ns(self) -> int:
        raise AssertionError("not asked")


async def rounds_awake(clock: Clock, *, news_after: int | None, waking: Waking) -> int:
    """How often it looks for news until there are some, after so many rounds, or it sleeps."""
    waking.sent()
    clock.round_us, before = ROUND_US, clock.looks
    for number in range(2 * MOST_ROUNDS):
        if number == news_after:
            break
        await asyncio.sleep(0)
    looked = clock.looks - before
    clock.round_us = 0
    waking.came()
    return looked


def waits(waking: Waking, clock: Clock, *each_us: float) -> None:
    for wait_us in each_us:
        waking.sent()
        clock.now_ns += int(wait_us * 1000)
        waking.came()


def go(awake_us: float, *each_us: float, news_after: int | None = None) -> int:
    async def main() -> int:
        clock = Clock()
        waking = Waking(clock, awake_us)
        waits(waking, clock, *each_us)
        return await rounds_awake(clock, news_after=news_after, waking=waking)

    return asyncio.run(main())


def test_after_short_waits_it_stays_awake_for_as_long_as_one() -> None:
    short = [60.0] * SHORT_IN_A_ROW
    assert go(AWAKE_US, *short) == AWAKE_US / ROUND_US
    assert go(AWAKE_US, *short, news_after=3) == 3


def test_it_sleeps_where_waits_are_long_or_nobody_wants_it_awake() -> None:
    short = [60.0] * SHORT_IN_A_ROW
    assert go(AWAKE_US) == 0
    assert go(AWAKE_US, *short[1:]) == 0
    assert go(AWAKE_US, *short, 5_000.0) == 0
    assert go(AWAKE_US, 5_000.0, *short) > 0
    assert go(0.0, *short) == 0


def test_one_late_answer_among_many_does_not_send_it_to_sleep_but_several_do() -> None:
    many = [60.0] * 100
    late = [5_000.0] * (MOST_IN_A_ROW // SHORT_IN_A_ROW)
    assert go(AWAKE_US, *many, late[0]) > 0
    assert go(AWAKE_US, *many, *late) == 0
    assert go(AWAKE_US, *many, *late, *many[: SHORT_IN_A_ROW - 1]) == 0


def test_a_clock_that_stands_still_does_not_keep_it_awake() -> None:
    async def main() -> int:
        clock = Clock()
        waking = Waking(clock, AWAKE_US)
        waits(waking, clock, *[60.0] * SHORT_IN_A_ROW)
        waking.sent()
        before = clock.looks
        for _ in range(2 * MOST_ROUNDS):
            await asyncio.sleep(0)
        return clock.looks - before

    assert asyncio.run(main()) == MOST_ROUNDS


def test_one_long_wait_after_it_stayed_awake_ends_it() -> None:
    async def main() -> None:
        clock = Clock()
        waking = Waking(clock, AWAKE_US)
        waits(waking, clock, *[60.0] * SHORT_IN_A_ROW)
        assert await rounds_awake(clock, news_after=None, waking=waking) > 0
        assert await rounds_awake(clock, news_after=None, waking=waking) == 0

    asyncio.run(main())

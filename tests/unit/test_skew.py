"""The own clock's offset: from late, wrong and missing stamps of other sites."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest
from structlog.testing import capture_logs

from isochrone.core.estimate.skew import clock_offset, sample_ms
from isochrone.core.ids import SiteName
from isochrone.gateway.skew import FORGET_NS, Skew
from isochrone.twin.clock import VirtualClock
from isochrone.twin.loop import VirtualLoop, run

SYDNEY = SiteName("sydney")
NS_PER_MS = 1_000_000


def test_half_the_round_trip_is_the_way() -> None:
    assert sample_ms(1_000_000_000, 1_120_000_000, 240.0) == 0.0
    assert sample_ms(1_000_000_000, 3_120_000_000, 240.0) == 2000.0
    assert sample_ms(1_000_000_000, 900_000_000, 0.0) == -100.0


@pytest.mark.parametrize(
    ("samples", "offset_ms", "senders"),
    [
        ({"a": [5.0, 6.0, 7.0]}, 6.0, 1),
        ({"a": [5.0, 9000.0, 7.0, 6.0, 6.0]}, 6.0, 1),  # one message was held up
        ({"a": [1.0] * 3, "b": [2.0] * 3, "c": [-60_000.0] * 9}, 1.0, 3),  # c's clock is wrong
        ({"a": [2000.0] * 3, "b": [2010.0] * 3, "c": [-60_000.0] * 9}, 2000.0, 3),  # ours too
        ({"a": [5.0] * 3, "b": [9000.0, 9000.0]}, 5.0, 1),  # too few to have a voice
    ],
)
def test_medians_are_not_moved_by_a_minority(
    samples: dict[str, list[float]], offset_ms: float, senders: int
) -> None:
    found = clock_offset(samples)
    assert found is not None
    assert (found.offset_ms, found.senders) == (offset_ms, senders)


def test_too_few_samples_are_no_offset() -> None:
    assert clock_offset({}) is None
    assert clock_offset({"a": [1.0, 2.0], "b": []}) is None


class Stage:
    """A gateway's clock, and peers whose stamps arrive after a noisy way."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.true = VirtualClock(loop)
        self.own = VirtualClock(loop)
        self.skew = Skew(SYDNEY, self.own)
        self.offsets_ms: dict[str, float] = {"frankfurt": 0.0, "ashburn": 0.0, "tokyo": 0.0}
        self._rng = Random(3)

    async def listen(self, seconds: int, messages_per_s: int = 4) -> None:
        """Hear every peer for a while; each message took 30 to 80 ms of a 60 ms round trip."""
        for _ in range(seconds):
            for _ in range(messages_per_s):
                for site, offset_ms in self.offsets_ms.items():
                    took_ms = 30 + self._rng.uniform(0, 50)
                    sent_at = self.true.wall_ns() + round((offset_ms - took_ms) * NS_PER_MS)
                    self.skew.heard(SiteName(site), sent_at, 60.0)
                await asyncio.sleep(1 / messages_per_s)
            self.skew.sweep()

    @property
    def offset_ms(self) -> float:
        found = self.skew.offset_ms()
        assert found is not None
        return found


def on_stage(scene: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        await scene(Stage())

    run(main())


def test_a_wrong_clock_is_told_once_and_so_is_its_repair() -> None:
    async def scene(stage: Stage) -> None:
        with capture_logs() as logs:
            await stage.listen(30)
            assert 0 <= stage.offset_ms <= 50
            assert logs == []
            stage.own.offset_ns = 2_000 * NS_PER_MS
            await stage.listen(60)
            assert 2000 <= stage.offset_ms <= 2050
            assert stage.skew.alarmed
            stage.own.offset_ns = 700 * NS_PER_MS  # better, but not good
            await stage.listen(60)
            assert stage.skew.alarmed
            stage.own.offset_ns = -100 * NS_PER_MS
            await stage.listen(60)
        assert [line["event"] for line in logs] == ["clock_is_off", "clock_is_right_again"]
        assert 1900 <= logs[0]["offset_ms"] <= 2100
        assert logs[0]["sites_heard"] == 3

    on_stage(scene)


def test_a_peer_with_a_wrong_clock_is_its_own_affair() -> None:
    async def scene(stage: Stage) -> None:
        stage.offsets_ms["tokyo"] = -25_000.0
        with capture_logs() as logs:
            await stage.listen(60)
        assert abs(stage.offset_ms) < 60
        assert logs == []

    on_stage(scene)


def test_who_falls_silent_has_no_voice() -> None:
    async def scene(stage: Stage) -> None:
        stage.offsets_ms = {"tokyo": 5_000.0}
        await stage.listen(30)
        assert stage.offset_ms < -4_900
        stage.offsets_ms = {"frankfurt": 0.0}
        await stage.listen(FORGET_NS // 1_000_000_000 + 30)
        assert abs(stage.offset_ms) < 60
        stage.offsets_ms = {}
        await stage.listen(FORGET_NS // 1_000_000_000 + 30)
        assert stage.skew.offset_ms() is None

    on_stage(scene)


def test_the_own_site_and_messages_without_a_stamp_say_nothing() -> None:
    async def scene(stage: Stage) -> None:
        for _ in range(30):
            stage.skew.heard(SYDNEY, stage.own.wall_ns() - 5_000 * NS_PER_MS)
            stage.skew.heard(SiteName("tokyo"), 0)
            await asyncio.sleep(1)
            stage.skew.sweep()
        assert stage.skew.offset_ms() is None

    on_stage(scene)


def test_many_messages_are_one_sample_a_second() -> None:
    async def scene(stage: Stage) -> None:
        stage.offsets_ms = {"tokyo": 0.0}
        await stage.listen(2, messages_per_s=500)
        stage.skew.sweep()
        assert stage.skew.offset_ms() is None  # a thousand messages in two seconds are two samples
        await stage.listen(10, messages_per_s=500)
        assert stage.skew.offset_ms() is not None

    on_stage(scene)

"""What control keeps of limits that gateways speak of: the latest, and none for ever."""

from isochrone.control.limit_state import STALE_NS, LimitState
from isochrone.core.ids import LimitId, SiteName
from isochrone.core.world.limit_use import LimitReport, LimitUse
from isochrone.wire import fleet, subjects

SITE = SiteName("oslo")


class Hand:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_ns = 0

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return self.now_ns


def report(state: LimitState, *names: str) -> None:
    uses = tuple(LimitUse(limit=LimitId(name), mark=0, left=1, sites=()) for name in names)
    payload = fleet.encode(LimitReport(site=SITE, limits=uses))
    state.on_report(subjects.limits_subject(SITE), payload)


def test_a_limit_that_nobody_speaks_of_any_more_is_forgotten() -> None:
    clock = Hand()
    state = LimitState(clock)
    for number in range(100):
        report(state, "kept", f"removed-{number}")
        clock.now_ns += STALE_NS // 10
    assert state.of(LimitId("kept")) is not None
    assert state.of(LimitId("removed-99")) is not None, "it was said a moment ago"
    assert state.of(LimitId("removed-0")) is None
    assert len(state) <= 12

"""Deadlines of a request: which has passed, and what its client is told."""

from pathlib import Path

import pytest

from isochrone.core.world.tenant import Class
from isochrone.gateway.settings import GatewaySettings
from isochrone.gateway.timeouts import Reason, deadlines_of, expired, refusal
from tests.builders import SECOND_NS

DEADLINES = deadlines_of(
    GatewaySettings(
        identity=Path("i"), port=0, journal=Path("j"), batch_wait_s=100.0,
        first_byte_timeout_s=10.0, between_events_timeout_s=5.0, total_timeout_s=60.0,
    )
)
STARTED_NS = 7 * SECOND_NS


def at(seconds: float | None) -> int | None:
    return None if seconds is None else STARTED_NS + int(seconds * SECOND_NS)


def told(
    class_: Class, now_s: float, *, asked_s: float | None = None, first_s: float | None = None,
    last_s: float | None = None,
) -> tuple[str, str] | None:
    now_ns = STARTED_NS + int(now_s * SECOND_NS)
    found = expired(STARTED_NS, at(asked_s), at(first_s), at(last_s), now_ns, DEADLINES[class_])
    return None if found is None else (found.reason, found.message.split()[-2])


@pytest.mark.parametrize(
    ("first_s", "last_s", "now_s", "reason"),
    [
        (None, None, 10.0, None),
        (None, None, 10.1, "first_byte_timeout"),
        (9.0, None, 14.0, None),
        (9.0, None, 14.1, "between_events_timeout"),
        (9.0, 13.0, 18.0, None),
        (9.0, 13.0, 18.1, "between_events_timeout"),
        (9.0, 59.0, 60.0, None),
        (9.0, 59.0, 60.1, "total_timeout"),
        (9.0, 50.0, 61.0, "between_events_timeout"),
    ],
)
def test_the_deadline_that_passed(
    first_s: float | None, last_s: float | None, now_s: float, reason: Reason | None
) -> None:
    found = told("on_demand", now_s, first_s=first_s, last_s=last_s)
    assert (found and found[0]) == reason


@pytest.mark.parametrize(
    ("asked_s", "first_s", "now_s", "expected"),
    [
        (None, None, 110.0, None),
        (None, None, 110.1, ("first_byte_timeout", "110")),
        (100.0, None, 110.0, None),
        (20.0, None, 30.1, ("first_byte_timeout", "10")),
        (20.0, 25.0, 160.1, ("total_timeout", "160")),
    ],
)
def test_batch_has_time_to_wait_and_no_more_than_others_when_its_engine_was_asked(
    asked_s: float | None, first_s: float | None, now_s: float,
    expected: tuple[str, str] | None,
) -> None:
    last_s = None if first_s is None else now_s
    assert told("batch", now_s, asked_s=asked_s, first_s=first_s, last_s=last_s) == expected


@pytest.mark.parametrize(("batch_wait_s", "turn_s"), [(0.0, 10.0), (4.0, 10.0), (40.0, 40.0)])
def test_batch_waits_for_its_turn_no_shorter_than_others(
    batch_wait_s: float, turn_s: float
) -> None:
    settings = GatewaySettings(
        identity=Path("i"), port=0, journal=Path("j"), batch_wait_s=batch_wait_s,
        first_byte_timeout_s=10.0,
    )
    assert deadlines_of(settings)["batch"].turn_ns == turn_s * SECOND_NS


@pytest.mark.parametrize(
    "reason",
    ["connect_timeout", "first_byte_timeout", "between_events_timeout", "total_timeout"],
)
def test_a_client_is_told_which_and_how_long(reason: Reason) -> None:
    said = refusal(reason, 2.5)
    assert (said.status, said.reason) == (504, reason)
    assert "2.5 s" in said.message

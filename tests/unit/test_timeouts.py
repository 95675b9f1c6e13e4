"""Deadlines of a request: which has passed, and what its client is told."""

from pathlib import Path

import pytest

from isochrone.gateway.settings import GatewaySettings
from isochrone.gateway.timeouts import Reason, deadlines_of, expired, refusal
from tests.builders import SECOND_NS

DEADLINES = deadlines_of(
    GatewaySettings(
        identity=Path("i"), port=0, journal=Path("j"), connect_timeout_s=2.0,
        first_byte_timeout_s=10.0, between_events_timeout_s=5.0, total_timeout_s=60.0,
    )
)


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
    started_ns = 7 * SECOND_NS

    def at(seconds: float | None) -> int | None:
        return None if seconds is None else started_ns + int(seconds * SECOND_NS)

    now_ns = started_ns + int(now_s * SECOND_NS)
    assert expired(started_ns, at(first_s), at(last_s), now_ns, DEADLINES) == reason


@pytest.mark.parametrize(
    ("reason", "limit"),
    [
        ("connect_timeout", "2 s"), ("first_byte_timeout", "10 s"),
        ("between_events_timeout", "5 s"), ("total_timeout", "60 s"),
    ],
)
def test_a_client_is_told_which_and_how_long(reason: Reason, limit: str) -> None:
    told = refusal(reason, DEADLINES)
    assert (told.status, told.reason) == (504, reason)
    assert limit in told.message

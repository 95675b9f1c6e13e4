"""Late reports of detached requests are judged from 33 bytes as the core judges two reports."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from isochrone.core.billing.period import day_name
from isochrone.core.ids import RequestId, uuid7
from isochrone.core.metering.detached import (
    DAY_NS,
    RECORD_BYTES,
    Chunk,
    day_of_request,
    lateness,
)
from isochrone.core.metering.event import Reporter, Tokens, UsageEvent
from isochrone.core.metering.merge import RANK, better
from tests.unit.build_usage import a_usage_event

REPORTERS: tuple[Reporter, ...] = ("recovered", "evidence", "ingress")


def an_event(number: int, reporter: Reporter, output: int, end: int) -> UsageEvent:
    event = a_usage_event(uuid7(number * 10**9, number), reporter=reporter)
    return replace(event, finished_at=end, tokens=Tokens(output=output, source="engine"))


reports = st.builds(
    an_event, st.integers(0, 40), st.sampled_from(REPORTERS), st.integers(0, 2**40) | st.just(3),
    st.integers(0, 2**60) | st.just(7),
)


def a_chunk(events: list[UsageEvent]) -> Chunk:
    marks = [
        bytes.fromhex(event.request_id.replace("-", "")) + bytes((RANK[event.reporter],))
        + event.tokens.total.to_bytes(8, "big") + event.finished_at.to_bytes(8, "big")
        for event in events
    ]
    assert all(len(mark) == RECORD_BYTES for mark in marks)
    return Chunk(
        first_id=events[0].request_id, last_id=events[-1].request_id, marks=b"".join(marks)
    )


@given(st.lists(reports, min_size=1, max_size=30, unique_by=lambda each: each.request_id), reports)
def test_a_late_report_is_judged_as_beside_the_row(
    detached: list[UsageEvent], late: UsageEvent
) -> None:
    detached.sort(key=lambda each: each.request_id)
    stands = {each.request_id: each for each in detached}.get(late.request_id)
    said = lateness(late, a_chunk(detached))
    assert {lateness(each, a_chunk(detached)) for each in detached} == {"known"}
    if stands is None:
        assert said == "fresh"
    elif said == "better":
        assert better(stands, late) == late != stands
    else:
        order = (RANK[late.reporter], late.tokens.total, late.finished_at)
        assert said == "known"
        assert better(stands, late) == stands or order == (
            RANK[stands.reporter], stands.tokens.total, stands.finished_at
        )


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**74 - 1))
def test_the_day_of_a_request_is_that_of_its_id(made_ms: int, bits: int) -> None:
    at = made_ms * 1_000_000
    assert day_of_request(RequestId(uuid7(at, bits))) == at // DAY_NS * DAY_NS


def test_days_have_the_names_of_the_calendar() -> None:
    days = {0: "1970-01-01", 59: "1970-03-01", 11_016: "2000-02-29", 20_777: "2026-11-20"}
    for day, name in days.items():
        assert day_name(day * DAY_NS) == day_name((day + 1) * DAY_NS - 1) == name

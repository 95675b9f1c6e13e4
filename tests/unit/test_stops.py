"""How often a request gave its slot back: what a refusal says of it, and what people read."""

from dataclasses import replace

import msgspec
import pytest

from isochrone.cli.explain import summary
from isochrone.console.pages.explain import Explanation as ConsoleExplanation
from isochrone.control.api.requests import _explanation
from isochrone.core.ids import ReplicaId, SiteName
from isochrone.core.routing.choice import Stopped
from isochrone.core.routing.words import words_of_stop
from isochrone.gateway.stops import MOST_KEPT, parse_stops, stopped_line, with_last, with_one_more
from isochrone.ports.book import Booked
from isochrone.wire.usage import UsageRecord
from tests.unit.build_usage import a_decision, a_ground, a_record, a_usage_event

PARIS = SiteName("paris")
ID = "019aa1b2-0000-7000-8000-000000000001"
STOP = Stopped(
    site=PARIS, replica=ReplicaId("paris/tiny-fable/0"), for_class="reserved", since_ms=812.0,
    output=None,
)
BACK = replace(STOP, after_ms=300.0, at=PARIS)
AWAY = replace(STOP, after_ms=10_000.0, refused="expired")


def value_of(line: str) -> bytes:
    name, _, value = line.partition(": ")
    assert name == "x-isochrone-stopped"
    return value.removesuffix("\r\n").encode()


@pytest.mark.parametrize("stops", [
    (AWAY,), (BACK, AWAY), (BACK, replace(STOP, after_ms=3.0)), (replace(STOP, replica=None),),
])
def test_what_a_refusal_says_is_read_back(stops: tuple[Stopped, ...]) -> None:
    assert parse_stops(value_of(stopped_line(stops)), PARIS) == stops


@pytest.mark.parametrize("value", [
    b"", b"reserved", b"nobody 1 2 = -", b"reserved x 2 = -", b"reserved 1 -2 = -",
    b"reserved 1 2 = - -", b"reserved 1111111111111 2 = -", "reserved ² 2 = -".encode("latin-1"),
])
def test_what_cannot_be_read_is_left_out(value: bytes) -> None:
    assert parse_stops(value, PARIS) == ()
    assert parse_stops(value + b",reserved 812 300 = paris/tiny-fable/0", PARIS) == (BACK,)


def test_of_many_the_last_are_kept() -> None:
    stops: tuple[Stopped, ...] = ()
    for number in range(MOST_KEPT + 5):
        stops = with_one_more(stops, replace(STOP, since_ms=float(number)))
        stops = with_last(stops, 1.0, PARIS, None)
    assert [each.since_ms for each in stops] == [float(n) for n in range(5, MOST_KEPT + 5)]
    assert len(parse_stops(value_of(stopped_line((*stops, *stops))), PARIS)) == MOST_KEPT


def test_a_record_has_them_and_people_read_them() -> None:
    decision = replace(a_decision(a_ground()), stops=(BACK,))
    event = replace(a_usage_event(ID), decision=decision)
    record = msgspec.msgpack.decode(msgspec.msgpack.encode(a_record(event)), type=UsageRecord)
    assert record.event() == event
    booked = Booked(event=event, booked_at=1, stops=(BACK, AWAY))
    found = _explanation(booked).model_dump(by_alias=True)
    assert [line for line in summary(found) if line.startswith("stopped")] == [
        f"stopped   {words_of_stop(each)}" for each in (BACK, AWAY)
    ]
    assert not [line for line in summary(found | {"stops": []}) if line.startswith("stopped")]


@pytest.mark.parametrize(("stop", "end"), [
    (BACK, "before the first byte of its answer, for a slot that reserved had to have; 300.0 ms "
     "later it began anew there"),
    (replace(BACK, output=5), "after 5 tokens of output, for a slot that reserved had to have; "
     "300.0 ms later it went on there"),
    (replace(BACK, output=5, at=SiteName("oslo")), "300.0 ms later it went on at oslo"),
    (AWAY, "10000.0 ms later its queue turned it away (expired), and its gateway had no other "
     "place for it"),
    (replace(AWAY, at=SiteName("oslo")), "its queue turned it away (expired), and it was sent to "
     "oslo instead"),
    (replace(STOP, after_ms=3.0), "3.0 ms later it had a slot again there, but no engine that was "
     "ready"),
    (STOP, "it ended while it waited for a slot again"),
])
def test_each_way_that_it_may_go_has_its_words(stop: Stopped, end: str) -> None:
    words = words_of_stop(stop)
    assert words.startswith("at paris, replica paris/tiny-fable/0, 812.0 ms after it came there, ")
    assert words.endswith(end)


def test_the_console_reads_what_the_api_says() -> None:
    event = replace(a_usage_event(ID), decision=a_decision(a_ground()))
    told = _explanation(Booked(event=event, booked_at=1, ground=a_ground(), stops=(BACK, STOP)))
    read = msgspec.json.decode(told.model_dump_json(by_alias=True), type=ConsoleExplanation)
    assert read.stops == (BACK, STOP)

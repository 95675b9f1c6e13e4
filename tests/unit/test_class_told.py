"""The class that a request asked for: how it is kept, read from older records, and told."""

from dataclasses import replace
from typing import Any, get_args

import msgspec
import pytest

from isochrone.adapters.postgres.book_rows import COLUMNS, event_of, values_of
from isochrone.cli.explain import class_lines, summary
from isochrone.control.api.requests import _explanation
from isochrone.core.metering.event import UsageEvent
from isochrone.core.routing.choice import UnpaidBecause
from isochrone.core.routing.words import UNPAID
from isochrone.ports.book import Booked
from isochrone.wire.usage import UsageRecord
from tests.unit.build_usage import a_decision, a_ground, a_record, a_usage_event

# What records of earlier releases lack.
LATER = ("wanted_class", "key_class", "unpaid_because", "since_ms", "foretold", "stops")
ID = "019aa1b2-0000-7000-8000-000000000001"


def an_event(**changes: Any) -> UsageEvent:
    return replace(a_usage_event(ID), decision=replace(a_decision(a_ground()), **changes))


def told(event: UsageEvent) -> list[str]:
    """What people read of it."""
    shape = _explanation(Booked(event=event, booked_at=1)).model_dump(by_alias=True)
    return class_lines(shape["classes"])


def test_a_request_that_got_what_it_asked_for_needs_no_words() -> None:
    assert told(an_event(wanted_class="on_demand")) == []


def test_a_class_that_the_key_lacks_and_one_that_nothing_paid_for_are_told_apart() -> None:
    assert told(an_event(wanted_class="reserved", key_class="on_demand")) == [
        "reserved was asked for, which the key does not have; it has on_demand"
    ]
    assert told(an_event(wanted_class="reserved", unpaid_because="spent")) == [
        "on_demand instead of reserved: too little was left of what was sold"
    ]
    both = an_event(wanted_class="batch", key_class="reserved", unpaid_because="nothing_sold")
    first, second = told(both)
    assert first.startswith("batch was asked for, which the key does not have; it has reserved")
    assert second.startswith("on_demand instead of reserved: nothing of the model was sold")


@pytest.mark.parametrize("because", get_args(UnpaidBecause))
def test_every_reason_is_read_back_and_has_words(because: UnpaidBecause) -> None:
    event = an_event(wanted_class="reserved", unpaid_because=because)
    record = msgspec.msgpack.decode(msgspec.msgpack.encode(a_record(event)), type=UsageRecord)
    assert record.event() == event
    row = [
        msgspec.json.decode(str(value)) if name == "decision" else value
        for name, value in zip(COLUMNS, values_of(event), strict=True)
    ]
    assert event_of(row) == event
    assert UNPAID[because] in told(event)[0]


def test_records_of_earlier_releases_are_read_and_say_nothing_of_it() -> None:
    event = an_event()
    packed = msgspec.msgpack.decode(msgspec.msgpack.encode(a_record(event)))
    packed[-1] = packed[-1][: -len(LATER)]
    record = msgspec.msgpack.decode(msgspec.msgpack.encode(packed), type=UsageRecord)
    assert record.event() == event
    row: list[object] = []
    for name, value in zip(COLUMNS, values_of(event), strict=True):
        if name == "decision":
            stored = msgspec.json.decode(str(value))
            row.append({key: each for key, each in stored.items() if key not in LATER})
        else:
            row.append(value)
    assert event_of(row) == event
    assert told(event) == []
    assert told(a_usage_event(ID)) == []
    assert class_lines(None) == []


def test_what_was_asked_is_not_what_was_served() -> None:
    event = an_event(wanted_class="reserved", unpaid_because="spent")
    shape = _explanation(Booked(event=event, booked_at=1)).model_dump(by_alias=True)
    assert (shape["class"], shape["classes"]["wanted"]) == ("on_demand", "reserved")
    assert any(line.endswith("streamed, class reserved") for line in summary(shape))
    older = _explanation(Booked(event=an_event(), booked_at=1)).model_dump(by_alias=True)
    assert any(line.endswith("streamed, class on_demand") for line in summary(older))


def test_a_reason_of_a_later_release_is_shown_as_it_is() -> None:
    classes = {"wanted": "reserved", "allowed": "reserved", "served": "batch", "because": "moon"}
    assert class_lines(classes) == ["batch instead of reserved: moon"]

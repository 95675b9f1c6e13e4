"""The request log: the fields of its lines are what operators query, so they are listed here."""

import json
from dataclasses import replace

import pytest

from isochrone.core.ids import ModelName, SiteName
from isochrone.core.routing.bond import Bond
from isochrone.core.routing.choice import Foretold
from isochrone.gateway.request_log import MOST_KEPT, RequestLog
from tests.unit.build_usage import a_decision, a_ground, a_record, a_usage_event, a_usage_record


def test_a_line_has_these_fields_in_this_order() -> None:
    written: list[bytes] = []
    log = RequestLog(written.append, worker=2)
    log.request(a_usage_record("a"))
    log.other("b", at=7, status=404, path="/v1/models/none", reason="not_found")
    log.request(a_usage_record("c", reporter="evidence"))
    assert written == []
    log.flush()
    log.flush()
    (text,) = written
    assert text.endswith(b"}\n")
    first, second, third = (json.loads(line) for line in text.splitlines())
    assert list(first.items()) == [
        ("at", 2_000_000_000), ("event", "request"), ("worker", 2), ("request", "a"),
        ("client_request", None), ("key", "key"), ("endpoint", "chat.completions"),
        ("stream", True), ("class", "on_demand"), ("model", "tiny-fable"), ("ingress", "sydney"),
        ("site", "sydney"), ("country", "AU"), ("replica", None), ("status", 200),
        ("outcome", "finished"), ("reason", None), ("attempts", 1), ("continued", 0),
        ("input_uncached", 5), ("input_cached", 0), ("output", 3), ("source", "engine"),
        ("chosen_ms", 0.1), ("sent_ms", 0.2), ("first_byte_ms", 10.0), ("predicted_ms", None),
        ("believed_cached", None), ("session", None), ("total_ms", 1000.0),
        ("queued_ms", 0.0),
    ]
    assert second == {
        "at": 7, "event": "answer", "worker": 2, "request": "b", "status": 404,
        "path": "/v1/models/none", "reason": "not_found",
    }
    assert (third["event"], third["request"]) == ("peer_request", "c")


def test_a_busy_gateway_writes_before_much_is_kept() -> None:
    written: list[bytes] = []
    log = RequestLog(written.append)
    for _ in range(MOST_KEPT):
        log.request(a_usage_record())
    assert sum(text.count(b"\n") for text in written) == MOST_KEPT


def test_a_line_says_what_was_predicted_and_how_often_a_stream_went_on() -> None:
    written: list[bytes] = []
    log = RequestLog(written.append)
    event = replace(a_usage_event(), decision=a_decision(a_ground()))
    log.request(a_record(event), continued=2)
    log.request(a_record(event))
    log.flush()
    continued, plain = (json.loads(line) for line in written[0].splitlines())
    assert continued["continued"] == 2
    assert continued == {**plain, "continued": 2}
    assert plain["predicted_ms"] == 12.0


def test_a_line_says_what_was_believed_cached_and_what_became_of_the_home() -> None:
    written: list[bytes] = []
    log = RequestLog(written.append)
    decision = a_decision(a_ground())
    kept = Bond(cached_tokens=512, prompt_tokens=700, verdict="kept", limit_ms=40.0)
    for bond in (kept, Bond(cached_tokens=0, prompt_tokens=700), None):
        log.request(a_record(replace(a_usage_event(), decision=replace(decision, bond=bond))))
    log.flush()
    lines = [json.loads(line) for line in written[0].splitlines()]
    assert [(each["believed_cached"], each["session"]) for each in lines] == [
        (512, "kept"), (0, None), (None, None),
    ]


def test_what_a_client_sends_cannot_end_a_line_or_add_a_field() -> None:
    written: list[bytes] = []
    log = RequestLog(written.append)
    nasty = 'x","outcome":"finished"}\n{"event":"request"\u2028\x00'
    event = replace(a_usage_event(), client_request_id=nasty, model=ModelName(nasty))
    log.request(a_record(event))
    log.other("b", at=7, status=404, path=nasty, reason="unknown_path")
    log.flush()
    first, second = written[0].splitlines()
    assert json.loads(first)["client_request"] == json.loads(first)["model"] == nasty
    assert json.loads(second)["path"] == ""
    assert written[0].count(b"\n") == 2


@pytest.mark.parametrize(
    ("path", "shown"),
    [("/", "/"), ("/v1/chat/completion", "/v1/chat/completion"), ("/a b", ""), ("/x" * 9, ""),
     ("/" + "x" * 40, ""), ("/v1/Tell%20me", "")],
)
def test_a_path_is_shown_if_it_looks_like_one(path: str, shown: str) -> None:
    written: list[bytes] = []
    log = RequestLog(written.append)
    log.other("b", at=7, status=404, path=path, reason="unknown_path")
    log.flush()
    assert json.loads(written[0])["path"] == shown


def test_of_a_stream_that_went_on_elsewhere_the_first_prediction_stands_beside_the_first_byte(
) -> None:
    first = Foretold(
        site=SiteName("paris"), since_ms=0.0, predicted_ttft_ms=9.0, actual_ttft_ms=10.0
    )
    decision = replace(a_decision(a_ground()), since_ms=700.0, foretold=(first,))
    written: list[bytes] = []
    log = RequestLog(written.append)
    log.request(a_record(replace(a_usage_event(), decision=decision)), 1)
    log.flush()
    line = json.loads(written[0])
    assert (line["first_byte_ms"], line["predicted_ms"]) == (10.0, 9.0)

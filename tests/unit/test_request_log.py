"""The request log: the fields of its lines are what operators query, so they are listed here."""

import json

from isochrone.gateway.request_log import MOST_KEPT, RequestLog
from tests.unit.build_usage import a_usage_record


def test_a_line_has_these_fields_in_this_order() -> None:
    written: list[bytes] = []
    log = RequestLog(written.append)
    log.request(a_usage_record("a"))
    log.other("b", at=7, status=404, path="/x" * 500, reason="not_found")
    log.request(a_usage_record("c", reporter="evidence"))
    assert written == []
    log.flush()
    log.flush()
    (text,) = written
    assert text.endswith(b"}\n")
    first, second, third = (json.loads(line) for line in text.splitlines())
    assert list(first.items()) == [
        ("at", 2_000_000_000), ("event", "request"), ("request", "a"), ("client_request", None),
        ("key", "key"), ("endpoint", "chat.completions"), ("stream", True),
        ("class", "on_demand"), ("model", "tiny-fable"), ("ingress", "sydney"),
        ("site", "sydney"), ("replica", None), ("status", 200), ("outcome", "finished"),
        ("reason", None), ("attempts", 1), ("input_uncached", 5), ("input_cached", 0),
        ("output", 3), ("source", "engine"), ("chosen_ms", 0.1), ("first_byte_ms", 10.0),
        ("total_ms", 1000.0),
    ]
    assert second == {
        "at": 7, "event": "answer", "request": "b", "status": 404, "path": "/x" * 100,
        "reason": "not_found",
    }
    assert (third["event"], third["request"]) == ("peer_request", "c")


def test_a_busy_gateway_writes_before_much_is_kept() -> None:
    written: list[bytes] = []
    log = RequestLog(written.append)
    for _ in range(MOST_KEPT):
        log.request(a_usage_record())
    assert sum(text.count(b"\n") for text in written) == MOST_KEPT

"""What is refused at which path, and errors in the form that each API's clients understand."""

import json
from dataclasses import replace

import pytest

from isochrone.core.ids import ModelName
from isochrone.core.metering.event import Endpoint
from isochrone.core.world.digest import SiteDigest
from isochrone.core.world.model import ALL_ENDPOINTS, COMMON_ENDPOINTS
from isochrone.gateway.known_endpoints import KnownEndpoints
from isochrone.gateway.replies import Refusal
from isochrone.gateway.surface import (
    PATHS,
    ROUTES,
    UNMETERED,
    endpoint_refusal,
    engine_error_body_for,
    error_body_for,
    error_event_for,
    unknown_path,
)
from tests.builders import MODEL, a_digest, a_load


def test_every_endpoint_has_a_path_and_none_is_unmetered() -> None:
    assert set(PATHS) == set(ALL_ENDPOINTS)
    assert {ROUTES[path] for path in PATHS.values()} == set(ALL_ENDPOINTS)
    assert not set(ROUTES) & set(UNMETERED)


@pytest.mark.parametrize("path", [*UNMETERED, "/v1/audio/speech", "/v1/files/file-1/content"])
def test_a_route_of_engines_is_refused_because_it_is_not_metered(path: str) -> None:
    refusal = unknown_path("POST", path)
    assert (refusal.status, refusal.reason) == (404, "unknown_path")
    assert "not metered" in refusal.message


def test_other_paths_are_unknown() -> None:
    for path in ("/", "/v1", "/metricsx", "/v1/chat/completion"):
        refusal = unknown_path("GET", path)
        assert (refusal.status, refusal.reason) == (404, "unknown_path")
        assert "not metered" not in refusal.message


@pytest.mark.parametrize(
    ("endpoint", "had", "refused"),
    [
        ("messages", [COMMON_ENDPOINTS, COMMON_ENDPOINTS], True),
        ("messages", [COMMON_ENDPOINTS, ALL_ENDPOINTS], False),
        ("responses", [(*COMMON_ENDPOINTS, "messages")], True),
        ("responses", [()], True),
        ("responses", [], False),
        ("completions", [("messages",)], False),
    ],
)
def test_a_model_without_an_endpoint_is_refused_there(
    endpoint: Endpoint, had: list[tuple[Endpoint, ...]], refused: bool
) -> None:
    refusal = endpoint_refusal(endpoint, MODEL, had)
    assert (refusal is not None) == refused
    if refusal is not None:
        assert (refusal.status, refusal.reason) == (404, "endpoint_not_served")
        assert PATHS[endpoint] in refusal.message


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"), (401, "authentication_error"), (403, "permission_error"),
        (404, "not_found_error"), (413, "request_too_large"), (429, "rate_limit_error"),
        (502, "api_error"), (503, "overloaded_error"), (504, "timeout_error"),
    ],
)
def test_a_refusal_has_the_form_of_its_api(status: int, kind: str) -> None:
    refusal = Refusal(status=status, reason="rule", message="no", param="model")
    assert json.loads(error_body_for("messages", refusal)) == {
        "type": "error", "error": {"type": kind, "message": "no"},
    }
    others: tuple[Endpoint | None, ...] = (None, "responses", "chat.completions")
    for endpoint in others:
        body = json.loads(error_body_for(endpoint, refusal))
        assert body["error"]["code"] == "rule"


def test_an_engines_error_has_the_form_of_its_api() -> None:
    said = b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}'
    assert json.loads(engine_error_body_for("messages", said, 400)) == {
        "type": "error", "error": {"type": "invalid_request_error", "message": "too long"},
    }
    right = b'{"type":"error","error":{"type":"api_error","message":"no"}}'
    assert engine_error_body_for("messages", right, 500) is right
    assert engine_error_body_for("messages", b"<html>", 502) == b"<html>"
    openai = json.loads(engine_error_body_for("responses", said, 400))
    assert openai["error"]["code"] == "context_length_exceeded"


def test_the_last_event_of_a_lost_stream_has_the_form_of_its_api() -> None:
    assert error_event_for("messages", "engine_lost", "gone") == (
        b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"gone"}}\n\n'
    )
    response = error_event_for("responses", "engine_lost", "gone")
    assert response.startswith(b"event: error\ndata: ")
    assert json.loads(response.partition(b"data: ")[2])["code"] == "engine_lost"
    chat = error_event_for("chat.completions", "engine_lost", "gone")
    assert json.loads(chat.removeprefix(b"data: "))["error"]["code"] == "engine_lost"


def test_sites_say_in_their_digests_what_their_engines_have() -> None:
    def digest(site: str, ready: int, *endpoints: Endpoint) -> SiteDigest:
        return a_digest(site, replace(a_load(ready=ready), endpoints=endpoints))

    known = KnownEndpoints()
    assert known.of(MODEL) == []
    known.heard(digest("paris", 1, *ALL_ENDPOINTS))
    known.heard(digest("tokyo", 1, *COMMON_ENDPOINTS))
    known.heard(digest("sydney", 0))
    assert sorted(known.of(MODEL)) == sorted([ALL_ENDPOINTS, COMMON_ENDPOINTS])
    assert [refused.site for refused in known.lacking("messages", MODEL)] == ["tokyo"]
    assert known.lacking("completions", MODEL) == ()
    assert list(known.lacking("messages", ModelName("other"))) == []
    known.heard(digest("tokyo", 1, *ALL_ENDPOINTS))
    assert list(known.lacking("messages", MODEL)) == []

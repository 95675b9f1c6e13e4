"""Error bodies: what engines say, in the form that OpenAI's clients know."""

import json

import pytest

from isochrone.gateway.engine_errors import engine_error_body


def test_a_numbered_error_gets_openais_form() -> None:
    said = {"error": {"code": 400, "message": "too long", "type": "exceed_context_size_error"}}
    assert json.loads(engine_error_body(json.dumps(said).encode(), 400)) == {
        "error": {
            "message": "too long", "type": "invalid_request_error", "param": None,
            "code": "context_length_exceeded",
        }
    }


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"message": "no", "type": "invalid_request_error", "code": "bad", "x": 1}}',
        b'{"error":{"message":"no","type":"invalid_request_error","param":null,"code":null}}',
        b'{"detail":"Not Found"}', b"Bad Gateway", b"", b"\xff", b'{"error":"text"}',
    ],
)
def test_anything_else_stays_as_it_came(body: bytes) -> None:
    assert engine_error_body(body, 400) == body

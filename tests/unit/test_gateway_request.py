"""What the gateway reads of a body, and what rewriting a field leaves as it was."""

import json

import pytest

from isochrone.core.metering.event import Tokens
from isochrone.core.world.tenant import Class
from isochrone.gateway.access import class_of
from isochrone.gateway.peer_hop import parse_tokens, render_tokens
from isochrone.gateway.request import BadRequest, parse_request, prompts_of, rewrite

CHAT = b'{"model":"m","messages":[{"role":"user","content":"hello there"}]%b}'


def test_defaults_of_a_chat_request() -> None:
    request = parse_request("chat.completions", CHAT % b"")
    assert (request.model, request.stream, request.choices) == ("m", False, 1)
    assert request.prompt_bytes == len(b'[{"role":"user","content":"hello there"}]')
    assert request.output_tokens == 256


@pytest.mark.parametrize(
    ("fields", "output"),
    [
        (b',"max_tokens":7', 7),
        (b',"max_tokens":7,"max_completion_tokens":9', 9),
        (b',"max_tokens":7,"n":3', 21),
        (b',"max_tokens":-1', 256),
        (b',"max_tokens":null', 256),
    ],
)
def test_the_output_that_is_expected(fields: bytes, output: int) -> None:
    assert parse_request("chat.completions", CHAT % fields).output_tokens == output


@pytest.mark.parametrize(
    ("prompt", "choices"),
    [
        (b'"one"', 2), (b'["one","two"]', 4), (b"[1,2,3]", 2), (b"[[1],[2],[3]]", 6), (b"[]", 2),
        (b'["one",2,3]', 2), (b'[1,"two"]', 2), (b'["one",[2, "three"]]', 4),
    ],
)
def test_several_prompts_make_several_choices(prompt: bytes, choices: int) -> None:
    body = b'{"model":"m","n":2,"prompt":%b}' % prompt
    request = parse_request("completions", body)
    assert (request.choices, request.prompts) == (choices, choices // 2)
    assert len(prompts_of(body)) == choices // 2


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{", b'{"model":1}', b'{"model":""}', CHAT % b',"stream":"yes"',
        CHAT % b',"n":0', CHAT % b',"n":1000', b'{"model":"\xff"}', CHAT % b',"n":1.5',
        b'{"model":"m","prompt":[1,}', b'{"model":"m","x":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_bodies_that_cannot_be_served(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_request("completions", body)


def test_a_body_that_needs_no_change_is_not_touched() -> None:
    body = CHAT % b', "temperature" : 1.0'
    assert rewrite(body, model=None, stream=False) is body


def test_rewriting_keeps_every_other_byte_of_a_value() -> None:
    extra = b',"big":12345678901234567890,"e":1e400,"s":"\\u00e9\\/","stream":true'
    rewritten = rewrite(CHAT % extra, model="other", stream=True, running_counts="timings")
    for piece in (b"12345678901234567890", b"1e400", b'"\\u00e9\\/"', b'"content":"hello there"'):
        assert piece in rewritten
    fields = json.loads(rewritten)
    assert fields["model"] == "other"
    assert fields["stream_options"] == {"include_usage": True}
    assert fields["timings_per_token"] is True


def test_stream_options_of_the_client_are_kept() -> None:
    body = CHAT % b',"stream_options":{"include_usage":false,"mine":[1]}'
    options = json.loads(rewrite(body, model=None, stream=True, running_counts="usage"))
    assert options["stream_options"] == {
        "include_usage": True, "mine": [1], "continuous_usage_stats": True,
    }
    nothing = json.loads(rewrite(CHAT % b',"stream_options":null', model=None, stream=True))
    assert nothing["stream_options"] == {"include_usage": True}


def test_a_name_given_twice_means_the_same_to_gateway_and_engine() -> None:
    body = b'{"model":"cheap","model":"dear","prompt":"x"}'
    request = parse_request("completions", body)
    assert json.loads(rewrite(body, model=None, stream=True))["model"] == request.model


@pytest.mark.parametrize(
    ("tier", "entitled", "class_"),
    [
        (None, ("on_demand", "batch"), "on_demand"),
        ("auto", ("on_demand", "reserved"), "on_demand"),
        ("flex", ("on_demand", "batch"), "batch"),
        ("flex", ("on_demand",), "on_demand"),
        ("priority", ("on_demand", "reserved"), "reserved"),
        ("priority", ("on_demand",), "on_demand"),
        ("priority", ("batch",), "batch"),
        (None, ("reserved",), "reserved"),
        ("nonsense", (), "on_demand"),
    ],
)
def test_classes_are_clamped_to_the_key(
    tier: str | None, entitled: tuple[Class, ...], class_: Class
) -> None:
    assert class_of(tier, entitled) == class_


def test_token_headers_of_a_hop() -> None:
    tokens = Tokens(input_uncached=1, input_cached=2, output=3, source="counted")
    assert parse_tokens(render_tokens(tokens).encode()) == tokens
    for wrong in (None, b"", b"1,2,3", b"1,2,3,guess", b"-1,2,3,engine", b"1,2,x,engine"):
        assert parse_tokens(wrong) is None

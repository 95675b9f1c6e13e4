"""What the gateway reads of a body, and what rewriting a field leaves as it was."""

import json

import pytest

from isochrone.core.admission.classes import clamp, wanted_class
from isochrone.core.metering.event import Endpoint, Tokens
from isochrone.core.routing.prefix import BLOCK_BYTES, BLOCK_ENDS, MOST_BYTES
from isochrone.core.world.tenant import Class
from isochrone.gateway.peer_hop import parse_tokens, render_tokens
from isochrone.gateway.prefix_hash import prompt_blocks
from isochrone.gateway.request import (
    BadRequest,
    RunningCounts,
    engine_body,
    parse_request,
    prompts_of,
    rewrite,
)

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
        (b',"max_tokens":1000000000000000000000000000000', 1 << 24),
        (b',"max_tokens":18446744073709551615,"n":2', 1 << 25),
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


COUNTS: tuple[RunningCounts, ...] = (None, "timings", "usage")


def for_engine(
    endpoint: Endpoint, body: bytes, model: str | None, counts: RunningCounts
) -> bytes:
    request = parse_request(endpoint, body)
    return engine_body(request, body, model=model, running_counts=counts)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("model", [None, "other"])
@pytest.mark.parametrize(
    "more",
    [
        b"", b',"stream":true', b',"stream":true,"stream_options":null',
        b',"stream":true,"stream_options":{"include_usage":true}',
        b',"stream":true,"stream_options":{"include_usage":false,"mine":1}',
        b',"stream":true,"timings_per_token":false',
        b',"stream":true,"stream\\u005foptions":{"include_usage":false}',
        b',"stream":true,"stream_options":{"include_usage":true},"timings_per_token":false',
        b',"stream":true,"tools":[{"stream_options":1,"timings_per_token":0}],"user":"{"',
        b',"stream":true,"stream_options":{"include_usage":true},"stream_options":{}',
    ],
)
def test_an_engine_is_told_the_same_in_front_as_in_place(
    counts: RunningCounts, model: str | None, more: bytes
) -> None:
    body = b" \n" + CHAT % more
    told = for_engine("chat.completions", body, model, counts)
    stream = b'"stream":true' in more
    expected = rewrite(body, model=model, stream=stream, running_counts=counts)
    assert json.loads(told) == json.loads(expected)
    names = [name for name, _ in json.loads(told, object_pairs_hook=list)]
    given = [name for name, _ in json.loads(body, object_pairs_hook=list)]
    assert len(names) - len(set(names)) <= len(given) - len(set(given)), "no name twice"


def test_what_an_engine_is_told_goes_in_front_of_the_bytes_of_the_client() -> None:
    body = CHAT % b',"stream":true,"x":1e400'
    told = for_engine("chat.completions", body, None, "timings")
    assert told.startswith(b'{"stream_options":{"include_usage":true},"timings_per_token":true,')
    assert told.endswith(body[1:])
    asked = CHAT % b',"stream":true,"stream_options":{"include_usage":true}'
    assert for_engine("chat.completions", asked, None, None) is asked
    whole = CHAT % b""
    assert for_engine("chat.completions", whole, None, "timings") is whole


RESPONSE = b'{"model":"m","instructions":"be kind","input":"hello"%b}'


def test_a_response_is_never_stored_by_its_engine() -> None:
    body = RESPONSE % b',"stream":true,"max_output_tokens":9'
    told = for_engine("responses", body, None, None)
    assert told == b'{"store":false,' + body[1:]
    timed = json.loads(for_engine("responses", body, None, "timings"))
    assert (timed["store"], timed["timings_per_token"]) == (False, True)
    for more in (b',"store":false', b',"store":null', b""):
        told = for_engine("responses", RESPONSE % more, "other", "usage")
        assert json.loads(told) == {
            "model": "other", "instructions": "be kind", "input": "hello", "store": False,
        }


@pytest.mark.parametrize(
    ("endpoint", "field"), [("responses", "max_output_tokens"), ("messages", "max_tokens")]
)
def test_more_than_any_answer_has_is_no_limit(endpoint: Endpoint, field: str) -> None:
    body = b'{"model":"m","input":"hi","messages":[],"%b":%d}' % (field.encode(), 10**400)
    request = parse_request(endpoint, body)
    assert (request.output_tokens, request.is_limited) == (1 << 24, True)


def test_what_is_known_of_a_response_and_of_a_message() -> None:
    response = parse_request("responses", RESPONSE % b',"stream":true,"max_output_tokens":9')
    assert (response.model, response.stream, response.output_tokens) == ("m", True, 9)
    assert response.prompt_bytes == len(b'"be kind""hello"')
    assert (response.choices, response.prompts, response.wants_usage) == (1, 1, True)
    body = b'{"model":"m","system":"be kind","messages":[{"role":"user"}],"max_tokens":5}'
    message = parse_request("messages", body)
    assert (message.stream, message.output_tokens) == (False, 5)
    assert bytes(message.prompt) == b'"be kind"[{"role":"user"}]'
    assert for_engine("messages", body, None, "timings") is body
    assert json.loads(for_engine("messages", body, "other", None))["model"] == "other"


@pytest.mark.parametrize(
    ("endpoint", "more", "param"),
    [
        ("responses", b',"store":true', "store"),
        ("responses", b',"background":true', "background"),
        ("responses", b',"previous_response_id":"resp_1"', "previous_response_id"),
        ("responses", b',"conversation":{"id":"conv_1"}', "conversation"),
        ("responses", b',"prompt":{"id":"pmpt_1"}', "prompt"),
        ("messages", b',"container":"container_1"', "container"),
        ("chat.completions", b',"store":true', "store"),
    ],
)
def test_state_that_a_server_would_keep_is_refused(
    endpoint: Endpoint, more: bytes, param: str
) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_request(endpoint, RESPONSE % more)
    assert refused.value.param == param
    nothing = b',"%b":%b' % (param.encode(), b"false" if more.endswith(b"true") else b"null")
    assert parse_request(endpoint, RESPONSE % nothing).model == "m"


def test_prompts_share_the_hashes_of_what_they_begin_with() -> None:
    def blocks(*texts: str, salt: int = 1) -> list[int]:
        messages = [{"role": "user", "content": text} for text in texts]
        body = json.dumps({"model": "m", "messages": messages}).encode()
        return prompt_blocks(parse_request("chat.completions", body), salt)

    turn = "x" * (2 * BLOCK_BYTES)
    assert blocks("short") == []
    assert len(blocks(turn)) == 2
    assert blocks(turn, "and more", turn)[:2] == blocks(turn)
    assert not set(blocks("y" + turn)) & set(blocks(turn))
    assert blocks("y" * 1100 + turn)[1] != blocks("z" * 1100 + turn)[1], "each covers all before"
    assert not set(blocks(turn, salt=2)) & set(blocks(turn))
    assert len(blocks("x" * 2 * MOST_BYTES)) == len(BLOCK_ENDS)
    for whole in (8, 9, 10, 20):  # in blocks of 1 KiB: later ones are larger
        expected = sum(end <= whole * BLOCK_BYTES for end in BLOCK_ENDS)
        assert len(blocks("x" * (whole * BLOCK_BYTES))) == expected
    response = parse_request("responses", b'{"model":"m","instructions":"%b","input":"%b"}' % (
        b"i" * 600, b"j" * 600))
    assert len(prompt_blocks(response, 1)) == 1


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
    assert clamp(wanted_class(tier), entitled) == class_


def test_tokens_of_a_hop() -> None:
    tokens = Tokens(input_uncached=1, input_cached=2, output=3, source="counted")
    assert parse_tokens(render_tokens(tokens)) == tokens
    for wrong in ("-", "", "1,2,3", "1,2,3,guess", "-1,2,3,engine", "1,2,x,engine"):
        assert parse_tokens(wrong) is None
    assert parse_tokens(f"1,2,{2**64},engine") is None, "no record holds it"


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[],"\xff":1}',
        b'{"model":"m","messages":[{"role":"user","content":"\xc3"}]}',
        b'{"model":"m","messages":[],"x":{"deep":"\xed\xa0\x80"}}',
    ],
)
def test_a_body_that_is_not_utf_8_is_refused_wherever_it_is_not(body: bytes) -> None:
    with pytest.raises(BadRequest, match="not a valid request"):
        parse_request("chat.completions", body)
    parse_request("chat.completions", '{"model":"m","messages":[],"ü":"日本"}'.encode())


@pytest.mark.parametrize(
    ("prompt", "n"),
    [
        (b'["a"' + b',"a"' * 2048 + b"]", 1), (b"[[1]" + b" ,[1]" * 2048 + b"]", 1),
        (b'["a"' + b',"a"' * 16 + b"]", 128), (b'["a"' + b',"a"' * 4_000_000 + b"]", 1),
        (b"[[1]" + b",\n [1]" * 2_000_000 + b"]", 1),
    ],
)
def test_more_answers_than_may_be_asked_for_at_once(prompt: bytes, n: int) -> None:
    body = b'{"model":"m","n":%d,"prompt":%b}' % (n, prompt)
    with pytest.raises(BadRequest, match="2048") as raised:
        parse_request("completions", body)
    assert raised.value.param == "prompt"


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        (b'["a"' + b',"a"' * 2047 + b"]", 2048), (b"[1" + b",1" * 100_000 + b"]", 1),
        (b"[" + rb'"a\",\"b\",",' * 2047 + b'"c"]', 2048), (b'["a],[b' + b"],[" * 9000 + b'"]', 1),
        (b"[[1]" + b",[1]" * 2047 + b"]", 2048), (b'"a"', 1), (b"[]", 1),
    ],
)
def test_as_many_prompts_as_there_are(prompt: bytes, prompts: int) -> None:
    request = parse_request("completions", b'{"model":"m","prompt":%b}' % prompt)
    assert (request.prompts, request.choices) == (prompts, prompts)


@pytest.mark.parametrize(
    ("endpoint", "fields", "param"),
    [
        ("responses", '"input":[{"type":"item_reference","id":"m1"}]', "input"),
        (
            "responses",
            '"input":[{"role":"user","content":[{"type":"input_file","file\\u005fid":"f"}]}]',
            "input",
        ),
        (
            "responses",
            '"input":"a","tools":[{"type":"file_search","vector_store_ids":["v"]}]', "tools",
        ),
        ("responses", '"input":"a","tools":[{"type":"code_interpreter"}]', "tools"),
        (
            "messages",
            '"messages":[{"role":"user","content":[{"type":"document","source":{"type":"file",'
            '"file_id":"f"}}]}]',
            "messages",
        ),
    ],
)
def test_what_lies_on_a_server_cannot_be_named(
    endpoint: Endpoint, fields: str, param: str
) -> None:
    body = f'{{"model":"m","max_tokens":5,{fields}}}'.encode()
    with pytest.raises(BadRequest, match="kept or done on a server") as raised:
        parse_request(endpoint, body)
    assert raised.value.param == param


def test_what_only_looks_like_state_passes() -> None:
    said = json.dumps([{"role": "user", "content": '{"type": "mcp", "file_id": 1}'}])
    tools = json.dumps([{"type": "function", "name": "file_search", "parameters": {}}])
    body = f'{{"model":"m","input":{said},"tools":{tools}}}'.encode()
    assert parse_request("responses", body).model == "m"

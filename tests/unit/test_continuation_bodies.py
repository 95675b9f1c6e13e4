"""What a request tells about continuing its answer, and the requests that continue it."""

import json
from random import Random
from typing import Any

import pytest

from isochrone.core.continuation.kin import Kin
from isochrone.core.continuation.plan import Features
from isochrone.gateway.continuation.body import continuing_body, with_seed
from isochrone.gateway.continuation.features import features_of
from isochrone.gateway.continuation.hop import kin_lines, parse_kin

HELLO = [{"role": "user", "content": "hello"}]
PLAIN = Features()


def features(endpoint: Any = "chat.completions", **fields: Any) -> Features:
    prompt = {"prompt": "hello"} if endpoint == "completions" else {"messages": HELLO}
    body = {"model": "m", "stream": True, "temperature": 0, **prompt, **fields}
    return features_of(endpoint, json.dumps(body).encode())


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "tools": None, "seed": 7, "user": "me", "top_p": 0.5, "logprobs": True},
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}},
        {"guided_json": None, "grammar": "", "echo": False},
        {"repetition_penalty": 1.2, "presence_penalty": 0, "max_tokens": -1},
        {"messages": [{"role": "assistant", "content": "a"}, *HELLO]},
    ],
)
def test_plain_requests(fields: dict[str, Any]) -> None:
    assert features(**fields) == PLAIN


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"n": 2}, {"several": True}),
        ({"temperature": 0.7}, {"sampled": True}),
        ({"temperature": None}, {"sampled": True}),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, {"schema": True}),
        ({"response_format": {"type": "json_object"}}, {"schema": True}),
        ({"presence_penalty": 0.5}, {"output_penalties": True}),
        ({"frequency_penalty": -1}, {"output_penalties": True}),
        ({"tools": [{"type": "function"}]}, {"stateful": "tools"}),
        ({"grammar": 'root ::= "a"'}, {"stateful": "grammar"}),
        ({"guided_choice": ["a"]}, {"stateful": "guided_choice"}),
        ({"logits_processors": ["x"]}, {"stateful": "logits_processors"}),
        ({"a_field_of_tomorrow": 0}, {"stateful": "a_field_of_tomorrow"}),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, {"stateful": "messages"}),
        ({"messages": []}, {"stateful": "messages"}),
        ({"continue_final_message": "content"}, {"stateful": "continue_final_message"}),
        ({"messages": [*HELLO, {"role": "assistant", "content": "a"}]}, {"own_answer": True}),
        (
            {"messages": [*HELLO, {"role": "assistant", "content": "a"}],
             "continue_final_message": True}, {},
        ),
        (
            {"messages": [*HELLO, {"role": "assistant", "content": None}]},
            {"own_answer": True, "stateful": "messages"},
        ),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"max_tokens": 7}),
        ({"n_predict": 9}, {"max_tokens": 9}),
        ({"stop": "END"}, {"stops": ("END",)}),
        ({"stop": ["a", "", "b"]}, {"stops": ("a", "b")}),
    ],
)
def test_features_of_chat(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert features(**fields) == Features(**expected)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"prompt": [1, 2]}, {"prompt_ids": True}),
        ({"prompt": ["one", "two"]}, {"prompt_ids": True, "stateful": "prompt"}),
        ({"prompt": [1, "two"]}, {"prompt_ids": True, "stateful": "prompt"}),
        ({"echo": True}, {"stateful": "echo"}),
        ({"suffix": "x"}, {"stateful": "suffix"}),
        ({"logprobs": 2}, {"stateful": "logprobs"}),
    ],
)
def test_features_of_completions(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert features("completions", **fields) == Features(**expected)


@pytest.mark.parametrize("fields", [{"temperature": "0"}, {"stop": 5}, {"n": "1"}])
def test_a_field_of_a_wrong_type_is_never_continued(fields: dict[str, Any]) -> None:
    assert features(**fields).stateful is not None


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[]}',
        b' \n{ "messages":[{"content":"say \\"seed\\": 5 and {"}],"model":"m" }',
        b'{"model":"m","seed":null,"messages":[]}',
        b'{"model":"m","metadata":{"seed":"5"},"messages":[]}',
    ],
)
def test_a_request_without_a_seed_gets_one(body: bytes) -> None:
    seeded = json.loads(with_seed(body, Random(1)))
    expected = json.loads(body)
    assert seeded.pop("seed") == Random(1).getrandbits(31)
    expected.pop("seed", None)
    assert seeded == expected


def test_the_clients_seed_stays() -> None:
    body = b'{"model":"m","seed":0,"messages":[]}'
    assert with_seed(body, Random(1)) is body


def continued(fields: dict[str, Any], **changes: Any) -> dict[str, Any]:
    endpoint: Any = "completions" if "prompt" in fields else "chat.completions"
    body = json.dumps({"model": "m", "stream": True, **fields}).encode()
    given: dict[str, Any] = {"text": "Once upon", "ids": None, "nth": 1} | changes
    parsed: dict[str, Any] = json.loads(continuing_body(body, 20, endpoint=endpoint, **given))
    return parsed


def test_chat_goes_on_in_an_open_answer() -> None:
    body = continued({"messages": HELLO, "seed": 7, "stop": ["a"], "x": 1})
    assert body == {
        "model": "m", "stream": True, "seed": 8, "stop": ["a"], "x": 1,
        "messages": [*HELLO, {"role": "assistant", "content": "Once upon"}],
        "continue_final_message": True, "add_generation_prompt": False,
    }


def test_an_answer_that_the_client_began_is_gone_on_with() -> None:
    own = {"role": "assistant", "content": "So: ", "name": "x"}
    body = continued({"messages": [*HELLO, own]})
    assert body["messages"] == [*HELLO, own | {"content": "So: Once upon"}]


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"max_tokens": 50}, {"max_tokens": 30}),
        ({"max_completion_tokens": 21, "max_tokens": 5}, {"max_completion_tokens": 1,
                                                          "max_tokens": 1}),
        ({"n_predict": -1, "max_tokens": None}, {"n_predict": -1, "max_tokens": None}),
        ({"min_tokens": 25}, {"min_tokens": 5}),
        ({"min_tokens": 5}, {"min_tokens": 0}),
        ({"seed": None}, {"seed": None}),
        ({"seed": 2**31 - 1}, {"seed": 2}),
    ],
)
def test_limits_count_what_is_left(fields: dict[str, Any], left: dict[str, Any]) -> None:
    body = continued({"messages": HELLO, **fields}, nth=3)
    assert {name: body[name] for name in left} == left


def test_completions_go_on_behind_their_prompt() -> None:
    assert continued({"prompt": "Tell: "})["prompt"] == "Tell: Once upon"
    assert continued({"prompt": [1, 2]})["prompt"] == [1, 2, "Once upon"]
    assert continued({"prompt": "Tell: "}, ids=(1, 2, 3))["prompt"] == [1, 2, 3]
    assert "continue_final_message" not in continued({"prompt": "Tell: "})


@pytest.mark.parametrize("revision", [None, "r1", "meta/model@1:2 ü\r\nx: y"])
def test_kin_travels_in_headers(revision: str | None) -> None:
    kin = Kin(engine="vllm", revision=revision)
    lines = kin_lines(kin).encode("ascii").splitlines()
    headers = dict(line.split(b": ") for line in lines)
    assert parse_kin(headers) == kin
    assert not any(b"\r" in value for value in headers.values())


def test_other_headers_name_no_kin() -> None:
    assert parse_kin({}) is None
    assert parse_kin({b"x-isochrone-engine": b"else", b"x-isochrone-revision": b"r1"}) is None
    long = {b"x-isochrone-engine": b"vllm", b"x-isochrone-revision": b"r" * 513}
    assert parse_kin(long) is None


def test_a_seed_by_chance_is_none() -> None:
    """As engines say it, and clients that name all fields send it."""
    for given in (b"-1", b" -1 "):
        body = b'{"model":"m","seed":%b,"messages":[]}' % given
        assert json.loads(with_seed(body, Random(1)))["seed"] == Random(1).getrandbits(31)


def test_whose_limit_it_is() -> None:
    assert features(n_predict=9).private
    assert not features(n_predict=9, max_tokens=5).private
    assert not features(max_completion_tokens=5).private

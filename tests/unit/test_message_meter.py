"""The meter of /v1/responses and /v1/messages on transcripts of engines, and on what breaks."""

import json
from typing import Any

import pytest

from isochrone.core.metering.event import Endpoint, Tokens
from isochrone.gateway.counts import tokens_of_answer
from isochrone.gateway.message_meter import MessageMeter, meter_for
from isochrone.gateway.meter import StreamMeter

Event = dict[str, Any]


def sse(*events: Event) -> bytes:
    return b"".join(
        f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events
    )


def start(**usage: int) -> Event:
    return {"type": "message_start", "message": {"id": "m", "content": [], "usage": usage}}


def text(said: str) -> Event:
    return {"type": "content_block_delta", "index": 0,
            "delta": {"type": "text_delta", "text": said}}


def delta(**usage: int) -> Event:
    return {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}


STOP: Event = {"type": "message_stop"}
BLOCK: tuple[Event, ...] = (
    {"type": "content_block_start", "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
)


def said(word: str, **more: object) -> Event:
    return {"type": "response.output_text.delta", "item_id": "i", "delta": word, **more}


def over(kind: str, prompt: int, cached: int, output: int) -> Event:
    usage = {"input_tokens": prompt, "input_tokens_details": {"cached_tokens": cached},
             "output_tokens": output, "output_tokens_details": {"reasoning_tokens": 0}}
    return {"type": f"response.{kind}", "response": {"id": "r", "output": [], "usage": usage}}


CREATED: Event = {"type": "response.created", "response": {"id": "r", "usage": None}}
DONE: Event = {"type": "response.output_text.done", "text": "a b"}


def metered(endpoint: Endpoint, *events: Event) -> MessageMeter:
    meter = MessageMeter(endpoint)
    assert meter.feed(sse(*events)) == sse(*events), "nothing is withheld"
    return meter


def test_a_whole_response_is_metered_from_its_last_event() -> None:
    meter = metered("responses", CREATED, said("a"), said(" b"), DONE, over("completed", 16, 15, 2))
    assert (meter.finished, meter.error) == (True, False)
    assert meter.tokens(999) == Tokens(
        input_uncached=1, input_cached=15, output=2, source="engine"
    )


@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed", "cancelled"])
def test_every_end_of_a_response_carries_its_usage(kind: str) -> None:
    meter = metered("responses", said("a"), over(kind, 9, 0, 4))
    assert (meter.finished, meter.error) == (True, kind == "failed")
    assert meter.tokens(0) == Tokens(input_uncached=9, output=4, source="engine")


def test_a_broken_response_is_counted_by_its_deltas() -> None:
    call = {"type": "response.function_call_arguments.delta", "delta": '{"a'}
    meter = metered("responses", CREATED, said("a"), said(""), call, DONE)
    assert not meter.finished
    assert meter.tokens(41) == Tokens(input_uncached=11, output=2, source="counted")


def test_running_counts_of_a_response_are_kept() -> None:
    timings = {"cache_n": 8, "prompt_n": 4, "predicted_n": 5}
    meter = metered("responses", CREATED, said("a", timings=timings))
    assert meter.tokens(0) == Tokens(input_uncached=4, input_cached=8, output=5, source="running")
    assert metered("responses", CREATED).tokens(40) == Tokens()


def test_a_whole_message_is_metered_from_both_its_ends() -> None:
    begun = start(input_tokens=1, cache_read_input_tokens=15, output_tokens=0)
    meter = metered("messages", begun, *BLOCK, text("a"), text("b"), delta(output_tokens=7), STOP)
    assert (meter.finished, meter.error) == (True, False)
    assert meter.tokens(0) == Tokens(input_uncached=1, input_cached=15, output=7, source="engine")


def test_what_was_written_to_the_cache_was_computed() -> None:
    begun = start(input_tokens=3, cache_read_input_tokens=5, cache_creation_input_tokens=7)
    meter = metered("messages", begun, text("a"), delta(output_tokens=2), STOP)
    assert meter.tokens(0) == Tokens(input_uncached=10, input_cached=5, output=2, source="engine")


def test_an_input_that_is_stated_again_in_the_end_replaces_the_first() -> None:
    again = delta(input_tokens=1, cache_read_input_tokens=15, output_tokens=2)
    meter = metered("messages", start(input_tokens=16), text("a"), again, STOP)
    assert meter.tokens(0) == Tokens(input_uncached=1, input_cached=15, output=2, source="engine")


def test_a_broken_message_has_the_input_it_began_with() -> None:
    thought = {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "h"}}
    call = {"type": "content_block_delta",
            "delta": {"type": "input_json_delta", "partial_json": "{"}}
    signed = {"type": "content_block_delta", "delta": {"type": "signature_delta", "signature": "s"}}
    begun = start(input_tokens=4, cache_read_input_tokens=8, output_tokens=1)
    meter = metered("messages", begun)
    assert meter.tokens(0) == Tokens(input_uncached=4, input_cached=8, output=1, source="running")
    meter.feed(sse(*BLOCK, text("a"), thought, call, signed, text("")))
    assert meter.tokens(0) == Tokens(input_uncached=4, input_cached=8, output=3, source="counted")
    meter.feed(sse(delta(output_tokens=9)))
    assert not meter.finished
    assert meter.tokens(0) == Tokens(input_uncached=4, input_cached=8, output=9, source="running")


def test_a_message_without_usage_is_counted() -> None:
    meter = metered("messages", start(), text("a"), text("b"), STOP)
    assert meter.finished
    assert meter.tokens(41) == Tokens(input_uncached=11, output=2, source="counted")


@pytest.mark.parametrize("endpoint", ["responses", "messages"])
@pytest.mark.parametrize(
    "raw",
    [
        b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"no"}}\n\n',
        b'data: {"type":"error","code":"x","message":"no","param":null}\n\n',
        b'data: {"error":{"code":500,"message":"no"}}\n\n',
        b'error: {"code":500}\n\n',
    ],
)
def test_errors_are_seen_and_end_nothing(endpoint: Endpoint, raw: bytes) -> None:
    meter = MessageMeter(endpoint)
    assert meter.feed(raw) == raw
    assert (meter.error, meter.finished) == (True, False)


def test_text_that_looks_like_an_end_is_text() -> None:
    trick = 'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    assert not metered("messages", start(input_tokens=1), text(trick)).finished
    assert not metered("responses", said('"type":"response.completed"')).finished


@pytest.mark.parametrize("endpoint", ["responses", "messages"])
def test_reads_do_not_matter(endpoint: Endpoint) -> None:
    events: tuple[Event, ...] = (CREATED, said("a"), over("completed", 5, 2, 3))
    if endpoint == "messages":
        events = (start(input_tokens=3), text("a"), delta(output_tokens=3), STOP)
    stream = sse(*events).replace(b"\n", b"\r\n") + b"data: [DONE]\n\n"
    at_once = MessageMeter(endpoint)
    assert at_once.feed(stream) == stream
    for step in (1, 7, 100):
        meter = MessageMeter(endpoint)
        out = [meter.feed(stream[i : i + step]) for i in range(0, len(stream), step)]
        assert b"".join(out) + meter.end() == stream
        assert meter.tokens(0) == at_once.tokens(0)
        assert meter.finished


def test_the_last_event_of_a_long_response_is_read_and_of_an_endless_one_is_seen() -> None:
    for size, source in ((1 << 20, "engine"), (5 << 20, "counted")):
        last = over("completed", 5, 0, 3)
        last["response"]["output"] = "x" * size
        stream = sse(said("a"), last)
        meter = MessageMeter("responses")
        out = [meter.feed(stream[i : i + 65536]) for i in range(0, len(stream), 65536)]
        assert b"".join(out) == stream
        assert meter.finished
        assert meter.tokens(4).source == source


def test_whole_answers() -> None:
    response = {"object": "response", "error": None, "output": [{"content": [{"text": "abcd"}]}]}
    usage = {"input_tokens": 16, "input_tokens_details": {"cached_tokens": 15}, "output_tokens": 6}
    found = tokens_of_answer(json.dumps(response | {"usage": usage}).encode(), "responses", 1)
    assert found == Tokens(input_uncached=1, input_cached=15, output=6, source="engine")
    bare = tokens_of_answer(json.dumps(response).encode(), "responses", 1, prompt_bytes=8)
    assert (bare.input_uncached, bare.source) == (2, "counted")
    message = {"type": "message", "content": [{"type": "text", "text": "hi"}],
               "usage": {"input_tokens": 1, "cache_read_input_tokens": 15, "output_tokens": 6}}
    assert tokens_of_answer(json.dumps(message).encode(), "messages", 1) == found
    error = b'{"type":"error","error":{"type":"api_error","message":"no"}}'
    assert tokens_of_answer(error, "messages", 1) == Tokens()
    assert tokens_of_answer(b"<html>", "responses", 1) == Tokens()


@pytest.mark.parametrize("stated", [{}, {"input_tokens": 3}, {"output_tokens": 3}])
def test_a_usage_that_does_not_say_both_counts_is_treated_as_not_sent(stated: object) -> None:
    response = {"object": "response", "output": [{"content": [{"text": "abcd"}]}], "usage": stated}
    message = {"type": "message", "content": [{"type": "text", "text": "hi"}], "usage": stated}
    answers: tuple[tuple[Endpoint, object], ...] = (("responses", response), ("messages", message))
    for endpoint, answer in answers:
        found = tokens_of_answer(json.dumps(answer).encode(), endpoint, 1, prompt_bytes=8)
        assert (found.input_uncached, found.source) == (2, "counted")
        assert found.output > 0
    ended = {"type": "response.completed", "response": {"id": "r", "output": [], "usage": stated}}
    meter = metered("responses", CREATED, said("a"), said("b"), ended)
    assert meter.tokens(8) == Tokens(input_uncached=2, output=2, source="counted")
    meter = metered("messages", start(), text("a"), text("b"), delta(output_tokens=7), STOP)
    assert (meter.tokens(8).input_uncached, meter.tokens(8).source) == (2, "counted")


def test_every_endpoint_has_its_meter() -> None:
    assert isinstance(meter_for("messages", 1, False), MessageMeter)
    assert isinstance(meter_for("responses", 1, True), MessageMeter)
    assert isinstance(meter_for("completions", 2, True, prompts=2), StreamMeter)

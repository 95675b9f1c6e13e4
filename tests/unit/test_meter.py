"""The meter on transcripts of real engines, and on what breaks."""

import json
from typing import Any

import pytest

from isochrone.core.metering.event import Tokens
from isochrone.gateway.counts import tokens_of_answer
from isochrone.gateway.meter import MAX_EVENT_BYTES, StreamMeter


def sse(*events: object) -> bytes:
    return b"".join(
        b"data: "
        + (e.encode() if isinstance(e, str) else json.dumps(e, separators=(",", ":")).encode())
        + b"\n\n"
        for e in events
    )


def llamacpp(index: int, text: str | None, predicted: int | None = None) -> dict[str, object]:
    delta = {"role": "assistant", "content": None} if text is None else {"content": text}
    event: dict[str, object] = {
        "choices": [{"finish_reason": None, "index": index, "delta": delta}],
        "object": "chat.completion.chunk",
    }
    if predicted is not None:
        event["timings"] = {"cache_n": 8, "prompt_n": 4, "prompt_ms": 2.8,
                            "predicted_n": predicted, "predicted_ms": 1.1}
    return event


def stop(index: int = 0) -> dict[str, object]:
    return {"choices": [{"finish_reason": "stop", "index": index, "delta": {}}]}


def usage(prompt: int, cached: int, output: int) -> dict[str, object]:
    return {"choices": [], "usage": {"completion_tokens": output, "prompt_tokens": prompt,
                                     "prompt_tokens_details": {"cached_tokens": cached}}}


def metered(*events: object, n: int = 1, asked: bool = False) -> tuple[StreamMeter, bytes]:
    meter = StreamMeter(n, "chat.completions", asked)
    return meter, meter.feed(sse(*events))


def test_final_usage_is_taken_and_withheld() -> None:
    talk = (llamacpp(0, None), llamacpp(0, "one", 1), llamacpp(0, ",", 2), stop())
    meter, seen = metered(*talk, usage(12, 8, 2), "[DONE]")
    assert meter.finished
    assert not meter.error
    assert seen == sse(*talk, "[DONE]")
    assert meter.tokens(999) == Tokens(
        input_uncached=4, input_cached=8, output=2, source="engine"
    )


def test_a_client_that_asked_sees_usage() -> None:
    events = (llamacpp(0, "one", 1), stop(), usage(12, 8, 1), "[DONE]")
    assert metered(*events, asked=True)[1] == sse(*events)


def test_a_broken_stream_has_the_last_running_count() -> None:
    meter, _ = metered(llamacpp(0, None), llamacpp(0, "a", 1), llamacpp(0, "b", 5))
    assert not meter.finished
    assert meter.tokens(0) == Tokens(input_uncached=4, input_cached=8, output=5, source="running")
    meter.feed(sse(llamacpp(0, "c", 6)))
    assert meter.tokens(0).output == 6


def test_continuous_usage_is_a_running_count() -> None:
    event = llamacpp(0, "a")
    event["usage"] = {"prompt_tokens": 9, "completion_tokens": 3}
    meter, _ = metered(event)
    assert meter.tokens(0) == Tokens(input_uncached=9, output=3, source="running")


def test_an_engine_without_counts_is_counted() -> None:
    meter, _ = metered(llamacpp(0, None), llamacpp(0, "a"), llamacpp(0, ""), llamacpp(0, "b"))
    assert meter.tokens(41) == Tokens(input_uncached=11, output=2, source="counted")


def test_nothing_from_the_engine_is_nothing() -> None:
    meter, _ = metered(llamacpp(0, None))
    assert meter.tokens(4000) == Tokens()


def test_reasoning_and_tool_calls_are_output() -> None:
    thought = {"choices": [{"index": 0, "delta": {"content": None, "reasoning_content": "hm"}}]}
    call = {"choices": [{"index": 0, "delta": {"tool_calls": [{"function": {"name": "f"}}]}}]}
    assert metered(thought, call)[0].tokens(0).output == 2


def test_llamacpp_with_two_choices_reports_each_apart() -> None:
    events = (
        llamacpp(1, None), llamacpp(1, "one", 1), llamacpp(0, None), llamacpp(0, "one", 1),
        llamacpp(1, ",", 2), stop(1), usage(12, 11, 2), llamacpp(0, ",", 2),
        llamacpp(0, "two", 3), stop(0), usage(12, 8, 3), "[DONE]",
    )
    meter, seen = metered(*events, n=2)
    assert b'"usage"' not in seen
    assert meter.tokens(0) == Tokens(input_uncached=4, input_cached=8, output=5, source="engine")


@pytest.mark.parametrize("running", [True, False])
def test_the_usage_of_one_choice_is_no_final_count_of_a_stream_that_broke(running: bool) -> None:
    def piece(index: int, text: str, predicted: int) -> dict[str, object]:
        return llamacpp(index, text, predicted if running else None)

    meter, _ = metered(
        piece(0, "one", 1), piece(1, "one", 1), piece(1, ",", 2), stop(1), usage(12, 8, 2),
        piece(0, ",", 2), n=2,
    )
    assert meter.tokens(0) == Tokens(
        input_uncached=4, input_cached=8, output=4, source="running"
    )
    meter.feed(sse(stop(0), usage(12, 8, 2), "[DONE]"))
    assert meter.tokens(0).source == "engine"


def test_one_usage_for_all_choices_is_final_once_all_have_ended() -> None:
    two = (llamacpp(0, "a"), llamacpp(1, "a"), stop(0), stop(1), usage(12, 0, 2))
    assert metered(*two, n=2)[0].tokens(0).source == "engine"


def test_usage_of_one_choice_is_never_below_what_was_counted() -> None:
    two = (llamacpp(0, "a"), llamacpp(1, "a"), llamacpp(0, "b"), llamacpp(1, "b"))
    meter, _ = metered(*two, usage(12, 0, 2), n=2)
    assert meter.tokens(0).output == 4
    meter, _ = metered(llamacpp(0, "a", 7), llamacpp(1, "a", 9), usage(12, 0, 9), n=2)
    assert meter.tokens(0).output == 16


def test_two_choices_are_finished_when_both_are() -> None:
    meter, _ = metered(stop(0), n=2)
    assert not meter.finished
    meter.feed(sse(stop(1)))
    assert meter.finished


@pytest.mark.parametrize(
    "raw",
    [
        b'data: {"error":{"code":500,"message":"no"}}\n\n',
        b'event: error\ndata: {"message":"no"}\n\n',
        b'error: {"code":500}\n\n',
        b'data: {"object":"error","message":"no"}\n\n',
    ],
)
def test_error_events_are_seen(raw: bytes) -> None:
    meter = StreamMeter(1, "chat.completions", False)
    assert meter.feed(raw) == raw
    assert meter.error


def test_text_that_talks_of_errors_and_choices_is_text() -> None:
    trick = '{"error": "x"} "choices":[] "finish_reason":"stop" "usage":{"a":1}'
    meter, seen = metered(llamacpp(0, trick))
    assert seen == sse(llamacpp(0, trick))
    assert not meter.error
    assert not meter.finished
    assert meter.tokens(4).output == 1


def test_filters_without_usage_pass() -> None:
    event: dict[str, object] = {"choices": [], "prompt_filter_results": [{}], "usage": None}
    assert metered(event)[1] == sse(event)


def test_half_an_event_is_not_handed_out() -> None:
    whole = sse(llamacpp(0, "a"), llamacpp(0, "b"))
    meter = StreamMeter(1, "chat.completions", False)
    assert meter.feed(whole[:-5]) == sse(llamacpp(0, "a"))
    assert meter.tokens(4).output == 1


@pytest.mark.parametrize("step", [1000, 65_536, 10**9])
def test_oversized_events_pass_and_memory_stays_bounded(step: int) -> None:
    whole = sse(llamacpp(0, "x" * (2 * MAX_EVENT_BYTES)), llamacpp(0, "b"), stop(), "[DONE]")
    meter = StreamMeter(1, "chat.completions", False)
    out = [meter.feed(whole[i : i + step]) for i in range(0, len(whole), step)]
    assert b"".join(out) + meter.end() == whole
    assert meter.finished
    assert meter.tokens(4).output == 2


def plain(text: str) -> dict[str, object]:
    return {"id": "chatcmpl-0123456789", "object": "chat.completion.chunk", "choices": [
        {"index": 0, "delta": {"content": text}, "finish_reason": None}]}


@pytest.mark.parametrize("texts", [["a"] * 60, ["a"] * 30 + [""] + ["b"] * 29, ["", *["c"] * 59]])
def test_a_read_of_many_events_counts_each_with_text(texts: list[str]) -> None:
    many = sse(*(plain(text) for text in texts))
    meter = StreamMeter(1, "chat.completions", False)
    meter.feed(sse(plain("first")))
    assert meter.feed(many) == many
    assert meter.tokens(4).output == 1 + sum(map(bool, texts))
    rest = sse(plain("last"), stop(), usage(5, 0, 9), "[DONE]")
    assert meter.feed(many + rest) == many + sse(plain("last"), stop(), "[DONE]")
    assert meter.finished
    assert meter.tokens(4).output == 9


def test_what_is_not_plain_is_found_among_many_plain_events() -> None:
    many = [plain("a")] * 40
    for odd in (
        {"error": {"message": "no"}}, stop(), usage(5, 0, 7), "null", "[DONE]",
        plain("a") | {"error": {"message": "no"}}, plain("a") | {"usage": usage(5, 0, 7)["usage"]},
    ):
        apart, together = (StreamMeter(1, "chat.completions", False) for _ in range(2))
        events = [*many, odd, *many]
        assert together.feed(sse(*events)) == b"".join(apart.feed(sse(e)) for e in events)
        assert together.tokens(4) == apart.tokens(4)
        assert (together.finished, together.error) == (apart.finished, apart.error)


def test_half_an_event_with_counts_is_not_handed_out() -> None:
    events = [llamacpp(0, "a", 1), llamacpp(0, "b", 2), llamacpp(0, "c", 3)]
    for cut in range(1, len(sse(events[2]))):
        meter = StreamMeter(1, "chat.completions", False)
        meter.feed(sse(*events[:2]))
        assert meter.feed(sse(events[2])[:cut]) == b""
        assert meter.tokens(4).output == 2
        assert meter.feed(sse(events[2])[cut:]) == sse(events[2])
        assert meter.tokens(4).output == 3


@pytest.mark.parametrize(
    "said", [{}, {"total_tokens": 9}, {"prompt_tokens": 12}, {"completion_tokens": 2}, {
        "prompt_tokens": None, "completion_tokens": None}],
)
def test_a_usage_that_does_not_say_both_counts_is_treated_as_not_sent(said: object) -> None:
    last = {"choices": [], "usage": said}
    meter, seen = metered(llamacpp(0, "one", 1), llamacpp(0, ",", 2), stop(), last, "[DONE]")
    assert last not in [json.loads(event[6:]) for event in seen.split(b"\n\n")[:3]]
    assert meter.tokens(40) == Tokens(input_uncached=4, input_cached=8, output=2, source="running")
    meter, _ = metered(llamacpp(0, "one"), llamacpp(0, ","), stop(), last, "[DONE]")
    assert meter.tokens(40) == Tokens(input_uncached=10, output=2, source="counted")
    for name in ("usage", "a"):
        whole = json.dumps({"choices": [{"text": "12345678"}], name: said}).encode()
        counted = tokens_of_answer(whole, "completions", 1, prompt_bytes=8)
        assert counted == Tokens(input_uncached=2, output=2, source="counted")


def test_absurd_counts_are_treated_as_not_sent() -> None:
    meter, _ = metered(llamacpp(0, "a"), usage(-1, 0, 5), "[DONE]")
    assert meter.tokens(8) == Tokens(input_uncached=2, output=1, source="counted")
    assert metered(llamacpp(0, "a"), usage(5, 9, 5))[0].tokens(0).input_uncached == 0


def spoken(index: int, text: str, prompt: int, output: int, **more: object) -> dict[str, object]:
    """An event of llama.cpp's completions; the last of a choice has its finish reason and usage."""
    return {
        "choices": [{"text": text, "index": index, "finish_reason": None} | more],
        "timings": {"cache_n": 0, "prompt_n": prompt, "predicted_n": output},
    }


def last(index: int, prompt: int, output: int, cached: int = 0) -> dict[str, object]:
    return spoken(index, "", prompt, output, finish_reason="length") | {
        "usage": usage(prompt, cached, output)["usage"]
    }


def prompted(*events: object, n: int, prompts: int) -> tuple[StreamMeter, bytes]:
    meter = StreamMeter(n, "completions", False, prompts=prompts)
    return meter, meter.feed(sse(*events))


def test_each_prompt_counts_once_however_many_choices_it_has() -> None:
    each = [(0, 1), (1, 1), (2, 8), (3, 8), (4, 82), (5, 82)]
    events = [event for index, prompt in each
              for event in (spoken(index, "a", prompt, 1), last(index, prompt, 2, prompt // 2))]
    meter, seen = prompted(*events, "[DONE]", n=6, prompts=3)
    assert seen == sse(*events, "[DONE]")
    assert meter.tokens(0) == Tokens(
        input_uncached=46, input_cached=45, output=12, source="engine"
    )


def test_several_prompts_are_the_engines_count_only_when_every_choice_ended() -> None:
    begun = (last(0, 5, 2), spoken(1, "a", 7, 1))
    meter, _ = prompted(*begun, n=3, prompts=3)
    assert meter.tokens(0) == Tokens(input_uncached=12, output=3, source="running")
    meter.feed(sse(last(1, 7, 2), last(2, 9, 2), "[DONE]"))
    assert meter.tokens(0) == Tokens(input_uncached=21, output=6, source="engine")


def test_one_usage_for_all_prompts_is_taken_as_it_is() -> None:
    talk = [spoken(index, "a", 50, 1) for index in range(4)]
    meter, seen = prompted(*talk, usage(100, 10, 4), "[DONE]", n=4, prompts=2)
    assert seen == sse(*talk, "[DONE]")
    assert meter.tokens(0) == Tokens(
        input_uncached=90, input_cached=10, output=4, source="engine"
    )
    apart = [usage(prompt, 1, 3) for prompt in (5, 5, 7, 7)]
    assert prompted(*apart, n=4, prompts=2)[0].tokens(0) == Tokens(
        input_uncached=10, input_cached=2, output=12, source="engine"
    )


@pytest.mark.parametrize("n", [1, 2])
def test_events_without_content_are_withheld(n: int) -> None:
    talk = sse(llamacpp(0, "a", 1), llamacpp(0, "null", 2))
    for nothing in (b"data: null\n\n", b"data:null\n\n", b": x\r\ndata: null\r\n\r\n"):
        meter = StreamMeter(n, "chat.completions", True)
        assert meter.feed(nothing + talk + nothing) == talk
        assert meter.tokens(0).output == 2


def body(*texts: str, output: int, cached: int = 0) -> bytes:
    choices = [{"index": i, "message": {"role": "assistant", "content": t}}
               for i, t in enumerate(texts)]
    return json.dumps({"choices": choices, "usage": {
        "prompt_tokens": 12, "completion_tokens": output,
        "prompt_tokens_details": {"cached_tokens": cached}}}).encode()


def test_whole_answers() -> None:
    chat = tokens_of_answer(body("hello there", output=3, cached=4), "chat.completions", 1)
    assert chat == Tokens(input_uncached=8, input_cached=4, output=3, source="engine")
    several = tokens_of_answer(body("ab", "cd", "ef", output=2), "chat.completions", 3)
    assert several.output == 3
    assert tokens_of_answer(b'{"error":{"message":"no"}}', "completions", 1) == Tokens()
    assert tokens_of_answer(b"<html>", "completions", 1) == Tokens()
    nothing_said = tokens_of_answer(b'{"choices":[{"text":"12345678"}]}', "completions", 1,
                                    prompt_bytes=8)
    assert nothing_said == Tokens(input_uncached=2, output=2, source="counted")


SAID = b'"usage":{"prompt_tokens":9,"completion_tokens":2}'


@pytest.mark.parametrize(
    "answer",
    [
        b'{"choices":[{"text":"a"}],%b}' % SAID,
        b'{"choices":[{"text":"a"}],%b,"kv_transfer_params":{"a":[null,{}]}, "note":"}"}' % SAID,
        b'{%b,"choices":[{"text":"a"}]}' % SAID,
        # What only looks like it: in a text, in a name, deeper down, and said twice.
        b'{%b,"choices":[{"text":"\\"usage\\":{\\"prompt_tokens\\":7}}"}]}' % SAID,
        b'{%b,"a\\"usage":{"prompt_tokens":7,"completion_tokens":7}}' % SAID,
        b'{%b,"choices":[{"text":"a","usage":{"prompt_tokens":7,"completion_tokens":7}}]}' % SAID,
        b'{%b,"deep":{"usage":{"prompt_tokens":7,"completion_tokens":7}}}' % SAID,
        b'{"usage":{"prompt_tokens":7,"completion_tokens":7},"choices":[{"text":"a"}],%b}' % SAID,
        b'{"choices":[{"text":"a"}], "usage" : {"prompt_tokens":9,"completion_tokens":2}}',
    ],
)
def test_the_usage_is_what_the_answer_itself_says_last(answer: bytes) -> None:
    expected = Tokens(input_uncached=9, output=2, source="engine")
    assert json.loads(answer)["usage"] == {"prompt_tokens": 9, "completion_tokens": 2}
    assert tokens_of_answer(answer, "completions", 1, prompt_bytes=4) == expected


@pytest.mark.parametrize(
    "answer",
    [
        b'{"error":{"message":"no"},%b}' % SAID,
        b'{%b,"error":{"message":"no"}}' % SAID,
        b'{"object":"error",%b}' % SAID,
    ],
)
def test_an_error_that_states_usage_is_not_charged(answer: bytes) -> None:
    assert tokens_of_answer(answer, "completions", 1) == Tokens()


def test_whole_answer_whose_usage_covers_one_choice() -> None:
    tokens = tokens_of_answer(
        body("x" * 40, "y" * 20, output=10), "chat.completions", 2, usage_counts_one_choice=True
    )
    assert tokens == Tokens(input_uncached=12, output=15, source="counted")


def test_whole_answer_whose_usage_covers_the_first_prompt() -> None:
    answer = body("abcd", "efgh", output=1, cached=5)
    first = tokens_of_answer(
        answer, "completions", 2, prompt_bytes=4000, usage_counts_one_choice=True, prompts=2
    )
    assert first == Tokens(input_uncached=995, input_cached=5, output=2, source="counted")
    whole = tokens_of_answer(answer, "completions", 2, prompt_bytes=4000, prompts=2)
    assert (whole.input_uncached, whole.source) == (7, "engine")


def test_embeddings_have_a_prompt_only() -> None:
    answer = b'{"data":[{"embedding":[0.1]}],"usage":{"prompt_tokens":6,"total_tokens":6}}'
    assert tokens_of_answer(answer, "embeddings", 1) == Tokens(input_uncached=6, source="engine")


EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'


@pytest.mark.parametrize("cut", range(1, len(EVENT) - 3))
def test_half_an_event_at_the_end_is_neither_passed_on_nor_counted(cut: int) -> None:
    meter = StreamMeter(1, "chat.completions", False)
    assert meter.feed(EVENT + EVENT[:cut]) == EVENT
    assert meter.end() == b""
    assert not meter.finished
    assert meter.tokens(4).output == 1


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_an_event_that_lacks_only_its_blank_line_gets_it(end: bytes) -> None:
    meter = StreamMeter(1, "chat.completions", False)
    assert meter.feed(EVENT + EVENT.rstrip(b"\n") + end) == EVENT
    last = meter.end()
    assert last.replace(b"\r\n", b"\n") == EVENT
    assert meter.tokens(4).output == 2


def test_a_last_word_without_a_blank_line_finishes() -> None:
    meter = StreamMeter(1, "chat.completions", False)
    assert meter.feed(EVENT + b"data: [DONE]") == EVENT
    assert meter.end() == b"data: [DONE]\n\n"
    assert meter.finished


WORDS = " word" * 200


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"usage": {"prompt_tokens": 9, "completion_tokens": 200.0}}, (9, 200, "engine")),
        ({"usage": {"prompt_tokens": "9", "completion_tokens": "200"}}, (9, 200, "engine")),
        ({"usage": []}, (25, 250, "counted")),
        ({"usage": {"prompt_tokens": 9, "completion_tokens": 1.5}}, (25, 250, "counted")),
        ({"index": "0"}, (25, 250, "counted")),
        ({"finish_reason": 1}, (25, 250, "counted")),
    ],
)
def test_whole_answers_with_fields_of_another_kind_are_counted(
    changes: dict[str, Any], expected: tuple[int, int, str]
) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": WORDS}}
    choice |= {name: changes[name] for name in changes if name != "usage"}
    body = {"choices": [choice], **{n: changes[n] for n in changes if n == "usage"}}
    tokens = tokens_of_answer(json.dumps(body).encode(), "chat.completions", 1, prompt_bytes=100)
    assert (tokens.input_uncached, tokens.output, tokens.source) == expected


def test_an_empty_finish_reason_is_none() -> None:
    """As some upstreams write it in each event of a stream."""
    piece = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": ""}]}
    meter, _ = metered(piece, piece)
    assert not meter.finished
    odd = {"choices": [{"index": "0", "delta": {"content": "a"}, "finish_reason": ""}]}
    meter.feed(sse(odd))  # not understood, and looked at for its end only
    assert not meter.finished
    meter.feed(sse(stop()))
    assert meter.finished

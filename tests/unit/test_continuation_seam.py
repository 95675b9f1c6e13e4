"""What is kept of a stream, and what the second answer's events become at the seam."""

import json
from typing import Any

import pytest

from isochrone.core.continuation.kin import Kin
from isochrone.core.continuation.plan import (
    ContinueIds,
    ContinueText,
    FinishLocally,
    Lost,
    Plan,
    Replay,
    Retry,
)
from isochrone.core.metering.event import Endpoint, Tokens
from isochrone.gateway.continuation.coordinator import (
    Continuation,
    Loss,
    StreamRequest,
    message_of,
)
from isochrone.gateway.continuation.events import before_error
from isochrone.gateway.continuation.retained import FOLD_BYTES, MOST_TEXT_BYTES, Retained
from isochrone.gateway.continuation.seam import Seam
from tests.fixtures.recorded_answers import Received, received

LLAMA = Kin(engine="llamacpp", revision="r1")
VLLM = Kin(engine="vllm", revision="r1")
DONE = b"data: [DONE]\n\n"


def event(*choices: dict[str, Any], **more: Any) -> bytes:
    content = {"id": "first", "created": 1, "model": "m", "choices": choices, **more}
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def said(text: str, tokens: int | None = None, index: int = 0, **more: Any) -> bytes:
    if tokens is not None:
        more["timings"] = {"cache_n": 2, "prompt_n": 8, "predicted_n": tokens}
    return event({"index": index, "finish_reason": None, "delta": {"content": text}}, **more)


def called(index: int = 0, **call: Any) -> bytes:
    return event({"index": 0, "finish_reason": None,
                  "delta": {"tool_calls": [{"index": index, **call}]}})


def role(index: int = 0, **more: Any) -> bytes:
    delta = {"role": "assistant", "content": None}
    return event({"index": index, "finish_reason": None, "delta": delta}, **more)


def finish(reason: str = "stop", index: int = 0, **more: Any) -> bytes:
    return event({"index": index, "finish_reason": reason, "delta": {}}, **more)


def second(*events: bytes) -> bytes:
    """The same events of another answer."""
    return b"".join(events).replace(b'"id":"first","created":1', b'"id":"second","created":2')


def kept(*events: bytes) -> Retained:
    retained = Retained()
    for each in events:
        retained.take(each)
    return retained


class Lossy:
    """A stream of chat that lost its engine behind `events`."""

    def __init__(
        self, *events: bytes, kin: Kin = LLAMA, endpoint: Endpoint = "chat.completions",
        metered: Tokens | None = None, wants_usage: bool = True, **fields: Any,
    ) -> None:
        self.sent = b"".join(events)
        self.retained = kept(*events)
        self.kin = kin
        self.metered = Tokens() if metered is None else metered
        asked = {"messages": [{"role": "user", "content": "?"}], "temperature": 0, "model": "m"}
        if endpoint == "completions":
            asked["prompt"] = asked.pop("messages")[0]["content"]  # type: ignore[index]
        request = StreamRequest(
            endpoint=endpoint, body=json.dumps(asked | fields).encode(),
            n_choices=fields.get("n", 1), client_gets_usage=wants_usage,
        )
        self.continuation = Continuation(request, self.retained)

    def plan(self, **changes: Any) -> Plan:
        metered = self.metered if self.continuation.seam is None else self.seam.tokens(40)
        loss = Loss(kin=self.kin, metered=metered, usual_gap_ms=1.0, **changes)
        return self.continuation.plan(loss)

    @property
    def seam(self) -> Seam:
        assert self.continuation.seam is not None
        return self.continuation.seam

    def then(self, expected: Plan, *events: bytes) -> Received:
        """Go on as planned with another answer; what the client has in the end."""
        plan = self.plan()
        assert plan == expected
        assert not isinstance(plan, FinishLocally | Lost)
        self.body = json.loads(self.continuation.ask(plan))
        data = self.seam.feed(second(*events))
        self.retained.take(data)
        self.sent += data
        return received(self.sent)


# -- what is kept ------------------------------------------------------------------------------


def test_a_long_stream_is_packed_and_says_the_same() -> None:
    pieces = [role(), *(said(f"w{i} ", i + 1) for i in range(2000)), finish("length")]
    retained = kept(*pieces)
    assert sum(map(len, pieces)) > 3 * FOLD_BYTES
    delivered = retained.delivered()
    assert delivered is not None
    assert delivered.text() == "".join(f"w{i} " for i in range(2000))
    progress = delivered.progress(1)
    assert (progress.tokens, progress.events, progress.finished) == (2000, 2000, True)
    assert not progress.held_back
    assert delivered.last_piece == "w1999 "


@pytest.mark.parametrize("line_end", [b"\r", b"\r\n"])
@pytest.mark.parametrize("at_once", [True, False])
def test_lines_may_end_in_each_of_the_ways_that_events_may(line_end: bytes, at_once: bool) -> None:
    events = [each.replace(b"\n", line_end) for each in (role(), said("a", 1), said("b", 2))]
    delivered = kept(*([b"".join(events)] if at_once else events)).delivered()
    assert delivered is not None
    assert (delivered.text(), delivered.tokens) == ("ab", 2)


def test_a_stream_whose_lines_end_in_carriage_returns_goes_on_with_another_such() -> None:
    stream = Lossy(*(each.replace(b"\n", b"\r") for each in (role(), said("a", 1), said("b", 2))))
    plan = stream.plan()
    assert isinstance(plan, ContinueText)
    stream.continuation.ask(plan)
    rest = second(role(), said("c", 1), finish(), DONE).replace(b"\n", b"\r")
    out = stream.seam.feed(rest) + stream.seam.end()
    got = received(stream.sent.replace(b"\r", b"\n") + out)
    assert (got.text, got.done) == ("abc", 1)


def test_several_tokens_in_the_last_event_are_seen_behind_a_long_stream() -> None:
    pieces = [role(), *(said(f"w{i} ", i + 1) for i in range(1000)), said("x", 1004)]
    delivered = kept(*pieces).delivered()
    assert delivered is not None
    assert delivered.progress(1).held_back
    assert delivered.last_jump == 4


def test_a_long_stream_of_tool_calls_is_packed_and_says_the_same() -> None:
    calls = [called(function={"arguments": f"{i},"}) for i in range(2000)]
    delivered = kept(role(), called(id="call-1", function={"name": "f"}), *calls).delivered()
    assert delivered is not None
    arguments = delivered.text((0, "tool_calls/0/arguments"))
    assert arguments == "".join(f"{i}," for i in range(2000))
    assert delivered.tool_ids == {(0, "tool_calls/0"): "call-1"}


def test_text_beyond_the_bound_is_dropped() -> None:
    big = said("x" * 1000)
    enough, too_much = MOST_TEXT_BYTES // 1000, MOST_TEXT_BYTES // 1000 + 1
    assert kept(*[big] * enough).delivered() is not None
    retained = kept(*[big] * too_much)
    assert retained.delivered() is None
    assert retained.unkept == "not_retained"
    retained.take(said("more"))
    assert retained.delivered() is None


@pytest.mark.parametrize(
    "bad", [b'data: {"choices":[{"ind', b"data: no json\n\n", b'data: {"choices":7}\n\n']
)
def test_half_an_event_or_an_unknown_one_is_never_continued(bad: bytes) -> None:
    lossy = Lossy(role(), said("a", 1), bad)
    assert lossy.plan() == Lost(why="unreadable")


def test_an_error_that_was_delivered_is_the_end() -> None:
    lossy = Lossy(role(), said("a", 1), b'data: {"error":{"message":"out of memory"}}\n\n')
    assert lossy.plan() == Lost(why="unreadable")


def test_what_lies_before_an_error() -> None:
    error = b'data: {"error":{"message":"lost"}}\n\n'
    quoted = said('an "error" in the text')
    assert before_error(said("a") + quoted + error + DONE) == said("a") + quoted
    assert before_error(quoted) == quoted
    assert before_error(said("a")) == said("a")


# -- continued ---------------------------------------------------------------------------------


def test_a_continued_answer_is_one_answer() -> None:
    lossy = Lossy(role(), said("Once", 1), said(" upon", 2), max_tokens=9, seed=4)
    usage = {"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 14,
             "prompt_tokens_details": {"cached_tokens": 11, "x": 1}}
    got = lossy.then(
        ContinueText(tokens=2), role(), said(" a", 1), said(" time", 2), finish(),
        event(usage=usage), DONE,
    )
    assert got.text == "Once upon a time"
    assert (got.ids, got.created, got.roles, got.done) == ({"first"}, {1}, 1, 1)
    assert got.usages == [
        {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14,
         "prompt_tokens_details": {"cached_tokens": 10, "x": 1}}
    ]
    assert lossy.seam.outcome == "finished"
    assert lossy.seam.tokens(40).output == 4
    assert (lossy.body["max_tokens"], lossy.body["seed"]) == (7, 5)


def test_the_prompt_is_that_of_the_first_attempt() -> None:
    metered = Tokens(input_uncached=8, input_cached=2, output=2, source="running")
    lossy = Lossy(role(), said("Once", 1), said(" upon", 2), metered=metered, wants_usage=False)
    usage = {"prompt_tokens": 13, "completion_tokens": 1, "total_tokens": 14}
    got = lossy.then(
        ContinueText(tokens=2), said(" a", 1), finish(), event(usage=usage), DONE
    )
    assert got.usages == [], "the client did not ask"
    assert lossy.seam.tokens(40) == Tokens(
        input_uncached=8, input_cached=2, output=3, source="engine"
    )


def test_counts_before_and_without_any_of_the_second_attempt() -> None:
    metered = Tokens(input_uncached=8, input_cached=2, output=2, source="running")
    lossy = Lossy(role(), said("Once", 1), said(" upon", 2), metered=metered)
    lossy.then(ContinueText(tokens=2))
    assert lossy.seam.tokens(40) == metered
    lossy.seam.feed(second(said(" a"), said(" time")))
    assert lossy.seam.tokens(40) == Tokens(
        input_uncached=8, input_cached=2, output=4, source="counted"
    )
    uncounted = Lossy(role(), said("Once"), said(" upon"))
    uncounted.metered = Tokens(input_uncached=10, output=2, source="counted")
    uncounted.then(Replay(), said("On"))
    assert uncounted.seam.tokens(40) == uncounted.metered
    retried = Lossy(role())
    retried.then(Retry())
    assert retried.seam.tokens(40) == Tokens()


def test_running_counts_are_those_of_the_whole_run() -> None:
    metered = Tokens(input_uncached=8, input_cached=2, output=2, source="running")
    lossy = Lossy(role(), said("Once", 1), said(" upon", 2), metered=metered)
    lossy.then(ContinueText(tokens=2), said(" a", 1))
    last = json.loads(lossy.sent.rstrip().rpartition(b"data: ")[2])
    assert last["timings"] == {"cache_n": 2, "prompt_n": 8, "predicted_n": 3}
    assert lossy.seam.tokens(40).source == "running"


def test_comments_pass_and_errors_do_not() -> None:
    lossy = Lossy(role(), said("Once", 1))
    got = lossy.then(ContinueText(tokens=1), b": ping\n\n", said(" upon", 1))
    assert got.text == "Once upon"
    assert b": ping\n\n" in lossy.sent
    assert lossy.seam.feed(b'data: {"error":{"message":"x"}}\n\n' + said("no", 2)) == b""
    assert (lossy.seam.outcome, lossy.seam.over) == ("error", True)
    assert not lossy.seam.finished


def test_what_is_no_event_ends_the_seam() -> None:
    lossy = Lossy(role(), said("Once", 1))
    lossy.then(ContinueText(tokens=1), b"data: <html>\n\n")
    assert lossy.seam.outcome == "error"
    lossy = Lossy(role(), said("Once", 1))
    lossy.then(ContinueText(tokens=1))
    assert lossy.seam.feed(b"x" * 300_000) == b""
    assert lossy.seam.outcome == "error"


def test_a_stop_string_across_the_seam_ends_the_answer_there() -> None:
    """For an engine that hands out what may become a stop string."""
    lossy = Lossy(role(), said("go", 1), said(" E", 2), temperature=1, stop=["END"])
    lossy.plan()
    lossy.continuation.ask(ContinueText(tokens=2))
    assert lossy.seam.feed(second(said("N", 1))) == b""
    data = lossy.seam.feed(second(said("D, and", 2), said(" on", 3)))
    got = received(lossy.sent + data)
    assert (got.text, got.finish, got.done) == ("go E", {0: "stop"}, 1)
    assert (lossy.seam.outcome, lossy.seam.over, lossy.seam.finished) == ("stopped", True, True)
    assert got.usages[0]["completion_tokens"] == 4


def test_what_only_began_like_a_stop_string_comes_late() -> None:
    lossy = Lossy(role(), said("go", 1), said(" E", 2), temperature=1, stop=["END"])
    lossy.plan()
    lossy.continuation.ask(ContinueText(tokens=2))
    assert lossy.seam.feed(second(said("N", 1))) == b""
    data = lossy.seam.feed(second(said("d", 2), said(" END", 3), finish(), DONE))
    assert received(lossy.sent + data).text == "go ENd END"
    lossy.continuation.ask(ContinueText(tokens=2))
    data = lossy.seam.feed(second(said("N", 1), finish(), DONE))
    assert received(lossy.sent + data).text == "go EN"


def test_completions_by_ids() -> None:
    def part(text: str, ids: list[int], **more: Any) -> bytes:
        usage = {"prompt_tokens": 3, "completion_tokens": more.pop("tokens")}
        choice = {"index": 0, "text": text, "finish_reason": None, "token_ids": ids, **more}
        return event(choice, object="text_completion", usage=usage)

    lossy = Lossy(
        part("Once", [7], tokens=1, prompt_token_ids=[1, 2, 3]), part(" up", [8], tokens=2),
        part("", [9], tokens=3), kin=VLLM, endpoint="completions",
    )
    got = lossy.then(
        ContinueIds(tokens=2), part("on", [10], tokens=1, prompt_token_ids=[1, 2, 3, 7, 8])
    )
    assert lossy.body["prompt"] == [1, 2, 3, 7, 8], "ids without text are made again"
    assert got.text == "Once upon"
    assert b"[1,2,3,7,8]" not in lossy.sent


# -- replayed ----------------------------------------------------------------------------------


def test_a_tool_call_is_replayed_under_its_first_id() -> None:
    tools: list[dict[str, str]] = [{"type": "function"}]
    events = [
        role(), called(id="call-1", type="function", function={"name": "f", "arguments": ""}),
        called(function={"arguments": '{"a"'}), called(function={"arguments": ":1}"}),
        called(1, id="call-2", type="function", function={"name": "g", "arguments": "{}"}),
        finish("tool_calls"), DONE,
    ]
    for cut in range(1, len(events)):
        lossy = Lossy(*events[:cut], tools=tools)
        if cut >= 6:
            assert lossy.plan() == FinishLocally(reason=None)
            continue
        again = [each.replace(b"call-", b"other-") for each in events]
        got = lossy.then(Retry() if cut == 1 else Replay(), *again)
        assert got.channels == {
            (0, "0/name"): "f", (0, "0/arguments"): '{"a":1}',
            (0, "1/name"): "g", (0, "1/arguments"): "{}",
        }
        ids = [("other-1" if cut < 2 else "call-1"), ("other-2" if cut < 5 else "call-2")]
        assert (got.tool_ids, got.roles, got.done) == (ids, 1, 1)


def test_several_choices_and_reasoning_are_replayed() -> None:
    def thought(text: str, index: int) -> bytes:
        return event({"index": index, "finish_reason": None, "delta": {"reasoning_content": text}})

    events = [
        role(0), role(1), thought("hm", 0), said("a", index=1), said("b", index=0),
        finish("stop", 1), said("c", index=0), finish("length", 0), DONE,
    ]
    whole = received(b"".join(events))
    for cut in range(3, 8):
        lossy = Lossy(*events[:cut], n=2)
        # the other engine makes its events otherwise, and the choices in another order
        got = lossy.then(
            Replay(), role(1), said("a", index=1), finish("stop", 1), role(0), thought("h", 0),
            thought("m", 0), said("bc", index=0), finish("length", 0), DONE,
        )
        assert got.channels == whole.channels
        assert (got.finish, got.roles, got.done) == (whole.finish, 2, 1)


@pytest.mark.parametrize(
    "again",
    [
        [role(), said("Onze")], [role(), said("On"), said("c"), said("E")],
        [role(), said("On"), finish()], [role(), said("On"), DONE],
        [role(), event({"index": 0, "delta": {"content": "Once"}, "finish_reason": None}),
         called(function={"name": "g"})],
    ],
)
def test_a_replay_that_differs_adds_nothing(again: list[bytes]) -> None:
    lossy = Lossy(
        role(), said("Once", 1), called(function={"name": "f"}), tools=[{"type": "function"}]
    )
    before = lossy.sent
    lossy.then(Replay(), *again)
    assert lossy.seam.outcome == "differs"
    assert lossy.sent == before
    lost = lossy.plan()
    assert lost == Lost(why="replay_differs")
    assert "another replica said something else" in message_of(lost)


def test_a_sampled_answer_whose_replay_differs_is_continued() -> None:
    lossy = Lossy(role(), said("Once", 1), said(" upon", 2), temperature=1)
    lossy.then(Replay(), role(), said("Twice", 1))
    got = lossy.then(ContinueText(tokens=2), said(" a", 1), finish(), DONE)
    assert got.text == "Once upon a"
    assert lossy.continuation.continuations == 2


def test_the_bill_of_a_replay_is_one_run() -> None:
    metered = Tokens(input_uncached=8, input_cached=2, output=2, source="running")
    lossy = Lossy(role(), said("Once", 1), said(" upon", 2), temperature=1, metered=metered)
    usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13,
             "prompt_tokens_details": {"cached_tokens": 9}}
    lossy.then(Replay(), role(), said("Once", 1))
    assert lossy.seam.tokens(40).output == 2, "delivered, though not yet said again"
    lossy.seam.feed(second(said(" upon", 2), said(" a", 3), finish(), event(usage=usage), DONE))
    assert lossy.seam.tokens(40) == Tokens(
        input_uncached=8, input_cached=2, output=3, source="engine"
    )


# -- ended here --------------------------------------------------------------------------------


def test_the_limit_was_reached() -> None:
    metered = Tokens(input_uncached=8, input_cached=2, output=2, source="running")
    lossy = Lossy(role(), said("Once", 1), said(" upon", 2), metered=metered, max_tokens=2)
    plan = lossy.plan()
    assert isinstance(plan, FinishLocally)
    got = received(lossy.sent + lossy.continuation.closing(plan))
    assert (got.finish, got.done, got.ids) == ({0: "length"}, 1, {"first"})
    assert got.usages[0]["total_tokens"] == 12
    assert lossy.continuation.tokens() == metered


def test_only_the_end_was_missing() -> None:
    metered = Tokens(input_uncached=8, input_cached=2, output=1, source="running")
    lossy = Lossy(role(), said("Once", 1), finish(), metered=metered, wants_usage=False)
    plan = lossy.plan()
    assert isinstance(plan, FinishLocally)
    assert lossy.continuation.closing(plan) == DONE
    complete = Lossy(role(), said("Once", 1), finish(), DONE, metered=metered)
    plan = complete.plan()
    assert isinstance(plan, FinishLocally)
    assert complete.continuation.closing(plan) == b""


def test_other_endpoints_are_not_continued() -> None:
    lossy = Lossy(role(), said("Once", 1), endpoint="responses")
    assert lossy.plan() == Lost(why="endpoint")
    assert Lossy(role(), said("a", 1)).plan(client_gone=True) == Lost(why="client_gone")


def test_a_usage_that_says_nothing_leaves_the_counts_as_they_were() -> None:
    lost = Lossy(role(), said("a", 1), said("b", 2), metered=Tokens(
        input_uncached=8, input_cached=2, output=2, source="running",
    ))
    plan = lost.plan()
    assert not isinstance(plan, Lost | FinishLocally)
    lost.continuation.ask(plan)
    lost.seam.feed(second(role(), said("c", 1), finish(), event(usage={}), DONE))
    assert lost.seam.finished
    expected = Tokens(input_uncached=8, input_cached=2, output=3, source="running")
    assert lost.seam.tokens(40) == expected


# -- logprobs -----------------------------------------------------------------------------------


def judged(text: str, token: str, tokens: int) -> bytes:
    """An event of vLLM with the logprob of its only token, which has no text while a character is
    not whole."""
    choice = {
        "index": 0, "finish_reason": None, "delta": {"content": text},
        "logprobs": {"content": [{"token": token, "logprob": -0.5}]},
    }
    return event(choice, usage={"prompt_tokens": 9, "completion_tokens": tokens})


def tokens_judged(stream: bytes) -> list[str]:
    return [
        each["token"]
        for line in stream.decode().split("\n") if line.startswith("data: {")
        for choice in json.loads(line[6:])["choices"]
        for each in (choice.get("logprobs") or {}).get("content", ())
    ]


@pytest.mark.parametrize("fields", [{}, {"temperature": 0.7}], ids=["continued", "replayed"])
@pytest.mark.parametrize("lost_behind", [2, 3, 4])
def test_each_token_has_its_logprob_once_be_there_text_or_not(
    fields: dict[str, Any], lost_behind: int
) -> None:
    whole = [
        judged("a", "a", 1), judged("", "x", 2), judged("", "y", 3), judged("é", "z", 4),
        judged("", "u", 5), judged("b", "v", 6),
    ]
    stream = Lossy(role(), *whole[:lost_behind], kin=VLLM, logprobs=True, **fields)
    plan = stream.plan()
    assert isinstance(plan, Replay if fields else ContinueText)
    stream.continuation.ask(plan)
    first = 0 if fields else 1 if lost_behind < 4 else 4
    out = stream.seam.feed(second(role(), *whole[first:], finish(), DONE))
    assert tokens_judged(stream.sent + out) == ["a", "x", "y", "z", "u", "v"]

"""What a second answer must not add to a first one, and what both of them cost."""

import json
from typing import Any

import pytest

from isochrone.core.continuation.plan import ContinueIds, ContinueText, FinishLocally, Lost, Replay
from isochrone.core.metering.event import Tokens
from isochrone.gateway.continuation.retained import Retained
from isochrone.gateway.meter import StreamMeter
from tests.fixtures.recorded_answers import received
from tests.unit.test_continuation_seam import (
    DONE,
    VLLM,
    Lossy,
    called,
    event,
    finish,
    role,
    said,
    second,
)

TOOLS = [{"type": "function"}]
CALL = called(id="call-1", type="function", function={"name": "f", "arguments": "{}"})


def thought(text: str) -> bytes:
    return event({"index": 0, "finish_reason": None, "delta": {"reasoning_content": text}})


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ([said("Let me see", 3)], [CALL, finish("tool_calls"), DONE]),
        ([said("Let me see", 3)], [said("Let", 1), CALL, finish("tool_calls"), DONE]),
        ([said("Let me see", 3)], [thought("Hm"), said("Let me see", 9), finish(), DONE]),
        ([thought("Hm"), thought(" so")], [thought("Hm"), said("Yes", 2), finish(), DONE]),
        ([CALL], [called(id="call-1", function={"name": "f"}), said("No", 2), finish(), DONE]),
    ],
)
def test_nothing_else_is_said_before_all_is_repeated(
    first: list[bytes], again: list[bytes]
) -> None:
    """A model says one thing after the other: where another channel is the first to go on, the
    answer is another one."""
    lossy = Lossy(role(), *first, tools=TOOLS)
    before = lossy.sent
    lossy.then(Replay(), role(), *again)
    assert lossy.seam.outcome == "differs"
    assert lossy.sent == before
    assert lossy.plan() == Lost(why="replay_differs")


def test_one_event_may_end_what_is_repeated_and_begin_what_is_new() -> None:
    both = event({"index": 0, "finish_reason": None, "delta": {
        "content": "Yes", "reasoning_content": "Hm, so",
    }})
    lossy = Lossy(role(), thought("Hm"), thought(","), tools=TOOLS)
    got = lossy.then(Replay(), role(), both, finish(), DONE)
    assert got.channels == {(0, "reasoning_content"): "Hm, so", (0, "content"): "Yes"}
    assert lossy.seam.outcome == "finished"


def test_a_choice_that_has_its_end_says_nothing_more() -> None:
    events = [role(0), role(1), said("a", index=0), said("b", index=1), finish("stop", 0)]
    lossy = Lossy(*events, n=2)
    before = lossy.sent
    lossy.then(Replay(), role(0), role(1), said("a", index=0), said("b", index=1), said("c"))
    assert lossy.seam.outcome == "differs"
    assert lossy.sent == before


def test_a_difference_costs_nothing() -> None:
    metered = Tokens(input_uncached=8, input_cached=2, output=2, source="running")
    lossy = Lossy(
        role(), said("Once", 1), said(" upon", 2), temperature=1, metered=metered, tools=TOOLS
    )
    lossy.then(Replay(), role(), said("Once", 1), said(" there were three", 4))
    assert lossy.plan() == Lost(why="replay_differs")
    assert lossy.continuation.tokens() == metered


def test_what_is_asked_for_once_more_was_delivered() -> None:
    metered = Tokens(input_uncached=8, input_cached=2, output=5, source="running")
    lossy = Lossy(role(), said("Once", 1), said(" upon", 5), stop=["END"], metered=metered)
    lossy.then(ContinueText(tokens=5, rewind=True))
    assert lossy.seam.tokens(40) == metered


# -- several choices -------------------------------------------------------------------------------

PAIR = [
    role(0), role(1), said("a", 1, index=0), said("x", 1, index=1), said("b", 2, index=0),
    said("y", 2, index=1), finish("stop", 1),
    event(usage={"prompt_tokens": 10, "completion_tokens": 2,
                 "prompt_tokens_details": {"cached_tokens": 2}}),
    said("c", 3, index=0), said("d", 4, index=0), finish("length", 0),
    event(usage={"prompt_tokens": 10, "completion_tokens": 4,
                 "prompt_tokens_details": {"cached_tokens": 2}}),
    DONE,
]


def metered_by(*events: bytes) -> Tokens:
    meter = StreamMeter(2, "chat.completions", True)
    meter.feed(b"".join(events))
    return meter.tokens(40)


@pytest.mark.parametrize("cut", range(3, 11))
def test_all_choices_of_a_replay_are_charged(cut: int) -> None:
    """As llama.cpp counts them: each apart, with a usage of its own."""
    lossy = Lossy(*PAIR[:cut], n=2, metered=metered_by(*PAIR[:cut]))
    got = lossy.then(Replay(), *PAIR)
    assert got.finish == {0: "length", 1: "stop"}
    assert lossy.seam.tokens(40) == metered_by(*PAIR)
    assert [usage["completion_tokens"] for usage in got.usages] == [2, 4]


@pytest.mark.parametrize("cut", range(3, 11))
def test_choices_may_end_in_another_order_in_a_replay(cut: int) -> None:
    ahead = [*PAIR[:2], PAIR[2], PAIR[4], *PAIR[8:12], PAIR[3], PAIR[5], PAIR[6], PAIR[7], DONE]
    lossy = Lossy(*PAIR[:cut], n=2, metered=metered_by(*PAIR[:cut]))
    got = lossy.then(Replay(), *ahead)
    assert got.finish == {0: "length", 1: "stop"}
    assert lossy.seam.tokens(40) == metered_by(*PAIR)
    assert sorted(usage["completion_tokens"] for usage in got.usages) == [2, 4]


@pytest.mark.parametrize(("cut", "added"), [(11, [4]), (12, [])])
def test_the_choice_that_ended_last_has_a_usage_too(cut: int, added: list[int]) -> None:
    lossy = Lossy(*PAIR[:cut], n=2, metered=metered_by(*PAIR[:cut]))
    plan = lossy.plan()
    assert isinstance(plan, FinishLocally)
    rest = received(lossy.continuation.closing(plan))
    assert [usage["completion_tokens"] for usage in rest.usages] == added
    assert [usage["prompt_tokens"] for usage in rest.usages] == [10] * len(added)
    assert rest.done == 1


def test_a_usage_of_all_choices_stands_alone() -> None:
    whole = [*PAIR[:7], *PAIR[8:11], event(usage={"prompt_tokens": 10, "completion_tokens": 6})]
    lossy = Lossy(*whole, n=2, metered=metered_by(*whole))
    plan = lossy.plan()
    assert isinstance(plan, FinishLocally)
    assert received(lossy.continuation.closing(plan)).usages == []


def test_all_choices_of_a_replay_are_charged_when_it_is_lost_too() -> None:
    lossy = Lossy(*PAIR[:5], n=2, metered=metered_by(*PAIR[:5]))
    lossy.then(Replay(), *PAIR[:5])
    assert lossy.seam.tokens(40) == metered_by(*PAIR[:5])
    lossy.then(Replay(), *PAIR[:11])
    assert lossy.seam.tokens(40) == metered_by(*PAIR[:11])
    plan = lossy.plan()
    assert isinstance(plan, FinishLocally)
    assert lossy.continuation.tokens().output == 6


# -- ids -------------------------------------------------------------------------------------------


def test_an_answer_in_ids_is_continued_only_where_the_prompt_is_known_so() -> None:
    def part(text: str, ids: list[int], tokens: int) -> bytes:
        usage = {"prompt_tokens": 3, "completion_tokens": tokens}
        choice: dict[str, Any] = {
            "index": 0, "text": text, "finish_reason": None, "token_ids": ids,
        }
        return event(choice, object="text_completion", usage=usage)

    lossy = Lossy(part("Once", [7], 1), part(" up", [8], 2), kin=VLLM, endpoint="completions")
    lossy.then(ContinueText(tokens=2))
    assert lossy.body["prompt"] == "?Once up"


def test_ids_without_text_go_on_too() -> None:
    """Of half a character, for one."""
    def part(text: str, ids: list[int], tokens: int, **more: Any) -> bytes:
        usage = {"prompt_tokens": 3, "completion_tokens": tokens}
        choice = {"index": 0, "text": text, "finish_reason": None, "token_ids": ids, **more}
        return event(choice, object="text_completion", usage=usage)

    lossy = Lossy(
        part("Once", [7], 1, prompt_token_ids=[1, 2]), part("", [8], 2), kin=VLLM,
        endpoint="completions",
    )
    lossy.then(
        ContinueIds(tokens=1), part("", [8], 1), part("", [9], 2), part("\U0001f98a", [10], 3),
        part("", [11], 4),
    )
    chunks = [json.loads(each[6:]) for each in lossy.sent.split(b"\n\n")[:-1]]
    ids = [number for chunk in chunks for number in chunk["choices"][0]["token_ids"]]
    assert ids == [7, 8, 9, 10, 11]
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 4, 5]
    lossy.then(ContinueIds(tokens=4))
    assert lossy.body["prompt"] == [1, 2, 7, 8, 9, 10]


# -- what engines write ----------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [
    {"n_predict": 1e300}, {"max_tokens": 2**63 - 1}, {"min_tokens": 1e300}, {"seed": 1e300},
    {"seed": 2**70}, {"n_predict": 2**70},
])
def test_no_number_of_a_client_ends_the_gateway(fields: dict[str, Any]) -> None:
    lossy = Lossy(role(), said("Once", 1), said(" upon", 2), **fields)
    plan = lossy.plan()
    assert not isinstance(plan, Lost | FinishLocally)
    json.loads(lossy.continuation.ask(plan))


def test_nulls_change_nothing() -> None:
    lossy = Lossy(role(), CALL, tools=TOOLS)
    got = lossy.then(
        Replay(), role(), CALL, called(function=None),
        event({"index": 0, "delta": None, "finish_reason": "stop"}), DONE,
    )
    assert (got.finish, got.done) == ({0: "stop"}, 1)


@pytest.mark.parametrize("half", [b"\\ud83d", b"\\ude00"])
def test_half_a_character_is_never_continued(half: bytes) -> None:
    events = [said("a", at) for at in range(1, 30)]
    odd = said("?", 30).replace(b"?", half)
    for kept in ([*events, odd], [*events[:9], odd, *events[9:]], [odd, *events]):
        retained = Retained()
        for each in [role(), *kept]:
            retained.take(each)
        delivered = retained.delivered()
        assert delivered is None or "\ud83d" not in delivered.text()
    assert second(odd) != odd
    assert received(b"").done == 0

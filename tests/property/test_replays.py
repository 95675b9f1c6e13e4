"""However often a replay is lost, and however its engine makes its events, its client puts together
one answer, and pays for it once."""

from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from isochrone.core.continuation.plan import FinishLocally, Lost
from isochrone.core.metering.event import Tokens
from isochrone.gateway.meter import StreamMeter
from tests.fixtures.recorded_answers import received
from tests.unit.test_continuation_seam import DONE, Lossy, event, finish, role, second

CHANNELS = ("reasoning_content", "content", "tool 0", "tool 1")
PIECES = ("a", "bc", "\U0001f98a", "é", "\n", '"', "")
Answer = list[list[tuple[str, str]]]  # of each choice its tokens: (channel, text)


def an_answer(rng: Random, choices: int) -> Answer:
    return [
        [
            (channel, rng.choice(PIECES))
            for channel in CHANNELS if rng.random() < 0.6
            for _ in range(rng.randrange(1, 4))
        ]
        for _ in range(choices)
    ]


def delta_of(tokens: list[tuple[str, str]], named: set[str]) -> dict[str, Any]:
    delta: dict[str, Any] = {}
    calls: dict[str, dict[str, Any]] = {}
    for channel, text in tokens:
        kind, _, number = channel.partition(" ")
        if kind != "tool":
            delta[channel] = delta.get(channel, "") + text
            continue
        call = calls.setdefault(number, {"index": int(number), "function": {"arguments": ""}})
        call["function"]["arguments"] += text
        if channel not in named:
            named.add(channel)
            call |= {"id": f"call-{number}", "function": {"name": "f", **call["function"]}}
    return delta | ({"tool_calls": list(calls.values())} if calls else {})


def told(rng: Random, answer: Answer) -> list[bytes]:
    """As llama.cpp tells it: tokens in events of some, choices in turns, each with counts apart."""
    places = [0] * len(answer)
    named: list[set[str]] = [set() for _ in answer]
    events = [role(index) for index in range(len(answer))]
    left = list(range(len(answer)))
    while left:
        index = rng.choice(left)
        tokens = answer[index][places[index] : places[index] + rng.randrange(1, 4)]
        places[index] += len(tokens)
        if tokens:
            timings = {"cache_n": 2, "prompt_n": 8, "predicted_n": places[index]}
            events.append(event(
                {"index": index, "finish_reason": None, "delta": delta_of(tokens, named[index])},
                timings=timings,
            ))
        if places[index] == len(answer[index]):
            usage = {
                "prompt_tokens": 10, "completion_tokens": places[index],
                "prompt_tokens_details": {"cached_tokens": 2},
            }
            events += [finish("stop", index), event(usage=usage)]
            left.remove(index)
    return [*events, DONE]


def metered(choices: int, events: list[bytes]) -> Tokens:
    meter = StreamMeter(choices, "chat.completions", True)
    meter.feed(b"".join(events))
    return meter.tokens(40)


@given(st.integers(0, 2**32), st.integers(1, 3))
def test_what_is_replayed_is_one_answer_and_one_bill(number: int, choices: int) -> None:
    rng = Random(number)
    answer = an_answer(rng, choices)
    runs = [told(rng, answer) for _ in range(3)]
    expected, bill = received(b"".join(runs[0])), metered(choices, runs[0])
    first = runs[0][: rng.randrange(1, len(runs[0]))]
    lossy = Lossy(
        *first, n=choices, tools=[{"type": "function"}], metered=metered(choices, first)
    )
    charged: Tokens | None = None
    for events in (runs[1][: rng.randrange(len(runs[1]))], runs[2]):
        plan = lossy.plan()
        assert not isinstance(plan, Lost)
        if isinstance(plan, FinishLocally):
            lossy.sent += lossy.continuation.closing(plan)
            charged = lossy.continuation.tokens()
            break
        lossy.continuation.ask(plan)
        data = lossy.seam.feed(second(*events))
        lossy.retained.take(data)
        lossy.sent += data
        assert lossy.seam.outcome in ("open", "finished")
    if charged is None:
        assert lossy.seam.done
        charged = lossy.seam.tokens(40)
    got = received(lossy.sent)
    assert (got.channels, got.finish) == (expected.channels, expected.finish)
    assert (got.roles, got.done, got.ids) == (choices, 1, {"first"})
    if bill.output:
        assert (charged.input_uncached, charged.input_cached) == (8, 2)
        assert charged.output == bill.output

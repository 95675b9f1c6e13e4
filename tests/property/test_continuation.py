"""Wherever a stream is cut, the client puts together one answer: the undisturbed one."""

import json
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

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
from isochrone.gateway.continuation.coordinator import Continuation, Loss, StreamRequest
from isochrone.gateway.continuation.retained import Retained
from isochrone.gateway.continuation.seam import Seam
from isochrone.gateway.meter import StreamMeter
from tests.fixtures.recorded_answers import (
    CACHED_TOKENS,
    PROMPT_TOKENS,
    DeterministicEngine,
    Received,
    received,
)

LLAMA = Kin(engine="llamacpp", revision="r1")
TOKENS = ["Once", " upon", " a", " ", "time", ",\n", "END", " E", "ND", "é", "\U0001f98a", '"', "N"]
STOPS = ["END", "ND", " time", "a time", "xyz"]


def a_body(endpoint: Endpoint, **fields: Any) -> bytes:
    chat = endpoint == "chat.completions"
    asked = {"messages": [{"role": "user", "content": "?"}]} if chat else {"prompt": "Tell: "}
    body = {"model": "m", "stream": True, "temperature": 0, "seed": 5, **asked, **fields}
    return json.dumps(body).encode()


class Run:
    """One client's stream over as many attempts as it takes."""

    def __init__(
        self, engine: DeterministicEngine, endpoint: Endpoint, body: bytes, *,
        wants_usage: bool = True, kin: Kin = LLAMA,
    ) -> None:
        self.engine, self.body, self.kin = engine, body, kin
        self.retained = Retained()
        self.continuation: Continuation | None = None
        self.meter: StreamMeter | Seam = StreamMeter(1, endpoint, wants_usage)
        self.request = StreamRequest(
            endpoint=endpoint, body=body, n_choices=1, client_gets_usage=wants_usage
        )
        self.sent = b""
        self.plans: list[Plan] = []

    def send(self, data: bytes) -> None:
        if data:
            self.sent += data
            self.retained.take(data)

    def attempt(self, body: bytes, cut: int | None, step: int) -> None:
        """Answer up to byte `cut`, in reads of `step` bytes."""
        stream = self.engine.stream(body)[:cut]
        for at in range(0, len(stream), step):
            self.send(self.meter.feed(stream[at : at + step]))

    def go(self, cuts: list[int | None], step: int) -> Tokens:
        """All attempts, each cut where it is told; the bill of the run."""
        self.attempt(self.body, cuts[0], step)
        for cut in [*cuts[1:], None]:
            plan = self.lost()
            if isinstance(plan, Lost):
                return self.meter.tokens(4)
            if isinstance(plan, FinishLocally):
                assert self.continuation is not None
                self.send(self.continuation.closing(plan))
                return self.continuation.tokens()
            self.again(plan, cut, step)
            if self.sent.endswith(b"[DONE]\n\n"):
                break
        return self.meter.tokens(4)

    def lost(self) -> Plan:
        if self.continuation is None:
            self.continuation = Continuation(self.request, self.retained)
        plan = self.continuation.plan(
            Loss(kin=self.kin, metered=self.meter.tokens(4), usual_gap_ms=1.0)
        )
        self.plans.append(plan)
        return plan

    def again(
        self, plan: Retry | ContinueIds | ContinueText | Replay, cut: int | None, step: int
    ) -> None:
        assert self.continuation is not None
        body = self.continuation.ask(plan)
        assert self.continuation.seam is not None
        self.meter = self.continuation.seam
        self.attempt(body, cut, step)


def undisturbed(answer: list[str], endpoint: Endpoint, body: bytes) -> Received:
    return received(DeterministicEngine(answer=answer).stream(body))


def is_one_answer(got: Received, expected: Received) -> None:
    assert got.channels == expected.channels
    assert (got.finish, got.roles, got.done) == (expected.finish, expected.roles, 1)
    assert (len(got.ids), len(got.created), len(got.models)) == (1, 1, 1)


@given(
    st.lists(st.sampled_from(TOKENS), max_size=25),
    st.sampled_from(["chat.completions", "completions"]),
    st.lists(st.sampled_from(STOPS), max_size=2, unique=True),
    st.one_of(st.none(), st.integers(1, 30)),
    st.lists(st.integers(0, 4000), min_size=1, max_size=2),
    st.integers(1, 600),
)
def test_every_cut_of_a_plain_answer(
    answer: list[str], endpoint: Endpoint, stops: list[str], most: int | None, cuts: list[int],
    step: int,
) -> None:
    fields = {} if most is None else {"max_tokens": most}
    body = a_body(endpoint, stop=stops, **fields)
    expected = undisturbed(answer, endpoint, body)
    run = Run(DeterministicEngine(answer=answer), endpoint, body)
    length = len(DeterministicEngine(answer=answer).stream(body))
    bill = run.go([cut % length for cut in cuts], step)
    got = received(run.sent)
    if stops and run.plans[-1] == FinishLocally(reason="length"):
        # The token that reached the limit may have completed a stop string as well.
        expected = replace(expected, finish=got.finish)
    is_one_answer(got, expected)
    if not got.usages:
        assert not got.text, "only an engine that counted nothing says no usage"
        return
    usage = got.usages[-1]
    assert usage["prompt_tokens"] == PROMPT_TOKENS
    assert usage["completion_tokens"] <= expected.usages[-1]["completion_tokens"]
    # Tokens of a stop string that the lost engine made, and nobody got, are not charged.
    if not stops:
        assert usage["completion_tokens"] == expected.usages[-1]["completion_tokens"]
    assert (bill.input_uncached + bill.input_cached, bill.output) == (
        PROMPT_TOKENS, usage["completion_tokens"],
    )
    assert bill.input_cached in (CACHED_TOKENS, usage["prompt_tokens_details"]["cached_tokens"])
    seeds = [asked["seed"] for asked in run.engine.asked]
    assert len(seeds) <= 3
    assert seeds[0] == 5


@given(
    st.lists(st.sampled_from(TOKENS), min_size=1, max_size=25), st.integers(0, 4000),
    st.integers(1, 600), st.booleans(),
)
def test_every_cut_of_a_replayed_answer(
    answer: list[str], cut: int, step: int, wants_usage: bool
) -> None:
    body = a_body("chat.completions", temperature=0.7)
    expected = undisturbed(answer, "chat.completions", body)
    run = Run(DeterministicEngine(answer=answer), "chat.completions", body,
              wants_usage=wants_usage)
    bill = run.go([cut % len(DeterministicEngine(answer=answer).stream(body))], step)
    got = received(run.sent)
    is_one_answer(got, expected)
    assert bool(got.usages) == wants_usage
    assert (bill.input_uncached + bill.input_cached, bill.output) == (PROMPT_TOKENS, len(answer))
    assert {asked["seed"] for asked in run.engine.asked} == {5}
    assert all("continue_final_message" not in asked for asked in run.engine.asked)


@given(st.lists(st.sampled_from(TOKENS), min_size=2, max_size=25), st.data())
def test_a_replay_that_differs_shows_nothing_of_the_difference(
    answer: list[str], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(answer) - 1))
    body = a_body("chat.completions", tools=[{"type": "function"}])
    run = Run(DeterministicEngine(answer=answer), "chat.completions", body)
    stream = run.engine.stream(body)
    ends = [i for i in range(len(stream)) if stream.startswith(b"\n\n", i)]
    run.engine.asked.clear()
    run.attempt(body, ends[at + 1] + 2, 300)
    before = run.sent
    plan = run.lost()
    assert plan == Replay()
    run.engine.answer = [*answer[:at], "!", *answer[at:]]
    run.again(Replay(), None, 300)
    assert isinstance(run.meter, Seam)
    assert (run.meter.outcome, run.meter.over, run.meter.finished) == ("differs", True, False)
    assert run.sent == before
    assert run.lost() == Lost(why="replay_differs")
    assert run.meter.tokens(4).output == at + 1


@given(st.lists(st.sampled_from(TOKENS), min_size=3, max_size=25), st.integers(0, 20))
def test_unknown_revisions_are_never_mixed(answer: list[str], at: int) -> None:
    body = a_body("chat.completions")
    run = Run(DeterministicEngine(answer=answer), "chat.completions", body,
              kin=replace(LLAMA, revision=None))
    run.attempt(body, 700 + at, 300)
    assert run.lost() == Lost(why="unknown_revision")

"""Which way a lost stream goes on, by table: engine, request, what was delivered, bounds."""

from dataclasses import replace
from typing import Any

import pytest

from isochrone.core.continuation.kin import Kin, kin_of
from isochrone.core.continuation.plan import (
    ContinueIds,
    ContinueText,
    Features,
    FinishLocally,
    Lost,
    Plan,
    Progress,
    Replay,
    Retry,
    State,
    decide,
)
from isochrone.core.continuation.stops import across, tail_for
from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.world.model import Replica

K = 20
LLAMA = Kin(engine="llamacpp", revision="r1")
VLLM = Kin(engine="vllm", revision="r1")
OTHER = Kin(engine="unknown", revision="r1")
TEXT = ContinueText(tokens=K)
AGAIN = ContinueText(tokens=K, rewind=True)
REPLAY = Replay()


def a_state(kin: Kin = LLAMA, **changes: Any) -> State:
    """20 tokens of plain text at 10 ms each, at temperature 0; features and progress by name."""
    features = {k: changes.pop(k) for k in list(changes) if k in Features.__dataclass_fields__}
    progress = {k: changes.pop(k) for k in list(changes) if k in Progress.__dataclass_fields__}
    state = State(
        endpoint="chat.completions", lost=kin, features=Features(**features), usual_gap_ms=10.0,
        progress=replace(
            Progress(tokens=K, events=K, nothing=False, only_text=True, finished=False), **progress
        ),
    )
    return replace(state, **changes)


@pytest.mark.parametrize(
    ("changes", "llamacpp", "vllm", "unknown"),
    [
        ({}, TEXT, TEXT, REPLAY),
        ({"endpoint": "completions"}, TEXT, TEXT, REPLAY),
        ({"endpoint": "completions", "ids_complete": True}, TEXT, ContinueIds(tokens=K), REPLAY),
        ({"ids_complete": True}, TEXT, TEXT, REPLAY),
        ({"stateful": "tools"}, REPLAY, REPLAY, REPLAY),
        ({"several": True}, REPLAY, REPLAY, REPLAY),
        ({"only_text": False}, REPLAY, REPLAY, REPLAY),
        ({"sampled": True}, REPLAY, REPLAY, REPLAY),
        ({"schema": True}, REPLAY, REPLAY, REPLAY),
        ({"tokens": None}, REPLAY, REPLAY, REPLAY),
        ({"output_penalties": True}, TEXT, REPLAY, REPLAY),
        ({"own_answer": True}, TEXT, REPLAY, REPLAY),
        ({"endpoint": "completions", "prompt_ids": True}, TEXT, REPLAY, REPLAY),
        ({"stops": ("\n",)}, AGAIN, TEXT, REPLAY),
        ({"stops": ("END",)}, AGAIN, REPLAY, REPLAY),
        ({"held_back": True}, TEXT, TEXT, REPLAY),
        ({"stops": ("END",), "held_back": True}, AGAIN, REPLAY, REPLAY),
        ({"stops": ("END",), "events": 1}, REPLAY, REPLAY, REPLAY),
        ({"stops": ("END",), "rewind_differed": True}, REPLAY, REPLAY, REPLAY),
        ({"max_tokens": K + 1}, TEXT, TEXT, REPLAY),
    ],
)
def test_the_way_on(changes: dict[str, Any], llamacpp: Plan, vllm: Plan, unknown: Plan) -> None:
    plans = [decide(a_state(kin, **changes)) for kin in (LLAMA, VLLM, OTHER)]
    assert plans == [llamacpp, vllm, unknown]


TOO_LONG = Lost(why="replay_too_long")
DIFFERS = Lost(why="replay_differs")


@pytest.mark.parametrize(
    ("changes", "too_long", "differed"),
    [
        ({"sampled": True}, TEXT, TEXT),  # honest, only with another text
        ({"sampled": True, "stops": ("END",)}, TEXT, TEXT),
        ({"sampled": True, "stops": ("END",), "held_back": True}, AGAIN, AGAIN),
        ({"stops": ("END",), "rewind_differed": True}, TEXT, TEXT),
        ({"stops": ("END",), "rewind_differed": True, "held_back": True}, DIFFERS, DIFFERS),
        ({"schema": True}, TEXT, TEXT),
        ({"schema": True, "endpoint": "completions"}, TOO_LONG, DIFFERS),
        ({"stateful": "tools"}, TOO_LONG, DIFFERS),
        ({"several": True}, TOO_LONG, DIFFERS),
        ({"only_text": False}, TOO_LONG, DIFFERS),
    ],
)
def test_where_a_replay_is_too_long_or_differed(
    changes: dict[str, Any], too_long: Plan, differed: Plan
) -> None:
    assert decide(a_state(usual_gap_ms=250.0, **changes)) == REPLAY
    assert decide(a_state(usual_gap_ms=250.1, **changes)) == too_long
    assert decide(a_state(replay_differed=True, **changes)) == differed
    assert decide(a_state(usual_gap_ms=250.0, events=K + 1, **changes)) == too_long


@pytest.mark.parametrize(
    ("changes", "plan"),
    [
        ({"nothing": True, "tokens": None, "events": 0}, Retry()),
        ({"nothing": True, "lost": replace(LLAMA, revision=None)}, Retry()),
        ({"finished": True}, FinishLocally(reason=None)),
        ({"finished": True, "lost": replace(LLAMA, revision=None)}, FinishLocally(reason=None)),
        ({"finished": True, "continuations": 2}, FinishLocally(reason=None)),
        ({"max_tokens": K}, FinishLocally(reason="length")),
        ({"max_tokens": K - 1, "continuations": 2}, FinishLocally(reason="length")),
        ({"max_tokens": K, "several": True}, REPLAY),
        ({"max_tokens": 0}, TEXT),
        ({"lost": replace(LLAMA, revision=None)}, Lost(why="unknown_revision")),
        ({"continuations": 1}, TEXT),
        ({"continuations": 2}, Lost(why="attempts")),
        ({"client_gone": True}, Lost(why="client_gone")),
        ({"client_gone": True, "finished": True}, Lost(why="client_gone")),
        ({"deadline_passed": True}, Lost(why="deadline")),
        ({"endpoint": "responses"}, Lost(why="endpoint")),
        ({"endpoint": "messages"}, Lost(why="endpoint")),
        ({"progress": None}, Lost(why="not_retained")),
        ({"progress": None, "unkept": "unreadable"}, Lost(why="unreadable")),
    ],
)
def test_ends_and_first_steps(changes: dict[str, Any], plan: Plan) -> None:
    assert decide(a_state(**changes)) == plan


def test_a_limit_that_an_engine_does_not_know_ends_none_of_its_answers() -> None:
    limit = {"max_tokens": K, "private": True}
    plans = [decide(a_state(kin, **limit)) for kin in (LLAMA, VLLM, OTHER)]
    assert plans == [FinishLocally(reason="length"), TEXT, REPLAY]


def test_kin_is_the_same_weights_behind_a_like_engine() -> None:
    replica = Replica(
        id=ReplicaId("a/m/0"), site=SiteName("a"), model=ModelName("m"), revision="r1",
        generation=1, state="ready", engine="llamacpp", base_url="http://x/v1", engine_key=None,
        credential=None, upstream_model="m", slots=1, pid=None, started_at=0,
    )
    assert kin_of(replica) == LLAMA
    upstream = replace(replica, engine="openai")
    assert kin_of(upstream) == OTHER
    assert kin_of(replace(upstream, running_counts="usage")) == VLLM
    assert kin_of(replace(upstream, running_counts="timings")) == LLAMA
    assert LLAMA.may_follow(kin_of(replica))
    assert not VLLM.may_follow(LLAMA)
    assert not replace(LLAMA, revision="r2").may_follow(LLAMA)
    unknown = replace(LLAMA, revision=None)
    assert not unknown.may_follow(unknown)


@pytest.mark.parametrize(
    ("tail", "new", "judged"),
    [
        ("", "END", "clear"),
        ("the E", "ND", "stopped"),
        ("the E", "N", "open"),
        ("the E", "Nd", "clear"),
        ("the E", "", "open"),
        ("EN", "D and more", "stopped"),
        ("xE", "EN", "clear"),      # a stop string that begins behind the seam is the engine's
        ("END", " more", "clear"),  # one that lies before it, too
    ],
)
def test_stop_strings_across_the_seam(tail: str, new: str, judged: str) -> None:
    assert across(tail, new, ("END",)) == judged


def test_the_tail_is_as_long_as_a_stop_string_can_need() -> None:
    assert tail_for("abcdef", ("x", "wxyz")) == "def"
    assert tail_for("abcdef", ("x",)) == ""
    assert tail_for("abcdef", ()) == ""

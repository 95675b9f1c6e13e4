"""Decides how a stream that was lost in the middle goes on, and when it honestly cannot.

Two ways lead on. *Continue*: what was delivered goes back to another replica as the beginning of
its answer; fast, an honest sample of the same model, the same bytes at temperature 0 except at near
ties. *Replay*: the original request with its seed is run again, what equals the delivered bytes is
swallowed and the rest forwarded; it proves itself, works for everything that has state outside of
the text (tool calls, schemas, several choices), and costs the whole way again, hence its bound. The
first difference in a replay ends it. Where neither is honest the stream ends with an error event.
"""

from dataclasses import dataclass, field
from typing import Literal, assert_never

from isochrone.core.continuation.kin import Kin
from isochrone.core.metering.event import Endpoint

Why = Literal[
    "client_gone",       # nobody is left to go on for
    "deadline",          # the time of the request is over
    "attempts",          # it was lost too often
    "endpoint",          # not a stream of chat or of one completion
    "not_retained",      # more was delivered than is kept
    "unreadable",        # what was delivered ends in half an event, or is no known event
    "unknown_revision",  # nobody can say which other replica has the same weights
    "replay_too_long",   # state outside of the text, and too much to run again
    "replay_differs",    # the other replica said something else
    "no_replica",        # no other allowed replica of the revision takes it
]

MOST_CONTINUATIONS = 2
LONGEST_REPLAY_MS = 5000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What of a request decides how its answer can be continued.

    `several`: more than one choice. `schema`: the answer is held to a JSON schema by
    `response_format`. `sampled`: anything but temperature 0. `output_penalties`: presence or
    frequency penalties. `stateful`: the first field whose effect has, or may have, state outside of
    the text (tools, grammars, fields that are not known), None without any. `max_tokens`: the
    client's limit, None without one. `stops`: its stop strings. `own_answer`: the messages end with
    an answer that the client did not ask to be continued. `prompt_ids`: the prompt is token ids.
    `private`: the limit is named as llama.cpp alone names one, and others let it be.
    """

    several: bool = False
    schema: bool = False
    sampled: bool = False
    output_penalties: bool = False
    stateful: str | None = None
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    own_answer: bool = False
    prompt_ids: bool = False
    private: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What of the answer has been delivered, as far as deciding needs it.

    `tokens` is the engine's own count behind the last event with text, None where it sends none;
    `events` those that carried anything, which are fewer or as many. `nothing`: neither text nor a
    tool call nor reasoning. `only_text`: nothing besides. `finished`: every choice has its finish
    reason. `ids_complete`: prompt and answer are known as token ids. `held_back`: the last text
    came with tokens that were kept back before it, so that it may end inside a token.
    """

    tokens: int | None
    events: int
    nothing: bool
    only_text: bool
    finished: bool
    ids_complete: bool = False
    held_back: bool = False

    @property
    def steps(self) -> int:
        """Decode steps that a replay has to make again, at least."""
        return max(self.tokens or 0, self.events)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A loss. `progress` is None when what was delivered is not kept or not readable, and
    `unkept` then says which. `continuations` counts those before; `usual_gap_ms` is the mean time
    between two tokens. `replay_differed`, `rewind_differed`: a replay of this loss, or a
    continuation with `rewind`, was tried and said something else."""

    endpoint: Endpoint
    lost: Kin
    features: Features
    progress: Progress | None
    unkept: Literal["not_retained", "unreadable"] = "not_retained"
    usual_gap_ms: float = 0.0
    continuations: int = 0
    replay_differed: bool = False
    rewind_differed: bool = False
    client_gone: bool = False
    deadline_passed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Nothing was delivered: send the same request again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishLocally:
    """The answer is complete. `reason` is the finish reason to send, None when it was sent."""

    reason: Literal["length"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinueIds:
    """Send prompt and answer as token ids. `tokens` are those delivered."""

    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinueText:
    """Send the delivered text as the beginning of the answer. `tokens` are those delivered.

    With `rewind` the text of the last event is left out and must come again.
    """

    tokens: int
    rewind: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Send the same request again, and swallow what was delivered as long as it is the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The stream ends with an error event."""

    why: Why


Plan = Retry | FinishLocally | ContinueIds | ContinueText | Replay | Lost


def decide(state: State) -> Plan:
    """The one way on. Whether another allowed replica of the same kin exists is asked afterwards,
    by choosing one."""
    ended = _ended(state)
    if ended is not None:
        return ended
    progress, features = state.progress, state.features
    if progress is None:
        return Lost(why=state.unkept)
    if progress.finished:
        return FinishLocally(reason=None)
    is_obeyed = not features.private or state.lost.engine == "llamacpp"
    most = features.max_tokens if is_obeyed else None
    if most is not None and not features.several and 0 < most <= (progress.tokens or 0):
        return FinishLocally(reason="length")
    if state.continuations >= MOST_CONTINUATIONS:
        return Lost(why="attempts")
    if progress.nothing:
        return Retry()
    if state.lost.revision is None:
        return Lost(why="unknown_revision")
    onward = _continuation(state, progress)
    if onward is not None and not _rather_replayed(state):
        return onward
    if not state.replay_differed and progress.steps * state.usual_gap_ms <= LONGEST_REPLAY_MS:
        return Replay()
    if onward is not None:
        return onward
    differed = state.replay_differed or state.rewind_differed
    return Lost(why="replay_differs" if differed else "replay_too_long")


def _ended(state: State) -> Lost | None:
    if state.client_gone:
        return Lost(why="client_gone")
    if state.deadline_passed:
        return Lost(why="deadline")
    if state.endpoint not in ("chat.completions", "completions"):
        return Lost(why="endpoint")
    return None


def _rather_replayed(state: State) -> bool:
    """Whether the same bytes are worth their cost: continuing would be honest, and another text.

    A sampled answer starts a new random sequence where it continues; a schema is picked up in the
    middle by llama.cpp, with other bytes half of the time.
    """
    return state.features.sampled or state.features.schema or state.rewind_differed


def _continuation(state: State, progress: Progress) -> ContinueIds | ContinueText | None:
    """The way to continue, None where that is not honest."""
    engine, features = state.lost.engine, state.features
    if progress.tokens is None or not progress.only_text:
        return None
    if features.several or features.stateful is not None:
        return None
    if engine == "llamacpp":
        if features.schema and state.endpoint != "chat.completions":
            return None
        return _behind_llamacpp(state, progress, progress.tokens)
    if engine == "vllm":
        # It keeps back as many characters as its longest stop string has, less one, wherever that
        # is; its penalties look at the new text only; its grammars begin anew.
        held = any(len(stop) > 1 for stop in features.stops)
        if features.schema or features.output_penalties or held:
            return None
        if progress.ids_complete and state.endpoint == "completions":
            return ContinueIds(tokens=progress.tokens)
        if features.own_answer or features.prompt_ids:
            return None
        return ContinueText(tokens=progress.tokens)
    if engine == "unknown":
        return None
    assert_never(engine)


def _behind_llamacpp(state: State, progress: Progress, tokens: int) -> ContinueText | None:
    """Its texts end with a token, except the last one before a stop string that begins inside one.

    Such a text may be the one that was delivered last. Where it came with tokens that were kept
    back before, or where the same text must come again anyway, its event is asked for once more.
    """
    features = state.features
    if not features.stops or (features.sampled and not progress.held_back):
        return ContinueText(tokens=tokens)
    if state.rewind_differed:
        return None if progress.held_back else ContinueText(tokens=tokens)
    # Of a first event nothing would be left, and an answer that is there but empty is closed.
    return None if progress.events == 1 else ContinueText(tokens=tokens, rewind=True)

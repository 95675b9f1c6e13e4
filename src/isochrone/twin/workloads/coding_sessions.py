"""Sessions of coding agents as they were recorded: long prompts that grow from turn to turn.

Sessions begin by chance at a steady rate; each is one of those recorded, drawn by chance, with its
own pauses (longer ones than `LONGEST_PAUSE_S` are cut). At time 0 some are under way, as they would
be had it always been so. Sessions share the tools and the system prompt where those are as long,
and nothing else. What sub-agents asked is left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import accumulate, takewhile
from typing import Any

import msgspec

from isochrone.core.errors import InvalidInput
from isochrone.core.rng import Random, stream
from isochrone.twin.fast.replica import BLOCK_TOKENS
from isochrone.twin.workloads.asks import Ask, mixed

LONGEST_PAUSE_S = 1800.0
MOST_TOLD = 20
MOST_S = 1e9
MOST_BLOCKS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """`at_s` since the session's begin. The prompt: the first `kept` blocks of the turn before and
    the runs `new` of further ids (first id, count)."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    kept: int
    new: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CodingSession:
    """`shared_tokens`: tools and system prompt, which begin each prompt; `kind` is equal where they
    may be the same."""

    kind: tuple[int, int]
    shared_tokens: int
    block_tokens: int
    turns: tuple[Turn, ...]

    @property
    def length_s(self) -> float:
        return self.turns[-1].at_s


class _Request(msgspec.Struct):
    t: float = 0.0
    input: int = msgspec.field(default=0, name="in")
    out: int = 0
    keep: int = 0
    new: tuple[tuple[int, int], ...] = ()
    type: str = "n"


class _Session(msgspec.Struct):
    block_size: int
    tool_tokens: int
    system_tokens: int
    requests: list[_Request]


def parse_sessions(text: str, source: str) -> tuple[CodingSession, ...]:
    """One JSON object a line, as kv-cache-tester has them. Raises InvalidInput with all problems.
    Sessions without any request of their own are left out."""
    found: list[CodingSession] = []
    problems: list[str] = []
    decode = msgspec.json.Decoder(_Session).decode
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            session = decode(line)
        except msgspec.MsgspecError as error:
            problems.append(f"{source}, line {number}: {error}")
            continue
        if session.block_size < 1 or BLOCK_TOKENS % session.block_size:
            problems.append(
                f"{source}, line {number}: block_size is {session.block_size}; expected a divisor "
                f"of {BLOCK_TOKENS}"
            )
            continue
        if any(
            abs(each.t) > MOST_S or not 0 <= each.keep <= MOST_BLOCKS
            or not all(0 <= count <= MOST_BLOCKS for _, count in each.new)
            for each in session.requests
        ):
            problems.append(
                f"{source}, line {number}: expected t in s, and counts of blocks from 0 to "
                f"{MOST_BLOCKS}"
            )
            continue
        turns = _turns(session.requests)
        if turns:
            found.append(CodingSession(
                kind=(session.tool_tokens, session.system_tokens), turns=turns,
                shared_tokens=session.tool_tokens + session.system_tokens,
                block_tokens=session.block_size,
            ))
    if problems:
        raise InvalidInput(problems[:MOST_TOLD])
    if not found:
        raise InvalidInput([f"{source}: has no session with a request"])
    return tuple(found)


def _turns(requests: Sequence[_Request]) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    at_s, before_s = 0.0, None
    for each in requests:
        if each.type == "subagent" or each.input < 1:
            continue
        pause_s = 0.0 if before_s is None else each.t - before_s
        at_s += min(max(pause_s, 0.0), LONGEST_PAUSE_S)
        before_s = each.t
        turns.append(Turn(
            at_s=at_s, prompt_tokens=each.input, output_tokens=max(each.out, 1), kept=each.keep,
            new=each.new,
        ))
    return tuple(turns)


def fitting(sessions: Sequence[CodingSession], most_tokens: int) -> tuple[CodingSession, ...]:
    """Each up to the first turn whose prompt and answer are more than so many tokens, where an
    agent would have had to begin anew; without those that have none before."""
    found = []
    for session in sessions:
        turns = tuple(takewhile(
            lambda turn: turn.prompt_tokens + turn.output_tokens <= most_tokens, session.turns
        ))
        if turns:
            found.append(replace(session, turns=turns))
    return tuple(found)


def coding_asks(sessions: Sequence[CodingSession], rate_rps: float, seed: int) -> Iterator[Ask]:
    """For ever, at so many requests a second in the mean. Memory is that of the recorded sessions
    and of the prompts of those under way."""
    rng = stream(seed, "workload.sessions")
    per_s = rate_rps * len(sessions) / sum(len(each.turns) for each in sessions)
    opened = 0
    due: list[tuple[float, int, Ask, Iterator[Ask]]] = []

    def begin(session: CodingSession, start_s: float) -> None:
        nonlocal opened
        opened += 1
        asks = _played(session, opened, start_s, mixed(seed, opened))
        first = next(asks, None)
        if first is not None:
            heappush(due, (first.at_s, opened, first, asks))

    for session, passed_s in _under_way(sessions, per_s, rng):
        begin(session, -passed_s)
    next_s = rng.expovariate(per_s)
    while True:
        while not due or next_s <= due[0][0]:
            begin(rng.choice(sessions), next_s)
            next_s += rng.expovariate(per_s)
        _, number, ask, asks = heappop(due)
        yield ask
        after = next(asks, None)
        if after is not None:
            heappush(due, (after.at_s, number, after, asks))


def _under_way(
    sessions: Sequence[CodingSession], per_s: float, rng: Random
) -> list[tuple[CodingSession, float]]:
    """Sessions that run at a random instant, and for how long they have: longer ones more often."""
    lengths = list(accumulate(each.length_s for each in sessions))
    if lengths[-1] <= 0.0:
        return []
    expected = per_s * lengths[-1] / len(sessions)
    count, left = 0, rng.expovariate(1.0)
    while left < expected:
        count += 1
        left += rng.expovariate(1.0)
    drawn = rng.choices(sessions, cum_weights=lengths, k=count)
    return [(each, rng.random() * each.length_s) for each in drawn]


def _played(session: CodingSession, number: int, start_s: float, salt: int) -> Iterator[Ask]:
    """Its requests from time 0 on."""
    size = BLOCK_TOKENS // session.block_tokens
    shared = session.shared_tokens // session.block_tokens
    ids: list[int] = []
    chain: list[int] = []
    for turn in session.turns:
        del ids[turn.kept :]
        for first, count in turn.new:
            ids.extend(range(first, first + count))
        at_s = start_s + turn.at_s
        del chain[min(turn.kept // size, len(chain)) :]
        if at_s < 0.0:
            continue
        before = chain[-1] if chain else mixed(*session.kind)
        for place in range(len(chain), min(len(ids) // size, turn.prompt_tokens // BLOCK_TOKENS)):
            end = (place + 1) * size
            before = mixed(before) if end <= shared else mixed(before, salt, *ids[end - size : end])
            chain.append(before)
        blocks = chain[: turn.prompt_tokens // BLOCK_TOKENS]
        yield Ask(at_s, turn.prompt_tokens, turn.output_tokens, salt, number, blocks)


def mean_output_tokens(sessions: Sequence[CodingSession]) -> float:
    """Of all their requests."""
    outputs: list[Any] = [turn.output_tokens for each in sessions for turn in each.turns]
    return float(sum(outputs)) / len(outputs)

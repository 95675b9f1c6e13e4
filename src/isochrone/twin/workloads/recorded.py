"""Recorded traces at any rate: as many copies as it takes, each from another place of the trace.

A copy keeps the times between its requests, so bursts and the times between two uses of a prefix
stay as they were (compressing the clock would make caches look better than they are). The last part
of a rate is made by slowing all copies down a little. A copy that comes to the end of the trace
begins anew, with other conversations. Copies share no prefix but one that every request has.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappush, heapreplace
from math import ceil
from typing import NamedTuple

from isochrone.core.rng import stream
from isochrone.twin.fast.arrivals import NO_SESSION
from isochrone.twin.fast.replica import BLOCK_TOKENS
from isochrone.twin.workloads.asks import Ask, mixed

COMMON = 0  # as a copy's number: what all copies have
MOST_COPIES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRow:
    """`blocks`: ids of the leading blocks of the trace, of `block_tokens` each; an equal id is an
    equal beginning up to and with that block."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Rows by `at_s`, at least two that differ in it. `block_tokens`: 0 where none are recorded."""

    rows: tuple[RecordedRow, ...]
    block_tokens: int = 0

    @property
    def length_s(self) -> float:
        """Of the trace and the mean time to a next request."""
        spent_s = self.rows[-1].at_s - self.rows[0].at_s
        return spent_s * len(self.rows) / (len(self.rows) - 1)

    @property
    def rate_rps(self) -> float:
        return len(self.rows) / self.length_s

    @property
    def mean_output_tokens(self) -> float:
        return sum(row.output_tokens for row in self.rows) / len(self.rows)


def recorded_asks(trace: Recorded, rate_rps: float, seed: int) -> Iterator[Ask]:
    """For ever; memory is that of the trace and a little for each copy. A copy is made when its
    first request comes: of a trace with few requests in a long time there are very many."""
    copies = max(ceil(rate_rps / trace.rate_rps - 1e-9), 1)
    slower = copies * trace.rate_rps / rate_rps
    rng = stream(seed, "workload.recorded")
    firsts = {row.blocks[:1] for row in trace.rows}
    common = next(iter(firsts)) if len(firsts) == 1 else ()
    shared = set(_finer(common, trace.block_tokens))
    fine = [_finer(row.blocks, trace.block_tokens) for row in trace.rows]
    begins_s = [row.at_s - trace.rows[0].at_s for row in trace.rows]
    waiting: list[tuple[float, _Copy]] = []
    for number in range(1, copies + 1):
        start_s = rng.random() * trace.length_s
        turn, place = divmod(bisect_left(begins_s, start_s), len(begins_s))
        first_s = (begins_s[place] + turn * trace.length_s - start_s) * slower
        waiting.append((first_s, _Copy(number, start_s, turn, place)))
    waiting.sort(reverse=True)
    due: list[tuple[float, int, Ask, Iterator[Ask]]] = []
    while True:
        while waiting and (not due or (waiting[-1][0], waiting[-1][1].number) < due[0][:2]):
            copy = waiting.pop()[1]
            asks = _played(trace, fine, copy, slower, shared)
            ask = next(asks)
            heappush(due, (ask.at_s, copy.number, ask, asks))
        _, number, ask, asks = due[0]
        yield ask
        after = next(asks)
        heapreplace(due, (after.at_s, number, after, asks))


class _Copy(NamedTuple):
    """One of the trace, whose time 0 is at `start_s`; the first request after that is in this
    `turn`, at this `place`."""

    number: int
    start_s: float
    turn: int
    place: int


def _played(
    trace: Recorded, fine: Sequence[Sequence[int]], copy: _Copy, slower: float, shared: set[int]
) -> Iterator[Ask]:
    first_s, length_s = trace.rows[0].at_s, trace.length_s
    turn, begin = copy.turn, copy.place
    while True:
        salt = mixed(copy.number, turn)
        for place in range(begin, len(trace.rows)):
            row = trace.rows[place]
            at_s = (row.at_s - first_s + turn * length_s - copy.start_s) * slower
            blocks = fine[place][: row.prompt_tokens // BLOCK_TOKENS]
            # Without a session recorded, a conversation is known by the first that is its own.
            own = next((block for block in blocks if block not in shared), -1 - place)
            yield Ask(
                at_s, row.prompt_tokens, row.output_tokens, mixed(salt, own), NO_SESSION,
                [mixed(COMMON if block in shared else salt, block) for block in blocks],
            )
        turn, begin = turn + 1, 0


def _finer(blocks: Sequence[int], block_tokens: int) -> list[int]:
    """The same in blocks of `BLOCK_TOKENS`, which those of the trace are made of, or a multiple."""
    if not blocks:
        return []
    if block_tokens % BLOCK_TOKENS == 0:
        parts = block_tokens // BLOCK_TOKENS
        return [block * parts + part for block in blocks for part in range(parts)]
    if BLOCK_TOKENS % block_tokens == 0:  # the id of the last one covers those before it
        parts = BLOCK_TOKENS // block_tokens
        return list(blocks[parts - 1 :: parts])
    raise ValueError(f"blocks of {block_tokens} tokens do not fit blocks of {BLOCK_TOKENS}")

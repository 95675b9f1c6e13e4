"""The twin's block cache against an independent LRU: exact hit-rate curves on a recorded trace.

The other one never evicts anything. It keeps for each block when it was used last, counts the
different blocks that were used since (a Fenwick tree), and so knows for every size at once which
blocks are held (Mattson 1970).
"""

from isochrone.adapters.packaged import DATA
from isochrone.replay.trace import parse_trace
from isochrone.twin.fast.block_cache import BlockCache

REQUESTS = 1_500
SIZES = (20, 100, 500, 2_000, 10_000, 10**9)


class Recency:
    """How many different blocks were used after a block was used last."""

    def __init__(self, uses: int) -> None:
        self._tree = [0] * (uses + 1)
        self._last: dict[int, int] = {}
        self._now = 0
        self._known = 0

    def rank(self, block: int) -> int | None:
        """From 0 for the one that was used last; None for one that never was."""
        at = self._last.get(block)
        return None if at is None else self._known - self._until(at)

    def use(self, block: int) -> None:
        before = self._last.get(block)
        if before is not None:
            self._add(before, -1)
        self._now += 1
        self._last[block] = self._now
        self._add(self._now, 1)

    def _add(self, at: int, count: int) -> None:
        self._known += count
        while at < len(self._tree):
            self._tree[at] += count
            at += at & -at

    def _until(self, at: int) -> int:
        found = 0
        while at:
            found += self._tree[at]
            at -= at & -at
        return found


def requests() -> list[tuple[int, ...]]:
    path = DATA / "traces" / "mooncake-conv.jsonl.gz"
    return [row.blocks for row in parse_trace(path.read_bytes(), path.name).rows[:REQUESTS]]


def expected(asked: list[tuple[int, ...]]) -> dict[int, int]:
    """Leading blocks that were held, by size."""
    recency = Recency(sum(len(blocks) for blocks in asked))
    hits = dict.fromkeys(SIZES, 0)
    for blocks in asked:
        ranks = [recency.rank(block) for block in blocks]
        for size in SIZES:
            for rank in ranks:
                if rank is None or rank >= size:
                    break
                hits[size] += 1
        for block in reversed(blocks):
            recency.use(block)
    return hits


def test_hits_are_those_of_an_independent_lru_at_every_size() -> None:
    asked = requests()
    exact = expected(asked)
    for size in SIZES:
        cache = BlockCache(size)
        assert sum(cache.use(blocks) for blocks in asked) == exact[size], size
        assert len(cache) <= size
    total = sum(len(blocks) for blocks in asked)
    rates = [exact[size] / total for size in SIZES]
    assert rates == sorted(rates)  # more memory never hits less
    assert rates[0] < 0.06 < 0.25 < rates[-1]  # the curve is not flat: sizes matter here

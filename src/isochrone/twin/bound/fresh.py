"""Which of a prompt's tokens somebody has to read, if caches were as good as they could ever be.

A block is *old* for a request if any other request that had it arrived before, or within `ahead_s`
after. Whoever reads a block that is not old does so after this request has reached its site, and
this request cannot answer before: it is this request's own work, done by itself or by a later one.
So the fresh tokens of different requests are different work, and each comes after its request.

`ahead_s` must be at least the longest way to a site: a request from afar can find in the cache what
one from nearby brought while it was under way.
"""

from collections import deque
from collections.abc import Iterable, Iterator

from isochrone.twin.fast.arrivals import Arrival, Arrivals
from isochrone.twin.fast.replica import BLOCK_TOKENS


def fresh_tokens(chunks: Iterable[Arrivals], ahead_s: float) -> Iterator[tuple[Arrival, int]]:
    """Each request with its fresh tokens, at least 1: an engine always reads the last token.

    Memory grows with the number of different blocks, and with the requests of `ahead_s`.
    """
    first: dict[int, int] = {}  # who had the block first
    again: set[int] = set()     # blocks that two have had
    waiting: deque[tuple[int, Arrival]] = deque()
    rows = (row for chunk in chunks for row in chunk.rows())
    for number, row in enumerate(rows):
        while waiting and waiting[0][1].at_s + ahead_s < row.at_s:
            yield _judged(*waiting.popleft(), first, again)
        for block in row.blocks:
            if first.setdefault(block, number) != number:
                again.add(block)
        waiting.append((number, row))
    while waiting:
        yield _judged(*waiting.popleft(), first, again)


def _judged(
    number: int, row: Arrival, first: dict[int, int], again: set[int]
) -> tuple[Arrival, int]:
    old = 0
    for block in row.blocks:
        if first[block] == number and block not in again:
            break
        old += 1
    return row, max(row.prompt_tokens - old * BLOCK_TOKENS, 1)

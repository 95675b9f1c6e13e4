"""Which blocks of prompts an engine still holds: least recently used go first."""

from collections import OrderedDict
from collections.abc import Sequence


class BlockCache:
    """Hashes of blocks, at most `most_blocks`. A hash covers all blocks before its own."""

    __slots__ = ("_blocks", "most_blocks")

    def __init__(self, most_blocks: int) -> None:
        self.most_blocks = most_blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def leading(self, blocks: Sequence[int]) -> int:
        """How many of the first blocks are held without a gap."""
        held, known = 0, self._blocks
        for block in blocks:
            if block not in known:
                break
            held += 1
        return held

    def use(self, blocks: Sequence[int]) -> int:
        """Hold all of them, the first ones longest; how many of the first were held already."""
        held, known = self.leading(blocks), self._blocks
        for block in reversed(blocks):  # a beginning is worth more than what follows it
            known[block] = None
            known.move_to_end(block)
        while len(known) > self.most_blocks:
            known.popitem(last=False)
        return held

    def clear(self) -> None:
        self._blocks.clear()

"""Who was sent which beginnings of prompts: what balancers that cannot see caches go by.

Hashes of blocks cover all blocks before their own, so a tree is a table from a block to those who
were sent it. Only the most recently used blocks are kept.
"""

from collections import OrderedDict
from collections.abc import Sequence

MOST_HOLDERS = 4  # of a block: the latest ones; more makes no better choice


class PrefixTree:
    """Targets are numbers, of replicas or of sites."""

    __slots__ = ("_holders", "most_blocks")

    def __init__(self, most_blocks: int) -> None:
        self.most_blocks = most_blocks
        self._holders: OrderedDict[int, list[int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._holders)

    def sent(self, blocks: Sequence[int], target: int) -> None:
        """The prompt with these leading blocks went to `target`."""
        known = self._holders
        for block in reversed(blocks):  # a beginning is worth more than what follows it
            holders = known.get(block)
            if holders is None:
                known[block] = [target]
                continue
            known.move_to_end(block)
            if holders[-1] != target:
                if target in holders:
                    holders.remove(target)
                holders.append(target)
                if len(holders) > MOST_HOLDERS:
                    del holders[0]
        while len(known) > self.most_blocks:
            known.popitem(last=False)

    def matches(self, blocks: Sequence[int]) -> dict[int, int]:
        """How many of the leading blocks each target was sent, deepest first; none: absent."""
        known, found = self._holders, dict[int, int]()
        low, high = 0, len(blocks)
        while low < high:  # the first block that nobody was sent
            middle = (low + high) // 2
            if blocks[middle] in known:
                low = middle + 1
            else:
                high = middle
        if not low:
            return found
        whole = len(known.get(blocks[0], ()))
        for depth in range(low, 0, -1):
            for target in known.get(blocks[depth - 1], ()):
                if target not in found:
                    found[target] = depth
            if len(found) >= whole:
                break
        return found

    def forget(self, target: int) -> None:
        """The target lost what it had."""
        for block in [each for each, holders in self._holders.items() if target in holders]:
            holders = self._holders[block]
            holders.remove(target)
            if not holders:
                del self._holders[block]

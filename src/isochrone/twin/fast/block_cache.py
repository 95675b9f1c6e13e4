"""Which blocks of prompts an engine still holds: least recently used go first."""

from collections import deque
from collections.abc import Sequence
from typing import Final

LEAST_LISTED: Final = 256  # blocks: so many are not worth looking through


class Use:
    """One prompt that was read. `left`: how many of its first blocks have not been let go of."""

    __slots__ = ("blocks", "left")

    def __init__(self, blocks: Sequence[int]) -> None:
        self.blocks = blocks
        self.left = len(blocks)


class BlockCache:
    """Hashes of blocks, at most `most_blocks`. A hash covers all blocks before its own, so a prompt
    has none twice.

    Prompts are listed as they came, and of each block the last prompt is known that used it: of
    what is listed for an older one nothing is held any more but what no later one used. So nothing
    is moved when a block is used again. The list is gone through when half of it is of that kind.
    """

    __slots__ = ("_held", "_listed", "_uses", "most_blocks")

    def __init__(self, most_blocks: int) -> None:
        self.most_blocks = most_blocks
        self._held: dict[int, Use] = {}
        self._uses: deque[Use] = deque()
        self._listed = 0  # blocks of all uses, those that are not held for them included

    def __len__(self) -> int:
        return len(self._held)

    def leading(self, blocks: Sequence[int]) -> int:
        """How many of the first blocks are held without a gap."""
        count, held = 0, self._held
        for block in blocks:
            if block not in held:
                break
            count += 1
        return count

    def use(self, blocks: Sequence[int]) -> int:
        """Hold all of them, the first ones longest; how many of the first were held already."""
        use, held = Use(blocks), self._held
        count, known = 0, True
        for block in blocks:
            if known:
                known = block in held
                count += known
            held[block] = use
        self._uses.append(use)
        self._listed += use.left
        if len(held) > self.most_blocks:
            self._let_go()
        if self._listed > LEAST_LISTED and self._listed > 2 * len(held):
            self._look_through()
        return count

    def clear(self) -> None:
        self._held.clear()
        self._uses.clear()
        self._listed = 0

    def _let_go(self) -> None:
        """Of the prompt that was read longest ago, the last block first."""
        held, uses = self._held, self._uses
        while len(held) > self.most_blocks:
            use = uses[0]
            while use.left and len(held) > self.most_blocks:
                use.left -= 1
                self._listed -= 1
                block = use.blocks[use.left]
                if held.get(block) is use:
                    del held[block]
            if not use.left:
                uses.popleft()

    def _look_through(self) -> None:
        held, uses = self._held, self._uses
        self._uses, self._listed = deque(), len(held)
        for use in uses:
            blocks = use.blocks[: use.left]
            own = [block for block in blocks if held.get(block) is use]
            if own:
                use.blocks, use.left = own, len(own)
                self._uses.append(use)

"""Which sites got a prompt's beginning lately, and have probably cached what they computed of it.

A prompt's beginning is known by the hashes of its blocks of `BLOCK_BYTES`. Each hash covers all
blocks before it too, so that a site which got a block got everything before it.
"""

from collections.abc import Sequence
from typing import Final

from isochrone.core.ids import SiteName

BLOCK_BYTES: Final = 1024  # of the prompt's JSON
BLOCK_TOKENS: Final = BLOCK_BYTES // 4  # four bytes a token, as in the gateway's other estimates


class Prefixes:
    """Block hash -> the site that got it last; at most `most` blocks are kept.

    Kept in two halves: a block that is used moves to the younger one, and when that is full the
    older one goes. Mutable, owned by one event loop.
    """

    def __init__(self, most: int = 65_536) -> None:
        self._half = max(most // 2, 1)
        self._young: dict[int, SiteName] = {}
        self._old: dict[int, SiteName] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def saw(self, site: SiteName, blocks: Sequence[int]) -> None:
        """A prompt that begins with these blocks went to the site."""
        if len(self._young) + len(blocks) > self._half:
            self._old, self._young = self._young, {}
        self._young.update(dict.fromkeys(blocks[:self._half], site))

    def cached_tokens(self, blocks: Sequence[int]) -> dict[SiteName, int]:
        """The leading tokens of the prompt that each site has computed; sites without any are not
        named. The last block that a site got counts, and with it all before."""
        if not blocks or (blocks[0] not in self._young and blocks[0] not in self._old):
            return {}
        cached: dict[SiteName, int] = {}
        young, old, tokens = self._young, self._old, 0
        for block in blocks:
            tokens += BLOCK_TOKENS
            site = young.get(block) or old.get(block)
            if site is not None:
                cached[site] = tokens
        return cached

"""Which site got a prompt's beginning last, and so has probably still cached what it computed.

A prompt's beginning is known by the hashes of its blocks of `BLOCK_BYTES`. Each hash covers all
blocks before it too, so that whoever got a block got everything before it.
"""

from collections.abc import Sequence

from isochrone.core.ids import SiteName

BLOCK_BYTES = 1024   # of the prompt's JSON
BLOCK_TOKENS = BLOCK_BYTES // 4  # four bytes a token, as in the gateway's other estimates


class Prefixes:
    """Block hash -> site, bounded: at most `most` blocks, of which the older half goes at once.

    Mutable, owned by one event loop. Half of the bound is kept as blocks that are still used move
    to the younger half each time.
    """

    def __init__(self, most: int = 65_536) -> None:
        self._half = max(most // 2, 1)
        self._young: dict[int, SiteName] = {}
        self._old: dict[int, SiteName] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def saw(self, site: SiteName, blocks: Sequence[int]) -> None:
        """A prompt of these leading blocks went to the site."""
        if len(self._young) + len(blocks) > self._half:
            self._old, self._young = self._young, {}
        self._young.update(dict.fromkeys(blocks[: self._half], site))

    def cached_tokens(self, blocks: Sequence[int]) -> dict[SiteName, int]:
        """How many leading tokens of the prompt each site has computed; others none."""
        if not blocks or self._site(blocks[0]) is None:
            return {}
        cached: dict[SiteName, int] = {}
        for number in range(len(blocks), 0, -1):
            site = self._site(blocks[number - 1])
            if site is not None and site not in cached:
                cached[site] = number * BLOCK_TOKENS
        return cached

    def _site(self, block: int) -> SiteName | None:
        return self._young.get(block) or self._old.get(block)

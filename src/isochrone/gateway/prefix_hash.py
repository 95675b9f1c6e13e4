"""Hashes of the beginning of a prompt, by which routing finds where it was computed before.

The JSON of the prompt is cut into blocks, and each block's hash covers all blocks before it: two
requests share their first n hashes when their prompts begin with the same n blocks.
"""

from functools import lru_cache

from xxhash import xxh3_64_intdigest

from isochrone.core.routing.prefix import BLOCK_BYTES
from isochrone.gateway.request import InferenceRequest

MOST_BLOCKS = 256  # requests that agree so far are taken for one prefix


def prompt_blocks(request: InferenceRequest, salt: int) -> list[int]:
    """Chained hashes of the whole blocks of the prompt, from its beginning.

    `salt` (64 bits) keeps tenants apart: what one of them asked can be told from nobody else's
    hashes.
    """
    content = memoryview(request.prompt)
    blocks = []
    block = salt
    end = min(len(content) // BLOCK_BYTES, MOST_BLOCKS) * BLOCK_BYTES
    for begin in range(0, end, BLOCK_BYTES):
        block = xxh3_64_intdigest(content[begin : begin + BLOCK_BYTES], block)
        blocks.append(block)
    return blocks


@lru_cache(maxsize=65_536)
def salt_of(tenant: str) -> int:
    """The salt of one tenant."""
    return xxh3_64_intdigest(tenant.encode())

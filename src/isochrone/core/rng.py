"""Named, seeded random streams: the only file of the core that imports `random`.

Two streams of one seed are independent of each other and of the order in which they are made, so
that a new consumer of chance does not shift the others.
"""

from hashlib import sha256
from random import Random

__all__ = ["Random", "stream"]


def stream(seed: int, name: str) -> Random:
    """Return the random stream `name` of `seed`; the same pair always gives the same sequence."""
    digest = sha256(f"{seed}:{name}".encode()).digest()
    return Random(int.from_bytes(digest, "big"))

"""What somebody asks, before it is known where: the common form of all sources of requests."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Unsigned = np.ndarray[tuple[Any, ...], np.dtype[np.uint64]]

_MASK = 2**64 - 1


class Ask(NamedTuple):
    """One request. `group`: who asks, any number: requests of one group come from one place, of one
    tenant, in one class. `session` as in `Arrival`. `blocks`: numbers for the leading blocks of 256
    tokens of the prompt, each for all blocks before it too, whatever tenant and model."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    group: int
    session: int
    blocks: Sequence[int]


def mixed(*values: int) -> int:
    """A number of 64 bits that depends on all bits of all values, in their order (splitmix64)."""
    found = 0
    for value in values:
        found = (found ^ (value & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        found = (found ^ found >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        found = (found ^ found >> 27) * 0x94D049BB133111EB & _MASK
        found ^= found >> 31
    return found


def all_mixed(values: Unsigned) -> Unsigned:
    """`mixed` of each by itself."""
    found = values + np.uint64(0x9E3779B97F4A7C15)
    found = (found ^ found >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    found = (found ^ found >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return found ^ found >> np.uint64(31)

"""Requests as they come in: columns by chunks, so that a day of them needs no more memory than a
minute. The same chunks are given to every policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Ints = np.ndarray[tuple[Any, ...], np.dtype[np.int64]]
Floats = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]

NO_SESSION = -1


class Arrival(NamedTuple):
    """One request. `at_s`: when its last byte is at the ingress. `class_`: by rank, 0 `reserved`,
    1 `on_demand`, 2 `batch`. `expected_tokens`: the answer's length as a gateway can tell it
    (the request's own maximum, or a guess), `output_tokens` what it turns out to be: no policy may
    look at that. `session`: a number, `NO_SESSION` for none. `slo_ms`: by when the first token
    should be with the client, counted from `at_s`. `blocks`: hashes of the leading blocks of 256
    tokens of the prompt; each covers all blocks before it, and the tenant and the model."""

    at_s: float
    ingress: int
    tenant: int
    class_: int
    model: int
    prompt_tokens: int
    output_tokens: int
    expected_tokens: int
    session: int
    slo_ms: float
    body_bytes: int
    blocks: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """A chunk of requests by `at_s`, one item of each column a request; see `Arrival`. The blocks
    of request i are `blocks[block_ends[i - 1]:block_ends[i]]`."""

    at_s: Floats
    ingress: Ints
    tenant: Ints
    class_: Ints
    model: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    expected_tokens: Ints
    session: Ints
    slo_ms: Floats
    body_bytes: Ints
    block_ends: Ints
    blocks: Ints

    def __len__(self) -> int:
        return len(self.at_s)

    def rows(self) -> list[Arrival]:
        """The requests one by one."""
        blocks, ends = self.blocks.tolist(), self.block_ends.tolist()
        parts: list[Sequence[int]] = [()] * len(ends)
        if blocks:
            parts = [blocks[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        return list(map(Arrival._make, zip(
            self.at_s.tolist(), self.ingress.tolist(), self.tenant.tolist(),
            self.class_.tolist(), self.model.tolist(), self.prompt_tokens.tolist(),
            self.output_tokens.tolist(), self.expected_tokens.tolist(), self.session.tolist(),
            self.slo_ms.tolist(), self.body_bytes.tolist(), parts, strict=True,
        )))


def chunk_of(rows: Sequence[Arrival]) -> Arrivals:
    """The columns of some requests, which come in the order of `at_s`."""
    blocks: list[int] = []
    ends = []
    for row in rows:
        blocks += row.blocks
        ends.append(len(blocks))
    return Arrivals(
        at_s=np.array([row.at_s for row in rows], dtype=np.float64),
        ingress=np.array([row.ingress for row in rows], dtype=np.int64),
        tenant=np.array([row.tenant for row in rows], dtype=np.int64),
        class_=np.array([row.class_ for row in rows], dtype=np.int64),
        model=np.array([row.model for row in rows], dtype=np.int64),
        prompt_tokens=np.array([row.prompt_tokens for row in rows], dtype=np.int64),
        output_tokens=np.array([row.output_tokens for row in rows], dtype=np.int64),
        expected_tokens=np.array([row.expected_tokens for row in rows], dtype=np.int64),
        session=np.array([row.session for row in rows], dtype=np.int64),
        slo_ms=np.array([row.slo_ms for row in rows], dtype=np.float64),
        body_bytes=np.array([row.body_bytes for row in rows], dtype=np.int64),
        block_ends=np.array(ends, dtype=np.int64),
        blocks=np.array(blocks, dtype=np.int64),
    )

"""Requests as they come in: columns by chunks, so that a day of them needs no more memory than a
minute. The same chunks are given to every policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

Ints = np.ndarray[tuple[Any, ...], np.dtype[np.int64]]
Floats = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]

NO_SESSION = -1


class Arrival:
    """One request. `at_s`: when its last byte is at the ingress. `class_`: by rank, 0 `reserved`,
    1 `on_demand`, 2 `batch`. `expected_tokens`: the answer's length as a gateway can tell it
    (the request's own maximum, or a guess), `output_tokens` what it turns out to be: no policy may
    look at that. `session`: a number, `NO_SESSION` for none. `slo_ms`: by when the first token
    should be with the client, counted from `at_s`. `blocks`: hashes of the leading blocks of 256
    tokens of the prompt; each covers all blocks before it, and the tenant and the model."""

    __slots__ = (
        "at_s", "blocks", "body_bytes", "class_", "expected_tokens", "ingress", "model",
        "output_tokens", "prompt_tokens", "session", "slo_ms", "tenant",
    )

    def __init__(
        self, at_s: float, ingress: int, tenant: int, class_: int, model: int, prompt_tokens: int,
        output_tokens: int, expected_tokens: int, session: int, slo_ms: float, body_bytes: int,
        blocks: Sequence[int],
    ) -> None:
        self.at_s = at_s
        self.ingress = ingress
        self.tenant = tenant
        self.class_ = class_
        self.model = model
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.expected_tokens = expected_tokens
        self.session = session
        self.slo_ms = slo_ms
        self.body_bytes = body_bytes
        self.blocks = blocks


NO_BLOCKS: Final[tuple[int, ...]] = ()


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
        at_s: list[float] = self.at_s.tolist()
        ingress: list[int] = self.ingress.tolist()
        tenant: list[int] = self.tenant.tolist()
        class_: list[int] = self.class_.tolist()
        model: list[int] = self.model.tolist()
        prompt_tokens: list[int] = self.prompt_tokens.tolist()
        output_tokens: list[int] = self.output_tokens.tolist()
        expected_tokens: list[int] = self.expected_tokens.tolist()
        session: list[int] = self.session.tolist()
        slo_ms: list[float] = self.slo_ms.tolist()
        body_bytes: list[int] = self.body_bytes.tolist()
        blocks: list[int] = self.blocks.tolist()
        ends: list[int] = self.block_ends.tolist()
        found: list[Arrival] = []
        start = 0
        for at in range(len(at_s)):
            end = ends[at]
            own: Sequence[int] = NO_BLOCKS if end == start else blocks[start:end]
            start = end
            found.append(Arrival(
                at_s[at], ingress[at], tenant[at], class_[at], model[at], prompt_tokens[at],
                output_tokens[at], expected_tokens[at], session[at], slo_ms[at], body_bytes[at],
                own,
            ))
        return found


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

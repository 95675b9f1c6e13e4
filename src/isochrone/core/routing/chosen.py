"""What choosing hands to the gateway: the site, and all that its decision will keep."""

from collections.abc import Sequence
from math import inf
from typing import Final

import numpy as np

from isochrone.core.ids import SiteName
from isochrone.core.routing.board import Part
from isochrone.core.routing.bond import Bond, HomeVerdict
from isochrone.core.routing.choice import Because, Decision, Ground, Refused
from isochrone.core.routing.per_site import Milliseconds
from isochrone.core.routing.prefix import Belief

UNKNOWN: Final = -2


class Choice:
    """The chosen site, and all that a decision keeps. Made for every request: no constructor, the
    attributes are set by `choose`, which is the quickest way that Python has.

    `site` is None and `index` -1 when no site can take the request; the milliseconds are then 0.
    `index` counts the open sites of `ground`. `eligible` is how many could take it.
    `allowed_exists` tells "not allowed" from "allowed, but not able just now". `belief` is what the
    chosen site is expected to have of the prompt; `verdict` is what became of the session's home,
    which could be `limit_ms` dearer than another. `because` says what decided among the eligible,
    None when there is nobody; `pushed`: it goes past the nearest site, which counts against the
    credits. `next_best` is what `runner_up` has found, UNKNOWN before. `body_bytes` is what was
    reckoned for the way, 0 for little. `queues` are those of the whole board of which `part` are
    the open sites.
    """

    __slots__ = (
        "allowed_exists", "because", "belief", "body_bytes", "cost_ms", "costs", "decode_ms",
        "decodes", "digest_age_ms", "eligible", "ground", "index", "limit_ms", "next_best", "part",
        "prefill_ms", "pushed", "queue_ms", "queues", "refused", "rtt_ms", "site", "verdict",
    )

    site: SiteName | None
    index: int
    eligible: int
    allowed_exists: bool
    ground: Ground
    rtt_ms: float
    cost_ms: float
    queue_ms: float
    prefill_ms: float
    decode_ms: float
    digest_age_ms: float
    because: Because | None
    pushed: bool
    next_best: int
    body_bytes: int
    refused: tuple[Refused, ...]
    costs: Milliseconds
    queues: bytes
    part: Part
    decodes: Milliseconds | None
    belief: Belief | None
    verdict: HomeVerdict
    limit_ms: float

    @property
    def predicted_ttft_ms(self) -> float | None:
        """Expected time to the first token; None when nobody was chosen."""
        return None if self.site is None else self.cost_ms - self.decode_ms

    def costs_ms(self) -> bytes:
        """As `Decision.costs_ms`."""
        return self.costs.tobytes()

    def queues_ms(self) -> bytes:
        """As `Decision.queues_ms`."""
        places = self.part.places
        if places is None:
            return self.queues
        return np.frombuffer(self.queues, dtype="<f4").take(places).tobytes()

    def decodes_ms(self) -> bytes:
        """As `Decision.decodes_ms`."""
        return b"" if self.decodes is None else self.decodes.tobytes()

    @property
    def is_spill(self) -> bool:
        """Whether it leaves the ingress's own site although that could take the request."""
        own = self.part.own
        return own >= 0 and own != self.index and self.costs.item(own) < inf

    def runner_up(self) -> int:
        """The index of the cheapest site beside the chosen one; -1 where there is none."""
        if self.eligible < 2:
            return -1
        if self.next_best == UNKNOWN:
            costs, index = self.costs, self.index
            costs[index] = inf
            self.next_best = int(costs.argmin())
            costs[index] = self.cost_ms
        return self.next_best

    def decision(
        self, *, actual_ttft_ms: float | None = None, tried: Sequence[Refused] = (),
        bond: Bond | None = None, in_full: bool = True,
    ) -> Decision:
        """What is kept of this choice: all where nobody was chosen. The gateway makes its record of
        the same fields, see `gateway/account.py`."""
        in_full = in_full or self.site is None
        other = -1 if in_full else self.runner_up()
        return Decision(
            ground=self.ground.id,
            chosen=self.index,
            costs_ms=self.costs_ms() if in_full else b"",
            queues_ms=self.queues_ms() if in_full else b"",
            prefill_ms=self.prefill_ms,
            decode_ms=self.decode_ms,
            digest_age_ms=self.digest_age_ms,
            predicted_ttft_ms=self.predicted_ttft_ms,
            actual_ttft_ms=actual_ttft_ms,
            refused=self.refused,
            tried=tuple(tried),
            decodes_ms=self.decodes_ms() if in_full else b"",
            bond=bond,
            because=self.because,
            body_bytes=self.body_bytes,
            chosen_queue_ms=self.queue_ms,
            eligible=self.eligible,
            runner_up=other,
            runner_up_ms=0.0 if other < 0 else self.costs.item(other),
        )

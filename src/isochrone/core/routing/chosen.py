"""What choosing hands to the gateway: the site, and all that its decision will keep."""

from collections.abc import Sequence

from isochrone.core.ids import SiteName
from isochrone.core.routing.bond import Bond, HomeVerdict
from isochrone.core.routing.choice import Because, Decision, Ground, Milliseconds, Refused
from isochrone.core.routing.prefix import Belief


class Choice:
    """The chosen site, and all that a decision keeps. Made for every request: no constructor, the
    attributes are set by `choose`, which is the quickest way that Python has.

    `site` is None and `index` -1 when no site can take the request; the milliseconds are then 0.
    `index` counts the open sites of `ground`. `eligible` is how many could take it.
    `allowed_exists` tells "not allowed" from "allowed, but not able just now". `belief` is what the
    chosen site is expected to have of the prompt; `verdict` is what became of the session's home,
    which could be `limit_ms` dearer than another. `because` says what decided among the eligible,
    None when there is nobody; `pushed`: it goes past the nearest site, which counts against the
    credits. `body_bytes` is what was reckoned for the way, 0 for little.
    """

    __slots__ = (
        "allowed_exists", "because", "belief", "body_bytes", "cost_ms", "costs", "decode_ms",
        "decodes", "digest_age_ms", "eligible", "ground", "index", "limit_ms", "prefill_ms",
        "pushed", "queues", "refused", "rtt_ms", "site", "verdict",
    )

    site: SiteName | None
    index: int
    eligible: int
    allowed_exists: bool
    ground: Ground
    rtt_ms: float
    cost_ms: float
    prefill_ms: float
    decode_ms: float
    digest_age_ms: float
    because: Because | None
    pushed: bool
    body_bytes: int
    refused: tuple[Refused, ...]
    costs: Milliseconds
    queues: bytes
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
        return self.queues

    def decodes_ms(self) -> bytes:
        """As `Decision.decodes_ms`."""
        return b"" if self.decodes is None else self.decodes.tobytes()

    def decision(
        self, *, actual_ttft_ms: float | None = None, tried: Sequence[Refused] = (),
        bond: Bond | None = None,
    ) -> Decision:
        """What is kept of this choice."""
        return Decision(
            ground=self.ground.id,
            chosen=self.index,
            costs_ms=self.costs_ms(),
            queues_ms=self.queues_ms(),
            prefill_ms=self.prefill_ms,
            decode_ms=self.decode_ms,
            digest_age_ms=self.digest_age_ms,
            predicted_ttft_ms=self.predicted_ttft_ms,
            actual_ttft_ms=actual_ttft_ms,
            refused=self.refused,
            tried=tuple(tried),
            decodes_ms=self.decodes_ms(),
            bond=bond,
            because=self.because,
            body_bytes=self.body_bytes,
        )

"""The answer of routing: who was considered, what each would cost, and why others were refused."""

from dataclasses import dataclass
from typing import Literal

from isochrone.core.ids import ReplicaId, SiteName
from isochrone.core.world.site import RttSource

Rule = Literal[
    "model_not_served",     # the site has no deployment of the model
    "residency",            # the key's policy does not allow processing there
    "attribute_missing",    # the policy needs an attribute that the site does not state
    "no_ready_replica",     # deployed, but its digest shows nothing ready
    "digest_stale",         # nothing heard from the site for too long
    "draining",             # the site is being emptied
    "not_joined",           # the site has no identity yet
    "unreachable",          # this gateway lost its connection there and waits for a sign of life
    "tried_before",         # this request was refused or lost there already
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An eligible site with its expected cost; terms in milliseconds, `cost_ms` is their sum."""

    site: SiteName
    cost_ms: float
    rtt_ms: float
    rtt_source: RttSource
    queue_ms: float
    prefill_ms: float
    decode_ms: float
    digest_age_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A site that was not eligible, by which rule, and the fact that decided."""

    site: SiteName
    rule: Rule
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Candidates cheapest first (the first is the chosen site), and every other site with its rule.

    `candidates` is empty when no site can serve now; `allowed_exists` then tells 403 (no site that
    serves the model is allowed) from 503 (allowed sites exist but none is healthy).
    """

    candidates: tuple[Candidate, ...]
    refused: tuple[Refused, ...]
    allowed_exists: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is kept of a choice for `explain`, with what came of it.

    `plaintext_ingress` is the ingress country, which saw the request in clear text. `tried` lists
    earlier sites of the same request with the rule or failure that ended each try.
    """

    choice: Choice
    policy_residency: tuple[str, ...]
    policy_transit: tuple[str, ...]
    plaintext_ingress: str
    predicted_ttft_ms: float | None
    actual_ttft_ms: float | None
    replica: ReplicaId | None
    tried: tuple[Refused, ...] = ()

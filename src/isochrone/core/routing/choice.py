"""The answer of routing: who was considered, what each would cost, and why others were refused.

An explanation has two parts. What holds for every request of a model under a policy until the view
changes is the `Ground`, kept once; what is a request's own is the `Decision`, a few hundred bytes.
What the gateway acts on is a `Choice` (see `chosen`), from which a decision is made.
"""

from dataclasses import dataclass
from typing import Literal

from isochrone.core.ids import ModelName, PolicyId, ReplicaId, SiteName
from isochrone.core.residency.rule import UNBOUND
from isochrone.core.routing.bond import Bond
from isochrone.core.world.site import RttSource
from isochrone.core.world.tenant import Class

Rule = Literal[
    "model_not_served",     # the site has no deployment of the model
    "residency",            # the key's policy, or the request's own wish, does not allow it there
    "transit",              # the way there passes where the request may not
    "attribute_missing",    # the policy needs an attribute that the site does not state
    "no_ready_replica",     # deployed, but its digest shows nothing ready
    "digest_stale",         # nothing heard from the site for too long
    "draining",             # the site is being emptied
    "not_joined",           # the site has no identity yet
    "unreachable",          # this gateway lost its connection there and waits for a sign of life
    "ejected",              # requests of this gateway failed there too often, and it waits
    "saturated",            # its queue refused this request: the detail says why, and until when
    "tried_before",         # this request was refused or lost there already
]


# What decided among the sites that could take a request, in the order in which it is asked.
Because = Literal[
    "home",       # the session has been there, and it costs little enough
    "explored",   # a site within the target, drawn so that something is learned of each
    "local",      # the own site, which answers within the target
    "nearest",    # nearest without queues, and no other is worth leaving it
    "cheapest",   # the queue is long there: the cheapest that takes pushes, near equals by chance
]


# Why nothing that was sold paid for a request, which was then served as `on_demand`.
UnpaidBecause = Literal[
    "nothing_sold",  # nothing of the model was sold in the class to its organisation or project
    "residency",     # what was sold counts at other sites only
    "spent",         # what was sold had too little left where the request came in
    "spent_at_cashier",  # so it had, and its cashier, who was asked to pay, had too little, too
    "cashier_late",  # so it had, and its cashier said nothing before the answer began
    "spent_there",   # so it had, and the site that served it did not pay for it either
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An eligible site with its expected cost; terms in milliseconds, `cost_ms` is their sum.

    `digest_age_ms` is kept for the chosen site only.
    """

    site: SiteName
    cost_ms: float
    rtt_ms: float
    rtt_source: RttSource
    queue_ms: float
    prefill_ms: float
    decode_ms: float
    digest_age_ms: float | None
    transfer_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A site that was not eligible, by which rule, and the fact that decided."""

    site: SiteName
    rule: Rule
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerUp:
    """The cheapest site beside the chosen one."""

    site: SiteName
    cost_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One choice: candidates cheapest first except that the chosen one leads, and every other site
    that serves the model with its rule. `elsewhere` counts the sites of the view that have no
    deployment of the model. Where `is_full` is False only the chosen one of the `eligible`
    candidates was kept with its terms, and of the `runner_up` the cost."""

    candidates: tuple[Candidate, ...]
    refused: tuple[Refused, ...]
    allowed_exists: bool
    elsewhere: int
    is_full: bool = True
    eligible: int = 0
    runner_up: RunnerUp | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundSite:
    """A site that every lasting rule allows, and the round trip to it."""

    site: SiteName
    rtt_ms: float
    rtt_source: RttSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What all choices of one model under one policy share until the view changes.

    `id` is a digest of everything else. `open_sites` are in the order of a decision's arrays.
    `refused` are the sites that serve the model and are ruled out lastingly; `elsewhere` counts the
    sites without a deployment of it. `plaintext_ingress` is the country of the ingress, which saw
    the request in clear text; residency, transit, caches and logs are the policy's axes (no
    `caches`: as residency), `narrowed` and `narrowed_transit` what the request asked for beyond
    them.
    """

    id: str
    model: ModelName
    policy_id: PolicyId
    residency: tuple[str, ...]
    transit: tuple[str, ...]
    plaintext_ingress: str
    open_sites: tuple[GroundSite, ...]
    refused: tuple[Refused, ...]
    allowed_exists: bool
    elsewhere: int
    caches: tuple[str, ...] = ()
    logs: tuple[str, ...] = UNBOUND
    narrowed: tuple[str, ...] = UNBOUND
    narrowed_transit: tuple[str, ...] = UNBOUND


@dataclass(frozen=True, slots=True, kw_only=True)
class Foretold:
    """An earlier choice of the same request, whose site began to answer and then lost the stream:
    its first token as it was expected and as it came, both counted from when it was chosen,
    `since_ms` after the request was received; 0 of the first choice."""

    site: SiteName
    since_ms: float
    predicted_ttft_ms: float
    actual_ttft_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """A request gave its slot back, because the floor of `for_class` lacked one: at `site`, by
    whose clock `since_ms` counts from when the request came there, with so many tokens of `output`
    delivered; None before the first byte of its answer. `after_ms` later it was sent on to an
    engine or site at `at`, None for nowhere; or was `refused` by the queue in which it waited, for
    this reason. `after_ms` is None where it ended while it waited."""

    site: SiteName
    replica: ReplicaId | None
    for_class: Class
    since_ms: float
    output: int | None
    after_ms: float | None = None
    at: SiteName | None = None
    refused: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is kept of a choice, small because it is kept for every request.

    `costs_ms` and `queues_ms` hold one little-endian float32 per open site of the ground: the
    expected cost (infinite for a site that could not take a request just then) and its queue part.
    `decodes_ms` likewise, where decoding counts; empty where it does not. `chosen` is the index of
    the chosen site, -1 for none; `prefill_ms`, `decode_ms` and `digest_age_ms` are the chosen
    site's. `refused` says why each infinite one was refused, `tried` lists earlier tries of the
    request by site, with the rule or failure that ended each. `bond`: what else spoke for a site;
    None where nothing could. `queued_ms`: how long the request waited for its turn at the sites
    that it was sent to. `because`: what decided among the candidates. `body_bytes`: the body whose
    transfer is part of the costs, 0 where it is not.

    In brief, the three arrays are empty. `chosen_queue_ms` is the chosen site's, `eligible` how
    many sites could take the request, `runner_up` the index of the cheapest beside the chosen one
    (-1: none) and `runner_up_ms` its cost. Of a whole decision the arrays say these things.

    `wanted_class` is what the request asked for, None where that was not noted; `key_class` what
    its key has instead, None where it has that. `unpaid_because`: why it was not served in that
    class, None where it was.

    `predicted_ttft_ms` and `actual_ttft_ms` are of the chosen site and count from `since_ms` after
    the request was received: 0 of a first choice, of any other when it was made. `foretold` has the
    same of the choices before it that began to answer, in order.

    `stops` are those that its reporter knows of, in order: of its own site, and of sites that
    refused the request after them. A serving gateway, which chose nothing, has a decision where
    there are any, with nothing else in it and no ground.
    """

    ground: str
    chosen: int
    costs_ms: bytes
    queues_ms: bytes
    prefill_ms: float
    decode_ms: float
    digest_age_ms: float
    predicted_ttft_ms: float | None
    actual_ttft_ms: float | None
    refused: tuple[Refused, ...]
    tried: tuple[Refused, ...] = ()
    decodes_ms: bytes = b""
    bond: Bond | None = None
    queued_ms: float = 0.0
    because: Because | None = None
    body_bytes: int = 0
    chosen_queue_ms: float = 0.0
    eligible: int = 0
    runner_up: int = -1
    runner_up_ms: float = 0.0
    wanted_class: Class | None = None
    key_class: Class | None = None
    unpaid_because: UnpaidBecause | None = None
    since_ms: float = 0.0
    foretold: tuple[Foretold, ...] = ()
    stops: tuple[Stopped, ...] = ()

    @property
    def is_brief(self) -> bool:
        """Whether a choice was made of which the other candidates' terms were not kept."""
        return self.chosen >= 0 and not self.costs_ms

"""What is refused before any site is asked, and how each refusal reads to the client."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Final

from isochrone.core.ids import ModelName, SiteName
from isochrone.core.residency.bounds import Narrowing
from isochrone.core.residency.rule import UNBOUND, Denied
from isochrone.core.residency.terms import Axis, brief_axis
from isochrone.core.routing.chosen import Choice
from isochrone.core.routing.come_back import BY_HAND_S, SOON_S, waits_for_operator
from isochrone.core.tenancy.terms import is_over
from isochrone.core.world.model import COMMON_ENDPOINTS, Endpoint
from isochrone.core.world.tenant import ApiKey, Class, KeyScope
from isochrone.gateway.context import Context
from isochrone.gateway.replies import Refusal
from isochrone.gateway.request import InferenceRequest
from isochrone.gateway.surface import endpoint_refusal
from isochrone.wire import peer

_TRIED: Final = peer.TRIED.encode()


def refuse_request(context: Context, request: InferenceRequest, path: str) -> Refusal | None:
    """Why the ingress does not take a request on; None when it does."""
    table = context.view.table
    model = request.model
    if not table.is_served(model):
        return Refusal(
            status=404, reason="model_not_found", code="model_not_found", param="model",
            message=f"The model '{model}' does not exist or you do not have access to it.",
        )
    noun = table.view.models.get(model)
    if noun is not None and (noun.kind == "embedding") != (request.endpoint == "embeddings"):
        return Refusal(
            status=400, reason="model_kind", param="model",
            message=f"The model '{model}' is for {noun.kind}, which {path} is not.",
        )
    if request.endpoint in COMMON_ENDPOINTS:
        return None
    return endpoint_refusal(request.endpoint, model, context.endpoints.of(model))


def refuse_key(key: ApiKey, scope: KeyScope, wall_ns: int) -> Refusal | None:
    """Why the key itself, past its end or made for something else, is not enough."""
    if is_over(key.expires_at, now=wall_ns):
        return Refusal(
            status=401, reason="key_expired", code="invalid_api_key",
            message="The API key is past its end: make another, or rotate it in time.",
        )
    if scope not in key.scopes:
        return Refusal(
            status=403, reason="key_scope", message=f"The API key lacks the scope '{scope}'.",
        )
    return None


def scope_of(endpoint: Endpoint) -> KeyScope:
    """What a key must be for, to be used at this endpoint."""
    return "embeddings" if endpoint == "embeddings" else "chat"


def refuse_hop(
    context: Context, key: ApiKey, class_: Class, narrowing: Narrowing | None
) -> Refusal | None:
    """What the destination of a hop checks again in its own view."""
    had = key.classes or ("on_demand",)
    # Whoever may use `reserved` is served on demand where nothing of what was sold is left.
    if class_ not in had and not (class_ == "on_demand" and "reserved" in had):
        return Refusal(
            status=403, reason="class", message=f"The key may not use class {class_}."
        )
    refusal = refuse_old_view(context, key)
    if refusal is not None:
        return refusal
    verdict = context.view.table.residency_allows(key.policy_id, narrowing)
    if isinstance(verdict, Denied):
        return Refusal(status=403, reason=verdict.rule, message=verdict.detail)
    why = context.journal.refusal()
    return None if why is None else unrecorded(why)


def refuse_circling(headers: Mapping[bytes, bytes], site: SiteName) -> Refusal | None:
    """Whether the ingress of a hop says that this site refused the request before."""
    tried = headers.get(_TRIED)
    if tried is None or site not in peer.sites_tried(tried):
        return None
    return Refusal(
        status=503, reason="tried_before",
        message=f"{site} refused or lost this request before and is not asked again.",
    )


def refuse_old_view(context: Context, key: ApiKey) -> Refusal | None:
    """Whether this gateway may know too little of what has changed since for this key's policy."""
    view = context.view
    limit_s = view.too_old(key.policy_id) if view.aged else None
    if limit_s is None:
        return None
    age = f"{view.age_s:.0f} s" if math.isfinite(view.age_s) else "unknown"
    return Refusal(
        status=503, reason="view_too_old", retry_after_s=5,
        message=f"This gateway has not heard from the cloud for longer than this key's policy "
        f"allows (age of its view: {age}; allowed: {limit_s:.0f} s).",
    )


def refuse_transit(
    context: Context, key: ApiKey, narrowing: Narrowing | None
) -> Refusal | None:
    """Whether the key's requests may enter here at all, asked before the body is read."""
    verdict = context.view.table.transit_allows(key.policy_id, narrowing)
    if not isinstance(verdict, Denied):
        return None
    sites = context.view.table.allowed_ingresses(key.policy_id, narrowing)
    endpoints = ", ".join(site.public_url for site in sites if site.public_url) or "none"
    return Refusal(
        status=403, reason=verdict.rule,
        message=f"This key's requests may not enter here ({verdict.detail}); the body was "
        f"not read. Allowed endpoints: {endpoints}.",
    )


def no_retry_left() -> Refusal:
    """An attempt failed while so much fails that there is no retry for it."""
    return Refusal(
        status=503, reason="retry_budget", retry_after_s=1,
        message="The engine that was asked failed, and too many requests are being tried again.",
    )


def unrecorded(why: str) -> Refusal:
    """Usage cannot be written down now."""
    return Refusal(
        status=503, reason="journal", retry_after_s=5,
        message=f"This gateway cannot record usage now and takes no work: {why}.",
    )


def no_site_allowed(
    context: Context, key: ApiKey, model: str, narrowing: Narrowing | None
) -> Refusal:
    """Sites serve the model, and the key's policy and the request together allow none of them."""
    policy, axis = context.view.policy(key.policy_id), "unknown"
    if policy is not None:
        axis = _said(policy.residency)
        if policy.caches is not None:
            axis += f", caches {_said(policy.caches)}"
        if policy.transit != UNBOUND:
            axis += f", transit {_said(policy.transit)}"
    narrowed = ""
    if narrowing is not None:
        narrowed = f", narrowed by this request to {_said(narrowing.residency)}"
        if narrowing.transit != UNBOUND:
            narrowed += f" by way of {_said(narrowing.transit)}"
    return Refusal(
        status=403, reason="residency",
        message=f"No site that serves '{model}' is allowed by this key's residency "
        f"({axis}{narrowed}).",
    )


def _said(axis: Axis) -> str:
    return brief_axis(axis).replace(",", ", ")


def no_site_healthy(context: Context, choice: Choice | None, model: ModelName) -> Refusal:
    """Allowed sites exist, and none can serve now."""
    after_s, why, stopped = SOON_S, "none can now", partial(context.view.is_stopped, model)
    if choice is not None and waits_for_operator(choice.ground, stopped):
        after_s, why = BY_HAND_S, "each of them waits for its operator"
    return Refusal(
        status=503, reason="no_healthy_site", retry_after_s=after_s,
        message=f"Sites that may serve '{model}' for this key exist, but {why}.",
    )


def saturated_elsewhere(
    site: str, model: str, reason: str, retry_after_s: int | None
) -> Refusal:
    """The queue of another site refused it for this reason."""
    return Refusal(
        status=429, reason=reason, retry_after_s=retry_after_s,
        message=f"Too many requests of this class wait for '{model}' at site {site}.",
    )


def engines_full(model: str, retry_after_s: int) -> Refusal:
    """Every engine that was asked answered that it takes nothing more."""
    return Refusal(
        status=429, reason="queue_full", retry_after_s=retry_after_s,
        message=f"The engines that serve '{model}' take no more requests now.",
    )


def no_replica(why: str) -> Refusal:
    """The destination of a hop has no replica for it."""
    return Refusal(status=503, reason="no_ready_replica", message=why, retry_after_s=1)

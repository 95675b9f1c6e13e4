"""Which site answers a request soonest among those allowed, and why each other one does not.

Interactive classes minimise the expected time to the first token: round trip + queue drain +
prefill. Batch minimises the expected completion: + decode. See docs/routing.md.
"""

from dataclasses import dataclass
from operator import attrgetter

from isochrone.core.estimate.service import Rates, Servers, decode_ms, prefill_ms, queue_ms
from isochrone.core.ids import ModelName, PolicyId, SiteName
from isochrone.core.rng import Random
from isochrone.core.routing.choice import Candidate, Choice, Refused
from isochrone.core.routing.loads import Loads, ModelLoad, SiteLoad
from isochrone.core.routing.table import OpenSite, RoutingTable
from isochrone.core.world.digest import DeploymentLoad
from isochrone.core.world.tenant import Class

# Two costs this near are the same as far as the estimates can tell. Chance then decides, so that
# many gateways with the same view do not all run to the same site.
TIE_MS = 3.0
TIE_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRequest:
    """What choosing needs of a request. Token counts are expectations >= 0; `tried` are the sites
    that refused or lost it already, with the rule or failure that ended each try."""

    model: ModelName
    policy_id: PolicyId
    class_: Class
    prompt_tokens: int
    output_tokens: int
    tried: tuple[Refused, ...] = ()


def choose(
    request: RouteRequest, table: RoutingTable, loads: Loads, now_ns: int, rng: Random
) -> Choice:
    """Weigh every site of the view; each appears once, as candidate or refused.

    `now_ns` is the clock that `loads` was told. Candidates come cheapest first, except that the
    first is drawn by `rng` among those within 3 ms or 5 % of the cheapest.
    """
    shortlist = table.shortlist(request.model, request.policy_id)
    tried = {each.site: each for each in request.tried} if request.tried else None
    candidates: list[Candidate] = []
    refused: list[Refused] = []
    for site in shortlist.open_sites:
        if tried is not None and site.name in tried:
            refused.append(_tried_before(tried[site.name]))
            continue
        weighed = _weigh(site, request, loads, now_ns)
        if isinstance(weighed, Candidate):
            candidates.append(weighed)
        else:
            refused.append(weighed)
    candidates.sort(key=attrgetter("cost_ms"))
    _break_tie(candidates, rng)
    return Choice(
        candidates=tuple(candidates),
        refused=(*refused, *shortlist.refused),
        allowed_exists=shortlist.allowed_exists,
    )


def _break_tie(candidates: list[Candidate], rng: Random) -> None:
    """Move one of the near-equals to the front; chance is drawn only when there is a tie."""
    if len(candidates) < 2:
        return
    cheapest_ms = candidates[0].cost_ms
    limit_ms = max(cheapest_ms + TIE_MS, cheapest_ms * (1 + TIE_SHARE))
    near = 1
    while near < len(candidates) and candidates[near].cost_ms <= limit_ms:
        near += 1
    if near > 1:
        drawn = candidates.pop(int(rng.random() * near))
        candidates.insert(0, drawn)


def _weigh(
    site: OpenSite, request: RouteRequest, loads: Loads, now_ns: int
) -> Candidate | Refused:
    """The cost of one open site, or why it cannot take a request just now."""
    known = loads.of(site.name)
    if known is None or known.epoch is None:
        detail = f"nothing heard from {site.name} yet"
        return Refused(site=site.name, rule="digest_stale", detail=detail)
    if not loads.may_try(known, now_ns):
        return _unreachable(site.name, known, now_ns)
    stale_ms = loads.stale_ms(known, now_ns)
    if stale_ms > loads.stale_after_ms:
        return _stale(site.name, stale_ms, loads.stale_after_ms)
    model = known.models.get(request.model)
    if model is None or model.load.ready < 1:
        return _none_ready(site.name, request.model, model)
    servers = model.servers or _seeded(model.load, site.seed)
    wait_ms = queue_ms(servers, model.ahead)
    read_ms = prefill_ms(request.prompt_tokens, servers.rates)
    write_ms = (
        decode_ms(request.output_tokens, servers.rates) if request.class_ == "batch" else 0.0
    )
    return Candidate(
        site=site.name,
        cost_ms=site.rtt_ms + wait_ms + read_ms + write_ms,
        rtt_ms=site.rtt_ms,
        rtt_source=site.rtt_source,
        queue_ms=wait_ms,
        prefill_ms=read_ms,
        decode_ms=write_ms,
        digest_age_ms=max((now_ns - known.heard_ns) / 1e6, 0.0),
    )


def _seeded(load: DeploymentLoad, seed: Rates) -> Servers:
    """Replicas that have not measured a rate yet: the seed of the site's hardware stands in."""
    return Servers(
        ready=load.ready,
        slots=max(load.slots, load.ready),
        rates=Rates(
            prefill_tok_s=load.prefill_tok_s if load.prefill_tok_s > 0 else seed.prefill_tok_s,
            decode_tok_s=load.decode_tok_s if load.decode_tok_s > 0 else seed.decode_tok_s,
        ),
    )


def _tried_before(earlier: Refused) -> Refused:
    detail = f"this request was there already: {earlier.rule} ({earlier.detail})"
    return Refused(site=earlier.site, rule="tried_before", detail=detail)


def _unreachable(site: SiteName, known: SiteLoad, now_ns: int) -> Refused:
    assert known.lost_ns is not None
    lost_s = (now_ns - known.lost_ns) / 1e9
    hold_s = known.hold_ns / 1e9
    detail = (
        f"the connection to {site} was lost {lost_s:.1f} s ago; "
        f"tried again at its first digest after {hold_s:.0f} s"
    )
    return Refused(site=site, rule="unreachable", detail=detail)


def _stale(site: SiteName, age_ms: float, limit_ms: float) -> Refused:
    detail = (
        f"the last digest of {site} is {age_ms / 1000:.1f} s old, at most "
        f"{limit_ms / 1000:.1f} s count"
    )
    return Refused(site=site, rule="digest_stale", detail=detail)


def _none_ready(site: SiteName, model: ModelName, known: ModelLoad | None) -> Refused:
    ready = "does not mention it" if known is None else f"says {known.load.ready} ready"
    detail = f"{site} has no ready replica of {model}: its digest {ready}"
    return Refused(site=site, rule="no_ready_replica", detail=detail)

"""Trials of policies that nobody has yet: which sites they allow, and what a request would meet."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.axes import AxesShape, PolicyAxes, axes_of, policy_of
from isochrone.control.api.context import Context
from isochrone.control.api.shapes import Body, Identifier, Text
from isochrone.control.api.sites import EVERY
from isochrone.core.errors import NotFound
from isochrone.core.ids import ModelName, OrgId, SiteName
from isochrone.core.residency.bounds import Narrowing
from isochrone.core.residency.rule import UNBOUND, Admitted, Denied, Verdict
from isochrone.core.residency.terms import Axis, check_wish, parse_axis
from isochrone.core.routing.choice import Rule
from isochrone.core.routing.trial import Outcome, SiteTrial, try_request, try_sites
from isochrone.core.world.site import Site
from isochrone.core.world.tenant import Policy
from isochrone.core.world.view import View

TRIAL = "trial"


class TrialRequest(Body):
    """A request that enters at site `ingress`; `residency` and `transit` are what its headers
    narrow, as a client writes them."""

    ingress: Identifier
    model: Text
    residency: Text | None = None
    transit: Text | None = None


class NewTrial(PolicyAxes):
    request: TrialRequest | None = None


class SiteTrialShape(BaseModel):
    """What a site may do under the policy, and why not more; null where it may."""

    site: str
    country: str | None
    enters: bool
    enters_not: str | None
    processes: bool
    processes_not: str | None
    caches: bool


class RefusedShape(BaseModel):
    site: str
    rule: Rule
    detail: str


class RequestTrialShape(BaseModel):
    """`open_sites` could serve it, the nearest first; their health is not asked."""

    outcome: Outcome
    entry_not: str | None
    open_sites: list[str]
    refused: list[RefusedShape]


class TrialShape(AxesShape):
    """The axes in the form in which they would be kept; `request` is null where none was tried."""

    sites: list[SiteTrialShape]
    request: RequestTrialShape | None


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/policies", tags=["tenants"])
    may = access(context)

    @router.post("/trials")
    def try_policy(
        body: NewTrial, caller: Annotated[Caller, may("policies.read")]
    ) -> TrialShape:
        """Say what these axes would allow, and what a request under them would meet. Nothing is
        kept."""
        asked = body.request
        faults: list[str] = []
        narrowing = None if asked is None else _narrowing(context, asked, faults)
        policy = policy_of(
            body, policy_id=TRIAL, org_id=OrgId(TRIAL), blocs=context.blocs, also=faults
        )
        sites = context.registry.estate.sites(EVERY)
        return TrialShape(
            **axes_of(policy).model_dump(),
            sites=[_site(each) for each in try_sites(policy, sites, context.blocs)],
            request=None if asked is None else _tried(
                context, policy, {site.name: site for site in sites}, asked, narrowing
            ),
        )

    return router


def _tried(
    context: Context, policy: Policy, sites: dict[SiteName, Site], asked: TrialRequest,
    narrowing: Narrowing | None,
) -> RequestTrialShape:
    """The request as the gateway of its ingress would judge it by the book as it is now."""
    estate, ingress = context.registry.estate, SiteName(asked.ingress)
    if ingress not in sites:
        raise NotFound(f"there is no site {asked.ingress!r}")
    serving: dict[ModelName, set[SiteName]] = {}
    for wish in estate.deployments(EVERY):
        if wish.replicas > 0:
            serving.setdefault(wish.model, set()).add(wish.site)
    view = View(
        own_site=ingress, sites=sites, policies={policy.id: policy}, models={},
        links={link.peer: link for link in estate.links(ingress)},
        deployments={model: frozenset(names) for model, names in serving.items()},
    )
    found = try_request(policy, view, ModelName(asked.model), narrowing, context.blocs)
    return RequestTrialShape(
        outcome=found.outcome, entry_not=_why(found.entry), open_sites=list(found.open_sites),
        refused=[
            RefusedShape(site=each.site, rule=each.rule, detail=each.detail)
            for each in found.refused
        ],
    )


def _narrowing(context: Context, asked: TrialRequest, faults: list[str]) -> Narrowing | None:
    """What the headers ask for; their faults are added to `faults`."""
    axes: list[Axis] = []
    for name, text, links in (
        ("request residency", asked.residency, False), ("request transit", asked.transit, True),
    ):
        axis = UNBOUND if text is None else parse_axis(text)
        faults += [f"{name}: {each}" for each in check_wish(axis, context.blocs, links=links)]
        axes.append(tuple(sorted(axis)))
    narrowing = Narrowing(residency=axes[0], transit=axes[1])
    return None if narrowing == Narrowing() else narrowing


def _site(each: SiteTrial) -> SiteTrialShape:
    return SiteTrialShape(
        site=each.site.name, country=each.site.country,
        enters=isinstance(each.entry, Admitted), enters_not=_why(each.entry),
        processes=isinstance(each.processing, Admitted), processes_not=_why(each.processing),
        caches=each.caches,
    )


def _why(verdict: Verdict) -> str | None:
    return verdict.detail if isinstance(verdict, Denied) else None

"""A cloud of the size that is designed for, as one of its 1,100 gateways sees it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from isochrone.core.ids import ModelName, OrgId, PolicyId, SiteName
from isochrone.core.residency.blocs import Blocs
from isochrone.core.rng import Random
from isochrone.core.routing.table import RoutingTable, compile_table
from isochrone.core.world.digest import DeploymentLoad, ReplicaLoad, SiteDigest
from isochrone.core.world.model import Model
from isochrone.core.world.site import Link, Site
from isochrone.core.world.tenant import Policy
from isochrone.core.world.view import View

COUNTRIES = tuple(f"{one}{other}" for one in "ABCDEFG" for other in "VWXYZ")[:31]
ORG = OrgId("org")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """1,100 sites in 31 countries; 60 of them have engines, which serve the 20 most popular of 200
    models; each other model is served by 8 of them. 1,000 policies of 40 kinds."""

    sites: int = 1100
    serving: int = 60
    models: int = 200
    popular: int = 20
    few: int = 8
    policies: int = 1000
    kinds: int = 40
    replicas_a_site: int = 834  # 50,000 in all


def a_table(scale: Scale) -> RoutingTable:
    """The view of the ingress `s0001`, which has no engines."""
    sites = [_site(number) for number in range(scale.sites)]
    serving = [
        sites[number * scale.sites // scale.serving].name for number in range(scale.serving)
    ]
    view = View(
        own_site=sites[1].name,
        sites={site.name: site for site in sites},
        links={
            site.name: Link(
                peer=site.name, rtt_ms=5.0 + number % 290, source="probed",
                via=(sites[1].country or "", site.country or ""),
            )
            for number, site in enumerate(sites) if site is not sites[1]
        },
        models={
            name: Model(name=name, kind="chat", revision=None, context_tokens=8192, created_at=0)
            for name in model_names(scale)
        },
        deployments={
            name: frozenset(_served_by(number, serving, scale))
            for number, name in enumerate(model_names(scale))
        },
        policies={policy.id: policy for policy in _policies(scale)},
    )
    blocs = Blocs(
        countries=frozenset(COUNTRIES), members={"EU": frozenset(COUNTRIES[:20])}
    )
    return compile_table(view, blocs)


def _served_by(number: int, serving: list[SiteName], scale: Scale) -> list[SiteName]:
    """The sites that serve the model of this number."""
    if number < scale.popular:
        return serving
    return [serving[(number * 7 + other * 13) % len(serving)] for other in range(scale.few)]


def model_names(scale: Scale) -> list[ModelName]:
    return [ModelName(f"model-{number:03}") for number in range(scale.models)]


def _site(number: int) -> Site:
    return Site(
        name=SiteName(f"s{number:04}"), country=COUNTRIES[number % len(COUNTRIES)],
        operator=f"operator-{number % 7}", parent=f"parent-{number % 3}", latitude_deg=0.0,
        longitude_deg=0.0, host="127.0.0.1", port=8001, public_url="", peer_key="ab" * 32,
    )


def _policies(scale: Scale) -> list[Policy]:
    """Half of them bind nothing, the others to a bloc without some country, or to an operator."""
    kinds: list[tuple[str, ...]] = [("any",)]
    for number in range(1, scale.kinds):
        country = COUNTRIES[number % len(COUNTRIES)]
        kinds.append(("EU", f"-{country}") if number % 2 else ("any", f"-{country}"))
    return [
        Policy(
            id=PolicyId(f"policy-{number:04}"), org_id=ORG,
            residency=kinds[number // 2 % scale.kinds if number % 2 else 0], transit=("any",),
        )
        for number in range(scale.policies)
    ]


def a_digest(site: SiteName, sequence: int, table: RoutingTable, rng: Random) -> SiteDigest:
    """What a site says of its models: four replicas of each, some requests, its credits."""
    return SiteDigest(
        site=site, epoch=1, sequence=sequence, at=0,
        loads=tuple(
            _load(name, rng) for name, sites in table.view.deployments.items() if site in sites
        ),
    )


def _load(model: ModelName, rng: Random) -> DeploymentLoad:
    running = rng.randrange(40)
    return DeploymentLoad(
        model=model, revision="sha256:0123456789abcdef", ready=4, slots=32,
        running=min(running, 32), waiting=max(running - 32, 0),
        pending_prompt_tokens=rng.randrange(2000), pending_output_tokens=running * 120,
        prefill_tok_s=8000.0, decode_tok_s=90.0, arrived=round(rng.uniform(0, 25), 3),
        spare=round(rng.uniform(-5, 8), 3),
    )


def popular(count: int) -> Sequence[float]:
    """Cumulative weights by which the n-th of `count` is asked for, 1/n each."""
    return list(accumulate(1 / number for number in range(1, count + 1)))


def a_replica_load(site: SiteName, number: int) -> ReplicaLoad:
    """One replica of a digest: for status pages, not for routing."""
    return ReplicaLoad(
        id=f"{site}/model-{number % 200:03}/{number}", model=ModelName(f"model-{number % 200:03}"),
        generation=1_790_000_000_000, state="ready", pid=4711, running=6, waiting=0, restarts=0,
        prompt_tokens_total=1_000_000, cached_tokens_total=300_000, output_tokens_total=200_000,
    )

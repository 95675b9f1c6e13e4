"""Builders of valid nouns for tests: every argument has a harmless default, tests state the rest.

`a_view` joins sites into a view in which every site has a link and serves the model `MODEL`.
"""

from collections.abc import Sequence

from isochrone.core.ids import ModelName, OrgId, PolicyId, SiteName
from isochrone.core.residency.blocs import Blocs
from isochrone.core.residency.bounds import Narrowing
from isochrone.core.rng import Random, stream
from isochrone.core.routing.choice import Refused
from isochrone.core.routing.choose import TARGET_MS, choose
from isochrone.core.routing.chosen import Choice
from isochrone.core.routing.loads import Loads
from isochrone.core.routing.prefix import Prefixes
from isochrone.core.routing.sessions import Home
from isochrone.core.routing.table import RoutingTable, compile_table
from isochrone.core.world.digest import DeploymentLoad, SiteDigest
from isochrone.core.world.model import Model
from isochrone.core.world.site import Link, Site
from isochrone.core.world.tenant import Class, Policy
from isochrone.core.world.view import View

MODEL = ModelName("tiny")
ANYWHERE = PolicyId("anywhere")
SECOND_NS = 1_000_000_000


def some_blocs() -> Blocs:
    """A handful of real countries and two blocs, small enough to reason about."""
    return Blocs(
        countries=frozenset(("AU", "DE", "FR", "NA", "NO", "US")),
        members={"EU": frozenset(("DE", "FR")), "EEA": frozenset(("DE", "FR", "NO"))},
    )


def a_site(
    name: str = "sydney",
    country: str | None = "AU",
    *,
    peer_key: str | None = "ab" * 32,
    draining: bool = False,
    longitude_deg: float = 0.0,
) -> Site:
    return Site(
        name=SiteName(name),
        country=country,
        operator="operator",
        parent=None,
        latitude_deg=0.0,
        longitude_deg=longitude_deg,
        host="127.0.0.1",
        port=8001,
        public_url=f"https://{name}.example/v1",
        peer_key=peer_key,
        draining=draining,
    )


def a_policy(
    policy_id: str = "anywhere",
    residency: tuple[str, ...] = ("any",),
    transit: tuple[str, ...] = ("any",),
) -> Policy:
    return Policy(
        id=PolicyId(policy_id), org_id=OrgId("org"), residency=residency, transit=transit
    )


def a_model(name: str = MODEL) -> Model:
    return Model(
        name=ModelName(name), kind="chat", revision=None, context_tokens=2048, created_at=0
    )


def a_view(
    sites: Sequence[Site],
    *,
    own_site: str | None = None,
    rtt_ms: dict[str, float] | None = None,
    policies: Sequence[Policy] = (),
    serving: Sequence[str] | None = None,
) -> View:
    """`own_site`: the first site by default. `rtt_ms`: 10 ms where not given. `serving`: all."""
    own = SiteName(own_site if own_site is not None else sites[0].name)
    names = [site.name for site in sites]
    return View(
        own_site=own,
        sites={site.name: site for site in sites},
        links={
            name: Link(peer=name, rtt_ms=(rtt_ms or {}).get(name, 10.0), source="probed")
            for name in names
            if name != own
        },
        models={MODEL: a_model()},
        deployments={MODEL: frozenset(SiteName(name) for name in serving or names)},
        policies={policy.id: policy for policy in (*policies, a_policy())},
    )


def a_table(view: View) -> RoutingTable:
    return compile_table(view, some_blocs())


def a_load(
    *,
    ready: int = 1,
    slots: int = 4,
    running: int = 0,
    waiting: int = 0,
    prompt_tokens: int = 0,
    output_tokens: int = 0,
    prefill_tok_s: float = 1000.0,
    decode_tok_s: float = 100.0,
) -> DeploymentLoad:
    """Load of `MODEL`; the token counts are pending ones."""
    return DeploymentLoad(
        model=MODEL,
        revision=None,
        ready=ready,
        slots=slots,
        running=running,
        waiting=waiting,
        pending_prompt_tokens=prompt_tokens,
        pending_output_tokens=output_tokens,
        prefill_tok_s=prefill_tok_s,
        decode_tok_s=decode_tok_s,
    )


def a_digest(
    site: str = "sydney", *loads: DeploymentLoad, epoch: int = 1, sequence: int = 1
) -> SiteDigest:
    """A digest with one idle replica unless loads are given."""
    return SiteDigest(
        site=SiteName(site), epoch=epoch, sequence=sequence, at=0, loads=loads or (a_load(),)
    )


def idle_loads(view: View, now_ns: int = 0) -> Loads:
    """Every site of the view said just now that it has one idle replica."""
    loads = Loads()
    for name in view.sites:
        loads.heard(a_digest(name), now_ns)
    return loads


def a_choice(
    table: RoutingTable,
    loads: Loads,
    *,
    model: str = MODEL,
    policy_id: str = ANYWHERE,
    class_: Class = "on_demand",
    prompt_tokens: int = 100,
    output_tokens: int = 100,
    blocks: Sequence[int] = (),
    tried: Sequence[Refused] = (),
    now_ns: int = 0,
    prefixes: Prefixes | None = None,
    rng: Random | None = None,
    narrowing: Narrowing | None = None,
    body_bytes: int = 0,
    target_ms: float = TARGET_MS,
    home: Home | None = None,
    closed: Sequence[Refused] = (),
) -> Choice:
    """The choice for a short interactive request of an unbound key."""
    return choose(
        table,
        loads,
        Prefixes() if prefixes is None else prefixes,
        model=ModelName(model),
        policy_id=PolicyId(policy_id),
        class_=class_,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        blocks=blocks,
        tried=tried,
        now_ns=now_ns,
        rng=stream(1, "test") if rng is None else rng,
        narrowing=narrowing,
        body_bytes=body_bytes,
        target_ms=target_ms,
        home=home,
        closed=closed,
    )

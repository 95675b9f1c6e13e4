"""The fleet and the requests of the measurement: 60 sites with engines, 1,100 ingresses.

Sites and ingresses are drawn over Europe's latitudes and half the globe's longitudes; an ingress is
near a site as often as not. Round trips are twice the time of light in fibre on the great circle,
and half as much again for detours. A replica is eight GPUs with a model of 70 billion parameters.
"""

from collections.abc import Iterator

import numpy as np

from isochrone.core.estimate.batching import Physics
from isochrone.core.estimate.service import Rates
from isochrone.core.ids import ModelName, OrgId, PolicyId, SiteName
from isochrone.core.residency.blocs import Blocs
from isochrone.core.world.model import Model
from isochrone.core.world.site import Site
from isochrone.core.world.tenant import Policy
from isochrone.twin.fast.arrivals import NO_SESSION, Arrivals
from isochrone.twin.fast.fleet import Fleet, FleetReplica, Tenant

PHYSICS = Physics(
    step_s=0.018, stream_s=5e-5, context_token_s=1.5e-8, prefill_tok_s=40_000.0, chunk_tokens=2048,
    slots=256, kv_tokens=1_000_000,
)
REPLICAS = 10  # at a site
SITES, INGRESSES = 60, 1100
RATE_S = 20_000.0
PROMPT_TOKENS, OUTPUT_TOKENS = 500, 100
COUNTRIES = ("DE", "FR", "NL", "PL", "US", "ES")
CHUNK = 4096
KM_PER_MS, DETOUR, RADIUS_KM = 200.0, 1.5, 6371.0


def positions(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.radians(np.stack(
        (rng.uniform(35.0, 60.0, count), rng.uniform(-100.0, 40.0, count)), axis=1
    ))


def rtt_ms(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Between all of the one and all of the other."""
    lat1, lon1 = first[:, None, 0], first[:, None, 1]
    lat2, lon2 = second[None, :, 0], second[None, :, 1]
    part = np.sin((lat2 - lat1) / 2) ** 2
    part = part + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    km = 2 * RADIUS_KM * np.arcsin(np.sqrt(np.minimum(part, 1.0)))
    found: np.ndarray = 2 * DETOUR * km / KM_PER_MS + 0.5
    return found


def fleet(seed: int = 1) -> Fleet:
    rng = np.random.default_rng(seed)
    at_sites = positions(rng, SITES)
    at_ingresses = positions(rng, INGRESSES)
    near = rng.random(INGRESSES) < 0.5
    at_ingresses[near] = at_sites[rng.integers(0, SITES, near.sum())] + rng.normal(
        0.0, 0.03, (near.sum(), 2)
    )
    at_ingresses[:SITES] = at_sites
    sites = tuple(_site(f"gpu-{number:02}", number) for number in range(SITES))
    ingresses = rtt_ms(at_ingresses, at_sites)
    ingresses[range(SITES), range(SITES)] = 0.0
    policy = Policy(
        id=PolicyId("anywhere"), org_id=OrgId("all"), residency=("any",), transit=("any",)
    )
    return Fleet(
        sites=sites,
        ingresses=sites + tuple(
            _site(f"in-{number:04}", number) for number in range(SITES, INGRESSES)
        ),
        rtt_ms=ingresses,
        site_rtt_ms=rtt_ms(at_sites, at_sites),
        home=tuple(number if number < SITES else -1 for number in range(INGRESSES)),
        models=(Model(name=ModelName("large"), kind="chat", revision=None, context_tokens=131_072,
                      created_at=0),),
        replicas=tuple(
            FleetReplica(site=site, model=0, physics=PHYSICS, gpus=8,
                         stated=Rates(prefill_tok_s=40_000.0, decode_tok_s=45.0))
            for site in range(SITES) for _ in range(REPLICAS)
        ),
        tenants=(Tenant(name="all", policy=policy),),
        blocs=Blocs(countries=frozenset(COUNTRIES), members={}),
    )


def arrivals(requests: int, *, conversations: bool, seed: int = 2) -> Iterator[Arrivals]:
    """Poisson, by ingress with a long tail. `conversations`: half the prompts go on with one of
    20,000, whose beginnings have up to 16 blocks; else all are new."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, INGRESSES + 1) ** 0.5
    weights = rng.permutation(weights / weights.sum())
    at_s = 0.0
    turns = np.zeros(20_000, dtype=np.int64)
    for start in range(0, requests, CHUNK):
        count = min(CHUNK, requests - start)
        at = at_s + np.cumsum(rng.exponential(1.0 / RATE_S, count))
        at_s = float(at[-1])
        prompt = np.maximum(rng.exponential(PROMPT_TOKENS, count), 1.0).astype(np.int64)
        session = np.full(count, NO_SESSION, dtype=np.int64)
        ends, blocks = np.zeros(count, dtype=np.int64), np.zeros(0, dtype=np.int64)
        ingress = rng.choice(INGRESSES, count, p=weights)
        if conversations:
            talks = rng.random(count) < 0.5
            session[talks] = rng.integers(0, len(turns), talks.sum())
            ingress[talks] = session[talks] % INGRESSES
            lengths = np.zeros(count, dtype=np.int64)
            turns[session[talks]] += 1
            lengths[talks] = 1 + turns[session[talks]] % 16
            ends = np.cumsum(lengths)
            place = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
            blocks = np.repeat(session, lengths) * 1_000_003 + place + 1
            prompt[talks] = lengths[talks] * 256 + 60
        yield Arrivals(
            at_s=at, ingress=ingress, tenant=np.zeros(count, dtype=np.int64),
            class_=np.ones(count, dtype=np.int64), model=np.zeros(count, dtype=np.int64),
            prompt_tokens=prompt,
            output_tokens=np.maximum(rng.exponential(OUTPUT_TOKENS, count), 1).astype(np.int64),
            expected_tokens=np.full(count, OUTPUT_TOKENS, dtype=np.int64), session=session,
            slo_ms=np.full(count, 1000.0), body_bytes=4 * prompt, block_ends=ends, blocks=blocks,
        )


def _site(name: str, number: int) -> Site:
    return Site(
        name=SiteName(name), country=COUNTRIES[number % len(COUNTRIES)], operator="one",
        parent=None, latitude_deg=0.0, longitude_deg=0.0, host="", port=1, public_url="",
        peer_key=None,
    )

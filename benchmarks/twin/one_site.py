"""One site of engines like those that Vidur is asked to simulate, and the requests it drew."""

from collections.abc import Iterator, Mapping, Sequence

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

# Llama-2-7b on an A100, so that one replica answers as Vidur's does (benchmarks/twin/README.md).
PHYSICS = Physics(
    step_s=0.0095, stream_s=4e-5, context_token_s=2.6e-7, prefill_tok_s=15_000.0, chunk_tokens=512,
    slots=128, kv_tokens=110_000,
)
CHUNK = 4096


def one_site(replicas: int) -> Fleet:
    site = Site(
        name=SiteName("here"), country="DE", operator="one", parent=None, latitude_deg=0.0,
        longitude_deg=0.0, host="", port=1, public_url="", peer_key=None,
    )
    policy = Policy(
        id=PolicyId("anywhere"), org_id=OrgId("all"), residency=("any",), transit=("any",)
    )
    return Fleet(
        sites=(site,), ingresses=(site,), rtt_ms=np.zeros((1, 1)), site_rtt_ms=np.zeros((1, 1)),
        home=(0,),
        models=(Model(name=ModelName("7b"), kind="chat", revision=None, context_tokens=4096,
                      created_at=0),),
        replicas=tuple(
            FleetReplica(site=0, model=0, physics=PHYSICS,
                         stated=Rates(prefill_tok_s=15_000.0, decode_tok_s=80.0))
            for _ in range(replicas)
        ),
        tenants=(Tenant(name="all", policy=policy),),
        blocs=Blocs(countries=frozenset({"DE"}), members={}),
    )


def repeated(played: Mapping[str, Sequence[float]], times: int) -> Iterator[Arrivals]:
    """What was played, `times` one after the other; no prompt was seen before."""
    at_s = np.array(played["at_s"])
    every_s = float(at_s[-1])
    at_s = np.concatenate([at_s + number * every_s for number in range(times)])
    prompts = np.tile(np.array(played["prompt_tokens"], dtype=np.int64), times)
    outputs = np.tile(np.array(played["output_tokens"], dtype=np.int64), times)
    for start in range(0, len(at_s), CHUNK):
        part = slice(start, start + CHUNK)
        prompt = prompts[part]
        zeros = np.zeros(len(prompt), dtype=np.int64)
        yield Arrivals(
            at_s=at_s[part], ingress=zeros, tenant=zeros, class_=zeros + 1, model=zeros,
            prompt_tokens=prompt, output_tokens=outputs[part], expected_tokens=zeros + 210,
            session=zeros + NO_SESSION, slo_ms=np.full(len(prompt), 1000.0), body_bytes=4 * prompt,
            block_ends=zeros, blocks=np.zeros(0, dtype=np.int64),
        )

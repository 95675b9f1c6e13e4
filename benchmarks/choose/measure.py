"""What `run.py` measures, imported once it has decided for the compiled or the other form."""

import gc
import json
import os
import time
from bisect import bisect
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from random import Random

from benchmarks.choose.world import ORG, Scale, a_digest, a_replica_load, a_table, popular

from isochrone.core.ids import KeyId, ModelName, PolicyId, ProjectId
from isochrone.core.routing.choose import choose
from isochrone.core.routing.loads import Dispatch, Loads
from isochrone.core.routing.prefix import Prefixes
from isochrone.core.routing.table import RoutingTable
from isochrone.core.world.digest import SiteDigest
from isochrone.core.world.tenant import ApiKey, Class, KeyShard
from isochrone.gateway.access import Keys
from isochrone.gateway.prefix_hash import prompt_blocks
from isochrone.gateway.request import InferenceRequest, parse_request
from isochrone.wire import fleet
from isochrone.wiring.gateway_start import GC_THRESHOLDS

SCALE = Scale()
DIGESTS_S = 60    # one of each site with engines
WARM_S = 2.0
SALT = 0x5A17     # of the tenant
OPEN = 500        # requests that run at a time
CLASSES: tuple[Class, ...] = ("on_demand", "on_demand", "on_demand", "reserved", "batch")


def measure(body_bytes: int, *, requests_s: int, seconds: float) -> Mapping[str, float]:
    """CPU time in us a request: its choice, counting its dispatch and its end, hashing its prompt,
    its part of the digests that come meanwhile; and the sum."""
    rng, table, loads, prefixes = Random(1), a_table(SCALE), Loads(), Prefixes()
    sites = [site for site in table.sites if site.name in table.view.deployments[_model(0)]]
    digests = [
        fleet.encode(a_digest(site.name, sequence, table, rng))
        for sequence in (1, 2, 3) for site in sites
    ]
    for digest in digests[: len(sites)]:
        loads.heard(fleet.decode(digest, SiteDigest), 0)
    requests = _requests(body_bytes, rng)
    spent = dict.fromkeys(("choose", "count", "hash", "digest"), 0)
    tickets: deque[Dispatch] = deque()
    now_ns, done, heard, sequence = 0, 0, 0, 10
    clock = time.thread_time_ns
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)  # as in a gateway
    warm_ns, began_ns = 0, clock()  # lists and boards are made in the beginning
    end_ns = began_ns + int((WARM_S + seconds) * 1e9)
    while True:
        at_ns = clock()
        if not warm_ns and at_ns - began_ns > WARM_S * 1e9:
            warm_ns, done = at_ns, 0
            spent = dict.fromkeys(spent, 0)
        if at_ns > end_ns:
            break
        payload = digests[heard % len(digests)]
        heard += 1
        sequence += 1
        noun = fleet.decode(payload, SiteDigest)
        noun = SiteDigest(
            site=noun.site, epoch=1, sequence=sequence, at=0, loads=noun.loads
        )
        loads.heard(noun, now_ns)
        spent["digest"] += clock() - at_ns
        for _ in range(requests_s // DIGESTS_S):
            now_ns += 1_000_000_000 // requests_s
            body, policy_id, class_ = requests[done % len(requests)]
            request = parse_request("chat.completions", body)  # so that it is in the caches
            done += 1
            _serve(
                table, loads, prefixes, tickets, spent, request, policy_id, class_, now_ns, rng,
                body_bytes,
            )
    found = {name: ns / done / 1000 for name, ns in spent.items()}
    return {"all": sum(found.values()), **found}


def _serve(
    table: RoutingTable, loads: Loads, prefixes: Prefixes, tickets: deque[Dispatch],
    spent: dict[str, int], request: InferenceRequest, policy_id: PolicyId, class_: Class,
    now_ns: int, rng: Random, body_bytes: int,
) -> None:
    """As `gateway/tries.py` does it."""
    clock = time.thread_time_ns
    t0 = clock()
    blocks = prompt_blocks(request, SALT) if request.prompt_bytes >= 1024 else []
    t1 = clock()
    choice = choose(
        table, loads, prefixes, model=request.model, policy_id=policy_id, class_=class_,
        prompt_tokens=request.prompt_tokens, output_tokens=request.output_tokens, blocks=blocks,
        tried=(), now_ns=now_ns, rng=rng, body_bytes=body_bytes,
    )
    t2 = clock()
    assert choice.site is not None
    if blocks:
        prefixes.saw(choice.site, request.model, blocks, now_ns, tokens=request.prompt_tokens)
    tickets.append(loads.dispatched(
        choice.site, request.model, request.prompt_tokens, request.output_tokens, now_ns,
        rtt_ms=choice.rtt_ms,
    ))
    if len(tickets) > OPEN:
        loads.finished(tickets.popleft())
    t3 = clock()
    spent["hash"] += t1 - t0
    spent["choose"] += t2 - t1
    spent["count"] += t3 - t2


def _model(number: int) -> ModelName:
    return ModelName(f"model-{number:03}")


def _requests(
    body_bytes: int, rng: Random
) -> list[tuple[bytes, PolicyId, Class]]:
    """5,000 requests; of models and of policies the n-th is asked for 1/n as often as the first.
    One prompt in four goes on from an earlier one."""
    models, policies = popular(SCALE.models), popular(SCALE.policies)
    found, beginnings = [], [rng.randbytes(body_bytes // 2).hex() for _ in range(200)]
    for _ in range(5000):
        text = beginnings[rng.randrange(200)] if rng.random() < 0.25 else (
            rng.randbytes(body_bytes // 2).hex()
        )
        body = json.dumps({
            "model": _model(bisect(models, rng.random() * models[-1])), "max_tokens": 100,
            "messages": [{"role": "user", "content": text}], "stream": True,
        }).encode()
        policy_id = PolicyId(f"policy-{bisect(policies, rng.random() * policies[-1]):04}")
        found.append((body, policy_id, rng.choice(CLASSES)))
    return found


def memory_mb() -> Mapping[str, float]:
    """What a gateway keeps in memory beyond its code: the view with every policy asked for once
    with every model it may have in mind, 10,000 tenants' keys, loads of 60 sites with 50,000
    replicas, 65,536 prefix blocks."""
    rng = Random(2)
    gc.unfreeze()
    gc.collect()
    before_mb = _resident_mb()
    table, loads, prefixes, keys = a_table(SCALE), Loads(), Prefixes(), Keys()
    stored: list[bytes] = []
    for site in table.view.deployments[_model(0)]:
        noun = a_digest(site, 1, table, rng)
        replicas = tuple(a_replica_load(site, number) for number in range(SCALE.replicas_a_site))
        payload = fleet.encode(SiteDigest(
            site=site, epoch=1, sequence=1, at=0, loads=noun.loads, replicas=replicas
        ))
        loads.heard(fleet.decode(payload, SiteDigest), 0)
        stored.append(payload)  # a gateway keeps the last one for its next start
    known_mb = _resident_mb()
    for shard in range(256):
        keys.put(KeyShard(shard=f"{shard:02x}", keys=tuple(
            ApiKey(
                id=KeyId(f"key-{number}"), org_id=ORG, project_id=ProjectId(f"p{number}"),
                policy_id=PolicyId(f"policy-{number % SCALE.policies:04}"),
                classes=("on_demand",), secret_sha256=f"{number:064x}",
            )
            for number in range(shard, 10_000, 256)
        )))
    for _ in range(65_536 // 16):
        blocks = [rng.getrandbits(64) for _ in range(16)]
        prefixes.saw(table.sites[0].name, _model(0), blocks, 0, tokens=4096)
    for request in range(60_000):
        choose(
            table, loads, prefixes, model=_model(request % SCALE.models),
            policy_id=PolicyId(f"policy-{request * 7 % SCALE.policies:04}"), class_="on_demand",
            prompt_tokens=100, output_tokens=100, blocks=(), tried=(), now_ns=1, rng=rng,
        )
    return {"all": _resident_mb() - before_mb, "view and loads": known_mb - before_mb}


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

"""Control with 1,100 sites: the real API on a real PostgreSQL, told each second what sites say and
what was served, as NATS would. A process of its own, started by run.py, which prints a line of JSON
when it is ready.
"""

import argparse
import json
import secrets
import threading
import time
from dataclasses import replace
from random import Random

import uvicorn
from benchmarks.booking.run import a_server
from psycopg.conninfo import make_conninfo

from isochrone.adapters.clock import SystemClock
from isochrone.adapters.packaged import load_blocs, load_power
from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.pool import APPLICATION_ROLE, Pool, open_pool
from isochrone.adapters.postgres.registry import open_registry
from isochrone.control.api.app import build_app
from isochrone.control.api.context import Context
from isochrone.control.fleet_state import FleetState
from isochrone.control.joining import Hub, hash_of
from isochrone.control.world import seed_of
from isochrone.core.ids import HostName, ModelName, OrgId, ProjectId, SiteName, uuid7
from isochrone.core.world.digest import DeploymentLoad, HostLoad, ReplicaLoad, SiteDigest
from isochrone.core.world.host import Gpu, Host
from isochrone.core.world.model import Deployment, EngineSpec, Model
from isochrone.core.world.site import Hardware, Link, Site, SiteLinks
from isochrone.core.world.tenant import EVERY_TENANT
from isochrone.ports.estate import Intent
from isochrone.wire import fleet, subjects
from tests.fixtures.fleet_1100 import places
from tests.unit.build_usage import a_usage_event

GPU_SITES, MODELS, REPLICAS = 55, 20, 2
REQUESTS_S = 200
KIND = "H100-SXM5-80GB"
HOST = Host(
    name=HostName("rack1-gpu01"), cores=192, memory_bytes=2 << 40,
    gpus=(Gpu(kind="NVIDIA H100 80GB HBM3", memory_bytes=80 << 30),) * 8,
)
PLACES = places()
NAMES = [SiteName(each.name) for each in PLACES]
SERVING = NAMES[::len(NAMES) // GPU_SITES][:GPU_SITES]
MODEL_NAMES = [ModelName(f"model-{number:02d}") for number in range(MODELS)]


def intent(now: int) -> Intent:
    """1,100 sites, of which each 20th runs every model; round trips between these and all."""
    return Intent(
        fingerprint="1",
        sites=tuple(
            Site(
                name=SiteName(each.name), country=each.country, operator=None, parent=None,
                latitude_deg=each.latitude_deg, longitude_deg=each.longitude_deg, host="",
                port=0, public_url="", peer_key=None,
                hardware=(Hardware(kind=KIND, count=80),) if each.name in SERVING else (),
            )
            for each in PLACES
        ),
        models=tuple(
            Model(name=name, kind="chat", revision="1", context_tokens=32768, created_at=now)
            for name in MODEL_NAMES
        ),
        deployments=tuple(
            Deployment(
                site=site, model=model, replicas=REPLICAS, context_tokens=32768,
                engine=EngineSpec(kind="openai", source="http://engine/v1", slots=64),
            )
            for site in SERVING for model in MODEL_NAMES
        ),
        links=(),
    )


def links_of(site: SiteName) -> SiteLinks:
    """Round trips from a site to every other."""
    return SiteLinks(site=site, links=tuple(
        Link(peer=peer, rtt_ms=1.0 + (number * 7919) % 280, source="probed")
        for number, peer in enumerate(NAMES) if peer != site
    ))


def digest(site: SiteName, sequence: int, now: int, rng: Random) -> SiteDigest:
    """What a site says this second."""
    models = MODEL_NAMES if site in SERVING else []
    busy = {model: rng.randrange(REPLICAS * 64) for model in models}
    return SiteDigest(
        site=site, epoch=1, sequence=sequence, at=now,
        loads=tuple(
            DeploymentLoad(
                model=model, revision="1", ready=REPLICAS, slots=REPLICAS * 64,
                running=busy[model], waiting=rng.randrange(3), pending_prompt_tokens=0,
                pending_output_tokens=0, prefill_tok_s=20_000.0, decode_tok_s=80.0,
            )
            for model in models
        ),
        replicas=tuple(
            ReplicaLoad(
                id=f"{site}/{model}/{index}", model=model, generation=1, state="ready", pid=1,
                running=busy[model] // REPLICAS, waiting=0, restarts=0, prompt_tokens_total=1,
                cached_tokens_total=1, output_tokens_total=1, kept_tokens=90_000, host=HOST.name,
            )
            for model in models for index in range(REPLICAS)
        ),
        hosts=(HostLoad(host=HOST, replicas_wanted=REPLICAS * len(models)),) if models else (),
    )


def tell(state: FleetState, book: PostgresBook, clock: SystemClock) -> None:
    """For ever: each second a digest of every site, and requests that were served."""
    rng, sequence = Random(1), 0
    while True:
        began, sequence, now = time.monotonic(), sequence + 1, clock.wall_ns()
        for site in NAMES:
            said = fleet.encode(digest(site, sequence, now, rng))
            state.on_message(subjects.digest_subject(site), said)
        book.book_usage([
            replace(
                a_usage_event(uuid7(now, rng.getrandbits(70))), org_id=OrgId("default"),
                project_id=ProjectId("default"), ingress_site=rng.choice(NAMES),
                serving_site=rng.choice(SERVING), model=rng.choice(MODEL_NAMES),
                received_at=now, finished_at=now,
            )
            for _ in range(REQUESTS_S)
        ], now=now)
        time.sleep(max(0.0, 1.0 - (time.monotonic() - began)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    asked = parser.parse_args()
    admin = "isoadm_" + secrets.token_hex(16)
    with a_server() as plan:
        pool: Pool = open_pool(make_conninfo(plan.conninfo, user=APPLICATION_ROLE))
        clock, registry, book = SystemClock(), open_registry(pool, None), PostgresBook(pool)
        registry.tenants.seed(seed_of(hash_of(admin), now=clock.wall_ns()), now=clock.wall_ns())
        registry.estate.reconcile(intent(clock.wall_ns()), now=clock.wall_ns())
        for site in SERVING:
            registry.estate.set_links([links_of(site)])
        with pool.transaction(EVERY_TENANT) as connection:  # they have all joined
            connection.execute(
                "UPDATE sites SET peer_key = name, nats_key = name, host = 'h', port = 1,"
                " public_url = 'https://x.example/v1', joined_at = 1"
            )
        state = FleetState(clock)
        context = Context(
            registry=registry, book=book, fleet=state, blocs=load_blocs(), clock=clock,
            entropy=secrets.token_bytes, changed=lambda: None, bus_connected=lambda: True,
            hub=Hub(nats_urls=("nats://x",), control_key="00" * 32, control_url="http://x"),
            site_credentials=lambda site, key, _: "", secret_root=secrets.token_bytes(32),
            power=load_power(),
        )
        threading.Thread(target=tell, args=(state, book, clock), daemon=True).start()
        print(json.dumps({"admin": admin}), flush=True)
        uvicorn.run(
            build_app(context), host="127.0.0.1", port=asked.port, log_level="warning",
            access_log=False,
        )


if __name__ == "__main__":
    main()

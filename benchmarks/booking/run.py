"""Measures how many usage events a second are booked on two cores, and what one costs. See README.

Run from the project's folder: python -m benchmarks.booking.run
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.gateway.machine import ROOT, commit, cpu_s, facts, tree
from psycopg.conninfo import make_conninfo

from isochrone.adapters.child import child_command
from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.migrate import migrate
from isochrone.adapters.postgres.pool import APPLICATION_ROLE, Pool, open_pool
from isochrone.adapters.postgres.server import PostgresPlan, prepare, ready
from isochrone.adapters.postgres.usage_days import PostgresUsageDays
from isochrone.control.booking import LANES, MESSAGES_MOST, bring_in
from isochrone.core.billing.sheet import HOUR_NS
from isochrone.core.ids import (
    KeyId,
    ModelName,
    OrgId,
    ProjectId,
    ReplicaId,
    RequestId,
    SiteName,
    uuid7,
)
from isochrone.core.metering.detached import DAY_NS
from isochrone.core.world.tenant import EVERY_TENANT
from isochrone.ports.bus import Durable
from isochrone.wire import fleet
from isochrone.wire.usage import UsageRecord, encode_batch

HERE = Path(__file__).resolve().parent
EVENTS_A_MESSAGE = 100
PROJECTS, MODELS, SITES = 1_000, 20, 30
WARM_EVENTS = 20_000
NOW = 20_785 * 24 * HOUR_NS


@contextmanager
def a_server() -> Iterator[PostgresPlan]:
    """A fresh embedded PostgreSQL as the product runs it, durable writes and all."""
    with tempfile.TemporaryDirectory(prefix="isochrone-bench-", dir=os.environ.get("TMPDIR")) as at:
        state = Path(at)
        plan = prepare(state, state / "run")
        with (state / "log").open("wb") as log:
            process = subprocess.Popen(
                child_command(plan.argv), env=dict(plan.env), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )
        try:
            while not ready(plan):
                assert process.poll() is None, (state / "log").read_text()[-2000:]
                time.sleep(0.05)
            migrate(plan.conninfo)
            yield plan
        finally:
            process.send_signal(plan.stop_signals[0])
            process.wait(timeout=30)


def seed(pool: Pool) -> None:
    """One organisation with its projects, and a key with a policy for each."""
    with pool.transaction(EVERY_TENANT) as connection:
        connection.execute("INSERT INTO organisations VALUES ('org', 'org', 1)")
        connection.execute(
            "INSERT INTO policies (id, org_id, residency, transit, name, created_at)"
            " VALUES ('p', 'org', '{DE}', '{any}', 'p', 1)"
        )
        for number in range(PROJECTS):
            connection.execute(
                "INSERT INTO projects VALUES (%s, 'org', %s, 1)", (f"p{number}", f"p{number}")
            )
            connection.execute(
                "INSERT INTO api_keys (id, org_id, project_id, policy_id, name, secret_sha256,"
                " classes, created_at) VALUES (%s, 'org', %s, 'p', 'k', %s, '{on_demand}', 1)",
                (f"k{number}", f"p{number}", f"{number:064x}"),
            )


def messages(count: int, rng: Random, *, spread: bool) -> list[Durable]:
    """So many messages of one site, as its gateways send them. Projects, models and sites are drawn
    evenly with `spread`, else the n-th 1/n as often as the first."""
    found = []
    numbers = [range(PROJECTS), range(MODELS), range(SITES)]
    weights = [[1.0 if spread else 1 / (n + 1) for n in each] for each in numbers]
    size = count * EVENTS_A_MESSAGE
    projects, models, sites = (
        rng.choices(each, of, k=size) for each, of in zip(numbers, weights, strict=True)
    )
    for number in range(count):
        events = []
        for each in range(number * EVENTS_A_MESSAGE, (number + 1) * EVENTS_A_MESSAGE):
            at = NOW + each * 10_000
            events.append(
                a_record(uuid7(at, rng.getrandbits(76)), at, projects[each], models[each],
                         sites[each])
            )
        payload = encode_batch(str(number), (), map(fleet.encode, events))
        found.append(
            Durable(
                subject="usage.sydney", message_id=str(number), payload=payload, receipt=None,
                delivered=1,
            )
        )
    return found


def a_record(request: str, at: int, project: int, model: int, site: int) -> UsageRecord:
    return UsageRecord(
        request_id=RequestId(request), org_id=OrgId("org"), project_id=ProjectId(f"p{project}"),
        key_id=KeyId(f"k{project}"), client_request_id=None, endpoint="chat.completions",
        stream=True, class_="on_demand", model=ModelName(f"model-{model}"), revision="sha",
        ingress_site=SiteName("sydney"), ingress_country="AU",
        serving_site=SiteName(f"site-{site}"), serving_country="DE",
        replica=ReplicaId(f"site-{site}/m/0"), received_at=at, finished_at=at + 10**9,
        chosen_ms=0.1, sent_ms=0.2, first_byte_ms=10.0, total_ms=1000.0,
        input_uncached=500 + project, input_cached=100, output=200, token_source="engine",
        outcome="finished", status=200, reason=None, reporter="ingress", attempts=1,
    )


def part(pool: Pool) -> None:
    """Partitions as control's loop makes them."""
    PostgresUsageDays(pool, None).keep(since=NOW - DAY_NS, until=NOW + 3 * DAY_NS)


def measure(plan: PostgresPlan, told: Sequence[Durable]) -> dict[str, float]:
    """Book the messages as control does; what was done a second and what one event cost."""
    pool = open_pool(make_conninfo(plan.conninfo, user=APPLICATION_ROLE))
    book = PostgresBook(pool)
    postmaster = int((plan.data / "postmaster.pid").read_text().splitlines()[0])
    events = len(told) * EVENTS_A_MESSAGE

    def database_s() -> float:
        return cpu_s(tree(postmaster))

    try:
        before_s, own_s, began_s = database_s(), time.process_time(), time.perf_counter()
        with ThreadPoolExecutor(LANES) as lanes:
            for parked in lanes.map(
                lambda first: bring_in(book, told[first : first + MESSAGES_MOST], now=NOW),
                range(0, len(told), MESSAGES_MOST),
            ):
                assert not parked, parked[0].reason
        wall_s = time.perf_counter() - began_s
        own_s, spent_s = time.process_time() - own_s, database_s() - before_s
    finally:
        pool.close()
    return {
        "events_s": events / wall_s, "control_us": own_s / events * 1e6,
        "database_us": spent_s / events * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=200_000, help="of each kind")
    parser.add_argument("--dry", action="store_true", help="append nothing")
    asked = parser.parse_args()
    result: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"), **commit(ROOT), "machine": facts(),
        "events": asked.events,
    }
    rng = Random(1)
    with a_server() as plan:
        pool = open_pool(make_conninfo(plan.conninfo, user=APPLICATION_ROLE))
        seed(pool)
        part(pool)
        pool.close()
        measure(plan, messages(WARM_EVENTS // EVENTS_A_MESSAGE, rng, spread=False))
        for name, spread in (("skewed", False), ("spread", True)):
            found = measure(plan, messages(asked.events // EVENTS_A_MESSAGE, rng, spread=spread))
            result[name] = {key: round(value, 1) for key, value in found.items()}
            print(f"{name:<7}", *(f"{key} {value:,.0f}" for key, value in found.items()))
    if not asked.dry:
        with (HERE / "results.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()

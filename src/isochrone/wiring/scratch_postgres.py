"""A PostgreSQL server that is made for a while and thrown away, with a fresh database a run.

Nothing in it is worth keeping, so it does not sync. It is a child of the process that made it and
dies with it.
"""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from isochrone.adapters.child import child_command
from isochrone.adapters.postgres.migrate import migrate
from isochrone.adapters.postgres.pool import APPLICATION_ROLE
from isochrone.adapters.postgres.server import DATABASE, OWNER, PostgresPlan, prepare, ready
from isochrone.core.errors import StoreUnavailable
from isochrone.wiring.faulty_pool import FaultyPool

START_S = 30.0
STOP_S = 10.0
WITHOUT_CARE = ("-c", "fsync=off", "-c", "full_page_writes=off", "-c", "synchronous_commit=off")


@contextmanager
def scratch_server() -> Iterator[PostgresPlan]:
    """A running server with one migrated database; StoreUnavailable when it does not come up."""
    with tempfile.TemporaryDirectory(prefix="isochrone-twin-", ignore_cleanup_errors=True) as name:
        state = Path(name)
        plan = prepare(state, state / "run")
        with (state / "log").open("wb") as output:
            process = subprocess.Popen(
                child_command([*plan.argv, *WITHOUT_CARE]), env=dict(plan.env),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )
        try:
            _wait(plan, process, state / "log")
            migrate(plan.conninfo)
            yield plan
        finally:
            _stop(plan, process)


@contextmanager
def scratch_pool(conninfo: str, superuser_conninfo: str, name: str) -> Iterator[FaultyPool]:
    """A pool on a fresh database of this name beside the migrated one that `conninfo` names; it is
    dropped afterwards."""
    with psycopg.connect(superuser_conninfo, autocommit=True) as admin:
        admin.execute(
            f'CREATE DATABASE "{name}" TEMPLATE {DATABASE} OWNER {OWNER} STRATEGY wal_log'.encode()
        )
        pool = FaultyPool(make_conninfo(conninfo, dbname=name, user=APPLICATION_ROLE))
        try:
            yield pool
        finally:
            pool.close()
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def _wait(plan: PostgresPlan, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until_s = time.monotonic() + START_S
    while not ready(plan):
        if process.poll() is not None or time.monotonic() > until_s:
            said = log.read_text(errors="replace")[-1000:]
            raise StoreUnavailable(f"the scratch PostgreSQL did not start: {said}")
        time.sleep(0.02)


def _stop(plan: PostgresPlan, process: "subprocess.Popen[bytes]") -> None:
    for wanted in plan.stop_signals:
        if process.poll() is None:
            process.send_signal(wanted)
            try:
                process.wait(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                continue
    if process.poll() is None:
        process.kill()
        process.wait()

"""Runs of experiments in PostgreSQL."""

from collections.abc import Sequence

import psycopg
from psycopg.rows import TupleRow

from isochrone.adapters.postgres.once import made_before
from isochrone.adapters.postgres.pool import Pool
from isochrone.core.errors import Conflict, NotFound
from isochrone.core.lifecycle.experiment_run import (
    OPEN,
    ExperimentOrder,
    ExperimentRun,
    RunEvent,
    step,
)
from isochrone.core.world.tenant import EVERY_TENANT, Scope
from isochrone.ports.tenants import Once, Page

_RUN = (
    "SELECT id, title, state, asked_by, asked_at, begun_at, ended_at, runs, about_s, problem,"
    " wanted, is_own, policies, loads, requests, seed, is_full FROM experiment_runs"
)

_Connection = psycopg.Connection[TupleRow]


class PostgresExperiments:
    """`ports.experiments.Experiments` on one database; one call is one transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def add(
        self, scope: Scope, run: ExperimentRun, *, once: Once | None, most_open: int
    ) -> ExperimentRun:
        with self._pool.transaction(scope) as connection:
            earlier = made_before(connection, once, resource=run.id, now=run.asked_at)
            if earlier is not None:
                return _one(connection, earlier)
            row = connection.execute(
                "SELECT count(*) FROM experiment_runs WHERE state = ANY(%s)", (list(OPEN),)
            ).fetchone()
            assert row is not None, "a count has a row"
            if row[0] >= most_open:
                raise Conflict(
                    f"{row[0]} experiments are running or waiting already; stop one, or wait"
                )
            order = run.order
            connection.execute(
                "INSERT INTO experiment_runs (id, title, state, asked_by, asked_at, runs, about_s,"
                " wanted, is_own, policies, loads, requests, seed, is_full)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                (run.id, run.title, run.state, run.asked_by, run.asked_at, run.runs, run.about_s,
                 order.wanted, order.is_own, list(order.policies), list(order.loads),
                 order.requests, order.seed, order.full),
            )
            return run

    def runs(self, page: Page) -> Sequence[ExperimentRun]:
        with self._pool.transaction(EVERY_TENANT) as connection:
            rows = connection.execute(
                f"{_RUN} WHERE (%(after)s::text IS NULL OR id < %(after)s)"
                " ORDER BY id DESC LIMIT %(most)s",
                {"after": page.after, "most": page.most},
            ).fetchall()
        return [_run(row) for row in rows]

    def run(self, run_id: str) -> ExperimentRun:
        with self._pool.transaction(EVERY_TENANT) as connection:
            return _one(connection, run_id)

    def open(self) -> Sequence[ExperimentRun]:
        with self._pool.transaction(EVERY_TENANT) as connection:
            rows = connection.execute(
                f"{_RUN} WHERE state = ANY(%s) ORDER BY id", (list(OPEN),)
            ).fetchall()
        return [_run(row) for row in rows]

    def step(
        self, scope: Scope, run_id: str, event: RunEvent, *, now: int, problem: str | None = None
    ) -> ExperimentRun:
        with self._pool.transaction(scope) as connection:
            after = step(_one(connection, run_id, locked=True), event, now, problem=problem)
            connection.execute(
                "UPDATE experiment_runs SET state = %s, begun_at = %s, ended_at = %s, problem = %s"
                " WHERE id = %s",
                (after.state, after.begun_at, after.ended_at, after.problem, run_id),
            )
        return after

    def remove(self, scope: Scope, run_id: str) -> ExperimentRun:
        with self._pool.transaction(scope) as connection:
            found = _one(connection, run_id, locked=True)
            if found.is_open:
                raise Conflict(f"the run is {found.state}; stop it first")
            connection.execute("DELETE FROM experiment_runs WHERE id = %s", (run_id,))
        return found


def _one(connection: _Connection, run_id: str, *, locked: bool = False) -> ExperimentRun:
    row = connection.execute(
        f"{_RUN} WHERE id = %s" + (" FOR UPDATE" if locked else ""), (run_id,)
    ).fetchone()
    if row is None:
        raise NotFound(f"there is no run of an experiment {run_id!r}")
    return _run(row)


def _run(row: TupleRow) -> ExperimentRun:
    order = ExperimentOrder(
        wanted=row[10], is_own=row[11], policies=tuple(row[12]), loads=tuple(row[13]),
        requests=row[14], seed=row[15], full=row[16],
    )
    return ExperimentRun(
        id=row[0], title=row[1], state=row[2], asked_by=row[3], asked_at=row[4], begun_at=row[5],
        ended_at=row[6], runs=row[7], about_s=row[8], problem=row[9], order=order,
    )

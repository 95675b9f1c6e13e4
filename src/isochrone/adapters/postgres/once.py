"""Remembers writes by the caller's idempotency key, in the transaction of the write itself."""

import psycopg
from psycopg.rows import TupleRow

from isochrone.adapters.postgres.pool import Pool
from isochrone.core.errors import Conflict
from isochrone.core.world.tenant import EVERY_TENANT, Scope
from isochrone.ports.tenants import Once

KEPT_NS = 24 * 3600 * 1_000_000_000


def made_before(
    connection: psycopg.Connection[TupleRow], once: Once | None, *, resource: str, now: int
) -> str | None:
    """Claim the key for `resource`; or the id that an earlier write under the same key made.

    A concurrent write under the same key is waited for. Raises Conflict when the key was used with
    another body. Keys are forgotten after a day.
    """
    if once is None:
        return None
    _forget_old(connection, now)
    claimed = connection.execute(
        "INSERT INTO idempotency (caller, key, request_hash, resource, created_at)"
        " VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING resource",
        (once.caller, once.key, once.body_sha256, resource, now),
    ).fetchone()
    if claimed is not None:
        return None
    earlier = _made(connection, once, since=0)
    assert earlier is not None, "the conflicting row is committed, so it is visible here"
    return earlier


class PostgresWrites:
    """`ports.writes.Writes` on one database; one call is one transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def made_before(self, scope: Scope, once: Once | None, *, now: int) -> str | None:
        if once is None:
            return None
        with self._pool.transaction(scope) as connection:
            return _made(connection, once, since=now - KEPT_NS)

    def forget_old(self, *, now: int) -> None:
        with self._pool.transaction(EVERY_TENANT) as connection:
            _forget_old(connection, now)


def _forget_old(connection: psycopg.Connection[TupleRow], now: int) -> None:
    connection.execute("DELETE FROM idempotency WHERE created_at < %s", (now - KEPT_NS,))


def _made(
    connection: psycopg.Connection[TupleRow], once: Once, *, since: int
) -> str | None:
    row = connection.execute(
        "SELECT request_hash, resource FROM idempotency"
        " WHERE caller = %s AND key = %s AND created_at >= %s",
        (once.caller, once.key, since),
    ).fetchone()
    if row is None:
        return None
    if row[0] != once.body_sha256:
        raise Conflict(
            f"the idempotency key {once.key!r} was used before with another request;"
            " use a new key for a new request"
        )
    return str(row[1])

"""Remembers writes by the caller's idempotency key, in the transaction of the write itself."""

import psycopg
from psycopg.rows import TupleRow

from isochrone.core.errors import Conflict
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
    connection.execute("DELETE FROM idempotency WHERE created_at < %s", (now - KEPT_NS,))
    claimed = connection.execute(
        "INSERT INTO idempotency (caller, key, request_hash, resource, created_at)"
        " VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING resource",
        (once.caller, once.key, once.body_sha256, resource, now),
    ).fetchone()
    if claimed is not None:
        return None
    row = connection.execute(
        "SELECT request_hash, resource FROM idempotency WHERE caller = %s AND key = %s",
        (once.caller, once.key),
    ).fetchone()
    assert row is not None, "the conflicting row is committed, so it is visible here"
    if row[0] != once.body_sha256:
        raise Conflict(
            f"the idempotency key {once.key!r} was used before with another request;"
            " use a new key for a new request"
        )
    return str(row[1])

"""Entitlements in PostgreSQL: what was sold, and the voters that look after it."""

import json
from collections.abc import Sequence

import msgspec
import psycopg
from psycopg.rows import TupleRow

from isochrone.adapters.postgres.once import made_before
from isochrone.adapters.postgres.owners import check_owner
from isochrone.adapters.postgres.pool import Pool
from isochrone.core.admission.entitlement import changed_voters
from isochrone.core.errors import Conflict, NotFound
from isochrone.core.ids import EntitlementId, SiteName
from isochrone.core.world.entitlement import Entitlement, Slice, Voters
from isochrone.core.world.tenant import Scope
from isochrone.ports.entitlements import StoredEntitlement, StoredVoters
from isochrone.ports.tenants import Once, Page

ROW = (
    "SELECT id, org_id, project_id, model, class, tok_s, residency, starts_at, ends_at, slices,"
    " name, created_at, revoked_at FROM entitlements"
)
_VOTERS = "SELECT sites, former, epoch, changed_at FROM voters"
_OVER_NS = 3_600_000_000_000
_IN_SCOPE = "(%(org)s::text IS NULL OR org_id = %(org)s)"

_Connection = psycopg.Connection[TupleRow]


class PostgresEntitlements:
    """`ports.entitlements.Entitlements` on one database; one call is one transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def entitlements(self, scope: Scope, page: Page) -> Sequence[StoredEntitlement]:
        with self._pool.transaction(scope) as connection:
            rows = connection.execute(
                f"{ROW} WHERE {_IN_SCOPE} AND (%(after)s::text IS NULL OR id > %(after)s)"
                " ORDER BY id LIMIT %(most)s",
                {"org": scope.org_id, "after": page.after, "most": page.most},
            ).fetchall()
        return [_stored(row) for row in rows]

    def entitlement(self, scope: Scope, entitlement_id: EntitlementId) -> StoredEntitlement:
        with self._pool.transaction(scope) as connection:
            return _in_scope(connection, scope, entitlement_id)

    def add(
        self, scope: Scope, entitlement: StoredEntitlement, voters: Voters, *, once: Once | None
    ) -> StoredEntitlement:
        new = entitlement.entitlement
        with self._pool.transaction(scope) as connection:
            earlier = made_before(
                connection, once, resource=new.id, now=entitlement.created_at
            )
            if earlier is not None:
                return _in_scope(connection, scope, earlier)
            check_owner(connection, scope, new.org_id, new.project_id)
            connection.execute(
                "INSERT INTO entitlements (id, org_id, project_id, name, model, class, tok_s,"
                " residency, starts_at, ends_at, slices, created_at)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                (new.id, new.org_id, new.project_id, entitlement.name, new.model, new.class_,
                 new.tok_s, list(new.residency), new.starts_at, new.ends_at,
                 json.dumps(msgspec.to_builtins(new.slices)), entitlement.created_at),
            )
            connection.execute(
                "INSERT INTO voters (sites) VALUES (%s) ON CONFLICT DO NOTHING",
                (list(voters.sites),),
            )
            return _in_scope(connection, scope, new.id)

    def revoke(self, scope: Scope, entitlement_id: EntitlementId, *, now: int) -> StoredEntitlement:
        with self._pool.transaction(scope) as connection:
            connection.execute(
                "UPDATE entitlements SET revoked_at = coalesce(revoked_at, %(now)s)"
                f" WHERE id = %(id)s AND {_IN_SCOPE}",
                {"id": entitlement_id, "now": now, "org": scope.org_id},
            )
            return _in_scope(connection, scope, entitlement_id)

    def voters(self) -> StoredVoters | None:
        with self._pool.transaction() as connection:
            row = connection.execute(_VOTERS).fetchone()
        return None if row is None else _stored_voters(row)

    def change_voters(
        self, scope: Scope, sites: tuple[SiteName, ...], *, now: int
    ) -> StoredVoters:
        with self._pool.transaction(scope) as connection:
            row = connection.execute(f"{_VOTERS} FOR UPDATE").fetchone()
            if row is None:
                raise NotFound("there are no voters before the first entitlement")
            before = _stored_voters(row)
            after = changed_voters(
                before.voters, sites, changed_at=before.changed_at, now=now
            )
            if isinstance(after, int):
                wait_s = -(-(after - now) // 1_000_000_000)
                raise Conflict(
                    f"the last change of voters is not settled: try again in {wait_s} s"
                )
            if after == before.voters:
                return before
            connection.execute(
                "UPDATE voters SET sites = %s, former = %s, epoch = %s, changed_at = %s",
                (list(after.sites), list(after.former), after.epoch, now),
            )
            return StoredVoters(voters=after, changed_at=now)


def live_entitlements(connection: _Connection, *, now: int) -> tuple[Entitlement, ...]:
    """All that are not revoked and have not ended; for the snapshot of the estate, in its
    transaction. Those that ended a moment ago stay, for gateways whose clocks are behind."""
    rows = connection.execute(
        f"{ROW} WHERE revoked_at IS NULL AND ends_at > %s ORDER BY id", (now - _OVER_NS,)
    )
    return tuple(_stored(row).entitlement for row in rows)


def chosen_voters(connection: _Connection) -> Voters | None:
    """The cloud's voters; None before the first entitlement."""
    row = connection.execute(_VOTERS).fetchone()
    return None if row is None else _stored_voters(row).voters


def _stored_voters(row: TupleRow) -> StoredVoters:
    voters = Voters(sites=tuple(row[0]), former=tuple(row[1]), epoch=row[2])
    return StoredVoters(voters=voters, changed_at=row[3])


def _in_scope(connection: _Connection, scope: Scope, entitlement_id: str) -> StoredEntitlement:
    row = connection.execute(
        f"{ROW} WHERE id = %(id)s AND {_IN_SCOPE}", {"id": entitlement_id, "org": scope.org_id}
    ).fetchone()
    if row is None:
        raise NotFound(f"there is no entitlement {entitlement_id!r}")
    return _stored(row)


def _stored(row: TupleRow) -> StoredEntitlement:
    entitlement = Entitlement(
        id=row[0], org_id=row[1], project_id=row[2], model=row[3], class_=row[4], tok_s=row[5],
        residency=tuple(row[6]), starts_at=row[7], ends_at=row[8],
        slices=msgspec.convert(row[9], tuple[Slice, ...]),
    )
    return StoredEntitlement(
        entitlement=entitlement, name=row[10], created_at=row[11], revoked_at=row[12]
    )

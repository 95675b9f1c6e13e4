"""Tenants in PostgreSQL: organisations, projects, keys and policies."""

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from isochrone.adapters.postgres.once import made_before
from isochrone.adapters.postgres.owners import OPEN_PROJECTS, check_owner
from isochrone.adapters.postgres.pool import Pool
from isochrone.core.errors import Conflict, NotFound
from isochrone.core.ids import KeyId, OrgId, PolicyId, ProjectId
from isochrone.core.world.tenant import (
    EVERY_TENANT,
    ApiKey,
    Organisation,
    Policy,
    Project,
    Scope,
)
from isochrone.ports.tenants import Once, Page, Seed, StoredKey, StoredPolicy

_IN_SCOPE = "(%(org)s::text IS NULL OR org_id = %(org)s)"
_PAGE = "AND (%(after)s::text IS NULL OR id > %(after)s) ORDER BY id LIMIT %(most)s"
_KEY = """
    SELECT k.id, k.secret_sha256, k.org_id, k.project_id, k.policy_id, k.classes, k.name,
           k.created_at, k.revoked_at, k.scopes, k.expires_at, k.replaces,
           p.residency, p.transit, p.caches, p.logs
    FROM api_keys k JOIN policies p ON p.id = k.policy_id
"""

_ORGANISATION = "SELECT id, name, created_at, retain_days, closed_at FROM organisations"
_PROJECT = "SELECT id, org_id, name, created_at, closed_at FROM projects"
_POLICY = "SELECT id, org_id, residency, transit, caches, logs, name, created_at FROM policies"
# To `at`, or open where that is null; what is closed keeps its first instant.
_CLOSE = (
    " SET closed_at = %(at)s WHERE id = %(id)s"
    " AND (closed_at IS NULL) = (%(at)s::bigint IS NOT NULL)"
)
_CLOSE_ORGANISATION = (
    f"UPDATE organisations{_CLOSE} AND (%(org)s::text IS NULL OR id = %(org)s)"
)
_CLOSE_PROJECT = f"UPDATE projects{_CLOSE} AND {_IN_SCOPE}"
# Secrets made for an idempotency key are the same each time, and the key is forgotten after a day.
SECRET_IN_USE = "this idempotency key was used before for the same request; use a new one"

_Connection = psycopg.Connection[TupleRow]


class PostgresTenants:
    """`ports.tenants.Tenants` on one database; one call is one transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def seed(self, seed: Seed, *, now: int) -> None:
        with self._pool.transaction(EVERY_TENANT) as connection:
            connection.execute(
                "INSERT INTO organisations (id, name, created_at) VALUES (%s, %s, %s)"
                " ON CONFLICT DO NOTHING",
                (seed.organisation.id, seed.organisation.name, now),
            )
            connection.execute(
                "INSERT INTO projects (id, org_id, name, created_at) VALUES (%s, %s, %s, %s)"
                " ON CONFLICT DO NOTHING",
                (seed.project.id, seed.project.org_id, seed.project.name, now),
            )
            _stored_policy(connection, seed.policy)
            operator = seed.operator
            connection.execute(
                "INSERT INTO principals (id, org_id, name, role, kind, token_sha256, created_at)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s)"
                " ON CONFLICT (id) DO UPDATE SET token_sha256 = excluded.token_sha256",
                (operator.id, operator.org_id, operator.name, operator.role, operator.kind,
                 seed.operator_secret_sha256, now),
            )

    def live_key(self, secret_sha256: str, *, now: int) -> StoredKey | None:
        # Whose secret it is decides the tenant, so this has to look at all of them.
        with self._pool.transaction(EVERY_TENANT) as connection:
            row = connection.execute(
                _KEY + "WHERE k.secret_sha256 = %s AND k.revoked_at IS NULL"
                " AND (k.expires_at IS NULL OR k.expires_at > %s)"
                f" AND k.project_id IN ({OPEN_PROJECTS})",
                (secret_sha256, now),
            ).fetchone()
        return None if row is None else _key(row)[0]

    def organisations(self, scope: Scope, page: Page) -> Sequence[Organisation]:
        with self._pool.transaction(scope) as connection:
            rows = connection.execute(
                f"{_ORGANISATION} WHERE (%(org)s::text IS NULL OR id = %(org)s) " + _PAGE,
                _arguments(scope, page),
            ).fetchall()
        return [_organisation(row) for row in rows]

    def add_organisation(
        self, scope: Scope, organisation: Organisation, *, project: Project | None = None,
        once: Once | None,
    ) -> Organisation:
        with self._pool.transaction(scope) as connection:
            earlier = made_before(
                connection, once, resource=organisation.id, now=organisation.created_at
            )
            if earlier is not None:
                return _organisation_in(connection, scope, OrgId(earlier))
            row = connection.execute(
                "INSERT INTO organisations (id, name, created_at) VALUES (%s, %s, %s)"
                " ON CONFLICT (name) DO NOTHING RETURNING id",
                (organisation.id, organisation.name, organisation.created_at),
            ).fetchone()
            if row is None:
                raise Conflict(f"an organisation named {organisation.name!r} exists already")
            if project is not None:
                connection.execute(
                    "INSERT INTO projects (id, org_id, name, created_at) VALUES (%s, %s, %s, %s)",
                    (project.id, organisation.id, project.name, project.created_at),
                )
            return _organisation_in(connection, scope, organisation.id)

    def organisation(self, scope: Scope, org_id: OrgId) -> Organisation:
        with self._pool.transaction(scope) as connection:
            return _organisation_in(connection, scope, org_id)

    def change_organisation(
        self, scope: Scope, org_id: OrgId, *, name: str | None, retain_days: int | None
    ) -> Organisation:
        with self._pool.transaction(scope) as connection:
            connection.execute(
                "UPDATE organisations SET name = coalesce(%(name)s, name),"
                " retain_days = coalesce(%(days)s, retain_days)"
                " WHERE id = %(id)s AND (%(org)s::text IS NULL OR id = %(org)s)",
                {"name": name, "days": retain_days, "id": org_id, "org": scope.org_id},
            )
            return _organisation_in(connection, scope, org_id)

    def close_organisation(self, scope: Scope, org_id: OrgId, *, now: int) -> Organisation:
        with self._pool.transaction(scope) as connection:
            connection.execute(_CLOSE_ORGANISATION, _closing(scope, org_id, now))
            return _organisation_in(connection, scope, org_id)

    def reopen_organisation(self, scope: Scope, org_id: OrgId) -> Organisation:
        with self._pool.transaction(scope) as connection:
            connection.execute(_CLOSE_ORGANISATION, _closing(scope, org_id, None))
            return _organisation_in(connection, scope, org_id)

    def projects(
        self, scope: Scope, page: Page, *, org_id: OrgId | None = None
    ) -> Sequence[Project]:
        with self._pool.transaction(scope) as connection:
            rows = connection.execute(
                f"{_PROJECT} WHERE {_IN_SCOPE}"
                " AND (%(of)s::text IS NULL OR org_id = %(of)s) " + _PAGE,
                {**_arguments(scope, page), "of": org_id},
            ).fetchall()
        return [_project(row) for row in rows]

    def add_project(self, scope: Scope, project: Project, *, once: Once | None) -> Project:
        with self._pool.transaction(scope) as connection:
            earlier = made_before(connection, once, resource=project.id, now=project.created_at)
            if earlier is not None:
                return _project_in(connection, scope, ProjectId(earlier))
            check_owner(connection, scope, project.org_id)
            row = connection.execute(
                "INSERT INTO projects (id, org_id, name, created_at) VALUES (%s, %s, %s, %s)"
                " ON CONFLICT (org_id, name) DO NOTHING"
                " RETURNING id, org_id, name, created_at, closed_at",
                (project.id, project.org_id, project.name, project.created_at),
            ).fetchone()
            if row is None:
                raise Conflict(f"the organisation has a project named {project.name!r} already")
            return _project(row)

    def project(self, scope: Scope, project_id: ProjectId) -> Project:
        with self._pool.transaction(scope) as connection:
            return _project_in(connection, scope, project_id)

    def rename_project(self, scope: Scope, project_id: ProjectId, name: str) -> Project:
        with self._pool.transaction(scope) as connection:
            connection.execute(
                f"UPDATE projects SET name = %(name)s WHERE id = %(id)s AND {_IN_SCOPE}",
                {"name": name, "id": project_id, "org": scope.org_id},
            )
            return _project_in(connection, scope, project_id)

    def close_project(self, scope: Scope, project_id: ProjectId, *, now: int) -> Project:
        with self._pool.transaction(scope) as connection:
            connection.execute(_CLOSE_PROJECT, _closing(scope, project_id, now))
            return _project_in(connection, scope, project_id)

    def reopen_project(self, scope: Scope, project_id: ProjectId) -> Project:
        with self._pool.transaction(scope) as connection:
            connection.execute(_CLOSE_PROJECT, _closing(scope, project_id, None))
            return _project_in(connection, scope, project_id)

    def policies(self, scope: Scope, page: Page) -> Sequence[StoredPolicy]:
        with self._pool.transaction(scope) as connection:
            rows = connection.execute(
                f"{_POLICY} WHERE {_IN_SCOPE} " + _PAGE, _arguments(scope, page)
            ).fetchall()
        return [_stored(row) for row in rows]

    def add_policy(
        self, scope: Scope, policy: StoredPolicy, *, once: Once | None
    ) -> StoredPolicy:
        with self._pool.transaction(scope) as connection:
            # Which one it made is of no use: the same axes find the same policy anyway.
            earlier = made_before(
                connection, once, resource=policy.policy.id, now=policy.created_at
            )
            if earlier is None:
                check_owner(connection, scope, policy.policy.org_id)
            return _stored_policy(connection, policy)

    def keys(self, scope: Scope, page: Page) -> Sequence[tuple[StoredKey, Policy]]:
        with self._pool.transaction(scope) as connection:
            rows = connection.execute(
                _KEY + "WHERE (%(org)s::text IS NULL OR k.org_id = %(org)s)"
                " AND (%(after)s::text IS NULL OR k.id > %(after)s)"
                " ORDER BY k.id LIMIT %(most)s",
                _arguments(scope, page),
            ).fetchall()
        return [_key(row) for row in rows]

    def add_key(
        self, scope: Scope, key: StoredKey, policy: StoredPolicy, *, once: Once | None
    ) -> tuple[StoredKey, Policy]:
        with self._pool.transaction(scope) as connection:
            earlier = made_before(connection, once, resource=key.key.id, now=key.created_at)
            if earlier is not None:
                return _key_in(connection, scope, earlier)
            project = _project_in(connection, scope, key.key.project_id)
            if not project.org_id == key.key.org_id == policy.policy.org_id:
                raise NotFound(f"the organisation has no project {project.id!r}")
            check_owner(connection, scope, project.org_id, project.id)
            bound = _stored_policy(connection, policy).policy
            _insert_key(connection, key, bound.id)
            return _key_in(connection, scope, key.key.id)

    def key(self, scope: Scope, key_id: KeyId) -> tuple[StoredKey, Policy]:
        with self._pool.transaction(scope) as connection:
            return _key_in(connection, scope, key_id)

    def rotate_key(
        self, scope: Scope, new: StoredKey, *, former_until: int, once: Once | None
    ) -> tuple[StoredKey, Policy]:
        former = new.replaces
        with self._pool.transaction(scope) as connection:
            earlier = made_before(connection, once, resource=new.key.id, now=new.created_at)
            if earlier is not None:
                return _key_in(connection, scope, earlier)
            ended = connection.execute(
                "UPDATE api_keys SET expires_at = %(until)s WHERE id = %(id)s"
                " AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > %(now)s)"
                f" AND {_IN_SCOPE} RETURNING policy_id",
                {"until": former_until, "id": former, "now": new.created_at, "org": scope.org_id},
            ).fetchone()
            if ended is None:
                raise NotFound(f"there is no live key {former!r}")
            check_owner(connection, scope, new.key.org_id, new.key.project_id)
            _insert_key(connection, new, ended[0])
            # Both have limits of their own; there is one of each kind, which makes ids of them.
            connection.execute(
                "INSERT INTO limits (id, org_id, project_id, key_id, kind, amount, period,"
                " currency, created_at) SELECT %(new)s || '-' || kind, org_id, project_id,"
                " %(new)s, kind, amount, period, currency, %(now)s"
                " FROM limits WHERE key_id = %(former)s",
                {"new": new.key.id, "former": former, "now": new.created_at},
            )
            # Of a budget the new one has left what the former had; it is summed anew at once.
            connection.execute(
                "INSERT INTO limit_sums (limit_id, org_id, before_at, spent_pico, summed_at)"
                " SELECT %(new)s || '-' || l.kind, l.org_id, s.before_at, s.spent_pico, 0"
                " FROM limits l JOIN limit_sums s ON s.limit_id = l.id"
                " WHERE l.key_id = %(former)s",
                {"new": new.key.id, "former": former},
            )
            return _key_in(connection, scope, new.key.id)

    def revoke_key(self, scope: Scope, key_id: KeyId, *, now: int) -> StoredKey:
        with self._pool.transaction(scope) as connection:
            connection.execute(
                "UPDATE api_keys SET revoked_at = coalesce(revoked_at, %(now)s)"
                f" WHERE id = %(id)s AND {_IN_SCOPE}",
                {"id": key_id, "now": now, "org": scope.org_id},
            )
            return _key_in(connection, scope, key_id)[0]


def _closing(scope: Scope, id_: str, at: int | None) -> dict[str, object]:
    return {"at": at, "id": id_, "org": scope.org_id}


def _arguments(scope: Scope, page: Page) -> dict[str, object]:
    return {"org": scope.org_id, "after": page.after, "most": page.most}


def _found(row: TupleRow | None, noun: str, name: str) -> TupleRow:
    if row is None:
        raise NotFound(f"there is no {noun} {name!r}")
    return row


def _organisation_in(connection: _Connection, scope: Scope, org_id: OrgId) -> Organisation:
    row = connection.execute(
        f"{_ORGANISATION} WHERE id = %(id)s AND (%(org)s::text IS NULL OR id = %(org)s)",
        {"id": org_id, "org": scope.org_id},
    ).fetchone()
    return _organisation(_found(row, "organisation", org_id))


def _insert_key(connection: _Connection, key: StoredKey, policy_id: PolicyId) -> None:
    added = connection.execute(
        "INSERT INTO api_keys (id, org_id, project_id, policy_id, name, secret_sha256, classes,"
        " created_at, scopes, expires_at, replaces)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (secret_sha256) DO NOTHING RETURNING id",
        (key.key.id, key.key.org_id, key.key.project_id, policy_id, key.name,
         key.key.secret_sha256, list(key.key.classes), key.created_at, list(key.key.scopes),
         key.key.expires_at, key.replaces),
    ).fetchone()
    if added is None:
        raise Conflict(SECRET_IN_USE)


def _project_in(connection: _Connection, scope: Scope, project_id: ProjectId) -> Project:
    row = connection.execute(
        f"{_PROJECT} WHERE id = %(id)s AND {_IN_SCOPE}",
        {"id": project_id, "org": scope.org_id},
    ).fetchone()
    return _project(_found(row, "project", project_id))


def _key_in(
    connection: _Connection, scope: Scope, key_id: str
) -> tuple[StoredKey, Policy]:
    row = connection.execute(
        _KEY + "WHERE k.id = %(id)s AND (%(org)s::text IS NULL OR k.org_id = %(org)s)",
        {"id": key_id, "org": scope.org_id},
    ).fetchone()
    return _key(_found(row, "key", key_id))


def _stored_policy(connection: _Connection, policy: StoredPolicy) -> StoredPolicy:
    """The organisation's policy with these axes, added as `policy` when it has none."""
    new = policy.policy
    axes = (
        new.org_id, list(new.residency), list(new.transit), list(new.caches or ()), list(new.logs)
    )
    connection.execute(
        "INSERT INTO policies (id, org_id, residency, transit, caches, logs, name, created_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (org_id, axes_digest(residency, transit, caches, logs)) DO NOTHING",
        (new.id, *axes, policy.name, policy.created_at),
    )
    row = connection.execute(
        f"{_POLICY} WHERE org_id = %s AND axes_digest(residency, transit, caches, logs)"
        " = axes_digest(%s::text[], %s::text[], %s::text[], %s::text[])",
        axes,
    ).fetchone()
    return _stored(_found(row, "policy", new.id))


def _organisation(row: TupleRow) -> Organisation:
    return Organisation(
        id=row[0], name=row[1], created_at=row[2], retain_days=row[3], closed_at=row[4]
    )


def _project(row: TupleRow) -> Project:
    return Project(id=row[0], org_id=row[1], name=row[2], created_at=row[3], closed_at=row[4])


def policy_of_row(row: tuple[Any, ...]) -> Policy:
    """Of id, org_id and the axes residency, transit, caches, logs; empty caches are as residency.
    """
    return Policy(
        id=row[0], org_id=row[1], residency=tuple(row[2]), transit=tuple(row[3]),
        caches=tuple(row[4]) or None, logs=tuple(row[5]),
    )


def _stored(row: TupleRow) -> StoredPolicy:
    return StoredPolicy(policy=policy_of_row(row[:6]), name=row[6], created_at=row[7])


def _key(row: TupleRow) -> tuple[StoredKey, Policy]:
    key_id, secret, org, project, policy, classes, name, created, revoked, *rest = row
    scopes, expires, replaces, *axes = rest
    key = ApiKey(
        id=key_id, secret_sha256=secret, org_id=org, project_id=project, policy_id=policy,
        classes=tuple(classes), scopes=tuple(scopes), expires_at=expires,
    )
    return (
        StoredKey(
            key=key, name=name, created_at=created, revoked_at=revoked, replaces=replaces
        ),
        policy_of_row((policy, org, *axes)),
    )

"""Members in PostgreSQL: principals with their secrets, and apart from them who people are."""

from collections.abc import Sequence

import psycopg
from psycopg.rows import TupleRow

from isochrone.adapters.postgres.once import made_before
from isochrone.adapters.postgres.owners import check_owner
from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.tenants import SECRET_IN_USE
from isochrone.core.errors import Conflict, InvalidInput, LastOwner, NotFound
from isochrone.core.tenancy.terms import DAY_NS
from isochrone.core.world.tenant import EVERY_TENANT, Principal, Role, Scope
from isochrone.ports.accounts import Account
from isochrone.ports.members import Judge, Turnover
from isochrone.ports.tenants import Once, Page

PRINCIPAL = """
    SELECT p.id, p.org_id, coalesce(p.name, who.name), p.role, p.kind, who.email, p.expires_at
    FROM principals p LEFT JOIN people who ON who.principal_id = p.id
"""
_IN_SCOPE = "(%(org)s::text IS NULL OR p.org_id = %(org)s)"

_Connection = psycopg.Connection[TupleRow]


class PostgresMembers:
    """`ports.members.Members` on one database; one call is one transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def principal(self, secret_sha256: str, *, now: int) -> Principal | None:
        # Whose secret it is decides the tenant, so this has to look at all of them.
        with self._pool.transaction(EVERY_TENANT) as connection:
            row = connection.execute(
                PRINCIPAL + "WHERE p.revoked_at IS NULL"
                " AND (p.expires_at IS NULL OR p.expires_at > %(now)s)"
                " AND (p.token_sha256 = %(secret)s"
                "   OR (p.former_sha256 = %(secret)s AND p.former_until > %(now)s))",
                {"secret": secret_sha256, "now": now},
            ).fetchone()
        return None if row is None else principal_of(row)

    def principals(self, scope: Scope, page: Page) -> Sequence[Principal]:
        with self._pool.transaction(scope) as connection:
            rows = connection.execute(
                PRINCIPAL + f"WHERE p.revoked_at IS NULL AND {_IN_SCOPE}"
                " AND (%(after)s::text IS NULL OR p.id > %(after)s) ORDER BY p.id LIMIT %(most)s",
                {"org": scope.org_id, "after": page.after, "most": page.most},
            ).fetchall()
        return [principal_of(row) for row in rows]

    def member(self, scope: Scope, principal_id: str) -> Principal:
        with self._pool.transaction(scope) as connection:
            return _principal_in(connection, scope, principal_id)

    def add(
        self, scope: Scope, principal: Principal, secret_sha256: str, *, now: int,
        once: Once | None, account: Account | None = None,
    ) -> Principal:
        with self._pool.transaction(scope) as connection:
            earlier = made_before(connection, once, resource=principal.id, now=now)
            if earlier is not None:
                return _principal_in(connection, scope, earlier)
            if principal.org_id is not None:
                check_owner(connection, scope, principal.org_id)
            is_person = principal.kind == "person"
            added = connection.execute(
                "INSERT INTO principals (id, org_id, name, role, kind, token_sha256, created_at,"
                " expires_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
                " ON CONFLICT (token_sha256) DO NOTHING RETURNING id",
                (principal.id, principal.org_id, None if is_person else principal.name,
                 principal.role, principal.kind, secret_sha256, now, principal.expires_at),
            ).fetchone()
            if added is None:
                raise Conflict(SECRET_IN_USE)
            if is_person:
                connection.execute(
                    "INSERT INTO people (principal_id, org_id, name, email)"
                    " VALUES (%s, %s, %s, %s)",
                    (principal.id, principal.org_id, principal.name, principal.email),
                )
            if account is not None:
                write_account(connection, account, now=now)
        return principal

    def set_role(
        self, scope: Scope, principal_id: str, role: Role, *, judge: Judge, now: int
    ) -> Principal:
        with self._pool.transaction(scope) as connection:
            judge(_locked(connection, scope, principal_id))
            if role != "owner":
                _check_last_owner(connection, scope, principal_id, now)
            connection.execute(
                f"UPDATE principals p SET role = %(role)s WHERE {_LIVE}",
                {"role": role, "id": principal_id, "org": scope.org_id},
            )
            return _principal_in(connection, scope, principal_id, is_live=True)

    def turn_over(
        self, scope: Scope, principal_id: str, turnover: Turnover, *, now: int, once: Once | None
    ) -> Principal:
        with self._pool.transaction(scope) as connection:
            earlier = made_before(connection, once, resource=principal_id, now=now)
            if earlier is None:
                # A unique column refuses a secret that somebody has, present or former.
                connection.execute(
                    "UPDATE principals p SET former_sha256 = token_sha256,"
                    " former_until = %(until)s, token_sha256 = %(secret)s,"
                    f" expires_at = %(expires)s WHERE {_LIVE}",
                    {"until": turnover.former_until, "secret": turnover.secret_sha256,
                     "expires": turnover.expires_at, "id": principal_id, "org": scope.org_id},
                )
            return _principal_in(connection, scope, principal_id, is_live=True)

    def revoke(self, scope: Scope, principal_id: str, *, judge: Judge, now: int) -> Principal:
        with self._pool.transaction(scope) as connection:
            judge(_locked(connection, scope, principal_id))
            _revoke(connection, scope, principal_id, now)
            return _principal_in(connection, scope, principal_id)

    def erase(self, scope: Scope, principal_id: str, *, judge: Judge, now: int) -> Principal:
        with self._pool.transaction(scope) as connection:
            present = _locked(connection, scope, principal_id)
            judge(present)
            if present.kind != "person":
                raise Conflict(f"{principal_id!r} is a service account, not a person")
            _revoke(connection, scope, principal_id, now)
            connection.execute(_ERASE + "principal_id = %(id)s", {"now": now, "id": principal_id})
            return _principal_in(connection, scope, principal_id)

    def erase_overdue(self, *, now: int) -> int:
        with self._pool.transaction(EVERY_TENANT) as connection:
            return connection.execute(
                _ERASE + "principal_id IN (SELECT p.id FROM principals p"
                " LEFT JOIN organisations o ON o.id = p.org_id WHERE p.revoked_at IS NOT NULL"
                " AND p.revoked_at < %(now)s - coalesce(o.retain_days, %(usual)s) * %(day)s)",
                {"now": now, "usual": OPERATORS_RETAINED_DAYS, "day": DAY_NS},
            ).rowcount


OPERATORS_RETAINED_DAYS = 90  # operators belong to no organisation that could say
_LIVE = f"p.id = %(id)s AND p.revoked_at IS NULL AND {_IN_SCOPE}"
_ERASE = (
    "UPDATE people SET name = NULL, email = NULL, erased_at = %(now)s"
    " WHERE erased_at IS NULL AND "
)


def _check_last_owner(
    connection: _Connection, scope: Scope, principal_id: str, now: int
) -> None:
    """Raises LastOwner when nobody else owns the organisation of this owner, and it is open."""
    # The lock keeps two owners from removing each other at the same moment.
    row = connection.execute(
        "SELECT o.id FROM organisations o WHERE o.closed_at IS NULL AND o.id = ("
        f"SELECT p.org_id FROM principals p WHERE {_LIVE} AND p.role = 'owner') FOR UPDATE",
        {"id": principal_id, "org": scope.org_id},
    ).fetchone()
    if row is None:
        return
    other = connection.execute(
        "SELECT 1 FROM principals WHERE org_id = %s AND role = 'owner' AND id <> %s"
        " AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > %s) LIMIT 1",
        (row[0], principal_id, now),
    ).fetchone()
    if other is None:
        raise LastOwner(
            f"{principal_id!r} is the last owner of the organisation {row[0]!r}: appoint another"
            " first, or close the organisation"
        )


TAKEN = "this name is taken by another account; choose another one"
UNKNOWN_LETTER = (
    "login: has a capital letter whose small form is not known here; choose another name"
)


def write_account(connection: _Connection, account: Account, *, now: int) -> None:
    """Make or change an account. Raises Conflict for a name that is taken,
    InvalidInput for one that is not written small."""
    try:
        connection.execute(
            "INSERT INTO accounts (principal_id, org_id, login, password, is_given,"
            " changed_at) VALUES (%s, %s, %s, %s, %s, %s)"
            " ON CONFLICT (principal_id) DO UPDATE SET"
            " login = excluded.login, password = excluded.password,"
            " is_given = excluded.is_given, changed_at = excluded.changed_at",
            (account.principal_id, account.org_id, account.login, account.password,
             account.is_given, now),
        )
    except psycopg.errors.UniqueViolation as error:
        raise Conflict(TAKEN) from error
    except psycopg.errors.CheckViolation as error:
        # Whoever makes the account wrote it small; the book's tables of letters may be newer.
        raise InvalidInput([UNKNOWN_LETTER]) from error


def _revoke(connection: _Connection, scope: Scope, principal_id: str, now: int) -> None:
    _check_last_owner(connection, scope, principal_id, now)
    connection.execute(
        f"UPDATE principals p SET revoked_at = %(now)s WHERE {_LIVE}",
        {"now": now, "id": principal_id, "org": scope.org_id},
    )
    # The name of an account is often an e-mail address; its sessions go with it.
    connection.execute(
        "DELETE FROM accounts WHERE principal_id = %(id)s"
        " AND (%(org)s::text IS NULL OR org_id = %(org)s)",
        {"id": principal_id, "org": scope.org_id},
    )


def _locked(connection: _Connection, scope: Scope, principal_id: str) -> Principal:
    """The member as it is until the transaction ends. Raises NotFound."""
    row = connection.execute(
        PRINCIPAL + f"WHERE p.id = %(id)s AND {_IN_SCOPE} FOR NO KEY UPDATE OF p",
        {"id": principal_id, "org": scope.org_id},
    ).fetchone()
    if row is None:
        raise NotFound(f"there is no principal {principal_id!r}")
    return principal_of(row)


def _principal_in(
    connection: _Connection, scope: Scope, principal_id: str, *, is_live: bool = False
) -> Principal:
    row = connection.execute(
        PRINCIPAL + f"WHERE p.id = %(id)s AND {_IN_SCOPE}"
        " AND (p.revoked_at IS NULL OR NOT %(live)s)",
        {"id": principal_id, "org": scope.org_id, "live": is_live},
    ).fetchone()
    if row is None:
        raise NotFound(f"there is no principal {principal_id!r}")
    return principal_of(row)


def principal_of(row: TupleRow) -> Principal:
    return Principal(
        id=row[0], org_id=row[1], name=row[2], role=row[3], kind=row[4], email=row[5],
        expires_at=row[6],
    )

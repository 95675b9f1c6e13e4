"""Accounts in PostgreSQL: who may sign in, sessions, and counts of tries."""

from collections.abc import Mapping

from isochrone.adapters.postgres.members import PRINCIPAL, principal_of, write_account
from isochrone.adapters.postgres.pool import Pool
from isochrone.core.errors import NotFound
from isochrone.core.ids import OrgId
from isochrone.core.tenancy.sign_in import FORGOTTEN_NS, Tried, Tries, wait_s
from isochrone.core.world.tenant import EVERY_TENANT, Principal, Scope
from isochrone.ports.accounts import Account, Session

_ACCOUNT = "SELECT a.principal_id, a.org_id, a.login, a.password, a.is_given FROM accounts a"
_LIVE = "p.revoked_at IS NULL AND (p.expires_at IS NULL OR p.expires_at > %(now)s)"


class PostgresAccounts:
    """`ports.accounts.Accounts` on one database; one call is one transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def account(self, scope: Scope, principal_id: str) -> Account | None:
        with self._pool.transaction(scope) as connection:
            row = connection.execute(
                f"{_ACCOUNT} WHERE a.principal_id = %(id)s"
                " AND (%(org)s::text IS NULL OR a.org_id = %(org)s)",
                {"id": principal_id, "org": scope.org_id},
            ).fetchone()
        return None if row is None else _account(row)

    def named(self, login: str, *, now: int) -> Account | None:
        # Whose name it is decides the tenant, so this has to look at all of them.
        with self._pool.transaction(EVERY_TENANT) as connection:
            row = connection.execute(
                f"{_ACCOUNT} JOIN principals p ON p.id = a.principal_id"
                f" WHERE a.login = %(login)s AND {_LIVE}",
                {"login": login, "now": now},
            ).fetchone()
        return None if row is None else _account(row)

    def put(self, scope: Scope, account: Account, *, now: int, keep: str | None = None) -> None:
        with self._pool.transaction(scope) as connection:
            found = connection.execute(
                "SELECT FROM principals p WHERE p.id = %(id)s AND p.revoked_at IS NULL"
                " AND p.org_id IS NOT DISTINCT FROM %(org)s FOR UPDATE",
                {"id": account.principal_id, "org": account.org_id},
            ).fetchone()
            if found is None:
                raise NotFound(f"there is no principal {account.principal_id!r}")
            write_account(connection, account, now=now)
            connection.execute(
                "DELETE FROM sessions WHERE principal_id = %s"
                " AND secret_sha256 IS DISTINCT FROM %s",
                (account.principal_id, keep),
            )

    def begin(self, session: Session, *, password: str) -> bool:
        scope = Scope(org_id=session.org_id, actor=f"principal:{session.principal_id}")
        with self._pool.transaction(scope) as connection:
            # Who changes the password meanwhile is waited for, and ends what is begun before.
            return connection.execute(
                "INSERT INTO sessions (secret_sha256, principal_id, org_id, begun_at, expires_at)"
                " SELECT %s, principal_id, org_id, %s, %s FROM accounts"
                " WHERE principal_id = %s AND password = %s FOR SHARE",
                (session.secret_sha256, session.begun_at, session.expires_at,
                 session.principal_id, password),
            ).rowcount > 0

    def holder(self, secret_sha256: str, *, now: int) -> Principal | None:
        with self._pool.transaction(EVERY_TENANT) as connection:
            row = connection.execute(
                f"{PRINCIPAL} JOIN sessions s ON s.principal_id = p.id"
                f" WHERE s.secret_sha256 = %(secret)s AND s.expires_at > %(now)s AND {_LIVE}",
                {"secret": secret_sha256, "now": now},
            ).fetchone()
        return None if row is None else principal_of(row)

    def end(self, secret_sha256: str) -> bool:
        with self._pool.transaction(EVERY_TENANT) as connection:
            # Whose secret it is decides on whose behalf.
            connection.execute(
                "SELECT set_config('isochrone.actor', 'principal:' || principal_id, true)"
                " FROM sessions WHERE secret_sha256 = %s",
                (secret_sha256,),
            )
            return connection.execute(
                "DELETE FROM sessions WHERE secret_sha256 = %s", (secret_sha256,)
            ).rowcount > 0

    def try_once(self, tried: Mapping[Tried, str], *, now: int) -> float:
        by_hash = {what: kind for kind, what in tried.items()}
        with self._pool.transaction(EVERY_TENANT) as connection:
            rows = connection.execute(
                "SELECT what, tries, last_at FROM sign_in_tries WHERE what = ANY (%s)"
                " ORDER BY what FOR UPDATE",
                (list(by_hash),),
            ).fetchall()
            waits_s = [
                wait_s(Tries(what=by_hash[what], count=count, last_at=last_at), now=now)
                for what, count, last_at in rows
            ]
            if any(waits_s):
                return max(waits_s)
            for what in sorted(by_hash):
                connection.execute(_ONE_MORE, {"what": what, "now": now, "old": FORGOTTEN_NS})
        return 0.0

    def succeeded(self, tried: Mapping[Tried, str]) -> None:
        with self._pool.transaction(EVERY_TENANT) as connection:
            # In the order in which tries lock them.
            for what, kind in sorted((what, kind) for kind, what in tried.items()):
                connection.execute(_FORGET_NAME if kind == "login" else _TAKE_BACK, (what,))

    def forget_old(self, *, now: int) -> None:
        with self._pool.transaction(EVERY_TENANT) as connection:
            connection.execute("DELETE FROM sessions WHERE expires_at <= %s", (now,))
            connection.execute(
                "DELETE FROM sign_in_tries WHERE last_at <= %s", (now - FORGOTTEN_NS,)
            )


_FORGET_NAME = "DELETE FROM sign_in_tries WHERE what = %s"
_TAKE_BACK = "UPDATE sign_in_tries SET tries = tries - 1 WHERE what = %s AND tries > 1"
_ONE_MORE = """
    INSERT INTO sign_in_tries AS before (what, tries, last_at) VALUES (%(what)s, 1, %(now)s)
    ON CONFLICT (what) DO UPDATE SET last_at = excluded.last_at, tries =
        CASE WHEN excluded.last_at - before.last_at >= %(old)s THEN 1 ELSE before.tries + 1 END
"""


def _account(row: tuple[object, ...]) -> Account:
    principal_id, org_id, login, password, is_given = row
    return Account(
        principal_id=str(principal_id), org_id=None if org_id is None else OrgId(str(org_id)),
        login=str(login), password=str(password), is_given=bool(is_given),
    )

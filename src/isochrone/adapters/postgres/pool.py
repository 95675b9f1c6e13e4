"""Hands out PostgreSQL transactions, and turns psycopg's failures into the product's own.

One `with pool.transaction() as connection:` is one transaction: committed at the end of the block,
rolled back when the block raises. Every statement runs as the application role, which is neither
superuser nor owner of the tables, and under a statement and a lock timeout, so that no caller
(above all no virtual event loop) can wait for ever. Never `await` inside the block.

A transaction is for the tenant of its `Scope`: row-level security hides every other tenant's rows
from it, whatever its statements ask for. Without a scope it sees no tenant's rows at all.

How failures are told:

    server away, connection lost, timeout, deadlock, read-only standby   StoreUnavailable
    a unique constraint refuses the row                                   Conflict
    any other constraint, or a value that a column cannot hold            InvalidInput
    anything else (a wrong statement, a missing privilege)                psycopg's own: a bug
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from isochrone.core.errors import Conflict, InvalidInput, StoreUnavailable
from isochrone.core.world.tenant import Scope

APPLICATION_ROLE = "isochrone_app"
CONNECT_TIMEOUT_S = 3
GET_TIMEOUT_S = 3.0
STATEMENT_TIMEOUT_MS = 10_000
LOCK_TIMEOUT_MS = 2_000
IDLE_TIMEOUT_MS = 15_000
EVERYBODY = "*"  # what the policies of the tables take for everybody; no organisation's id


def check_conninfo(conninfo: str) -> None:
    """Raises InvalidInput for what is no connection string."""
    try:
        conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError as error:
        raise InvalidInput([f"database: is no connection string: {error}"]) from error


def application_conninfo(conninfo: str) -> str:
    """`conninfo` with the application role, the timeouts and keepalives of seconds added."""
    given = conninfo_to_dict(conninfo)
    options = (
        f"-c role={APPLICATION_ROLE} -c statement_timeout={STATEMENT_TIMEOUT_MS} "
        f"-c lock_timeout={LOCK_TIMEOUT_MS} -c timezone=UTC "
        f"-c idle_in_transaction_session_timeout={IDLE_TIMEOUT_MS}"
    )
    return make_conninfo(
        conninfo,
        options=f"{given.get('options') or ''} {options}".strip(),
        connect_timeout=CONNECT_TIMEOUT_S,
        application_name=given.get("application_name") or "isochrone",
        keepalives_idle=5,
        keepalives_interval=2,
        keepalives_count=3,
        tcp_user_timeout=10_000,
    )


class Pool:
    """Connections to one database; safe to share between threads. Close it at the end."""

    def __init__(self, conninfo: str, *, most: int) -> None:
        # No minimum: connections are made on demand, so that a server that was away is found
        # again by the next call, without waiting for a background back-off.
        self._pool = ConnectionPool(
            application_conninfo(conninfo),
            min_size=0,
            max_size=most,
            timeout=GET_TIMEOUT_S,
            reconnect_timeout=1.0,
            max_idle=300.0,
            check=ConnectionPool.check_connection,
            open=True,
        )

    @contextmanager
    def transaction(
        self, scope: Scope | None = None, *, one_instant: bool = False
    ) -> Iterator[psycopg.Connection[TupleRow]]:
        """One transaction; raises StoreUnavailable, Conflict or InvalidInput (see the module).

        Rows of tenants are those of `scope`, and what it changes is in the audit log under the
        scope's actor. `one_instant`: it only reads, and all its statements see the same commits.
        """
        try:
            with self._pool.connection() as connection:
                if one_instant:
                    # Before any query: the first one fixes what is seen.
                    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                if scope is not None:
                    # True: until the end of the transaction; the next one starts without.
                    connection.execute(
                        "SELECT set_config('isochrone.tenant', %s, true),"
                        " set_config('isochrone.actor', %s, true)",
                        (EVERYBODY if scope.org_id is None else scope.org_id, scope.actor),
                    )
                yield connection
        except psycopg.errors.UniqueViolation as error:
            raise Conflict(_said(error)) from error
        except (psycopg.IntegrityError, psycopg.DataError) as error:
            if _was_parted(error):
                raise StoreUnavailable(f"a day was parted off meanwhile: {_said(error)}") from error
            raise InvalidInput([_said(error)]) from error
        except (
            psycopg.OperationalError,
            psycopg.InterfaceError,
            psycopg.errors.ReadOnlySqlTransaction,
        ) as error:
            raise StoreUnavailable(f"PostgreSQL does not answer: {_said(error)}") from error

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()


def _was_parted(error: psycopg.Error) -> bool:
    """Whether a row was on its way to the rows of no day of their own when its day was made: the
    one check that has no name. The same transaction will find the day's own table."""
    violated = isinstance(error, psycopg.errors.CheckViolation)
    return violated and error.diag.constraint_name is None


def _said(error: psycopg.Error) -> str:
    """The server's own words on one line, with the detail where it gave one."""
    primary = error.diag.message_primary or str(error)
    detail = error.diag.message_detail
    return " ".join((f"{primary} ({detail})" if detail else primary).split())


def open_pool(conninfo: str, *, most: int = 8) -> Pool:
    """A pool on `conninfo`; it opens no connection before the first transaction."""
    return Pool(conninfo, most=most)


def check_role(pool: Pool) -> None:
    """Raises InvalidInput when the role that `pool` works as could pass row-level security by."""
    with pool.transaction() as connection:
        row = connection.execute(
            "SELECT current_user, rolsuper OR rolbypassrls, EXISTS ("
            "   SELECT FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            "   AND relkind IN ('r', 'p') AND pg_has_role(current_user, relowner, 'USAGE'))"
            " FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
    assert row is not None, "a role that is at work exists"
    role, is_exempt, owns = row
    problems = []
    if is_exempt:
        problems.append(f"the database role {role} may bypass row-level security;"
                        f" take that from it: ALTER ROLE {role} NOSUPERUSER NOBYPASSRLS")
    if owns:
        problems.append(f"the database role {role} owns tables of the book, or may act as their"
                        f" owner; give them to another role, which only migrates")
    if problems:
        raise InvalidInput(problems)

"""The audit log in PostgreSQL, which its triggers write; this only reads it."""

from collections.abc import Sequence

from psycopg.rows import kwargs_row

from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.settled import SETTLED
from isochrone.core.world.tenant import Scope
from isochrone.ports.audit import AuditEntry, AuditFilter


class PostgresAudit:
    """`ports.audit.Audit` on one database; one call is one transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def entries(
        self, scope: Scope, chosen: AuditFilter, *, most: int, after: int | None = None,
        newest: bool = False,
    ) -> Sequence[AuditEntry]:
        beyond, order = ("<", "DESC") if newest else (">", "ASC")
        settled = f" AND {SETTLED.format('audit')}" if after is not None and not newest else ""
        with self._pool.transaction(scope) as connection:
            cursor = connection.cursor(row_factory=kwargs_row(AuditEntry))
            return cursor.execute(
                "SELECT serial, at, org_id, actor, kind, subject, change, before, after FROM audit"
                f" WHERE (%(after)s::bigint IS NULL OR serial {beyond} %(after)s){settled}"
                " AND (%(scope)s::text IS NULL OR org_id = %(scope)s)"
                " AND (%(org)s::text IS NULL OR org_id = %(org)s)"
                " AND (%(actor)s::text IS NULL OR actor = %(actor)s)"
                " AND (%(kind)s::text IS NULL OR kind = %(kind)s)"
                " AND (%(subject)s::text IS NULL OR subject = %(subject)s)"
                " AND (%(since)s::bigint IS NULL OR at >= %(since)s)"
                " AND (%(until)s::bigint IS NULL OR at < %(until)s)"
                f" ORDER BY serial {order} LIMIT %(most)s",
                {
                    "after": after, "scope": scope.org_id, "org": chosen.org_id,
                    "actor": chosen.actor, "kind": chosen.kind, "subject": chosen.subject,
                    "since": chosen.since, "until": chosen.until, "most": most,
                },
            ).fetchall()

"""Leases and the serial of signed entries in PostgreSQL."""

from isochrone.adapters.postgres.pool import Pool
from isochrone.core.errors import Conflict
from isochrone.ports.leases import Lease


class PostgresLeases:
    """`ports.leases.Leases` on one database; one call is one transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def take(self, name: str, holder: str, *, now: int, ttl_ns: int) -> Lease | None:
        with self._pool.transaction() as connection:
            row = connection.execute(
                "INSERT INTO leases (name, holder, epoch, expires_at)"
                " VALUES (%(name)s, %(holder)s, 1, %(expires)s)"
                " ON CONFLICT (name) DO UPDATE SET holder = excluded.holder,"
                " epoch = leases.epoch + 1, expires_at = excluded.expires_at"
                " WHERE leases.expires_at <= %(now)s OR leases.holder = excluded.holder"
                " RETURNING epoch, expires_at",
                {"name": name, "holder": holder, "now": now, "expires": now + ttl_ns},
            ).fetchone()
        if row is None:
            return None
        return Lease(name=name, holder=holder, epoch=row[0], expires_at=row[1])

    def renew(self, lease: Lease, *, now: int, ttl_ns: int) -> Lease | None:
        with self._pool.transaction() as connection:
            row = connection.execute(
                "UPDATE leases SET expires_at = %s WHERE name = %s AND epoch = %s"
                " RETURNING expires_at",
                (now + ttl_ns, lease.name, lease.epoch),
            ).fetchone()
        if row is None:
            return None
        return Lease(name=lease.name, holder=lease.holder, epoch=lease.epoch, expires_at=row[0])

    def release(self, lease: Lease) -> None:
        with self._pool.transaction() as connection:
            connection.execute(
                "UPDATE leases SET expires_at = 0 WHERE name = %s AND epoch = %s",
                (lease.name, lease.epoch),
            )

    def serials(self, lease: Lease, count: int, *, above: int) -> int:
        with self._pool.transaction() as connection:
            # The lock on the lease's row holds a take-over back until these serials are drawn.
            current = connection.execute(
                "SELECT epoch FROM leases WHERE name = %s FOR SHARE", (lease.name,)
            ).fetchone()
            if current is None or current[0] != lease.epoch:
                raise Conflict(f"the lease {lease.name!r} went to another holder")
            row = connection.execute(
                "UPDATE view_serial SET serial = greatest(serial, %s) + %s RETURNING serial",
                (above, count),
            ).fetchone()
        assert row is not None, "the first migration makes the row"
        return int(row[0]) - count + 1

"""What sites log in to NATS with: which of their keys are theirs no more, and when others begin.

A login is refused by its key and the second in which it was issued, so one that is issued for a key
which was revoked is dated after that.
"""

from collections.abc import Sequence

import psycopg
from psycopg.rows import TupleRow

from isochrone.core.errors import Untrusted
from isochrone.core.ids import SiteName
from isochrone.ports.logins import RevokedLogin

# What a removed site gets to hear that it is to run nothing, and to report what it used.
REMOVED_STAYS_NS = 60 * 1_000_000_000
_NS_PER_S = 1_000_000_000

_Connection = psycopg.Connection[TupleRow]


def revoke(
    connection: _Connection, user_key: str, site: SiteName, *, until: int, refused_from: int
) -> None:
    """Refuse the key, from an instant on, with what was issued until another. Clocks of copies
    differ, so `until` is no earlier than its login was issued."""
    connection.execute(
        "INSERT INTO revoked_logins AS known (user_key, site, revoked_at, refused_from)"
        " VALUES (%s, %s, %s, %s) ON CONFLICT (user_key) DO UPDATE SET site = excluded.site,"
        " revoked_at = excluded.revoked_at, refused_from = excluded.refused_from"
        " WHERE known.revoked_at < excluded.revoked_at",
        (user_key, site, until, refused_from),
    )


def take_back(
    connection: _Connection, names: Sequence[SiteName], *, now: int, stays_ns: int = 0
) -> None:
    """These sites lose their keys, and their tokens; they may join anew with others. They are let
    in at NATS for `stays_ns` more."""
    # Tokens before sites, as one who joins locks them.
    connection.execute(
        "UPDATE site_tokens SET expires_at = %s"
        " WHERE site = ANY(%s) AND used_at IS NULL AND expires_at > %s",
        (now, list(names), now),
    )
    joined = connection.execute(
        "SELECT name, nats_key, coalesce(joined_at, 0) FROM sites"
        " WHERE name = ANY(%s) AND nats_key IS NOT NULL ORDER BY name FOR UPDATE",
        (list(names),),
    ).fetchall()
    for name, key, joined_at in joined:
        revoke(
            connection, key, name, until=max(now, joined_at), refused_from=now + stays_ns
        )
    connection.execute(
        "UPDATE sites SET peer_key = NULL, nats_key = NULL, joined_at = NULL"
        " WHERE name = ANY(%s)",
        ([name for name, *_ in joined],),
    )


def issued_at(
    connection: _Connection, user_key: str, site: SiteName, *, before: int, now: int
) -> int:
    """When a login of the key is issued for a site that joins now: not before the one that the site
    had, and after all of the key that were revoked. Raises Untrusted for the key of another site:
    with its next keys that site would have this one cut off."""
    other = connection.execute(
        "SELECT name FROM sites WHERE nats_key = %s AND name <> %s", (user_key, site)
    ).fetchone()
    if other is not None:
        raise Untrusted(
            f"nats_key: is that of site {other[0]!r}: join with an identity file of this site, or"
            " without one"
        )
    row = connection.execute(
        "SELECT revoked_at FROM revoked_logins WHERE user_key = %s", (user_key,)
    ).fetchone()
    after = 0 if row is None else (row[0] // _NS_PER_S + 1) * _NS_PER_S
    return max(now, before, after)


def revoked_logins(connection: _Connection, *, now: int) -> list[RevokedLogin]:
    """All that are refused at `now`, in the order of their keys."""
    rows = connection.execute(
        "SELECT user_key, revoked_at FROM revoked_logins WHERE refused_from <= %s"
        " ORDER BY user_key",
        (now,),
    ).fetchall()
    return [RevokedLogin(user_key=key, revoked_at=at) for key, at in rows]

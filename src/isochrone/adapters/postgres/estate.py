"""The estate in PostgreSQL: sites, links, models, deployments, how sites join, and the snapshot."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import psycopg
from psycopg.rows import TupleRow

from isochrone.adapters.postgres.entitlements import chosen_voters, live_entitlements
from isochrone.adapters.postgres.limits import org_limits
from isochrone.adapters.postgres.logins import (
    REMOVED_STAYS_NS,
    issued_at,
    revoke,
    revoked_logins,
    take_back,
)
from isochrone.adapters.postgres.once import made_before
from isochrone.adapters.postgres.owners import OPEN_PROJECTS
from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.tenants import policy_of_row
from isochrone.core.errors import NotFound, Untrusted
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.world.model import Deployment, EngineSpec, Model
from isochrone.core.world.site import Hardware, Link, Site, SiteLinks
from isochrone.core.world.site_policy import SitePolicy
from isochrone.core.world.tenant import EVERY_TENANT, ApiKey, Scope
from isochrone.ports.estate import Intent, JoinedSite, Joining, SiteToken, Snapshot
from isochrone.ports.logins import RevokedLogin
from isochrone.ports.tenants import Once, Page

_SITE = """
    SELECT name, country, operator, parent, latitude_deg, longitude_deg, hardware, host, port,
           public_url, peer_key, draining
    FROM sites WHERE removed_at IS NULL
"""
_DEPLOYMENT_COLUMNS = (
    "site, model, replicas, engine, context_tokens, admission, restart_up_to, stopped_replicas,"
    " at_once"
)
_DEPLOYMENT = f"SELECT {_DEPLOYMENT_COLUMNS} FROM deployments"
_MODEL = "SELECT name, kind, revision, context_tokens, created_at FROM models"

_WORLD_FILE = Scope(org_id=None, actor="world file")
_JOINING = Scope(org_id=None, actor="joining site")

_Connection = psycopg.Connection[TupleRow]


class PostgresEstate:
    """`ports.estate.Estate` on one database; one call is one transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def reconcile(self, intent: Intent, *, now: int) -> bool:
        with self._pool.transaction(_WORLD_FILE) as connection:
            row = connection.execute("SELECT fingerprint FROM world FOR UPDATE").fetchone()
            if row is not None and row[0] == intent.fingerprint:
                return False
            _reconcile_sites(connection, intent.sites, now)
            _remove_deployments(connection, intent.deployments)
            _reconcile_models(connection, intent.models)
            _write_deployments(connection, intent.deployments)
            connection.execute("DELETE FROM links")
            _write_links(connection, intent.links)
            connection.execute(
                "INSERT INTO world (fingerprint, reconciled_at) VALUES (%s, %s)"
                " ON CONFLICT (one) DO UPDATE SET fingerprint = excluded.fingerprint,"
                " reconciled_at = excluded.reconciled_at",
                (intent.fingerprint, now),
            )
        return True

    def snapshot(self, *, now: int) -> Snapshot:
        # One transaction alone does not give one instant: later statements would see newer
        # commits, and a key could come without its policy.
        with self._pool.transaction(EVERY_TENANT, one_instant=True) as connection:
            return Snapshot(
                sites=tuple(map(_site, connection.execute(_SITE + "ORDER BY name"))),
                removed_sites=tuple(
                    SiteName(name)
                    for (name,) in connection.execute(
                        "SELECT name FROM sites WHERE removed_at IS NOT NULL ORDER BY name"
                    )
                ),
                links=_site_links(
                    connection.execute(
                        "SELECT site, peer, rtt_ms, source, via FROM links ORDER BY site, peer"
                    )
                ),
                models=tuple(map(_model, connection.execute(_MODEL + " ORDER BY name"))),
                deployments=tuple(
                    map(_deployment, connection.execute(_DEPLOYMENT + " ORDER BY site, model"))
                ),
                policies=tuple(
                    policy_of_row(row)
                    for row in connection.execute(
                        "SELECT id, org_id, residency, transit, caches, logs FROM policies"
                        " ORDER BY id"
                    )
                ),
                keys=tuple(
                    ApiKey(
                        id=row[0], secret_sha256=row[1], org_id=row[2], project_id=row[3],
                        policy_id=row[4], classes=tuple(row[5]), scopes=tuple(row[6]),
                        expires_at=row[7],
                    )
                    for row in connection.execute(
                        "SELECT id, secret_sha256, org_id, project_id, policy_id, classes, scopes,"
                        " expires_at FROM api_keys WHERE revoked_at IS NULL"
                        " AND (expires_at IS NULL OR expires_at > %s)"
                        f" AND project_id IN ({OPEN_PROJECTS}) ORDER BY id",
                        (now,),
                    )
                ),
                entitlements=live_entitlements(connection, now=now),
                voters=chosen_voters(connection),
                limits=org_limits(connection, now=now),
            )

    def sites(self, page: Page) -> Sequence[Site]:
        with self._pool.transaction() as connection:
            rows = connection.execute(
                _SITE + "AND (%(after)s::text IS NULL OR name > %(after)s)"
                " ORDER BY name LIMIT %(most)s",
                {"after": page.after, "most": page.most},
            ).fetchall()
        return [_site(row) for row in rows]

    def site(self, name: SiteName) -> Site:
        with self._pool.transaction() as connection:
            return _site_named(connection, name)

    def set_draining(self, scope: Scope, name: SiteName, draining: bool) -> Site:
        with self._pool.transaction(scope) as connection:
            connection.execute(
                "UPDATE sites SET draining = %s WHERE name = %s AND removed_at IS NULL",
                (draining, name),
            )
            return _site_named(connection, name)

    def links(self, name: SiteName) -> Sequence[Link]:
        with self._pool.transaction() as connection:
            rows = connection.execute(
                "SELECT site, peer, rtt_ms, source, via FROM links WHERE site = %s ORDER BY peer",
                (name,),
            ).fetchall()
        return [_link(row) for row in rows]

    def set_links(self, links: Sequence[SiteLinks]) -> None:
        with self._pool.transaction() as connection:
            _write_links(connection, links)

    def add_token(self, scope: Scope, token: SiteToken, *, once: Once | None) -> SiteToken:
        with self._pool.transaction(scope) as connection:
            _site_named(connection, token.site)
            earlier = made_before(
                connection, once, resource=token.secret_sha256, now=token.created_at
            )
            if earlier is None:
                connection.execute(
                    "INSERT INTO site_tokens (token_sha256, site, created_at, expires_at)"
                    " VALUES (%s, %s, %s, %s)",
                    (token.secret_sha256, token.site, token.created_at, token.expires_at),
                )
            row = connection.execute(
                "SELECT token_sha256, site, created_at, expires_at FROM site_tokens"
                " WHERE token_sha256 = %s",
                (earlier or token.secret_sha256,),
            ).fetchone()
        if row is None:
            raise NotFound(f"there is no such token of site {token.site!r}")
        return SiteToken(secret_sha256=row[0], site=row[1], created_at=row[2], expires_at=row[3])

    def join(self, joining: Joining, *, now: int) -> JoinedSite:
        with self._pool.transaction(_JOINING) as connection:
            row = connection.execute(
                "SELECT t.site, t.used_at, t.expires_at, coalesce(s.joined_at, 0), s.peer_key,"
                " s.nats_key, s.host, s.port, s.public_url"
                " FROM site_tokens t JOIN sites s ON s.name = t.site"
                " WHERE t.token_sha256 = %s AND s.removed_at IS NULL FOR UPDATE",
                (joining.token_sha256,),
            ).fetchone()
            if row is None:
                raise Untrusted("the join token is unknown: ask the operator for a new one")
            site, used_at, expires_at, joined_at, *stated = row
            if now >= expires_at:
                raise Untrusted("the join token has expired: ask the operator for a new one")
            if used_at is not None:
                if stated != [joining.peer_key, joining.nats_key, joining.host, joining.port,
                              joining.public_url]:
                    raise Untrusted(
                        "the join token was used before, with other keys or for another address:"
                        " ask the operator for another"
                    )
                return JoinedSite(site=_site_named(connection, site), joined_at=joined_at)
            at = issued_at(connection, joining.nats_key, site, before=joined_at, now=now)
            if (key := stated[1]) not in (None, joining.nats_key):
                revoke(connection, key, site, until=max(now, joined_at), refused_from=now)
            connection.execute(
                "UPDATE site_tokens SET used_at = %s WHERE token_sha256 = %s",
                (now, joining.token_sha256),
            )
            connection.execute(
                "UPDATE sites SET peer_key = %s, nats_key = %s, host = %s, port = %s,"
                " public_url = %s, joined_at = %s WHERE name = %s",
                (joining.peer_key, joining.nats_key, joining.host, joining.port,
                 joining.public_url, at, site),
            )
            return JoinedSite(site=_site_named(connection, site), joined_at=at)

    def revoke_login(self, scope: Scope, name: SiteName, *, now: int) -> Site:
        with self._pool.transaction(scope) as connection:
            _site_named(connection, name)
            take_back(connection, [name], now=now)
            return _site_named(connection, name)

    def revoked_logins(self, *, now: int) -> Sequence[RevokedLogin]:
        with self._pool.transaction() as connection:
            return revoked_logins(connection, now=now)

    def models_with_sites(self, page: Page) -> Sequence[tuple[Model, tuple[SiteName, ...]]]:
        with self._pool.transaction() as connection:
            rows = connection.execute(
                "SELECT name, kind, revision, context_tokens, created_at, ARRAY("
                "   SELECT site FROM deployments WHERE model = name AND replicas > 0 ORDER BY site)"
                " FROM models WHERE (%(after)s::text IS NULL OR name > %(after)s)"
                " ORDER BY name LIMIT %(most)s",
                {"after": page.after, "most": page.most},
            ).fetchall()
        return [(_model(row), tuple(row[5])) for row in rows]

    def deployments(self, page: Page, *, site: SiteName | None = None) -> Sequence[Deployment]:
        after_site, _, after_model = (page.after or "").partition("/")
        with self._pool.transaction() as connection:
            rows = connection.execute(
                _DEPLOYMENT + " WHERE (%(site)s::text IS NULL OR site = %(site)s)"
                " AND (site, model) > (%(after_site)s, %(after_model)s)"
                " ORDER BY site, model LIMIT %(most)s",
                {"site": site, "after_site": after_site, "after_model": after_model,
                 "most": page.most},
            ).fetchall()
        return [_deployment(row) for row in rows]

    def set_replicas(
        self, scope: Scope, site: SiteName, model: ModelName, replicas: int
    ) -> Deployment:
        with self._pool.transaction(scope) as connection:
            row = connection.execute(
                "UPDATE deployments SET replicas = %s, stopped_replicas = NULL, at_once = false"
                f" WHERE site = %s AND model = %s RETURNING {_DEPLOYMENT_COLUMNS}",
                (replicas, site, model),
            ).fetchone()
        if row is None:
            raise NotFound(f"there is no deployment of {model!r} at site {site!r}")
        return _deployment(row)

    def restart(
        self, scope: Scope, site: SiteName, model: ModelName, index: int, *, up_to: int
    ) -> Deployment:
        with self._pool.transaction(scope) as connection:
            row = connection.execute(
                _DEPLOYMENT + " WHERE site = %s AND model = %s FOR UPDATE", (site, model)
            ).fetchone()
            if row is None:
                raise NotFound(f"there is no deployment of {model!r} at site {site!r}")
            wish = _deployment(row)
            if not 0 <= index < wish.replicas:
                raise NotFound(f"site {site!r} wants {wish.replicas} of {model!r}, and not {index}")
            asked = list(wish.restart_up_to) + [0] * (index + 1 - len(wish.restart_up_to))
            if up_to <= asked[index]:
                return wish
            asked[index] = up_to
            connection.execute(
                "UPDATE deployments SET restart_up_to = %s WHERE site = %s AND model = %s",
                (asked, site, model),
            )
        return replace(wish, restart_up_to=tuple(asked))

    def set_running(
        self, scope: Scope, site: SiteName, running: bool, *, at_once: bool
    ) -> Sequence[Deployment]:
        with self._pool.transaction(scope) as connection:
            _site_named(connection, site)
            if running:
                connection.execute(
                    "UPDATE deployments SET replicas = stopped_replicas, stopped_replicas = NULL,"
                    " at_once = false WHERE site = %s AND stopped_replicas IS NOT NULL",
                    (site,),
                )
            else:
                # Stopped before: as many as then will run again, and perhaps now it is urgent.
                connection.execute(
                    "UPDATE deployments SET replicas = 0,"
                    " stopped_replicas = coalesce(stopped_replicas, replicas), at_once = %s"
                    " WHERE site = %s AND (stopped_replicas IS NULL OR at_once <> %s)",
                    (at_once, site, at_once),
                )
            rows = connection.execute(
                _DEPLOYMENT + " WHERE site = %s ORDER BY model", (site,)
            ).fetchall()
        return [_deployment(row) for row in rows]


def _reconcile_sites(connection: _Connection, sites: Sequence[Site], now: int) -> None:
    for site in sites:
        connection.execute(
            "INSERT INTO sites (name, country, operator, parent, latitude_deg, longitude_deg,"
            " hardware, draining, created_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"
            " ON CONFLICT (name) DO UPDATE SET country = excluded.country,"
            " operator = excluded.operator, parent = excluded.parent,"
            " latitude_deg = excluded.latitude_deg, longitude_deg = excluded.longitude_deg,"
            " hardware = excluded.hardware, removed_at = NULL,"
            # Drained by hand: no edit of the file undoes it. One that comes back begins anew.
            " draining = excluded.draining OR (sites.draining AND sites.removed_at IS NULL)",
            (site.name, site.country, site.operator, site.parent, site.latitude_deg,
             site.longitude_deg, json.dumps(msgspec.to_builtins(site.hardware)), site.draining,
             now),
        )
    # A removed site loses its identity: should it come back, it joins anew.
    removed = connection.execute(
        "SELECT name FROM sites WHERE removed_at IS NULL AND name <> ALL (%s) ORDER BY name",
        ([site.name for site in sites],),
    ).fetchall()
    names = [name for (name,) in removed]
    take_back(connection, names, now=now, stays_ns=REMOVED_STAYS_NS)
    connection.execute(
        "UPDATE sites SET removed_at = %s WHERE name = ANY (%s)",
        (now, names),
    )


def _reconcile_models(connection: _Connection, models: Sequence[Model]) -> None:
    for model in models:
        connection.execute(
            "INSERT INTO models (name, kind, revision, context_tokens, created_at)"
            " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (name) DO UPDATE SET"
            " kind = excluded.kind, revision = excluded.revision,"
            " context_tokens = excluded.context_tokens",
            (model.name, model.kind, model.revision, model.context_tokens, model.created_at),
        )
    connection.execute(
        "DELETE FROM models WHERE name <> ALL (%s)", ([model.name for model in models],)
    )


def _remove_deployments(connection: _Connection, wanted: Sequence[Deployment]) -> None:
    """Those that nobody wants; the others stay, so that the audit log shows what changed."""
    connection.execute(
        "DELETE FROM deployments d WHERE NOT EXISTS ("
        " SELECT FROM unnest(%s::text[], %s::text[]) AS wanted (site, model)"
        " WHERE wanted.site = d.site AND wanted.model = d.model)",
        ([each.site for each in wanted], [each.model for each in wanted]),
    )


def _write_deployments(connection: _Connection, deployments: Sequence[Deployment]) -> None:
    for deployment in deployments:
        connection.execute(
            "INSERT INTO deployments (site, model, replicas, engine, context_tokens, admission)"
            " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (site, model) DO UPDATE SET"
            # Stopped by hand: no edit of the file starts it.
            " replicas = CASE WHEN deployments.stopped_replicas IS NULL"
            "   THEN excluded.replicas ELSE 0 END,"
            " stopped_replicas = CASE WHEN deployments.stopped_replicas IS NULL"
            "   THEN NULL ELSE excluded.replicas END, engine = excluded.engine,"
            " context_tokens = excluded.context_tokens, admission = excluded.admission",
            (deployment.site, deployment.model, deployment.replicas,
             json.dumps(msgspec.to_builtins(deployment.engine)), deployment.context_tokens,
             None if deployment.admission is None
             else json.dumps(msgspec.to_builtins(deployment.admission))),
        )


def _write_links(connection: _Connection, links: Sequence[SiteLinks]) -> None:
    rows = [
        (each.site, link.peer, link.rtt_ms, link.source, ",".join(link.via or ()) or None)
        for each in links for link in each.links
    ]
    # One statement for all pairs: a thousand sites have a million links. A probe measures a link
    # and does not know what it passes, so that stays as it was stated.
    connection.execute(
        "INSERT INTO links (site, peer, rtt_ms, source, via)"
        " SELECT site, peer, rtt_ms, given.source, string_to_array(via, ',')"
        " FROM unnest(%s::text[], %s::text[], %s::float8[], %s::text[], %s::text[])"
        "   AS given (site, peer, rtt_ms, source, via)"
        " JOIN sites s ON s.name = given.site AND s.removed_at IS NULL"
        " JOIN sites p ON p.name = given.peer AND p.removed_at IS NULL"
        " ON CONFLICT (site, peer) DO UPDATE"
        " SET rtt_ms = excluded.rtt_ms, source = excluded.source,"
        "   via = coalesce(excluded.via, links.via)"
        " WHERE links.source <> 'emulated'",
        tuple([row[column] for row in rows] for column in range(5)),
    )


def _site_named(connection: _Connection, name: str) -> Site:
    row = connection.execute(_SITE + "AND name = %s", (name,)).fetchone()
    if row is None:
        raise NotFound(f"there is no site {name!r}")
    return _site(row)


def _site(row: TupleRow) -> Site:
    return Site(
        name=row[0], country=row[1], operator=row[2], parent=row[3], latitude_deg=row[4],
        longitude_deg=row[5], hardware=msgspec.convert(row[6], tuple[Hardware, ...]),
        host=row[7] or "", port=row[8] or 0, public_url=row[9] or "", peer_key=row[10],
        draining=row[11],
    )


def _link(row: TupleRow) -> Link:
    via = None if row[4] is None else tuple(row[4])
    return Link(peer=row[1], rtt_ms=row[2], source=row[3], via=via)


def _site_links(rows: Sequence[TupleRow] | psycopg.Cursor[TupleRow]) -> tuple[SiteLinks, ...]:
    by_site: defaultdict[SiteName, list[Link]] = defaultdict(list)
    for row in rows:
        by_site[row[0]].append(_link(row))
    return tuple(SiteLinks(site=site, links=tuple(links)) for site, links in by_site.items())


def _model(row: TupleRow) -> Model:
    return Model(
        name=row[0], kind=row[1], revision=row[2], context_tokens=row[3], created_at=row[4]
    )


def _deployment(row: TupleRow) -> Deployment:
    return Deployment(
        site=row[0], model=row[1], replicas=row[2], engine=msgspec.convert(row[3], EngineSpec),
        context_tokens=row[4],
        admission=None if row[5] is None else msgspec.convert(row[5], SitePolicy),
        restart_up_to=tuple(row[6]), stopped_replicas=row[7], at_once=row[8],
    )

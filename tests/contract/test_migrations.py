"""Books of earlier releases come along: a database with data is migrated forward, whole."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from isochrone.adapters.postgres.migrate import migrate
from isochrone.adapters.postgres.pool import APPLICATION_ROLE, open_pool
from isochrone.adapters.postgres.registry import open_registry
from isochrone.adapters.postgres.server import OWNER, PostgresPlan, ready
from isochrone.core.ids import OrgId
from isochrone.core.world.tenant import EVERY_TENANT, KEY_SCOPES, Scope
from isochrone.ports.audit import AuditFilter
from isochrone.ports.tenants import Page

PAGE = Page(most=100)

OLD_BOOK = """
INSERT INTO organisations VALUES ('default', 'default', 1), ('o2', 'two', 2);
INSERT INTO projects VALUES ('default', 'default', 'default', 1), ('p2', 'o2', 'main', 2);
INSERT INTO policies (id, org_id, name, residency, transit, created_at)
    VALUES ('any', 'default', 'any', '{any}', '{any}', 1), ('x', 'o2', 'x', '{DE}', '{any}', 2);
INSERT INTO principals VALUES
    ('operator', NULL, 'operator', 'operator', repeat('0', 64), 1, NULL),
    ('ada', 'o2', 'Ada', 'owner', repeat('1', 64), 2, NULL),
    ('gone', 'o2', 'Charles', 'billing', repeat('2', 64), 2, 3);
INSERT INTO api_keys VALUES
    ('k1', 'default', 'default', 'any', 'laptop', repeat('a', 64), '{on_demand}', 1, NULL),
    ('k2', 'o2', 'p2', 'x', 'app', repeat('b', 64), '{on_demand,batch}', 2, NULL);
INSERT INTO idempotency VALUES ('principal:ada', 'once', 'hash', 'k2', 2),
    ('principal:operator', 'once', 'hash', 'k1', 2);
INSERT INTO sites (name, latitude_deg, longitude_deg, created_at) VALUES ('sydney', 0, 0, 1);
"""


@pytest.fixture
def old_book(postgres: PostgresPlan) -> Iterator[str]:
    """Connection string, as its owner, of a database as the last release without tenancy left it.
    """
    with psycopg.connect(postgres.superuser_conninfo, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE old_book OWNER {OWNER}")
        conninfo = make_conninfo(postgres.conninfo, dbname="old_book")
        migrate(conninfo, revision="0007")
        with psycopg.connect(conninfo) as connection:
            connection.execute(OLD_BOOK)
        yield conninfo
        admin.execute("DROP DATABASE old_book WITH (FORCE)")


def test_a_book_with_data_is_migrated_forward(old_book: str) -> None:
    migrate(old_book)
    migrate(old_book)  # again is nothing
    pool = open_pool(make_conninfo(old_book, user=APPLICATION_ROLE))
    registry, two = open_registry(pool), Scope(org_id=OrgId("o2"))
    keys = [key for key, _ in registry.tenants.keys(EVERY_TENANT, PAGE)]
    assert [(each.key.id, each.key.scopes, each.key.expires_at) for each in keys] == [
        ("k1", KEY_SCOPES, None), ("k2", KEY_SCOPES, None),
    ]
    assert [key.key.id for key, _ in registry.tenants.keys(two, PAGE)] == ["k2"]
    assert registry.tenants.live_key("b" * 64, now=9) is not None
    ada, operator = registry.members.principals(EVERY_TENANT, PAGE)
    assert (ada.name, ada.kind, ada.role) == ("Ada", "person", "owner")
    assert (operator.name, operator.kind) == ("operator", "service")
    assert registry.members.principal("1" * 64, now=9) == ada
    assert registry.members.principal("2" * 64, now=9) is None
    with pool.transaction(two) as connection:
        assert connection.execute("SELECT caller FROM idempotency").fetchall() == [
            ("principal:ada",)
        ]
    registry.tenants.close_organisation(two, OrgId("o2"), now=8)  # she is its last owner
    assert registry.members.erase(two, "ada", judge=lambda _: None, now=9).name is None
    (entry,) = registry.audit.entries(two, AuditFilter(kind="person"), most=9)
    assert entry.change == "changed"
    pool.close()


BOOKED = """
INSERT INTO usage (request_id, org_id, project_id, key_id, endpoint, stream, class, model,
    ingress_site, received_at, finished_at, total_ms, input_uncached, input_cached, output,
    token_source, outcome, status, reporter, attempts, booked_at)
SELECT id, 'o2', 'p2', 'k2', 'chat.completions', true, 'on_demand', 'tiny', 'sydney', at, at + 1, 1,
    5, 0, number, 'engine', 'finished', 200, 'ingress', 1, 7
FROM generate_series(1, 6) AS number, LATERAL (SELECT 1795132800000000000
    + number * 30000000000000 AS at) AS received, LATERAL (SELECT (lpad(to_hex(at / 1000000), 12,
    '0') || '7000800000000000000' || number)::uuid AS id) AS named
"""


def test_requests_that_were_booked_before_lie_in_the_partitions_of_their_days(
    postgres: PostgresPlan
) -> None:
    with psycopg.connect(postgres.superuser_conninfo, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE undivided OWNER {OWNER}")
        conninfo = make_conninfo(postgres.conninfo, dbname="undivided")
        migrate(conninfo, revision="0013")
        with psycopg.connect(conninfo) as owner:
            owner.execute("SELECT set_config('isochrone.tenant', '*', true)")
            owner.execute(BOOKED)
            before = owner.execute("SELECT * FROM usage ORDER BY request_id").fetchall()
        migrate(conninfo)
        with psycopg.connect(conninfo) as owner:
            owner.execute("SELECT set_config('isochrone.tenant', '*', true)")
            assert owner.execute("SELECT * FROM usage ORDER BY request_id").fetchall() == before
            assert owner.execute(
                "SELECT tableoid::regclass::text, count(*) FROM usage GROUP BY 1 ORDER BY 1"
            ).fetchall() == [
                ("usage_days.day_2026_11_20", 2), ("usage_days.day_2026_11_21", 3),
                ("usage_days.day_2026_11_22", 1),
            ]
        pool = open_pool(make_conninfo(conninfo, user=APPLICATION_ROLE))
        with pool.transaction(Scope(org_id=OrgId("default"))) as connection:
            assert connection.execute("SELECT count(*) FROM usage").fetchone() == (0,)
        with pool.transaction(Scope(org_id=OrgId("o2"))) as connection:
            assert connection.execute("SELECT count(*) FROM usage").fetchone() == (6,)
        pool.close()
        admin.execute("DROP DATABASE undivided WITH (FORCE)")


def test_a_cluster_whose_application_could_not_log_in_lets_it(postgres: PostgresPlan) -> None:
    with psycopg.connect(postgres.superuser_conninfo, autocommit=True) as admin:
        admin.execute(f"ALTER ROLE {APPLICATION_ROLE} NOLOGIN")  # as earlier releases made it
        with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
            psycopg.connect(postgres.application_conninfo)
    assert ready(postgres)
    with psycopg.connect(postgres.application_conninfo) as connection:
        assert connection.execute("SELECT session_user::text").fetchone() == (APPLICATION_ROLE,)

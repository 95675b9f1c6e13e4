"""Row-level security on a real PostgreSQL: a query that forgets its WHERE still sees one tenant."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.pool import APPLICATION_ROLE, Pool, check_role, open_pool
from isochrone.adapters.postgres.registry import open_registry
from isochrone.adapters.postgres.server import PostgresPlan
from isochrone.control.world import seed_of
from isochrone.core.errors import InvalidInput
from isochrone.core.ids import (
    EntitlementId,
    KeyId,
    ModelName,
    OrgId,
    PolicyId,
    ProjectId,
    SiteName,
    uuid7,
)
from isochrone.core.routing.choice import Ground
from isochrone.core.world.entitlement import Entitlement, Slice, Voters
from isochrone.core.world.tenant import (
    EVERY_TENANT,
    ApiKey,
    Organisation,
    Policy,
    Principal,
    Project,
    Scope,
)
from isochrone.ports.audit import AuditFilter
from isochrone.ports.book import Parked, UsageFilter
from isochrone.ports.entitlements import StoredEntitlement
from isochrone.ports.registry import Registry
from isochrone.ports.tenants import Page, StoredKey, StoredPolicy
from tests.unit.build_usage import a_usage_event

NOW = 1_760_000_000_000_000_000
PAGE = Page(most=100)
ONE, TWO = (Scope(org_id=OrgId(name)) for name in ("one", "two"))

# Tables that hold nothing of a tenant, and why.
NOT_TENANTS = {
    "alembic_version": "the release", "attached_days": "of control",
    "detached_days": "of control", "detached_ids": "ids and numbers alone",
    "detached_evidence": "of control", "detached_evidence_ids": "ids and numbers alone",
    "deployments": "the operator's estate",
    "engine_counts": "the operator's estate", "reconciliations": "of control",
    "experiment_runs": "the operator's",
    "leases": "of copies of control", "links": "the operator's estate",
    "models": "the operator's estate", "revoked_logins": "the operator's estate",
    "sign_in_tries": "of control",
    "site_tokens": "the operator's estate",
    "sites": "the operator's estate", "view_serial": "of control",
    "voters": "the operator's estate", "world": "the operator's estate",
}


class Careless(Pool):
    """A pool on whose connections every query has lost its WHERE clause."""

    def __init__(self, conninfo: str) -> None:
        super().__init__(conninfo, most=2)
        self.stripped = 0

    @contextmanager
    def transaction(
        self, scope: Scope | None = None, *, one_instant: bool = False
    ) -> Iterator[psycopg.Connection[TupleRow]]:
        with super().transaction(scope, one_instant=one_instant) as connection:
            connection.cursor_factory = self._cursor()
            try:
                yield connection
            finally:
                connection.cursor_factory = psycopg.Cursor

    def _cursor(self) -> type[psycopg.Cursor[Any]]:
        pool = self

        class Stripping(psycopg.Cursor[Any]):
            def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
                text = query.as_string(self) if isinstance(query, sql.Composable) else query
                bare = re.sub(
                    r"(?<!\()\bWHERE\b.*?(?=GROUP BY|ORDER BY|LIMIT|$)", "", text, flags=re.DOTALL
                )
                pool.stripped += bare != text
                return super().execute(bare, *args, **kwargs)

        return Stripping


@pytest.fixture
def registry(pool: Pool) -> Registry:
    """Two organisations with a row in every table that has tenants, beside the default one."""
    registry = open_registry(pool)
    registry.tenants.seed(seed_of("0" * 64, now=NOW), now=NOW)
    book = PostgresBook(pool)
    for number, org in enumerate((OrgId("one"), OrgId("two"))):
        registry.tenants.add_organisation(
            EVERY_TENANT, Organisation(id=org, name=org, created_at=NOW), once=None
        )
        project = Project(id=ProjectId(f"p-{org}"), org_id=org, name="main", created_at=NOW)
        registry.tenants.add_project(EVERY_TENANT, project, once=None)
        registry.tenants.add_key(EVERY_TENANT, *a_key(org), once=None)
        registry.members.add(
            EVERY_TENANT,
            Principal(
                id=f"m-{org}", org_id=org, name=f"Somebody of {org}", role="owner",
                email=f"somebody@{org}.example",
            ),
            f"{number + 1}" * 64, now=NOW, once=None,
        )
        sold = Entitlement(
            id=EntitlementId(f"e-{org}"), org_id=org, project_id=None, model=ModelName("tiny"),
            class_="reserved", tok_s=1, residency=("any",), starts_at=NOW, ends_at=NOW + 1,
            slices=(Slice(site=SiteName("a"), tok_s=1),),
        )
        registry.entitlements.add(
            EVERY_TENANT, StoredEntitlement(entitlement=sold, name=org, created_at=NOW),
            Voters(sites=(SiteName("a"),)), once=None,
        )
        event = replace(a_usage_event(uuid7(NOW, number)), org_id=org)
        book.book_usage([event], now=NOW)
        book.note_evidence([replace(event, reporter="evidence")], now=NOW)
        book.keep_grounds([(SiteName("a"), a_ground(f"policy-{org}"))], now=NOW)
    book.park([Parked(id="x", subject="usage.a", payload=b"?", reason="odd")], now=NOW)
    return registry


def a_key(org: OrgId) -> tuple[StoredKey, StoredPolicy]:
    policy = Policy(
        id=PolicyId(f"policy-{org}"), org_id=org, residency=("DE",), transit=("any",)
    )
    key = ApiKey(
        id=KeyId(f"k-{org}"), secret_sha256=org.ljust(64, "0"), org_id=org,
        project_id=ProjectId(f"p-{org}"), policy_id=policy.id,
    )
    return (
        StoredKey(key=key, name="key", created_at=NOW),
        StoredPolicy(policy=policy, name="policy", created_at=NOW),
    )


def a_ground(policy_id: str) -> Ground:
    return Ground(
        id=policy_id, model=ModelName("tiny"), policy_id=PolicyId(policy_id), residency=("DE",),
        transit=("any",), plaintext_ingress="AU", open_sites=(), refused=(), allowed_exists=True,
        elsewhere=0,
    )


def tables(connection: psycopg.Connection[TupleRow]) -> Sequence[TupleRow]:
    return connection.execute(
        "SELECT relname::text, relrowsecurity AND relforcerowsecurity AND EXISTS ("
        "   SELECT FROM pg_policy WHERE polrelid = c.oid),"
        " EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname = 'org_id'),"
        " pg_has_role('isochrone_app', relowner, 'MEMBER')"
        " FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
    ).fetchall()


def test_no_table_of_tenants_is_without_forced_row_security(pool: Pool) -> None:
    with pool.transaction() as connection:
        found = tables(connection)
    assert len(found) > 20
    for name, is_forced, has_tenant, is_owned in found:
        assert is_forced == (name not in NOT_TENANTS), f"{name}: forced row security {is_forced}"
        assert is_forced or not has_tenant, f"{name} has an org_id and no row security"
        assert not is_owned, f"the application owns {name}"
    assert set(NOT_TENANTS) <= {row[0] for row in found}


def test_control_logs_in_as_somebody_who_can_become_nobody_else(pool: Pool) -> None:
    with pool.transaction() as connection:
        row = connection.execute(
            "SELECT session_user::text, current_user::text, rolsuper, rolbypassrls, rolcreaterole"
            " FROM pg_roles WHERE rolname = session_user"
        ).fetchone()
    assert row == (APPLICATION_ROLE, APPLICATION_ROLE, False, False, False)
    for statement in ("SET ROLE isochrone", "SET SESSION AUTHORIZATION isochrone"):
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege),
            pool.transaction() as connection,
        ):
            connection.execute(statement)
    with pool.transaction() as connection:  # back to what the session began with: itself
        connection.execute("RESET ROLE")
        assert connection.execute("SELECT current_user::text").fetchone() == (APPLICATION_ROLE,)


STORE_CALLS: dict[str, Callable[[Registry, PostgresBook, Scope], Sequence[object]]] = {
    "organisations": lambda registry, _, scope: [
        each.id for each in registry.tenants.organisations(scope, PAGE)
    ],
    "projects": lambda registry, _, scope: [
        each.org_id for each in registry.tenants.projects(scope, PAGE)
    ],
    "policies": lambda registry, _, scope: [
        each.policy.org_id for each in registry.tenants.policies(scope, PAGE)
    ],
    "keys": lambda registry, _, scope: [
        key.key.org_id for key, _ in registry.tenants.keys(scope, PAGE)
    ],
    "principals": lambda registry, _, scope: [
        each.org_id for each in registry.members.principals(scope, PAGE)
    ],
    "entitlements": lambda registry, _, scope: [
        each.entitlement.org_id for each in registry.entitlements.entitlements(scope, PAGE)
    ],
    "audit": lambda registry, _, scope: sorted(
        {each.org_id for each in registry.audit.entries(scope, AuditFilter(), most=1000)}, key=str
    ),
    "usage": lambda _, book, scope: [
        each.event.org_id for each in book.requests(scope, UsageFilter(), most=100)
    ],
}


@pytest.mark.parametrize("name", STORE_CALLS)
def test_a_query_without_its_where_clause_still_sees_one_tenant(
    registry: Registry, database: str, name: str
) -> None:
    call = STORE_CALLS[name]
    careless = Careless(make_conninfo(database, user=APPLICATION_ROLE))
    bare, book = open_registry(careless), PostgresBook(careless)
    try:
        assert call(bare, book, TWO) == [OrgId("two")]
        assert careless.stripped == 1, "the query had a WHERE clause, and ran without it"
        assert len(call(bare, book, EVERY_TENANT)) >= 2, "so it was the tenant that hid the others"
    finally:
        careless.close()


def test_totals_without_their_where_clause_are_of_one_tenant(
    registry: Registry, database: str
) -> None:
    careless = Careless(make_conninfo(database, user=APPLICATION_ROLE))
    (total,) = PostgresBook(careless).totals(ONE, UsageFilter(), "model", most=10)
    careless.close()
    assert (total.requests, careless.stripped) == (1, 1)


TENANT_TABLES = (
    "organisations", "projects", "principals", "people", "policies", "api_keys", "entitlements",
    "usage", "evidence", "audit",
)


def counts(connection: psycopg.Connection[TupleRow]) -> dict[str, int]:
    found = {}
    for table in (*TENANT_TABLES, "grounds", "parked"):
        query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
        row = connection.execute(query).fetchone()
        assert row is not None
        found[table] = int(row[0])
    return found


def test_a_transaction_without_a_tenant_sees_and_writes_nothing(
    registry: Registry, pool: Pool, database: str
) -> None:
    with pool.transaction(EVERY_TENANT) as connection:
        assert all(counts(connection).values())
    with pool.transaction(ONE) as connection:
        seen = counts(connection)
        assert (seen["organisations"], seen["grounds"], seen["parked"]) == (1, 1, 0)
    with pool.transaction() as connection:  # on the same connection: nothing was left behind
        assert not any(counts(connection).values())
    with psycopg.connect(database) as owner:
        assert not any(counts(owner).values()), "the owner is bound as well"
    refused = psycopg.errors.InsufficientPrivilege
    for scope, org in ((None, "one"), (TWO, "one"), (TWO, None)):
        with pytest.raises(refused, match="row-level security"), pool.transaction(scope) as other:
            other.execute(
                "INSERT INTO principals (id, org_id, name, role, kind, token_sha256, created_at)"
                " VALUES ('x', %s, 'x', %s, 'service', 'x', 1)",
                (org, "owner" if org else "operator"),
            )
    with pytest.raises(refused, match="row-level security"), pool.transaction(TWO) as other:
        other.execute("UPDATE api_keys SET org_id = 'one'")
    with pool.transaction(TWO) as other:
        changed = other.execute("UPDATE api_keys SET name = 'mine' WHERE org_id = 'one'").rowcount
    assert changed == 0


def test_a_key_cannot_have_the_project_or_policy_of_another_organisation(
    registry: Registry, pool: Pool
) -> None:
    for column in ("project_id = 'p-one'", "policy_id = 'policy-one'"):
        with pytest.raises(InvalidInput, match="foreign key"), pool.transaction(TWO) as connection:
            connection.execute(f"UPDATE api_keys SET {column}")


def test_a_role_that_could_pass_row_security_by_is_refused(
    pool: Pool, postgres: PostgresPlan, database: str
) -> None:
    check_role(pool)
    with psycopg.connect(postgres.superuser_conninfo, autocommit=True) as admin:
        for change, back, said in (
            ("BYPASSRLS", "NOBYPASSRLS", "may bypass"), ("SUPERUSER", "NOSUPERUSER", "may bypass"),
        ):
            admin.execute(f"ALTER ROLE isochrone_app {change}")
            try:
                with pytest.raises(InvalidInput, match=said):
                    check_role(pool)
            finally:
                admin.execute(f"ALTER ROLE isochrone_app {back}")
    name = conninfo_to_dict(database)["dbname"]
    with psycopg.connect(make_conninfo(postgres.superuser_conninfo, dbname=name)) as admin:
        admin.execute("CREATE TABLE stray (); ALTER TABLE stray OWNER TO isochrone_app")
    with pytest.raises(InvalidInput, match="owns tables"):
        check_role(pool)


def test_the_owners_login_steps_down_before_its_first_statement(database: str) -> None:
    pool = open_pool(database)
    with pool.transaction() as connection:
        row = connection.execute("SELECT session_user::text, current_user::text").fetchone()
    pool.close()
    assert row == ("isochrone", APPLICATION_ROLE)

"""The audit log on a real PostgreSQL: every change, in its transaction, without secrets, for ever.
"""

import json
from dataclasses import replace

import psycopg
import pytest

from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.registry import open_registry
from isochrone.control.world import seed_of
from isochrone.core.errors import Conflict
from isochrone.core.ids import KeyId, ModelName, OrgId, ProjectId, SiteName
from isochrone.core.world.tenant import EVERY_TENANT, Organisation, Principal, Project, Scope
from isochrone.ports.audit import KINDS, AuditEntry, AuditFilter
from isochrone.ports.estate import SiteToken
from isochrone.ports.registry import Registry
from tests.contract.test_registry import a_joining, a_key, a_policy, an_intent

NOW = 1_760_000_000_000_000_000
ANNA = Scope(org_id=OrgId("default"), actor="principal:anna")
OPERATOR = Scope(org_id=None, actor="principal:operator")
SECRET = "5ec2e7" * 10 + "aaaa"


@pytest.fixture
def registry(pool: Pool) -> Registry:
    registry = open_registry(pool)
    registry.tenants.seed(seed_of("0" * 64, now=NOW), now=NOW)
    return registry


def log(registry: Registry, **chosen: str) -> list[AuditEntry]:
    wanted = AuditFilter(**chosen)  # type: ignore[arg-type]
    return list(registry.audit.entries(EVERY_TENANT, wanted, most=10_000))


def told(registry: Registry, **chosen: str) -> list[tuple[str, str, str, str]]:
    return [
        (each.actor, each.kind, each.subject, each.change) for each in log(registry, **chosen)
    ]


def test_each_change_says_who_what_before_and_after(registry: Registry) -> None:
    registry.tenants.add_project(
        ANNA, Project(id=ProjectId("p"), org_id=OrgId("default"), name="a", created_at=NOW),
        once=None,
    )
    registry.tenants.rename_project(ANNA, ProjectId("p"), "b")
    registry.tenants.rename_project(ANNA, ProjectId("p"), "b")  # changes nothing, so says nothing
    made, changed = log(registry, subject="p")
    assert (made.change, made.before, changed.change) == ("made", None, "changed")
    assert (changed.actor, changed.kind, changed.org_id) == ("principal:anna", "project", "default")
    assert changed.before == made.after == {
        "id": "p", "org_id": "default", "name": "a", "created_at": NOW, "closed_at": None,
    }
    assert changed.after is not None
    assert (changed.after["name"], changed.serial > made.serial) == ("b", True)
    assert changed.at > NOW


def test_a_change_that_fails_leaves_no_entry(registry: Registry) -> None:
    before = log(registry)
    with pytest.raises(Conflict):
        registry.tenants.add_organisation(
            OPERATOR, Organisation(id=OrgId("x"), name="default", created_at=NOW), once=None
        )
    with pytest.raises(Conflict):
        registry.tenants.add_project(
            ANNA,
            Project(id=ProjectId("x"), org_id=OrgId("default"), name="default", created_at=NOW),
            once=None,
        )
    assert log(registry) == before


def test_every_store_call_that_changes_something_is_in_the_log(
    registry: Registry, pool: Pool
) -> None:
    """Walks the tables: what is neither counted nor measured has the trigger."""
    with pool.transaction() as connection:
        rows = connection.execute(
            "SELECT relname::text, EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid"
            "   AND t.tgname = 'audited' AND t.tgenabled = 'O')"
            " FROM pg_class c WHERE relnamespace = 'public'::regnamespace"
            " AND relkind IN ('r', 'p')"
        ).fetchall()
    silent = {name for name, has_trigger in rows if not has_trigger}
    assert silent == {
        "alembic_version", "audit", "charged_periods", "charges", "detached_hours",
        "detached_evidence_ids", "detached_ids", "engine_counts", "entries", "evidence", "grounds",
        "holds", "idempotency",
        "late_reports", "leases", "limit_sums", "links", "meter_hours", "parked",
        "reconciliations", "request_hours", "sign_in_tries", "usage", "view_serial",
    }


def test_entries_are_of_the_kinds_that_can_be_asked_for(pool: Pool) -> None:
    with pool.transaction() as connection:
        rows = connection.execute(
            "SELECT DISTINCT split_part(encode(tgargs, 'escape'), '\\000', 1) FROM pg_trigger"
            " WHERE tgname = 'audited' AND tgparentid = 0"
        ).fetchall()
    assert {row[0] for row in rows} == set(KINDS)


def test_the_estate_is_logged_and_only_where_it_changed(registry: Registry) -> None:
    estate = registry.estate
    estate.reconcile(an_intent("1", "aa", "bb"), now=NOW)
    assert {each[0] for each in told(registry, kind="deployment")} == {"world file"}
    known = len(log(registry))
    again = replace(an_intent("2", "aa", "bb"), fingerprint="2")
    estate.reconcile(again, now=NOW)
    assert told(registry)[known:] == [("world file", "world", "2", "changed")]
    estate.set_replicas(OPERATOR, SiteName("aa"), ModelName("tiny"), 7)
    (entry,) = log(registry)[known + 1:]
    assert (entry.actor, entry.subject) == ("principal:operator", "aa/tiny")
    assert entry.before is not None
    assert entry.after is not None
    assert (entry.before["replicas"], entry.after["replicas"]) == (1, 7)
    estate.reconcile(an_intent("3", "aa"), now=NOW)
    assert ("world file", "deployment", "bb/tiny", "removed") in told(registry)


def test_no_secret_and_nobodys_name_is_in_the_log(registry: Registry) -> None:
    key = a_key("k1")
    registry.tenants.add_key(
        ANNA, replace(key, key=replace(key.key, secret_sha256=SECRET)), a_policy("x", "default"),
        once=None,
    )
    person = Principal(
        id="m", org_id=OrgId("default"), name="Ada Lovelace", role="billing",
        email="ada@example.org",
    )
    registry.members.add(ANNA, person, SECRET, now=NOW, once=None)
    registry.members.erase(ANNA, "m", judge=lambda _: None, now=NOW)
    registry.estate.reconcile(an_intent("1", "aa"), now=NOW)
    registry.estate.add_token(
        OPERATOR,
        SiteToken(secret_sha256=SECRET, site=SiteName("aa"), created_at=NOW, expires_at=NOW + 9),
        once=None,
    )
    registry.estate.join(a_joining(SECRET, keys=SECRET), now=NOW)
    text = json.dumps([(each.before, each.after) for each in log(registry)], default=dict)
    for hidden in (SECRET, "Ada", "ada@", "0" * 64):
        assert hidden not in text
    made, erased = log(registry, kind="person")
    assert (made.after, erased.after) == (
        {"principal_id": "m", "org_id": "default", "name": "(hidden)", "email": "(hidden)",
         "erased_at": None},
        {"principal_id": "m", "org_id": "default", "name": None, "email": None, "erased_at": NOW},
    )


def test_a_new_secret_shows_as_another_hidden_one(registry: Registry) -> None:
    registry.tenants.seed(seed_of("1" * 64, now=NOW), now=NOW)
    (_, changed) = log(registry, kind="principal")
    assert changed.before is not None
    assert changed.after is not None
    assert changed.before["token_sha256"] == "(hidden)"
    assert changed.after["token_sha256"] == "(hidden, another)"


def test_nobody_changes_or_removes_an_entry(
    registry: Registry, pool: Pool, database: str
) -> None:
    refused = psycopg.errors.InsufficientPrivilege
    before = log(registry)
    assert before
    for statement in (
        "UPDATE audit SET actor = 'nobody'", "DELETE FROM audit", "TRUNCATE audit",
        "INSERT INTO audit (at, actor, kind, subject, change) VALUES (1, 'x', 'x', 'x', 'made')",
    ):
        with pytest.raises(refused), pool.transaction(EVERY_TENANT) as connection:
            connection.execute(statement)
    with psycopg.connect(database) as owner:
        owner.execute("SELECT set_config('isochrone.tenant', '*', false)")
        owner.commit()
        for statement in ("UPDATE audit SET actor = 'nobody'", "DELETE FROM audit",
                          "TRUNCATE audit"):
            with pytest.raises(refused, match="only ever added to"):
                owner.execute(statement)
            owner.rollback()
    assert log(registry) == before


def test_a_temporary_table_of_that_name_diverts_nothing(registry: Registry, pool: Pool) -> None:
    before = len(log(registry))
    with pool.transaction(EVERY_TENANT) as connection:
        connection.execute("CREATE TEMPORARY TABLE audit (LIKE public.audit) ON COMMIT DROP")
        connection.execute("UPDATE organisations SET name = 'aside'")
    assert told(registry)[before:] == [("control", "organisation", "default", "changed")]


def test_a_change_by_hand_is_in_the_log_too(registry: Registry, database: str) -> None:
    with psycopg.connect(database) as owner:
        owner.execute("SELECT set_config('isochrone.tenant', '*', true)")
        owner.execute("UPDATE organisations SET name = 'by hand'")
    assert told(registry)[-1] == ("database:isochrone", "organisation", "default", "changed")


def test_nobody_truncates_what_is_logged_row_by_row(database: str, pool: Pool) -> None:
    """The owner neither: no trigger of rows would say what is gone."""
    with pool.transaction() as connection:
        unguarded = connection.execute(
            "SELECT tgrelid::regclass::text FROM pg_trigger a WHERE tgname = 'audited'"
            " AND tgparentid = 0 AND NOT EXISTS (SELECT FROM pg_trigger t"
            "  WHERE t.tgrelid = a.tgrelid AND t.tgenabled = 'O' AND t.tgtype & 32 <> 0)"
        ).fetchall()
    assert unguarded == []
    with (
        psycopg.connect(database) as owner,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="DELETE from sessions"),
    ):
        owner.execute("TRUNCATE sessions")


def test_an_organisation_reads_its_own_entries_only(registry: Registry) -> None:
    registry.tenants.add_organisation(
        OPERATOR, Organisation(id=OrgId("o2"), name="two", created_at=NOW), once=None
    )
    registry.tenants.revoke_key(ANNA, registry.tenants.add_key(
        ANNA, a_key("k1"), a_policy("x", "default"), once=None
    )[0].key.id, now=NOW)
    two = registry.audit.entries(Scope(org_id=OrgId("o2")), AuditFilter(), most=100)
    assert [(each.kind, each.subject) for each in two] == [("organisation", "o2")]
    own = registry.audit.entries(ANNA, AuditFilter(kind="key"), most=100)
    assert [(each.subject, each.change) for each in own] == [("k1", "made"), ("k1", "changed")]
    assert registry.audit.entries(ANNA, AuditFilter(), most=100, after=own[-1].serial) == []
    assert KeyId("k1") in {each.subject for each in log(registry, actor="principal:anna")}

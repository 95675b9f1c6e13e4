"""What sites log in with, in the book on a real PostgreSQL: whose login is revoked, and until when.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.registry import open_registry
from isochrone.core.errors import NotFound, Untrusted
from isochrone.core.ids import SiteName
from isochrone.core.world.tenant import EVERY_TENANT, Scope
from isochrone.ports.audit import AuditFilter
from isochrone.ports.estate import Estate, Intent, JoinedSite, SiteToken
from isochrone.ports.registry import Registry
from tests.contract.test_registry import a_joining, an_intent

NOW = 1_760_000_000_000_000_000
SECOND = 1_000_000_000
MINUTE, HOUR = 60 * SECOND, 3600 * SECOND
AA, BB = SiteName("aa"), SiteName("bb")
OPERATOR = Scope(org_id=None, actor="principal:operator")


@pytest.fixture
def registry(pool: Pool) -> Registry:
    registry = open_registry(pool)
    registry.estate.reconcile(an_intent("1", "aa", "bb"), now=NOW)
    return registry


@pytest.fixture
def estate(registry: Registry) -> Estate:
    return registry.estate


def invite(estate: Estate, token: str, site: SiteName = AA, *, now: int = NOW) -> None:
    estate.add_token(
        EVERY_TENANT,
        SiteToken(secret_sha256=token, site=site, created_at=now, expires_at=now + HOUR),
        once=None,
    )


def join(
    estate: Estate, token: str, keys: str, site: SiteName = AA, *, now: int = NOW
) -> JoinedSite:
    invite(estate, token, site, now=now)
    return estate.join(a_joining(token, keys=keys), now=now)


def revoked(estate: Estate, *, now: int = NOW + HOUR) -> Sequence[tuple[str, int]]:
    return [(each.user_key, each.revoked_at) for each in estate.revoked_logins(now=now)]


def without(name: SiteName, fingerprint: str) -> Intent:
    return an_intent(fingerprint, *({"aa", "bb"} - {name}))


def test_new_keys_of_a_site_revoke_the_ones_before(estate: Estate) -> None:
    assert join(estate, "t1", "k1").joined_at == NOW
    assert revoked(estate) == []
    assert join(estate, "t2", "k2", now=NOW + 9).joined_at == NOW + 9
    assert revoked(estate, now=NOW + 8) == []
    assert revoked(estate, now=NOW + 9) == [("k1", NOW + 9)], "at once"
    estate.join(a_joining("t2", keys="k2"), now=NOW + 99)
    assert revoked(estate) == [("k1", NOW + 9)], "the same answer again"


def test_a_site_that_joins_with_the_keys_it_has_goes_on_with_what_it_logged_in_with(
    estate: Estate,
) -> None:
    join(estate, "t1", "k1")
    assert join(estate, "t2", "k1", now=NOW + 9).joined_at == NOW + 9
    assert revoked(estate) == []
    # Of a copy whose clock is behind: what is revoked later must cover what the first one issued.
    assert join(estate, "t3", "k1", now=NOW + 5).joined_at == NOW + 9
    join(estate, "t4", "k2", now=NOW + 6)
    assert revoked(estate) == [("k1", NOW + 9)]


def test_a_site_that_is_removed_has_its_login_revoked(estate: Estate) -> None:
    join(estate, "t1", "k1")
    join(estate, "t2", "k2", BB)
    estate.reconcile(without(AA, "2"), now=NOW + SECOND)
    assert revoked(estate, now=NOW + SECOND + MINUTE - 1) == [], "it is told to run nothing"
    assert revoked(estate, now=NOW + SECOND + MINUTE) == [("k1", NOW + SECOND)]
    estate.reconcile(without(BB, "3"), now=NOW + 2 * SECOND)
    assert revoked(estate) == [("k1", NOW + SECOND), ("k2", NOW + 2 * SECOND)]
    assert estate.site(AA).peer_key is None, "it is back, and has to join"


def test_keys_that_were_revoked_work_again_for_a_new_token_only(estate: Estate) -> None:
    join(estate, "t1", "k1")
    invite(estate, "t2")
    estate.reconcile(without(AA, "2"), now=NOW + 5)
    estate.reconcile(an_intent("3", "aa", "bb"), now=NOW + 6)
    for spent in ("t1", "t2"):
        with pytest.raises(Untrusted):
            estate.join(a_joining(spent, keys="k1"), now=NOW + 7)
    # In the same second: what is issued now is dated after it, or it would be refused as well.
    again = join(estate, "t3", "k1", now=NOW + 8)
    assert again.joined_at // SECOND == NOW // SECOND + 1
    assert estate.join(a_joining("t3", keys="k1"), now=NOW + 9) == again
    assert revoked(estate) == [("k1", NOW + 5)], "what was issued before stays refused"
    join(estate, "t4", "k2", now=NOW + 10)
    assert revoked(estate) == [("k1", again.joined_at)], "and what was issued then, now, too"


def test_an_operator_cuts_a_site_off(registry: Registry) -> None:
    estate = registry.estate
    join(estate, "t1", "k1")
    join(estate, "t2", "k2", BB)
    invite(estate, "t3")
    for at in (NOW + 5, NOW + 6):
        assert estate.revoke_login(OPERATOR, AA, now=at).peer_key is None
    assert revoked(estate, now=NOW + 5) == [("k1", NOW + 5)], "at once, and once"
    assert estate.site(BB).peer_key == "k2"
    assert AA in {site.name for site in estate.snapshot(now=NOW).sites}
    for spent in ("t1", "t3"):
        with pytest.raises(Untrusted):
            estate.join(a_joining(spent, keys="k1"), now=NOW + 7)
    for unknown in ("cc", ""):
        with pytest.raises(NotFound):
            estate.revoke_login(OPERATOR, SiteName(unknown), now=NOW)
    log = registry.audit.entries(EVERY_TENANT, AuditFilter(kind="revoked_login"), most=9)
    assert [(each.actor, each.subject, each.change) for each in log] == [
        ("principal:operator", "aa", "made"),
    ]
    assert log[0].after == {"user_key": "(hidden)", "site": "aa", "revoked_at": NOW + 5,
                            "refused_from": NOW + 5}


def test_no_site_takes_the_key_of_another(estate: Estate) -> None:
    join(estate, "t1", "k1")
    invite(estate, "t2", BB)
    with pytest.raises(Untrusted, match="site 'aa'"):
        estate.join(a_joining("t2", keys="k1"), now=NOW)
    assert estate.site(BB).peer_key is None
    assert estate.join(a_joining("t2", keys="k2"), now=NOW).site.peer_key == "k2", "not spent"
    estate.reconcile(without(AA, "2"), now=NOW + 5)
    renamed = join(estate, "t3", "k1", BB, now=NOW + 6)
    assert renamed.site.peer_key == "k1", "of a site that is gone"
    assert renamed.joined_at // SECOND == NOW // SECOND + 1


def test_whoever_joins_while_the_site_is_cut_off_is_cut_off_or_refused(estate: Estate) -> None:
    for number in range(20):
        now = NOW + number * SECOND
        invite(estate, f"t{number}", now=now)
        joining = replace(a_joining(f"t{number}"), nats_key=f"k{number}", peer_key=f"k{number}")
        with ThreadPoolExecutor(2) as threads:
            joined = threads.submit(estate.join, joining, now=now)
            cut = threads.submit(estate.revoke_login, OPERATOR, AA, now=now)
            cut.result()
            refused = joined.exception() is not None
        present = estate.site(AA).peer_key is not None
        # Invited before and cut off after: its token is void, or its login is.
        assert not present
        assert refused is (f"k{number}" not in dict(revoked(estate)))

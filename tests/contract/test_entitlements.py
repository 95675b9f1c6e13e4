"""Entitlements from the Control API through the book into what the gateways are told."""

from dataclasses import replace
from typing import Any

import pytest

from isochrone.adapters.clock import SystemClock
from isochrone.control.api.axes import MOST_TERMS
from isochrone.control.entries import Place, kind_of, wanted_entries
from isochrone.control.joining import hash_of, invite
from isochrone.core.ids import SiteName
from isochrone.core.world.entitlement import Entitlement, Voters
from isochrone.core.world.tenant import EVERY_TENANT
from isochrone.ports.estate import Joining
from isochrone.wire import fleet, subjects
from tests.contract.test_control_api import Api, an_intent, api  # noqa: F401 - a fixture

YEAR_NS = 365 * 86_400 * 1_000_000_000
UNTIL = str(SystemClock().wall_ns() + YEAR_NS)


def a_body(**changes: object) -> dict[str, object]:
    return {"model": "tiny", "tok_s": 100, "residency": ["DE"], "ends_at": UNTIL, **changes}


def published(api: Api) -> dict[str, Any]:  # noqa: F811
    wanted = wanted_entries(api.context.registry.estate.snapshot(now=api.context.now()))
    return {
        place.key: noun for place, noun in wanted.items()
        if place.key.startswith(("entitlement.", "voters"))
    }


def test_what_is_sold_is_divided_and_published(api: Api) -> None:  # noqa: F811
    assert published(api) == {}
    made = api.make("entitlements", a_body(name="gold"))
    assert made["class"] == "reserved"
    assert [(each["site"], each["tok_s"]) for each in made["slices"]] == [
        ("ashburn", 34), ("frankfurt", 33), ("sydney", 33),
    ]
    found = published(api)
    sold = found[subjects.entitlement_key(made["id"])]
    assert isinstance(sold, Entitlement)
    assert (sold.tok_s, sold.residency, sold.starts_at) == (100, ("DE",), made["starts_at"])
    assert sum(each.tok_s for each in sold.slices) == 100
    voters = found[subjects.VOTERS_KEY]
    assert voters == Voters(sites=tuple(map(SiteName, ("ashburn", "frankfurt", "sydney"))))
    for key, noun in found.items():
        kind = kind_of(Place(subjects.VIEW_BUCKET, key))
        assert kind is not None
        assert fleet.decode(fleet.encode(noun), kind) == noun
    assert api.changes


def test_slices_are_in_proportion_to_slots(api: Api) -> None:  # noqa: F811
    intent = an_intent()
    slots = {"ashburn": (1, 2), "frankfurt": (1, 16), "sydney": (2, 4)}
    deployments = tuple(
        replace(
            each, replicas=slots[each.site][0],
            engine=replace(each.engine, slots=slots[each.site][1]),
        )
        for each in intent.deployments
    )
    api.context.registry.estate.reconcile(
        replace(intent, fingerprint="2", deployments=deployments), now=api.context.now()
    )
    made = api.make("entitlements", a_body(tok_s=260))
    assert [(each["site"], each["tok_s"]) for each in made["slices"]] == [
        ("ashburn", 20), ("frankfurt", 160), ("sydney", 80),
    ]


def test_a_start_at_the_epoch_is_not_taken_for_none(api: Api) -> None:  # noqa: F811
    for long_ago in ("0", "1970-01-01T00:00:00Z"):
        status, problem = api.call("POST", "entitlements", a_body(starts_at=long_ago))
        assert (status, problem["problems"]) == (
            422, ["ends_at: the window is longer than ten years"],
        )


def test_a_repeated_sale_sells_once(api: Api) -> None:  # noqa: F811
    first = api.call("POST", "entitlements", a_body(), once="k")
    assert first[0] == 201
    assert api.call("POST", "entitlements", a_body(), once="k")[1]["id"] == first[1]["id"]
    assert api.call("POST", "entitlements", a_body(tok_s=5), once="k")[0] == 409
    assert len(api.call("GET", "entitlements")[1]["items"]) == 1


def test_what_cannot_be_honoured_is_not_sold(api: Api) -> None:  # noqa: F811
    status, problem = api.call(
        "POST", "entitlements",
        a_body(tok_s=0, residency=["DE", "XX"], ends_at="2001-01-01T00:00:00Z", model="no"),
    )
    assert status == 422
    for part in ("tok_s: 0", "'XX'", "ends_at: ", "model: no site"):
        assert part in problem["detail"] or any(part in each for each in problem["problems"])
    status, problem = api.call("POST", "entitlements", a_body(ends_at="9" * 5_000))
    assert (status, problem["problems"][0][:22]) == (422, "ends_at: must be like "), "no number"
    for wrong in (a_body(residency=["FR"]), a_body(**{"class": "batch"}), a_body(project_id="no")):
        assert api.call("POST", "entitlements", wrong)[0] in (404, 422)
    assert published(api) == {}


def test_an_entitlement_asks_for_as_many_places_as_a_policy_may(api: Api) -> None:  # noqa: F811
    few = ["DE", *(f"-site:s{number}" for number in range(1, MOST_TERMS))]
    more, long = [*few, "-site:one-more"], ["-operator:" + "x" * 100]
    for residency, said in ((more, "301 terms"), (long, "110 letters")):
        status, problem = api.call("POST", "entitlements", a_body(residency=residency))
        assert status == 422
        assert [said in each for each in problem["problems"]] == [True], problem
    assert api.call("POST", "entitlements", a_body(residency=few))[0] == 201


def test_only_operators_sell_and_each_organisation_sees_its_own(api: Api) -> None:  # noqa: F811
    owner, other = api.tenant("one"), api.tenant("two", role="billing")
    org = api.call("GET", "organisations", key=owner)[1]["items"][0]["id"]
    made = api.make("entitlements", a_body(org_id=org))
    assert api.call("POST", "entitlements", a_body(org_id=org), key=owner)[0] == 403
    assert api.call("DELETE", f"entitlements/{made['id']}", key=owner)[0] == 403
    assert [each["id"] for each in api.call("GET", "entitlements", key=owner)[1]["items"]] == [
        made["id"]
    ]
    assert api.call("GET", "entitlements", key=other)[1]["items"] == []
    key = api.make("keys", {}, key=owner)["key"]
    assert api.call("GET", "entitlements", key=key)[0] == 403


def test_a_revoked_one_is_shown_and_no_longer_published(api: Api) -> None:  # noqa: F811
    made = api.make("entitlements", a_body())
    status, revoked = api.call("DELETE", f"entitlements/{made['id']}")
    assert status == 200
    assert revoked["revoked_at"] is not None
    again = api.call("DELETE", f"entitlements/{made['id']}")[1]
    assert again["revoked_at"] == revoked["revoked_at"]
    assert api.call("DELETE", "entitlements/none")[0] == 404
    assert list(published(api)) == [subjects.VOTERS_KEY]
    assert api.call("GET", "entitlements")[1]["items"][0]["id"] == made["id"]


def test_one_that_has_ended_is_shown_and_no_longer_published(api: Api) -> None:  # noqa: F811
    """Gateways would keep books of all that was ever sold."""
    made = api.make("entitlements", a_body())
    later = api.make("entitlements", a_body(ends_at=str(int(UNTIL) + YEAR_NS)))
    estate, hour_ns = api.context.registry.estate, 3_600 * 1_000_000_000

    def told(now: int) -> set[str]:
        return {each.id for each in estate.snapshot(now=now).entitlements}

    assert told(int(UNTIL) + hour_ns - 1) == {made["id"], later["id"]}
    assert told(int(UNTIL) + hour_ns) == {later["id"]}
    assert len(api.call("GET", "entitlements")[1]["items"]) == 2


def a_cloud_that_joined(api: Api, *, but: tuple[str, ...] = ("tokyo",)) -> None:  # noqa: F811
    """All sites of the intent, and two more."""
    intent, now = an_intent(), api.context.now()
    more = tuple(
        replace(intent.sites[0], name=SiteName(name)) for name in ("oslo", "tokyo")
    )
    estate = api.context.registry.estate
    estate.reconcile(replace(intent, fingerprint="3", sites=(*intent.sites, *more)), now=now)
    for number, site in enumerate((*intent.sites, *more)):
        if site.name in but:
            continue
        token = f"token of {site.name}"
        invite(estate, EVERY_TENANT, site.name, token, now=now, once=None)
        joining = Joining(
            token_sha256=hash_of(token), peer_key=f"{number:064x}", nats_key=f"U{site.name}",
            host="h", port=1, public_url="",
        )
        estate.join(joining, now=now)


def test_voters_are_changed_by_operators_one_settled_change_at_a_time(
    api: Api,  # noqa: F811
) -> None:
    a_cloud_that_joined(api)
    assert api.call("GET", "voters")[0] == 404
    assert api.call("POST", "voters", {"sites": ["oslo"]})[0] == 404
    api.make("entitlements", a_body())
    first = api.call("GET", "voters")[1]
    assert first == {
        "sites": ["ashburn", "frankfurt", "oslo", "sydney", "tokyo"], "former": [], "epoch": 0,
        "settled_at": 0,
    }
    sites = ["ashburn", "oslo", "sydney"]
    status, changed = api.call("POST", "voters", {"sites": sites})
    assert status == 200
    assert changed["sites"] == sites
    assert changed["former"] == first["sites"]
    assert changed["epoch"] == 1
    assert changed["settled_at"] > api.context.now()
    assert published(api)[subjects.VOTERS_KEY] == Voters(
        sites=tuple(map(SiteName, sites)), former=tuple(map(SiteName, first["sites"])), epoch=1
    )
    assert api.call("POST", "voters", {"sites": sites})[1] == changed, "again changes nothing"
    status, problem = api.call("POST", "voters", {"sites": ["oslo"]})
    assert status == 409
    assert "try again in" in problem["detail"]
    sold = api.context.registry.entitlements
    later = changed["settled_at"]
    ended = sold.change_voters(EVERY_TENANT, tuple(map(SiteName, sites)), now=later)
    assert ended.voters == Voters(
        sites=tuple(map(SiteName, sites)), former=tuple(map(SiteName, sites)), epoch=2
    )
    assert sold.change_voters(EVERY_TENANT, tuple(map(SiteName, sites)), now=2 * later) == ended
    api.make("entitlements", a_body(name="second"))
    assert published(api)[subjects.VOTERS_KEY] == ended.voters


def test_voters_that_could_not_vote_are_refused(api: Api) -> None:  # noqa: F811
    a_cloud_that_joined(api)
    api.make("entitlements", a_body())
    for sites, why in (
        (["ashburn", "oslo"], "expected 1, 3 or 5"), (["oslo", "oslo", "oslo"], "named twice"),
        (["nowhere"], "there is no site 'nowhere'"), (["tokyo"], "'tokyo' has not joined"),
    ):
        status, problem = api.call("POST", "voters", {"sites": sites})
        assert status == 422
        assert any(why in each for each in problem["problems"])
    owner = api.tenant("one")
    assert api.call("POST", "voters", {"sites": ["oslo"]}, key=owner)[0] == 403
    assert api.call("GET", "voters", key=owner)[0] == 403
    assert published(api)[subjects.VOTERS_KEY].epoch == 0


@pytest.mark.parametrize(
    ("but", "sites"),
    [
        (("ashburn", "frankfurt", "sydney", "tokyo"), ["oslo"]),
        (("frankfurt", "sydney", "tokyo"), ["ashburn", "frankfurt", "oslo"]),
        (("sydney", "tokyo"), ["ashburn", "frankfurt", "oslo", "sydney", "tokyo"]),
    ],
)
def test_most_of_the_first_voters_have_joined(
    api: Api, but: tuple[str, ...], sites: list[str],  # noqa: F811
) -> None:
    """Two sites that had joined, of five that were named, never had three votes: nothing of what
    was sold was honoured."""
    a_cloud_that_joined(api, but=but)
    api.make("entitlements", a_body())
    assert sorted(api.call("GET", "voters")[1]["sites"]) == sites


def test_voters_are_chosen_once(api: Api) -> None:  # noqa: F811
    api.make("entitlements", a_body())
    before = published(api)[subjects.VOTERS_KEY]
    one_less = an_intent()
    one_less = replace(
        one_less, fingerprint="2", sites=one_less.sites[1:], deployments=one_less.deployments[1:],
    )
    assert api.context.registry.estate.reconcile(one_less, now=api.context.now())
    second = api.make("entitlements", a_body(name="second"))
    assert [each["site"] for each in second["slices"]] == ["frankfurt", "sydney"]
    assert published(api)[subjects.VOTERS_KEY] == before

"""What pages for operators ask of the Control API and make of its answers, over a real PostgreSQL.

Each page's data comes with the right of whoever looks: another role is refused what it may not see.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any, TypeVar

import httpx
import msgspec
import pytest

from isochrone.adapters.postgres.pool import Pool
from isochrone.console import api as console
from isochrone.console import effects
from isochrone.console.estate import Power, drawn_power, load_fleet
from isochrone.console.page import Me, Visit
from isochrone.console.pages import (
    audit,
    ledger,
    organisations,
    policies,
    prices,
    world_map,
)
from isochrone.console.pages import reconciliation as books
from isochrone.core.errors import Forbidden, InvalidInput, Untrusted
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.world.digest import DeploymentLoad, SiteDigest
from isochrone.wire import fleet as messages
from isochrone.wire import subjects
from tests.contract.test_control_api import ADMIN, NOW, Api, a_booked, an_api

T = TypeVar("T")

PRICED: dict[str, Any] = {
    "id": "standard", "currency": "EUR", "valid_from": 0,
    "prices": [{"name": "output", "meters": ["output_tokens"],
                "charge": {"model": "per_unit", "price": "0.60", "per": 1_000_000}}],
    "adjustments": [{"name": "batch", "basis_points": -5000, "meters": ["output_tokens"],
                     "classes": ["batch"]}],
    "fees": [{"name": "support", "basis_points": 300}],
}


@pytest.fixture
def api(pool: Pool) -> Iterator[Api]:
    with an_api(pool) as found:
        yield found


def asks(api: Api, work: Callable[[console.Api], Awaitable[T]], key: str | None = ADMIN) -> T:
    """What a page gets whose visitor has this secret."""

    async def run() -> T:
        transport = httpx.ASGITransport(app=api.client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://control") as client:
            return await work(console.Api(client, key))

    return asyncio.run(run())


def hears(api: Api, site: str) -> None:
    """The site says that it works on one of four requests for the model."""
    load = DeploymentLoad(
        model=ModelName("tiny"), revision=None, ready=1, slots=4, running=1, waiting=2,
        pending_prompt_tokens=0, pending_output_tokens=0, prefill_tok_s=100.0, decode_tok_s=50.0,
    )
    digest = SiteDigest(
        site=SiteName(site), epoch=1, sequence=1, at=NOW, loads=(load,), replicas=()
    )
    api.context.fleet.on_message(subjects.digest_subject(site), messages.encode(digest))


def joins(api: Api, site: str) -> None:
    token = api.make(f"sites/{site}/token", None)["token"]
    body = {
        "token": token, "peer_key": "ab" * 32, "nats_key": f"U{site:A<55}".upper(),
        "host": "10.0.0.1", "port": 4100, "public_url": "https://x.example/v1",
    }
    assert api.call("POST", "sites/join", body, key=None)[0] == 200


def test_the_fleet_is_wanted_against_ready_and_drains_say_who_goes_on(api: Api) -> None:
    for site in ("frankfurt", "sydney"):
        joins(api, site)
        hears(api, site)
    found = asks(api, load_fleet)
    assert [(each.site, each.replicas) for each in found.deployments] == [
        ("ashburn", 1), ("frankfurt", 1), ("sydney", 1),
    ]
    assert [len(site.loads) for site in found.sites] == [1, 1, 1]
    sydney = found.site("sydney")
    assert sydney is not None
    said = effects.of_draining(found, sydney)
    assert "The 1 that run there and the 2 that wait" in said[0].text
    assert "tiny goes on at frankfurt" in said[1].text
    assert not any(each.hurts for each in said)
    killed = effects.of_stopping(found, sydney, at_once=True)
    assert "goes on at another site" in killed[0].text
    assert killed[0].hurts
    assert not effects.of_stopping(found, sydney, at_once=False)[0].hurts
    assert api.call("PUT", "sites/frankfurt/draining", {"draining": True})[0] == 200
    alone = asks(api, load_fleet)
    last = alone.site("sydney")
    assert last is not None
    assert [each.hurts for each in effects.of_draining(alone, last)] == [False, True, False]
    wish = alone.deployments[2]
    assert [each.hurts for each in effects.of_resizing(alone, wish, 0)] == [False, True]
    assert "starts 2 more" in effects.of_resizing(alone, wish, 3)[0].text
    assert "Nothing changes" in effects.of_resizing(alone, wish, 1)[0].text


def test_a_rule_as_it_is_written_is_tried_and_drawn(api: Api) -> None:
    written = {"residency": "de, -fr,,", "transit": "", "caches": " ", "logs": "any"}
    rule = policies.Rule(axes=written, ingress="sydney", model="tiny")
    assert policies.axes_in(written) == {
        "residency": ["de", "-fr"], "transit": ["any"], "caches": None, "logs": ["any"],
    }

    async def tried(control: console.Api) -> policies.Trial:
        return await control.post("policies/trials", policies.Trial, rule.body())

    trial = asks(api, tried)
    shown = policies.drawn(trial, rule.ingress)
    assert shown["sites"] == {"ashburn": 3, "frankfurt": 3, "sydney": 3}, "all are in Germany"
    assert (trial.request is not None, shown["ingress"]) == (True, "sydney")
    api.make("policies", {"name": "only here", **policies.axes_in(written)})
    known = asks(api, policies.load)
    saved = next(each for each in known.policies if each.name == "only here")
    assert saved.terms("residency") == "-FR, DE"
    assert known.organisation(saved.org_id) == "default"
    assert [each.name for each in known.sites] == ["ashburn", "frankfurt", "sydney"]


def test_a_site_opens_to_its_queue_power_choices_and_events(api: Api) -> None:
    for site in ("frankfurt", "sydney"):
        joins(api, site)
        hears(api, site)
    a_booked(api, "default", "k", 1)
    assert api.call("PUT", "sites/sydney/running", {"running": False, "at_once": True})[0] == 200
    a_visit = Visit(me=asks(api, lambda control: control.get("me", Me)), api=console.Api(
        httpx.AsyncClient(), None), query={})

    async def opened(control: console.Api) -> world_map.Opened:
        return await world_map.load(replace(a_visit, api=control), "sydney")

    found = asks(api, opened)
    assert world_map.queue(found.site) == "2 wait, 1 of 4 slots in use"
    assert drawn_power(found.site.power) is None, "it states no hardware, so nothing is estimated"
    assert drawn_power(Power(watts=840.0, most_w=5600.0, source="estimated")) == (
        "840 W of 5.6 kW, estimated"
    )
    assert found.site.stopped
    (row,), (choice,) = found.entered, found.choices
    assert (row.ingress, row.site) == ("sydney", "frankfurt")
    assert choice is not None
    assert len(choice.refused) == 1
    assert found.served == (), "frankfurt served it"
    assert [each.kind for each in found.events[:1]] == ["deployment"]
    assert "stopped_replicas: – → 1" in audit.told(found.events[0])
    assert {each.kind for each in found.events} == {"deployment", "site", "site_token"}
    asked = replace(a_visit, me=msgspec.structs.replace(a_visit.me, org_id="x"))
    assert asyncio.run(world_map._events(asked, "sydney")) == ()


def test_the_map_shows_what_a_policy_allows(api: Api) -> None:
    for name, residency in (("open", ["EEA"]), ("none", ["FR"]), ("open", ["DE"])):
        api.make("policies", {"name": name, "residency": residency})
    known = asks(api, policies.load).policies
    names = {name for _, name in world_map.named(known)}
    assert {"none", "open (DE)", "open (EEA)"} <= names, "a name that stands for two says which"
    only = next(each for each in known if each.residency == ("FR",))
    found = asks(api, lambda control: world_map.allowed_by(control, only))
    assert found == {
        "policy": only.id, "processes": [], "enters": ["ashburn", "frankfurt", "sydney"],
    }


def test_a_sheet_is_written_anew_from_the_one_before_and_says_what_changes(api: Api) -> None:
    rich = {
        **PRICED, "recurring": [{"name": "desk", "amount": "9.00"}],
        "prices": [*PRICED["prices"], {
            "name": "input", "meters": ["input_uncached_tokens"], "bound": True, "least": "1",
            "charge": {"model": "graduated", "per": 10, "tiers": [
                {"price": "2", "up_to": 5}, {"price": "1"},
            ]},
        }],
    }
    assert api.call("POST", "prices", rich)[0] == 201
    (first,) = asks(api, prices.load)
    content = prices.read(prices.written_as(first))
    assert content.pop("valid_from") == ""
    later = {**content, "valid_from": "2200-01-01T00:00:00Z"}

    async def tried(control: console.Api) -> prices.Sheet:
        return await control.post("prices/trials", prices.Sheet, later)

    same = asks(api, tried)
    assert prices.in_force([first], same) == first
    assert prices.differences(first, same) == [], "all of it is written, and read again"
    assert "Nothing in it differs" in prices.effects_of(same, first)[1].text
    later["fees"] = [{"name": "care", "basis_points": 100}]
    told = prices.effects_of(asks(api, tried), first)
    assert [(each.text, each.hurts) for each in told[1:3]] == [
        ("fee care: – → 1 % of all", False), ("fee support: 3 % of all → –", True),
    ]
    assert len(asks(api, prices.load)) == 1, "nothing was written"
    bounded = {**PRICED, "adjustments": [
        {"name": "discount", "basis_points": -2000, "models": ["tiny"], "bound": False},
        {"name": "far", "basis_points": 500, "sites": ["sydney"]},
        {"name": "rush", "basis_points": 100},
    ]}
    later_still = {**bounded, "id": "bounded", "valid_from": "2200-01-01T00:00:00Z"}
    assert api.call("POST", "prices", later_still)[0] == 201
    shown = next(each for each in asks(api, prices.load) if each.id == "bounded").sheet
    assert [row[1:] for row in prices.beside(shown)][:3] == [
        ("discount", "-20 %", "tiny; not named by the policy"), ("far", "+5 %", "sydney"),
        ("rush", "+1 %", "all"),
    ]
    assert prices.further(first.sheet.prices[1]) == ["named by the policy", "at least 1.00"]
    for text, said in (("id = ", "not valid TOML"), (prices.written_as(None), "")):
        if said:
            with pytest.raises(InvalidInput, match=said):
                prices.read(text)
        else:
            assert prices.read(text)["currency"] == "EUR"


def test_money_is_summed_exactly_and_the_latest_comes_first(api: Api) -> None:
    assert api.call("POST", "prices", {**PRICED})[0] == 201
    for number, amount in enumerate(("10.00", "0.01")):
        body = {"amount": amount, "about": f"credit {number}"}
        assert api.call("POST", "ledger/credits", body, once=amount)[0] == 201
    project = api.call("GET", "projects")[1]["items"][0]["id"]
    a_booked(api, "default", "k", 1)
    found = asks(api, lambda control: ledger.load(control, None, None))
    assert [ledger.about(each) for each in found.postings] == ["credit 1", "credit 0"]
    assert [each.name for each in found.projects if each.id == project] == ["default"]
    assert {each.amount for each in found.balances} == {"10.01", "-10.01"}
    line = ledger.Line(
        name="output", sheet="s", version=1, model="tiny", quantity=3, adjustments=(), amount="0.1"
    )
    spent = ledger.Spent(
        org_id="o", project_id="p", month="2026-11", currency="EUR", amount="0.3", charged="0",
        lines=(line, line, line), unpriced=(),
    )
    unknown = msgspec.structs.replace(spent, amount=None, charged="7", lines=(), problem="too much")
    assert ledger.sums([spent, unknown]) == {"EUR": Decimal("0.3")}
    assert [row[2:] for row in ledger.by_price([spent])] == [(9, Decimal("0.3"))]
    body = {"amount": "1", "project_id": project}
    keys = {ledger.once_after(2, body), ledger.once_after(3, body),
            ledger.once_after(2, {**body, "amount": "2"}), ledger.once_after(2, dict(body))}
    assert len(keys) == 3, "the same again is the same, whatever differs is another"
    (sheet,) = asks(api, prices.load)
    assert sheet.name == "standard v1"
    assert [prices.charged(each.charge) for each in sheet.sheet.prices] == [
        "0.60 / 1\u202f000\u202f000"
    ]
    assert (sheet.sheet.adjustments[0].basis_points, sheet.sheet.fees[0].name) == (-5000, "support")


def test_a_credit_is_asked_about_once_it_can_be_one() -> None:
    projects = {"p1": ledger.Project(id="p1", org_id="acme", name="shop")}
    filled = {"project_id": "p1", "amount": " 10.00\u00a0", "currency": " EUR", "about": "credit"}
    assert ledger.credit_in(filled, projects) == {
        "project_id": "p1", "org_id": "acme", "amount": "10.00", "currency": "EUR",
        "about": "credit",
    }
    with pytest.raises(InvalidInput) as wrong:
        ledger.credit_in({**filled, "project_id": "", "amount": " "}, projects)
    assert wrong.value.problems == ("project_id: choose one", "amount: missing")


def test_a_day_is_reconciled(api: Api) -> None:
    found = asks(api, lambda control: books.load(control, "2026-11-20"))
    assert books.day_named(found.report.day_at) == "2026-11-20"
    assert (found.report.agrees, found.kept) == (True, ())


def test_the_audit_log_tells_what_changed_the_latest_first(api: Api) -> None:
    api.call("PUT", "deployments", {"site": "sydney", "model": "tiny", "replicas": 3})
    api.make("organisations", {"name": "Acme"})
    every = asks(api, lambda control: audit.load(control, {}))
    assert [each.serial for each in every] == sorted((each.serial for each in every), reverse=True)
    (changed,) = [each for each in every if each.change == "changed" and each.kind == "deployment"]
    assert audit.told(changed) == "replicas: 1 → 3"
    (made,) = asks(api, lambda control: audit.load(control, {"kind": "organisation", "subject":
                                                             every[0].subject}))
    assert "name: Acme" in audit.told(made)


def test_customers_get_what_is_theirs_and_are_refused_the_rest(api: Api) -> None:
    owner, billing = api.tenant("acme"), api.tenant("other", role="billing")
    tenants = asks(api, organisations.load, owner)
    assert [each.name for each in tenants.organisations] == ["acme"]
    assert {each.org_id for each in tenants.members} == {tenants.organisations[0].id}
    assert {each.org_id for each in asks(
        api, lambda control: audit.load(control, {}), owner
    )} == {tenants.organisations[0].id}
    assert asks(api, lambda control: ledger.load(control, None, None), billing).postings == ()
    for work in (
        organisations.load, lambda control: audit.load(control, {}),
        lambda control: books.load(control, None),
    ):
        with pytest.raises(Forbidden):
            asks(api, work, billing)
        with pytest.raises(Untrusted):
            asks(api, work, "isoses_wrong")

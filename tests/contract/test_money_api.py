"""Prices and the ledger over the Control API: who may see and do what, and bad input."""

import json
from dataclasses import replace
from typing import Any

from isochrone.core.billing.charge import PerUnit
from isochrone.core.billing.period import month_of, name_of
from isochrone.core.billing.sheet import Meter, Price, PriceSheet, When
from isochrone.core.ids import KeyId, OrgId, ProjectId, uuid7
from isochrone.core.metering.event import Tokens
from isochrone.core.money import LARGEST, written
from isochrone.core.world.tenant import EVERY_TENANT
from isochrone.ports.prices import StoredSheet
from tests.contract.test_control_api import ADMIN, Api, api  # noqa: F401 - a fixture
from tests.unit.build_usage import a_usage_event

SHEET: dict[str, Any] = {
    "id": "standard", "currency": "EUR", "valid_from": "1970-01-01T00:00:00Z",
    "prices": [
        {
            "name": "output", "meters": ["output_tokens"],
            "charge": {"model": "per_unit", "price": "0.60", "per": 1_000_000},
        },
        {
            "name": "input", "meters": ["input_uncached_tokens", "input_cached_tokens"],
            "charge": {"model": "per_unit", "price": "0.15", "per": 1_000_000},
        },
    ],
}


def a_price(charge: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"prices": [{"name": "x", "meters": ["bytes"], "charge": charge, **changes}]}


EACH: dict[str, Any] = {"model": "per_unit", "price": "1"}
# What looks like a sheet, and no price is meant by.
BEYOND: tuple[tuple[dict[str, Any], str], ...] = (
    (a_price({**EACH, "price": "1000000000.01"}), "an amount beyond"),
    (a_price(EACH, least="9" * 26), "an amount beyond"),
    (a_price(EACH, most="-1"), "below zero"),
    (a_price({**EACH, "per": 10**18 + 1}), "a quantity beyond"),
    (a_price({**EACH, "size": 1_000}), "charge.size: not of per_unit"),
    (a_price({"model": "package", "price": "1", "size": 0}), "less than one unit"),
    (a_price({"model": "package", "price": "1", "size": 9, "per": 1_000}), "charge.per: not of"),
    (a_price({**EACH, "tiers": [{"price": "2"}]}), "charge.tiers: not of per_unit"),
    (a_price({"model": "volume", "price": "1", "tiers": [{"price": "2"}]}), "charge.price: not"),
    ({"id": "standard/1"}, "an id without '/'"),
    (a_price(EACH, name=" "), "want a name"),
    (a_price(EACH, name="a\u0000"), "want a name"),
    ({"recurring": [{"name": "r", "amount": "1000000001"}]}, "an amount beyond"),
    ({"adjustments": [{"name": "a", "basis_points": 10**6 + 1}]}, "a hundredfold"),
    ({"fees": [{"name": "f", "basis_points": 10**30}]}, "a hundredfold"),
    (
        {"fees": [{"name": each, "basis_points": -6000, "of": ["output"]} for each in "fg"]},
        "price 'output': its fees together take away more than everything",
    ),
)


def test_a_sheet_is_tried_before_it_is_added(api: Api) -> None:  # noqa: F811
    status, tried = api.call("POST", "prices/trials", SHEET)
    assert (status, tried["version"]) == (200, 1)
    assert api.call("GET", "prices")[1]["items"] == []
    made = api.make("prices", SHEET)
    assert {**tried, "created_at": made["created_at"]} == made
    later = {**SHEET, "valid_from": "2200-01-01T00:00:00Z"}
    assert api.call("POST", "prices/trials", later)[1]["version"] == 2
    assert api.call("POST", "prices/trials", {**later, "currency": "USD"})[0] == 409
    assert api.call("POST", "prices/trials?org_id=lost", {**later, "id": "x"})[0] == 404
    assert api.call("POST", "prices/trials", SHEET)[0] == 422, "earlier months keep their prices"


def use(
    api: Api, number: int, *, project: str = "default", output: int = 1_000  # noqa: F811
) -> None:
    """Book one request of now."""
    now = api.context.now()
    event = replace(
        a_usage_event(uuid7(now, number)), received_at=now, finished_at=now,
        org_id=OrgId("default"), project_id=ProjectId(project),
        tokens=Tokens(input_uncached=100, output=output, source="engine"),
    )
    api.context.book.book_usage([event], now=now)


def test_a_key_of_one_organisations_sheet_is_not_taken_for_anothers(
    api: Api,  # noqa: F811
) -> None:
    api.make("prices", SHEET)
    api.tenant("acme")
    api.tenant("beta")
    acme, beta = (
        each["id"] for each in api.call("GET", "organisations")[1]["items"]
        if each["name"] in ("acme", "beta")
    )
    own = {**SHEET, "id": "own", "valid_from": "2200-01-01T00:00:00Z"}
    status, made = api.call("POST", f"prices?org_id={acme}", own, once="k")
    assert (status, made["org_id"]) == (201, acme)
    assert api.call("POST", f"prices?org_id={acme}", own, once="k") == (201, made)
    assert api.call("POST", f"prices?org_id={beta}", own, once="k")[0] == 409
    assert api.call("POST", "prices", own, once="k")[0] == 409


def test_what_was_used_is_priced_charged_and_corrected(api: Api) -> None:  # noqa: F811
    use(api, 1)
    (spent,) = api.call("GET", "ledger/spent")[1]["items"]
    assert (spent["amount"], spent["lines"]) == ("0.00", [])
    assert {each["meter"] for each in spent["unpriced"]} == {
        "requests", "input_uncached_tokens", "output_tokens",
    }
    made = api.make("prices", SHEET)
    assert (made["version"], made["org_id"]) == (1, None)
    (listed,) = api.call("GET", "prices")[1]["items"]
    assert listed == made
    (spent,) = api.call("GET", "ledger/spent")[1]["items"]
    assert (spent["amount"], spent["charged"]) == ("0.000615", "0.00")
    assert {line["name"]: line["amount"] for line in spent["lines"]} == {
        "output": "0.0006", "input": "0.000015",
    }
    assert api.call("POST", "ledger/charges") == (200, {"charges": 2})
    assert api.call("POST", "ledger/charges") == (200, {"charges": 0})
    use(api, 2)
    assert api.call("POST", "ledger/charges") == (200, {"charges": 2})
    (spent,) = api.call("GET", "ledger/spent")[1]["items"]
    assert spent["charged"] == spent["amount"] == "0.00123"
    (day,) = api.call("GET", "ledger/days")[1]["items"]
    assert (day["charged"], day["currency"], len(day["day"])) == ("0.00123", "EUR", 10)
    assert api.call("GET", "ledger/days?month=2020-01")[1]["items"] == []
    accounts = {
        row["account"]: row["amount"]
        for row in api.call("GET", "ledger/balances")[1]["items"]
    }
    assert accounts == {"owed": "-0.00123", "revenue": "0.00123"}
    rows = api.call("GET", "ledger/postings?limit=4")[1]
    assert [row["kind"] for row in rows["items"]] == ["charge", "charge", "correction", "charge"]
    rest = api.call("GET", f"ledger/postings?after={rows['next']}")[1]
    assert [row["kind"] for row in rest["items"]] == ["correction", "charge"]
    month = name_of(month_of(api.context.now()))
    assert api.call("GET", f"ledger/spent?month={month}")[1]["items"] == [spent]
    assert api.call("GET", "ledger/spent?month=2020-01")[1]["items"] == []


def test_money_moves_once_under_a_key(api: Api) -> None:  # noqa: F811
    body = {"amount": "10.00", "about": "payment 7"}
    assert api.call("POST", "ledger/credits", body)[0] == 422
    first = api.call("POST", "ledger/credits", body, once="k")
    assert first[0] == 201
    assert api.call("POST", "ledger/credits", body, once="k") == first
    assert api.call("POST", "ledger/credits", {**body, "amount": "11"}, once="k")[0] == 409
    undo = {"key": first[1]["key"], "about": "paid to another"}
    assert api.call("POST", "ledger/corrections", undo, once="u")[0] == 201
    assert api.call("POST", "ledger/corrections", undo, once="u")[0] == 201
    again = api.call("POST", "ledger/corrections", undo, once="v")
    assert (again[0], again[1]["detail"]) == (409, f"{first[1]['key']!r} was unwound before")
    assert api.call("GET", "ledger/balances")[1]["items"] == []
    assert len(api.call("GET", "ledger/postings")[1]["items"]) == 2


def test_bad_input_says_all_that_is_wrong_and_writes_nothing(api: Api) -> None:  # noqa: F811
    for body, problem in (
        ({**SHEET, "currency": "euro"}, "three capital letters"),
        ({**SHEET, "valid_from": "2026-11-20T10:30:00Z"}, "start of an hour"),
        ({**SHEET, "valid_from": "soon"}, "valid_from"),
        ({**SHEET, "valid_from": "9" * 5_000}, "valid_from"),
        ({**SHEET, "valid_from": "2999-01-01T00:00:00Z"}, "between the years 1970 and 2262"),
        ({**SHEET, "price": []}, "price"),
        ({**SHEET, "prices": [{"name": "x", "charge": {"model": "free"}}]}, "want per_unit"),
        (
            {**SHEET, "prices": [{"name": "x", "charge": {"model": "package", "price": "1e3"}}]},
            "plain decimal",
        ),
        ({**SHEET, "prices": [{"name": "x", "meters": ["tokens"], "charge": {"model": "x"}}]},
         "meters"),
        *(({**SHEET, **changes}, problem) for changes, problem in BEYOND),
    ):
        status, said = api.call("POST", "prices", body)
        assert status == 422, body
        assert any(problem in each for each in said["problems"]), said
    assert api.call("POST", "prices?org_id=lost", SHEET)[0] == 404
    charge = {"model": "per_unit"}
    several = {**SHEET, "prices": [{"name": 1, "charge": charge}, {"name": "y", "charge": charge},
                                   {"name": "z", "charge": charge, "colour": "red"}]}
    for path in ("prices", "prices/trials"):
        assert api.call("POST", path, several)[1]["problems"] == [
            "Expected str, got int - at prices[0].name",
            "Object contains unknown field colour - at prices[2]",
        ]
        bad = {**SHEET, "valid_from": "soon", "currency": "euro"}
        assert len(api.call("POST", path, bad)[1]["problems"]) == 2
        headers = {"authorization": f"Bearer {ADMIN}", "content-type": "application/json"}
        half = json.dumps({**SHEET, "prices": [{"name": "\ud800", "charge": charge}]})
        answer = api.client.post(f"/api/v1/{path}", content=half, headers=headers)
        assert answer.status_code == 422
    assert api.call("GET", "prices")[1]["items"] == []
    for credit in (
        {"amount": "-1"}, {"amount": "ten"}, {"amount": "\u0663"},
        {"amount": "1", "currency": "eur"},
        {"amount": "1", "colour": "red"},
    ):
        assert api.call("POST", "ledger/credits", credit, once="x")[0] == 422
    api.make("prices", SHEET)
    dollars = api.call("POST", "ledger/credits", {"amount": "1", "currency": "USD"}, once="x")
    assert dollars[1]["problems"] == [
        "currency: prices are in EUR, and USD is never exchanged for it"
    ]
    lost = {"amount": "1", "project_id": "lost"}
    assert api.call("POST", "ledger/credits", lost, once="x")[0] == 404
    assert api.call("GET", "ledger/postings")[1]["items"] == []
    for query in ("spent?month=2026-13", "spent?month=26-1", "postings?after=x"):
        assert api.call("GET", f"ledger/{query}")[0] == 422
    for path in ("spent", "days", "balances", "postings"):
        for whose in ("org_id=lost", "project_id=lost", "org_id=default&project_id=lost"):
            assert api.call("GET", f"ledger/{path}?{whose}")[0] == 404, "not as if it were empty"
    for day, said in (("yesterday", "like 2026-11-20"), ("2199-01-01", "has not begun")):
        status, problem = api.call("GET", f"reconciliation?day={day}")
        assert (status, said in problem["detail"]) == (422, True)
    correction = {"key": "charge/none", "about": "x"}
    assert api.call("POST", "ledger/corrections", correction, once="x")[0] == 404


def test_a_credit_is_in_the_currency_of_the_prices(api: Api) -> None:  # noqa: F811
    api.make("prices", {**SHEET, "currency": "CHF"})
    made = api.call("POST", "ledger/credits", {"amount": "1"}, once="k")
    assert (made[0], made[1]["currency"]) == (201, "CHF")
    assert api.call("POST", "ledger/credits", {"amount": "1", "currency": "CHF"}, once="k") == made


def test_a_credit_is_shown_again_when_prices_are_in_another_currency(
    api: Api,  # noqa: F811
) -> None:
    bodies = {"none": {"amount": "1"}, "said": {"amount": "1", "currency": "EUR"}}
    first = {key: api.call("POST", "ledger/credits", bodies[key], once=key) for key in bodies}
    for key, (status, made) in first.items():
        assert (status, made["currency"]) == (201, "EUR")
        undo = {"key": made["key"], "about": "prices are in another currency"}
        assert api.call("POST", "ledger/corrections", undo, once=f"undo-{key}")[0] == 201
    api.make("prices", {**SHEET, "currency": "CHF"})
    for key, body in bodies.items():
        assert api.call("POST", "ledger/credits", body, once=key) == first[key]
    other = {"amount": "1", "currency": "CHF"}
    assert api.call("POST", "ledger/credits", other, once="said")[0] == 409
    assert api.call("POST", "ledger/credits", bodies["said"], once="new")[0] == 422


def use_too_much(api: Api) -> str:  # noqa: F811
    """The default project uses more than the book holds; the id of one that does not. Prices of an
    earlier release took any amount."""
    dear = Price(
        name="output", when=When(meters=frozenset[Meter](("output_tokens",))),
        charge=PerUnit(price_pico=LARGEST // 4),
    )
    sheet = PriceSheet(id="dear", version=1, currency="EUR", valid_from=0, prices=(dear,))
    stored = StoredSheet(sheet=sheet, only_for=None, created_at=api.context.now())
    api.context.registry.prices.add_sheet(EVERY_TENANT, stored, once=None)
    other = str(api.make("projects", {"name": "other", "org_id": "default"})["id"])
    use(api, 1, output=5)
    use(api, 2, output=1, project=other)
    return other


def test_a_project_that_comes_to_too_much_is_named_among_the_others(api: Api) -> None:  # noqa: F811
    other = use_too_much(api)
    status, said = api.call("GET", "ledger/spent")
    rows = {row["project_id"]: row for row in said["items"]}
    assert (status, len(rows)) == (200, 2)
    assert rows[other]["amount"] == written(LARGEST // 4)
    assert rows[other]["problem"] is None
    refused = rows["default"]
    assert (refused["amount"], refused["charged"], refused["lines"]) == (None, "0.00", [])
    assert refused["problem"].startswith("project 'default' of 'default': an amount of money")
    status, alone = api.call("GET", "ledger/spent?project_id=default")
    assert (status, alone["code"], alone["detail"]) == (409, "too_much_money", refused["problem"])
    assert api.call("GET", f"ledger/spent?project_id={other}")[1]["items"] == [rows[other]]


def test_a_tenant_sees_its_own_money_and_moves_none(api: Api) -> None:  # noqa: F811
    api.make("prices", SHEET)
    use(api, 1)
    api.call("POST", "ledger/charges")
    owner = api.tenant("acme")
    own_org = api.call("GET", "organisations", key=owner)[1]["items"][0]["id"]
    own = {**SHEET, "id": "acme", "valid_from": month_of(api.context.now()).begin}
    assert api.call("POST", f"prices?org_id={own_org}", own)[0] == 201
    other = api.tenant("rival", role="billing")
    assert [row["id"] for row in api.call("GET", "prices", key=owner)[1]["items"]] == [
        "acme", "standard",
    ]
    assert [row["id"] for row in api.call("GET", "prices", key=other)[1]["items"]] == ["standard"]
    for path in ("ledger/spent", "ledger/balances", "ledger/postings"):
        assert api.call("GET", path, key=owner) == (200, {"items": [], "next": None})
        assert api.call("GET", f"{path}?org_id=default", key=owner)[0] == 404
        assert len(api.call("GET", path, key=ADMIN)[1]["items"]) > 0
    for path, body in (
        ("prices", SHEET), ("ledger/charges", {}), ("ledger/credits", {"amount": "1"}),
        ("ledger/corrections", {"key": "x", "about": "x"}),
    ):
        assert api.call("POST", path, body, key=owner, once="x")[0] == 403
    made = api.make("keys", {"name": "k"})
    assert api.call("GET", "ledger/spent", key=made["key"])[0] == 403
    assert api.call("GET", "prices", key=made["key"])[0] == 403


def test_an_explanation_says_what_the_request_costs_by_itself(api: Api) -> None:  # noqa: F811
    use(api, 1)
    (row,) = api.call("GET", "usage?order=newest")[1]["items"]
    assert api.call("GET", f"requests/{row['id']}")[1]["price"] is None, "there is no sheet"
    api.make("prices", {**SHEET, "adjustments": [
        {"name": "half", "meters": ["output_tokens"], "basis_points": -5000},
    ], "recurring": [{"name": "fee", "amount": "10"}]})
    price = api.call("GET", f"requests/{row['id']}")[1]["price"]
    assert (price["amount"], price["currency"]) == ("0.000315", "EUR"), "without the fee"
    assert [(line["name"], line["amount"], line["adjustments"]) for line in price["lines"]] == [
        ("output", "0.0003", ["half"]), ("input", "0.000015", []),
    ]
    assert price["unpriced"] == ["requests"]
    key = api.make("keys", {})
    used = replace(
        a_usage_event(uuid7(api.context.now(), 9)), org_id=OrgId("default"), key_id=key["id"]
    )
    api.context.book.book_usage([used], now=api.context.now())
    own = api.call("GET", f"requests/{used.request_id}", key=key["key"])[1]
    assert own["price"] is None, "a project key may not see prices"


def test_a_request_whose_choice_was_not_kept_is_priced_as_it_is_charged(
    api: Api,  # noqa: F811
) -> None:
    key, other = api.make("keys", {"residency": ["DE"]}), api.make("keys", {})
    bound = {**SHEET["prices"][0], "name": "bound output", "bound": True, "charge": EACH}
    plain = {**SHEET["prices"][0], "bound": False}
    api.make("prices", {**SHEET, "prices": [bound, plain]})
    for number, (holder, name) in enumerate(((key, "bound output"), (other, "output"))):
        used = replace(
            a_usage_event(uuid7(api.context.now(), number)), org_id=OrgId(holder["org_id"]),
            project_id=ProjectId(holder["project_id"]), key_id=KeyId(holder["id"]),
            serving_country="DE", received_at=api.context.now(), finished_at=api.context.now(),
        )
        assert used.decision is None
        api.context.book.book_usage([used], now=api.context.now())
        price = api.call("GET", f"requests/{used.request_id}")[1]["price"]
        assert [line["name"] for line in price["lines"]] == [name]
    (spent,) = api.call("GET", "ledger/spent")[1]["items"]
    assert {line["name"] for line in spent["lines"]} == {"bound output", "output"}


def test_a_sheet_under_one_key_is_for_one_organisation(api: Api) -> None:  # noqa: F811
    one, other = (api.make("organisations", {"name": name})["id"] for name in ("one", "other"))
    own = {**SHEET, "id": "own"}
    assert api.call("POST", f"prices?org_id={one}", own, once="k")[1]["org_id"] == one
    assert api.call("POST", f"prices?org_id={one}", own, once="k")[1]["org_id"] == one
    status, problem = api.call("POST", f"prices?org_id={other}", own, once="k")
    assert (status, problem["code"]) == (409, "conflict")


def test_money_moves_once_under_a_key_whomever_it_is_for(api: Api) -> None:  # noqa: F811
    one, other = (
        api.make("organisations", {"name": name, "project": "main"})["id"]
        for name in ("one", "other")
    )
    project = {each["org_id"]: each["id"] for each in api.call("GET", "projects")[1]["items"]}
    wanted = [
        {"org_id": org, "project_id": project[org], "amount": "5.00"} for org in (one, other)
    ]
    status, made = api.call("POST", "ledger/credits", wanted[0], once="k")
    assert status == 201
    assert api.call("POST", "ledger/credits", wanted[0], once="k") == (201, made)
    assert api.call("POST", "ledger/credits", wanted[1], once="k")[0] == 409
    assert api.call("GET", f"ledger/postings?org_id={other}")[1]["items"] == []

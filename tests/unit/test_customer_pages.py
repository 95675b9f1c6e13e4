"""What the pages for customers make of their data, without a browser."""

from decimal import Decimal

import pytest

from isochrone.console.pages import keys
from isochrone.console.pages.keys import new_key
from isochrone.console.pages.playground import Site, entrances
from isochrone.console.pages.usage import (
    Bill,
    Charged,
    Spent,
    Sum,
    Used,
    months_before,
    spend_series,
    spent_figures,
    token_series,
    written,
)
from isochrone.core.billing.period import DAY_NS, month_named

NOVEMBER = month_named("2026-11")
AT = [NOVEMBER.begin + number * DAY_NS for number in range(3)]


def a_sum(name: str, output: int) -> Sum:
    return Sum(name=name, requests=1, finished=1, input_uncached=0, input_cached=0, output=output)


def a_spent(amount: str, charged: str, currency: str = "EUR") -> Spent:
    return Spent(
        currency=currency, amount=Decimal(amount), charged=Decimal(charged), lines=(), unpriced=()
    )


def test_the_months_before_this_one() -> None:
    names = list(months_before(month_named("2026-02")))
    assert names[:3] == ["2026-02", "2026-01", "2025-12"]
    assert len(set(names)) == 12


def test_small_models_are_summed_beside_the_large() -> None:
    used = Used(
        models=(), countries=(),
        days=(a_sum("2026-11-01", 10), a_sum("2026-11-03", 7)),
        of_model={"large": (a_sum("2026-11-01", 8), a_sum("2026-11-03", 7))},
    )
    assert [(each.name, list(each.values)) for each in token_series(AT, used)] == [
        ("large", [8.0, 0.0, 7.0]), ("others", [2.0, 0.0, 0.0]),
    ]


def test_what_is_not_charged_yet_stands_on_today_and_only_in_its_month() -> None:
    bill = Bill(
        spent=(a_spent("3", "2"), a_spent("1", "0.5"), a_spent("9", "0", "USD")),
        days=(
            Charged(day="2026-11-01", currency="EUR", charged=Decimal("1.5")),
            Charged(day="2026-11-01", currency="EUR", charged=Decimal("1")),
            Charged(day="2026-11-01", currency="USD", charged=Decimal("4")),
        ),
    )
    charged, open_ = spend_series(AT, bill, "EUR", AT[2] + 5)
    assert (list(charged.values), list(open_.values)) == ([2.5, 0.0, 0.0], [0.0, 0.0, 1.5])
    assert len(spend_series(AT, bill, "EUR", NOVEMBER.end)) == 1


def test_what_is_not_known_is_in_no_sum() -> None:
    unknown = Spent(
        currency="EUR", amount=None, charged=Decimal("7"), lines=(), unpriced=(), problem="too much"
    )
    bill = Bill(spent=(a_spent("3", "2"), unknown), days=())
    assert list(spend_series(AT, bill, "EUR", AT[2] + 5)[1].values) == [0.0, 0.0, 1.0]
    assert spent_figures(bill)[0][1:] == (
        "3.00 EUR", "2.00 of it charged; hours are charged when they are over",
    )


@pytest.mark.parametrize(
    ("amount", "said"),
    [("0", "0.00"), ("0.0196", "0.0196"), ("1234.5", "1\u202f234.50"),
     ("0.5", "0.50"), ("0.0000744", "0.0000744"),
     ("0.000123456", "0.0001235")],
)
def test_amounts_keep_four_digits_that_say_something(amount: str, said: str) -> None:
    assert written(Decimal(amount)) == said


def test_a_new_key_is_what_was_filled_in() -> None:
    filled = {"name": " ", "residency": "EEA, -FR ,", "scopes": "chat", "expires_at": "2027-01-31"}
    assert new_key(filled) == {
        "name": "key", "residency": ["EEA", "-FR"], "scopes": ["chat"],
        "expires_at": "2027-01-31T23:59:59Z",
    }
    assert new_key({**filled, "residency": "", "project_id": "p"})["residency"] == ["any"]


def test_of_many_keys_the_latest_are_shown() -> None:
    made = [
        keys.Key(id=f"k{number}", name="n", project_id="p", residency=("any",), scopes=("chat",),
                 expires_at=None, created_at=number, revoked_at=None)
        for number in range(keys.MOST_SHOWN + 3)
    ]
    shown = keys.newest(made)
    assert (len(shown), shown[0]) == (keys.MOST_SHOWN, made[-1])


def test_projects_of_one_name_are_told_apart() -> None:
    found = [keys.Project(id=f"p{org}", name="main", org_id=org) for org in ("acme", "zeta")]
    found.append(keys.Project(id="p3", name="shop", org_id="acme"))
    assert keys.names_of(found) == {
        "pacme": "main of acme", "pzeta": "main of zeta", "p3": "shop",
    }


def test_requests_enter_where_a_gateway_is_and_engines_first() -> None:
    sites = (
        Site(name="a", country=None, public_url="http://a", ready=False),
        Site(name="b", country="DE", public_url="http://b", ready=True),
        Site(name="c", country="AU", public_url=None, ready=False),
    )
    assert entrances(sites) == [("b", "b (DE)"), ("a", "a (no country)")]

"""Limits over the Control API and in the book: set, shown, removed; what budgets have spent, and
their leases in the ledger."""

import asyncio
from dataclasses import replace
from typing import Any

from isochrone.control.limiting import Limiting
from isochrone.core.billing.charge import PerUnit
from isochrone.core.billing.ledger import Account
from isochrone.core.billing.period import DAY_NS, day_of, hour_of, month_of
from isochrone.core.billing.sheet import HOUR_NS
from isochrone.core.ids import KeyId, LimitId, OrgId, ProjectId, SiteName, uuid7
from isochrone.core.limits.lease import lease_id
from isochrone.core.metering.event import Tokens
from isochrone.core.money import LARGEST, PICO
from isochrone.core.world.limit import Limit
from isochrone.core.world.limit_use import LimitReport, LimitUse, SiteUse
from isochrone.core.world.tenant import EVERY_TENANT
from isochrone.wire import fleet, subjects
from tests.contract.test_control_api import Api, api  # noqa: F401 - a fixture
from tests.contract.test_money_api import SHEET
from tests.unit.build_usage import a_usage_event

PROJECT = {"project_id": "default"}


def put(api: Api, **body: object) -> Any:  # noqa: F811
    status, answer = api.call("PUT", "limits", body)
    assert status == 200, answer
    return answer


def use(
    api: Api, number: int, at: int, *, output: int, key: str = "k",  # noqa: F811
    project: str = "default",
) -> None:
    event = replace(
        a_usage_event(uuid7(at, number)), received_at=at, finished_at=at, org_id=OrgId("default"),
        project_id=ProjectId(project), key_id=KeyId(key),
        tokens=Tokens(input_uncached=0, output=output, source="engine"),
    )
    api.context.book.book_usage([event], now=at)


async def directly(call: Any) -> Any:
    return call()


def follow(api: Api, now: int) -> int:  # noqa: F811
    """What control's loop does, at that instant."""

    class At:
        def wall_ns(self) -> int:
            return now

        def monotonic_ns(self) -> int:
            return now

    registry = api.context.registry
    limiting = Limiting(
        registry.limits, registry.ledger, clock=At(), offload=directly, changed=lambda: None
    )
    return asyncio.run(limiting.follow())


def test_a_limit_is_set_changed_shown_and_removed(api: Api) -> None:  # noqa: F811
    made = put(api, kind="requests_per_min", amount="600", **PROJECT)
    assert (made["org_id"], made["project_id"], made["key_id"]) == ("default", "default", None)
    assert (made["amount"], made["use"], made["spent"]) == ("600", None, None)
    changed = put(api, kind="requests_per_min", amount="60", **PROJECT)
    assert changed == {**made, "amount": "60"}
    key = api.make("keys", {})
    of_key = put(api, kind="requests_per_min", amount="5", key_id=key["id"])
    whole = put(api, kind="concurrent", amount="9", org_id="default")
    assert of_key["project_id"] == "default"
    assert (whole["project_id"], whole["key_id"]) == (None, None)
    listed = api.call("GET", "limits")[1]["items"]
    assert {each["id"] for each in listed} == {made["id"], of_key["id"], whole["id"]}
    assert api.call("GET", f"limits/{made['id']}") == (200, changed)
    assert api.call("DELETE", f"limits/{made['id']}")[0] == 200
    assert api.call("GET", f"limits/{made['id']}")[0] == 404
    (told,) = api.context.registry.estate.snapshot(now=api.context.now()).limits
    assert {each.id for each in told.limits} == {of_key["id"], whole["id"]}
    logged = api.call("GET", "audit?kind=limit&limit=100")[1]["items"]
    assert len(logged) == 5


def test_bad_input_is_told_and_nothing_is_written(api: Api) -> None:  # noqa: F811
    def problems(**body: object) -> str:
        status, answer = api.call("PUT", "limits", body)
        assert status == 422, answer
        return str(answer)

    assert "no sheet" in problems(kind="budget", amount="10", **PROJECT)
    api.make("prices", SHEET)
    assert "prices are in EUR" in problems(kind="budget", amount="10", currency="USD", **PROJECT)
    assert "three capital" in problems(kind="budget", amount="10", currency="euro", **PROJECT)
    assert "above zero" in problems(kind="budget", amount="0", **PROJECT)
    assert "plain decimal" in problems(kind="budget", amount="1e3", **PROJECT)
    assert "whole number" in problems(kind="concurrent", amount="2.5", **PROJECT)
    assert "at most" in problems(kind="concurrent", amount="9" * 30, **PROJECT)
    assert "of whom" in problems(kind="concurrent", amount="2"), "an operator belongs to none"
    assert "only a budget" in problems(kind="concurrent", amount="2", period="day", **PROJECT)
    assert problems(kind="luck", amount="2")
    of_nobody = {"kind": "concurrent", "amount": "2", "key_id": "no"}
    assert api.call("PUT", "limits", of_nobody)[0] == 404
    assert api.call("GET", "limits")[1]["items"] == []


def test_only_operators_limit_a_whole_organisation(api: Api) -> None:  # noqa: F811
    owner = api.tenant("acme")
    body = {"kind": "concurrent", "amount": "2"}
    assert api.call("PUT", "limits", body, key=owner)[0] == 403
    project = api.make("projects", {"name": "p"}, key=owner)
    own = {**body, "project_id": project["id"]}
    assert api.call("PUT", "limits", own, key=owner)[0] == 200
    assert api.call("PUT", "limits", {**body, **PROJECT}, key=owner)[0] == 404
    whole = put(api, org_id=project["org_id"], **body)
    assert api.call("DELETE", f"limits/{whole['id']}", key=owner)[0] == 403
    seen = api.call("GET", "limits", key=owner)[1]["items"]
    assert whole["id"] in {each["id"] for each in seen}


def test_what_gateways_say_is_shown(api: Api) -> None:  # noqa: F811
    made = put(api, kind="tokens_per_min", amount="1000", **PROJECT)
    sydney = SiteName("sydney")
    use_ = LimitUse(
        limit=LimitId(made["id"]), mark=0, left=700,
        sites=(SiteUse(site=sydney, granted=300, used=120, held=80),),
    )
    report = fleet.encode(LimitReport(site=sydney, limits=(use_,)))
    state = api.context.fleet.limits
    state.on_report(subjects.limits_subject("paris"), report)
    assert api.call("GET", f"limits/{made['id']}")[1]["use"] is None, "another spoke for it"
    state.on_report(subjects.limits_subject("sydney"), report)
    shown = api.call("GET", f"limits/{made['id']}")[1]["use"]
    assert (shown["by"], shown["used"], shown["held"], shown["left"]) == (
        "sydney", "120", "80", "700"
    )


def test_budgets_know_what_was_booked_before_the_hour(api: Api) -> None:  # noqa: F811
    api.make("prices", SHEET)
    registry, day = api.context.registry, day_of(api.context.now())
    key = api.make("keys", {})["id"]
    of_project = put(api, kind="budget", amount="10", **PROJECT)
    of_key = put(api, kind="budget", amount="10", period="day", key_id=key)
    of_all = put(api, kind="budget", amount="10", org_id="default")
    use(api, 1, day + 1 * HOUR_NS, output=1_000_000)
    use(api, 2, day + 2 * HOUR_NS, output=2_000_000, key=key)
    use(api, 3, day + 3 * HOUR_NS, output=5_000_000, key=key)

    now = day + 3 * HOUR_NS + 600_000_000_000
    assert follow(api, now) == 3
    assert follow(api, now) == 0

    def booked(made: Any) -> tuple[int, int]:
        found = registry.limits.limit(EVERY_TENANT, LimitId(made["id"]))
        return found.spent_before, found.spent_pico

    before = day + 3 * HOUR_NS
    assert booked(of_project) == booked(of_all) == (before, 18 * PICO // 10)
    assert booked(of_key) == (before, 12 * PICO // 10)
    assert api.call("GET", f"limits/{of_key['id']}")[1]["spent"] == "1.20"
    (told,) = registry.estate.snapshot(now=now).limits
    assert told.cards[0].currency == "EUR"
    follow(api, day + DAY_NS + HOUR_NS)
    assert booked(of_key)[1] == 0, "another day"


def test_gateways_are_told_prices_of_the_last_day_and_later_alone(api: Api) -> None:  # noqa: F811
    """All that ever were would outgrow a message, and then nothing is published any more."""
    api.make("prices", SHEET)
    put(api, kind="budget", amount="10", **PROJECT)
    first = hour_of(api.context.now()) + HOUR_NS
    for number in range(40):
        api.make("prices", {**SHEET, "valid_from": str(first + number * HOUR_NS)})
    (told,) = api.context.registry.estate.snapshot(now=first + 30 * HOUR_NS).limits
    assert [each.valid_from for each in told.cards] == [
        first + number * HOUR_NS for number in range(6, 40)
    ]


def test_limits_of_keys_that_are_gone_are_not_told_or_summed(api: Api) -> None:  # noqa: F811
    """Whoever rotates keys would have more and more of them."""
    api.make("prices", SHEET)
    former = api.make("keys", {})["id"]
    put(api, kind="budget", amount="10", key_id=former)
    present = api.make(f"keys/{former}/rotate", {"overlap_s": 0})["id"]
    registry, now = api.context.registry, api.context.now()

    def told(at: int) -> set[str | None]:
        (limits,) = registry.estate.snapshot(now=at).limits
        return {each.key_id for each in limits.limits}

    def summed(before: int) -> set[str | None]:
        return {each.limit.key_id for each in registry.limits.unsummed(before=before)}

    assert told(now) == {former, present}, "they are gone after their keys"
    assert summed(hour_of(now)) == {former, present}
    assert told(now + 2 * HOUR_NS) == {present}
    assert summed(hour_of(now) + 3 * HOUR_NS) == {present}


def test_gateways_are_never_told_that_a_budget_that_was_used_is_unspent(
    api: Api,  # noqa: F811
) -> None:
    """A budget that was set again, or that is new, was free until the next sum."""
    api.make("prices", SHEET)
    registry, hour = api.context.registry, hour_of(api.context.now() - 300_000_000_000)
    begin = month_of(hour).begin
    use(api, 1, max(hour - HOUR_NS, begin), output=5_000_000)
    is_used = hour > begin  # not in the first hour of a month

    def told(**body: object) -> int | None:
        made = put(api, kind="budget", **body)
        (of_all,) = registry.estate.snapshot(now=api.context.now()).limits
        (limit,) = [each for each in of_all.limits if each.id == made["id"]]
        return limit.spent_pico if limit.spent_before >= hour else None

    spent = 3 * PICO if is_used else None
    assert told(amount="10", period="month", **PROJECT) == spent, "it is new"
    assert follow(api, api.context.now()) == 1, "its lease is still to be opened"
    assert follow(api, api.context.now()) == 0
    assert told(amount="11", period="month", **PROJECT) == (spent or 0), "it is set again"

    is_of_day = hour - HOUR_NS >= day_of(hour)
    assert told(amount="11", period="day", **PROJECT) == (spent if is_of_day else None)
    follow(api, api.context.now())
    assert told(amount="12", period="month", **PROJECT) == spent


def test_who_sets_a_budget_of_its_own_project_has_it_summed_too(api: Api) -> None:  # noqa: F811
    api.make("prices", SHEET)
    owner, now = api.tenant("acme"), api.context.now()
    project = api.make("projects", {"name": "p"}, key=owner)
    event = replace(
        a_usage_event(uuid7(now, 1)), received_at=month_of(now - 300_000_000_000).begin,
        org_id=OrgId(project["org_id"]), project_id=ProjectId(project["id"]),
        tokens=Tokens(input_uncached=0, output=5_000_000, source="engine"),
    )
    api.context.book.book_usage([event], now=now)
    body = {"kind": "budget", "amount": "10", "project_id": project["id"]}
    for _ in range(2):
        status, made = api.call("PUT", "limits", body, key=owner)
        is_used = hour_of(now - 300_000_000_000) > event.received_at
        assert (status, made["spent"]) == (200, "3.00" if is_used else None)


def test_a_budget_of_a_project_is_leased_in_the_ledger(api: Api) -> None:  # noqa: F811
    api.make("prices", SHEET)
    registry, day = api.context.registry, day_of(api.context.now())
    made = put(api, kind="budget", amount="10", period="month", **PROJECT)
    limit = registry.limits.limit(EVERY_TENANT, LimitId(made["id"]))

    def at(kind: Any) -> int:
        account = Account(kind=kind, org_id=OrgId("default"), project_id=ProjectId("default"))
        found = registry.ledger.balances(
            EVERY_TENANT, org_id=OrgId("default"), project_id=ProjectId("default")
        )
        return found.get((account, "EUR"), 0)

    follow(api, day + HOUR_NS)
    assert (at("held"), at("credit"), at("owed")) == (10 * PICO, -10 * PICO, 0)
    use(api, 1, day + 2 * HOUR_NS, output=5_000_000)  # 3.00
    follow(api, day + 3 * HOUR_NS)
    assert at("held") == 10 * PICO, "the lease of a day is opened once"

    next_day = day + DAY_NS + 400_000_000_000
    follow(api, next_day)
    spent = 3 * PICO
    is_new_month = registry.limits.spent(limit, since=day, before=day + DAY_NS) != spent
    assert not is_new_month
    assert at("owed") == spent, "settled with what was spent"
    assert at("credit") + at("held") == -spent
    assert at("held") in (7 * PICO, 10 * PICO), "what is left, or all of a new month's"
    follow(api, next_day + HOUR_NS)
    assert at("owed") == spent, "and settled once"

    registry.limits.remove(EVERY_TENANT, limit.id)
    registry.ledger.expire_holds(now=day + 5 * DAY_NS)
    assert (at("held"), at("credit")) == (0, -spent)
    assert lease_id(limit, day) != lease_id(limit, day + DAY_NS)


def test_leases_of_an_outage_of_days_are_settled_after_it(api: Api) -> None:  # noqa: F811
    api.make("prices", SHEET)
    ledger, day = api.context.registry.ledger, day_of(api.context.now())
    put(api, kind="budget", amount="10", period="day", **PROJECT)
    follow(api, day + HOUR_NS)
    use(api, 1, day + 2 * HOUR_NS, output=5_000_000)  # 3.00
    after = day + 4 * DAY_NS + HOUR_NS
    ledger.expire_holds(now=after)
    follow(api, after)
    found = ledger.balances(EVERY_TENANT, org_id=OrgId("default"), project_id=None)
    assert {of.kind: amount for (of, _), amount in found.items()} == {
        "owed": 3 * PICO, "credit": -13 * PICO, "held": 10 * PICO,
    }


def test_no_money_is_set_aside_for_a_closed_project(api: Api) -> None:  # noqa: F811
    api.make("prices", SHEET)
    ledger, day = api.context.registry.ledger, day_of(api.context.now())
    for name in ("app", "other"):
        project = api.make("projects", {"name": name, "org_id": "default"})["id"]
        put(api, kind="budget", amount="10", period="day", project_id=project)

    def held() -> list[int]:
        found = ledger.balances(EVERY_TENANT, org_id=OrgId("default"), project_id=None)
        return sorted(
            amount // PICO for (account, _), amount in found.items() if account.kind == "held"
        )

    follow(api, day + HOUR_NS)
    assert held() == [10, 10]
    assert api.call("POST", f"projects/{project}/close")[0] == 200
    follow(api, day + DAY_NS + HOUR_NS)
    assert held() == [10], "what it held was given back, and no more is set aside"
    assert api.call("POST", f"projects/{project}/reopen")[0] == 200
    follow(api, day + DAY_NS + 2 * HOUR_NS)
    assert held() == [10, 10]
    assert api.call("POST", "organisations/default/close")[0] == 200
    follow(api, day + 2 * DAY_NS + HOUR_NS)
    assert held() == []


def test_a_sum_of_a_limit_that_is_gone_is_no_matter(api: Api) -> None:  # noqa: F811
    gone = Limit(
        id=LimitId("gone"), org_id=OrgId("default"), kind="budget", amount=1, created_at=0,
        period="day", currency="EUR",
    )
    registry = api.context.registry
    registry.limits.note_spent(gone, before=hour_of(5), spent_pico=1, now=5)
    assert registry.limits.unsummed(before=1 << 60) == []


def test_a_budget_that_cannot_be_summed_keeps_no_other_from_it(api: Api) -> None:  # noqa: F811
    api.make("prices", SHEET)
    registry, day = api.context.registry, day_of(api.context.now())
    other = api.make("projects", {"name": "other", "org_id": "default"})["id"]
    of_all, of_other = (
        put(api, kind="budget", amount="10", **whose)
        for whose in (PROJECT, {"project_id": other})
    )
    use(api, 1, day, output=10)
    (kept,) = registry.prices.sheets(EVERY_TENANT)
    dear = replace(kept.sheet.prices[0], charge=PerUnit(price_pico=LARGEST))
    registry.prices.add_sheet(
        EVERY_TENANT, replace(kept, sheet=replace(
            kept.sheet, prices=(dear,), valid_from=month_of(api.context.now()).begin,
        )), once=None,
    )
    follow(api, day + HOUR_NS + 600_000_000_000)
    before = [
        registry.limits.limit(EVERY_TENANT, LimitId(each["id"])).spent_before
        for each in (of_all, of_other)
    ]
    assert before == [0, day + HOUR_NS]


def test_a_budget_of_an_organisation_whose_projects_come_to_too_much_together(
    api: Api,  # noqa: F811
) -> None:
    """Each of them fits in the book; control ended at their sum."""
    registry, day = api.context.registry, day_of(api.context.now())
    other = api.make("projects", {"name": "other", "org_id": "default"})["id"]
    api.make("prices", SHEET)
    (kept,) = registry.prices.sheets(EVERY_TENANT)
    dear = replace(kept.sheet.prices[0], charge=PerUnit(price_pico=LARGEST))
    registry.prices.add_sheet(
        EVERY_TENANT, replace(kept, sheet=replace(
            kept.sheet, prices=(dear,), valid_from=month_of(api.context.now()).begin,
        )), once=None,
    )
    made = put(api, kind="budget", amount="10", period="month", org_id="default")
    use(api, 1, day, output=1)
    use(api, 2, day, output=1, project=other)
    follow(api, day + HOUR_NS + 600_000_000_000)
    limit = registry.limits.limit(EVERY_TENANT, LimitId(made["id"]))
    assert limit.spent_before == 0, "it is not summed"
    assert len(api.call("GET", "ledger/spent")[1]["items"]) == 2


def test_a_budget_counts_usage_and_its_fees_and_no_bounds_of_a_month(
    api: Api,  # noqa: F811
) -> None:
    """The fee on a price that has a maximum was left out, though gateways count it."""
    output, inputs = SHEET["prices"]
    api.make("prices", {
        **SHEET, "prices": [{**output, "least": "100", "most": "1000"}, inputs],
        "fees": [{"name": "service", "basis_points": 1000}],
        "recurring": [{"name": "support", "amount": "300"}],
    })
    day = day_of(api.context.now())
    made = put(api, kind="budget", amount="10", period="day", **PROJECT)
    use(api, 1, day, output=1_000_000)
    follow(api, day + HOUR_NS + 600_000_000_000)
    assert api.call("GET", f"limits/{made['id']}")[1]["spent"] == "0.66"


def test_a_rotated_key_has_left_what_its_former_had(api: Api) -> None:  # noqa: F811
    """Whoever rotated a key had its budget of the month once more."""
    api.make("prices", SHEET)
    day = day_of(api.context.now())
    former = api.make("keys", {})["id"]
    put(api, kind="budget", amount="10", period="day", key_id=former)
    use(api, 1, day, output=1_000_000, key=former)
    follow(api, day + HOUR_NS + 600_000_000_000)
    present = api.make(f"keys/{former}/rotate", {})["id"]

    def spent() -> dict[str, str]:
        return {
            each["key_id"]: each["spent"] for each in api.call("GET", "limits")[1]["items"]
        }

    assert spent() == {former: "0.60", present: "0.60"}, "before anybody sums it"
    use(api, 2, day + HOUR_NS, output=500_000, key=former)
    use(api, 3, day + HOUR_NS, output=2_000_000, key=present)
    follow(api, day + 2 * HOUR_NS + 600_000_000_000)
    assert spent() == {former: "0.90", present: "2.10"}


def test_a_rotated_key_keeps_its_limits(api: Api) -> None:  # noqa: F811
    old = api.make("keys", {})
    for kind, amount in (("requests_per_min", "7"), ("tokens_per_min", "900")):
        body = {"kind": kind, "amount": amount, "key_id": old["id"]}
        assert api.call("PUT", "limits", body)[0] == 200
    rotated = api.call("POST", f"keys/{old['id']}/rotate", {}, once="r")[1]
    assert api.call("POST", f"keys/{old['id']}/rotate", {}, once="r")[1] == rotated
    limits = api.call("GET", "limits")[1]["items"]
    assert len({each["id"] for each in limits}) == 4
    for key in (old, rotated):
        mine = {each["kind"]: each["amount"] for each in limits if each["key_id"] == key["id"]}
        assert mine == {"requests_per_min": "7", "tokens_per_min": "900"}
    changed = {"kind": "requests_per_min", "amount": "5", "key_id": rotated["id"]}
    assert api.call("PUT", "limits", changed)[1]["amount"] == "5"
    again = api.make(f"keys/{rotated['id']}/rotate", {})
    limits = api.call("GET", "limits")[1]["items"]
    passed_on = sorted(each["amount"] for each in limits if each["key_id"] == again["id"])
    assert passed_on == ["5", "900"]

"""The example of docs/entitlements.md, and which entitlement a request uses."""

from dataclasses import replace

import pytest

from isochrone.core.admission.allowance import Allowance
from isochrone.core.admission.entitlement import (
    allowed_sites,
    check_entitlement,
    divide_sold,
    entitlements_for,
    in_force,
)
from isochrone.core.admission.loans import BorrowedSlice, LentSlice
from isochrone.core.admission.stewards import TERM_NS
from isochrone.core.ids import EntitlementId, OrgId, ProjectId, SiteName
from isochrone.core.world.entitlement import Entitlement, Slice
from tests.builders import MODEL, SECOND_NS, a_site, some_blocs

FRANKFURT, PARIS = SiteName("frankfurt"), SiteName("paris")


def an_entitlement(entitlement_id: str = "e", **changes: object) -> Entitlement:
    plain = Entitlement(
        id=EntitlementId(entitlement_id), org_id=OrgId("org"), project_id=None, model=MODEL,
        class_="reserved", tok_s=1_000, residency=("EU",), starts_at=100, ends_at=200, slices=(),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_worked_example() -> None:
    """1,000 tokens/s for the EU; Frankfurt has 16 slots, Paris 8, Sydney none of it."""
    sites = [a_site("sydney", "AU"), a_site("frankfurt", "DE"), a_site("paris", "FR")]
    assert allowed_sites(("EU",), sites, some_blocs()) == [FRANKFURT, PARIS]
    slices = divide_sold(1_000, {FRANKFURT: 16, PARIS: 8})
    assert slices == (Slice(site=FRANKFURT, tok_s=667), Slice(site=PARIS, tok_s=333))

    # Paris is asked for 500 and wants 600; Frankfurt for 200 and keeps 240.
    at_home = LentSlice(667)
    borrowed = BorrowedSlice(EntitlementId("e"), FRANKFURT, PARIS, life=7)
    ask = borrowed.ask(1, 600 - 333, 0)
    loan = at_home.hear(ask, 240, TERM_NS, 20_000_000)
    assert loan is not None
    assert (loan.tok_s, loan.for_ns, loan.spare_tok_s) == (267, 5 * SECOND_NS, 160)
    assert at_home.own_tok_s(20_000_000) == 400, "given away before the answer is sent"
    borrowed.hear(loan)
    assert 333 + borrowed.tok_s(60_000_000) + at_home.own_tok_s(60_000_000) == 1_000

    # Now Frankfurt needs all of its own: it renews nothing, and has all of it after the loan.
    renewed = at_home.hear(borrowed.ask(2, 267, SECOND_NS), 667, TERM_NS, SECOND_NS)
    assert renewed is not None
    assert renewed.tok_s == 0
    assert at_home.own_tok_s(SECOND_NS) == 400, "the loan that Paris may still use is counted"
    assert borrowed.tok_s(4_989_999_999) == 267
    assert borrowed.tok_s(4_990_000_000) == 0, "a part in 500 sooner than Frankfurt has it back"
    assert at_home.own_tok_s(5_020_000_000) == 667


def test_an_allowance_fills_at_its_slice_and_holds_five_seconds_of_it() -> None:
    allowance = Allowance(0)
    allowance.set_slice(100, 60 * SECOND_NS, 0)
    assert not allowance.spend(1, 0)
    assert allowance.wait_ns(50, 0) == SECOND_NS // 2
    assert allowance.left(60 * SECOND_NS - 1) == 500
    assert allowance.spend(500, 60 * SECOND_NS - 1)
    assert allowance.left(61 * SECOND_NS) == 0, "the slice held until a minute had passed"


def test_a_debt_is_paid_before_more_is_given() -> None:
    allowance = Allowance(0)
    allowance.set_slice(100, 1 << 62, 0)
    assert allowance.spend(100, SECOND_NS)
    allowance.settle(100, 300, SECOND_NS)
    assert allowance.wait_ns(100, SECOND_NS) == 3 * SECOND_NS
    assert not allowance.spend(1, 2 * SECOND_NS)
    assert allowance.spend(100, 4 * SECOND_NS)


def test_what_a_smaller_slice_cannot_hold_is_lost() -> None:
    allowance = Allowance(0)
    allowance.set_slice(100, 1 << 62, 0)
    assert allowance.left(10 * SECOND_NS) == 500
    allowance.set_slice(10, 1 << 62, 10 * SECOND_NS)
    assert allowance.left(10 * SECOND_NS) == 50


def test_a_request_uses_what_is_its_projects_own_and_ends_soonest() -> None:
    own = an_entitlement("own", project_id=ProjectId("p"))
    sooner = an_entitlement("sooner", ends_at=150)
    later = an_entitlement("later")
    strange = [
        an_entitlement("other project", project_id=ProjectId("q")),
        an_entitlement("other organisation", org_id=OrgId("other")),
        an_entitlement("other class", class_="on_demand"),
        an_entitlement("not yet", starts_at=121),
        an_entitlement("over", ends_at=120),
    ]
    found = entitlements_for(
        [*strange, later, sooner, own], org_id=OrgId("org"), project_id=ProjectId("p"),
        model=MODEL, class_="reserved", now=120,
    )
    assert found == [own, sooner, later]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tok_s": 0}, "tok_s: 0"),
        ({"residency": ("XX",)}, "residency: 'XX'"),
        ({"class_": "batch"}, "class: batch"),
        ({"ends_at": 100}, "ends_at: it is before the start"),
        ({"ends_at": 50, "starts_at": 10}, "ends_at: it is before the start, or has passed"),
        ({"ends_at": 400_000_000 * SECOND_NS}, "ends_at: the window is longer"),
    ],
)
def test_what_cannot_be_sold_is_named(changes: dict[str, object], problem: str) -> None:
    assert check_entitlement(an_entitlement(), some_blocs(), now=60) == []
    problems = check_entitlement(an_entitlement("e", **changes), some_blocs(), now=60)
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_what_is_in_force_at_a_site_is_summed_by_model_and_ends_with_its_slice() -> None:
    parts = []
    for name, class_, tok_s, until_ns in (
        ("a", "reserved", 300, 20), ("b", "reserved", 40, 10), ("c", "on_demand", 700, 20),
        ("d", "reserved", 0, 20),
    ):
        allowance = Allowance(0)
        allowance.set_slice(tok_s, until_ns, 0)
        parts.append((an_entitlement(name, class_=class_), allowance))
    assert [in_force(parts, now_ns) for now_ns in (0, 9, 10, 20)] == [
        {MODEL: 340}, {MODEL: 340}, {MODEL: 300}, {},
    ]

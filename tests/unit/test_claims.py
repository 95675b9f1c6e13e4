"""What a request takes of what was sold where several entitlements, or a cashier, could pay."""

from dataclasses import replace

import pytest

from isochrone.core.admission.cashier import Paid, Pay
from isochrone.core.admission.commitments import Commitments
from isochrone.core.admission.payments import MOST_LATE, PAY_NS, Payment
from isochrone.core.ids import EntitlementId, OrgId, SiteName
from isochrone.core.metering.event import Tokens
from isochrone.core.rng import stream
from isochrone.core.world.entitlement import Voters
from isochrone.gateway.entitled import Claim, Served, Sold
from isochrone.gateway.request import parse_request
from tests.fixtures.sold_cloud import WALL, an_entitlement

OSLO, ROME = SiteName("oslo"), SiteName("rome")
REQUEST = parse_request(
    "chat.completions",
    b'{"model":"tiny","max_tokens":8,"messages":[{"role":"user","content":"hello"}]}',
)
DAY_NS = 86_400 * 10**9


class Everywhere(Served):
    """It counts at every site."""

    def __init__(self) -> None:
        pass

    def admits(self, site: SiteName) -> bool:
        return True


class Rome:
    """Rome has nothing at home; Oslo has, and is the cashier."""

    def __init__(self, **windows: tuple[int, int]) -> None:
        self.commitments = Commitments(ROME, 7, 0)
        self.commitments.set_voters(Voters(sites=(OSLO,)))
        self.options = []
        for name, (starts_at, ends_at) in windows.items():
            noun = replace(
                an_entitlement({"oslo": 100}), id=EntitlementId(name), org_id=OrgId("org"),
                starts_at=starts_at, ends_at=ends_at,
            )
            self.commitments.take(noun, 0)
            purse = self.commitments.purse(noun.id)
            assert purse is not None
            self.options.append(Sold(noun, purse.allowance, Everywhere(), purse))
        self.commitments.tick(1, WALL, stream(1, "claims"))

    def claim(self) -> Claim:
        claim = Claim(tuple(self.options), "reserved", REQUEST, "")
        assert claim.at(ROME, 2, another=False) == "on_demand"
        return claim

    def ask(self, claim: Claim) -> Payment:
        payment = claim.ask(2)
        assert payment is not None
        return payment

    def answer(self, payment: Payment, *, paid: bool) -> None:
        self.commitments.hear(OSLO, Paid(
            entitlement=payment.purse.id, payer=ROME, life=7, number=payment.number, paid=paid,
            has_tok_s=100,
        ), 3, WALL)


NOW = (0, 2 * WALL)
LATER = (WALL + DAY_NS, 3 * WALL)
BEFORE = (0, WALL - DAY_NS)


def test_the_cashier_is_asked_for_what_is_in_force_and_not_for_what_begins_later() -> None:
    rome = Rome(this_month=NOW, next_month=LATER)
    assert rome.ask(rome.claim()).purse.id == "this_month"


@pytest.mark.parametrize("window", [BEFORE, LATER])
def test_what_is_not_in_force_is_as_if_it_were_not_sold(window: tuple[int, int]) -> None:
    rome = Rome(sold=window)
    claim = rome.claim()
    assert claim.ask(2) is None, "a cashier that has nothing of it is as good as any"
    assert claim.unpaid_because == "nothing_sold"


def test_why_nothing_paid_is_told_as_it_was() -> None:
    rome = Rome(sold=NOW)
    not_asked = rome.claim()
    refused, silent, late, overtaken = (rome.claim() for _ in range(4))
    payments = [rome.ask(each) for each in (refused, silent, late, overtaken)]
    rome.answer(payments[0], paid=False)
    refused.give_up(4)
    rome.answer(payments[2], paid=True)
    late.give_up(4, late=True)
    overtaken.settle(Tokens(input_uncached=5, output=8), 5)
    rome.commitments.tick(2 * PAY_NS, WALL, stream(1, "claims"))
    assert payments[1].state == "silent"
    silent.give_up(2 * PAY_NS)
    assert [
        each.unpaid_because for each in (not_asked, refused, silent, late, overtaken)
    ] == ["spent", "spent_at_cashier", "cashier_late", "cashier_late", "cashier_late"]


def test_why_nothing_paid_is_of_the_last_site() -> None:
    rome = Rome(sold=NOW)
    claim = rome.claim()
    rome.answer(rome.ask(claim), paid=False)
    claim.give_up(4)
    claim.at(SiteName("bern"), 5, another=False)
    assert claim.unpaid_because == "spent"


def test_a_stream_whose_client_was_told_on_demand_stays_so_where_it_goes_on() -> None:
    rome = Rome(sold=NOW)
    claim = rome.claim()
    (sold,) = rome.options
    sold.allowance.set_slice(100, 1 << 62, 0)
    assert sold.allowance.left(10**10) == 500
    assert claim.at(SiteName("bern"), 10**10, another=True, begun=Tokens()) == "on_demand"
    assert not claim.unpaid
    assert sold.allowance.left(10**10) == 500
    assert claim.at(SiteName("bern"), 10**10, another=True) == "reserved", "of one that is retried"


def test_the_part_of_a_stream_that_another_site_has_paid_for_is_not_paid_for_again() -> None:
    rome = Rome(sold=NOW)
    (sold,) = rome.options
    claim = Claim(tuple(rome.options), "reserved", REQUEST, "")
    assert claim.at(OSLO, 2, another=True) == "on_demand"
    assert claim.unpaid
    assert claim.answered("reserved") == "reserved"
    sold.allowance.set_slice(100, 1 << 62, 0)
    now_ns = 10**10
    assert sold.allowance.left(now_ns) == 500
    first = Tokens(input_uncached=5, output=3, source="engine")
    assert claim.at(ROME, now_ns, another=False, begun=first) == "reserved"
    claim.settle(Tokens(input_uncached=5, output=8, source="engine"), now_ns)
    assert sold.allowance.left(now_ns) == 500 - 2 * (8 - 3)
    assert (sold.honoured, sold.used_tokens) == (0, 10), "Oslo has counted it"


def test_a_cashier_is_asked_for_no_more_than_all_may_have_saved_up() -> None:
    cashier = Commitments(OSLO, 7, 0)
    noun = an_entitlement({"oslo": 100})
    cashier.take(noun, 0)
    for number, tokens in enumerate((501, 1 << 63)):
        (letter,) = cashier.hear(ROME, Pay(
            entitlement=noun.id, payer=ROME, life=1, number=number, tokens=tokens, counts=True,
        ), 1, WALL)
        assert isinstance(letter.message, Paid)
        assert not letter.message.paid
    allowance = cashier.allowance(noun.id)
    assert allowance is not None
    assert allowance.is_idle, "nothing is borrowed for it"


def test_cashiers_are_asked_in_the_order_in_which_entitlements_are_used() -> None:
    """Only the last one's was: of what is used before it, thin demand got nothing."""
    rome = Rome(own=NOW, shared=NOW)
    claim = rome.claim()
    first = rome.ask(claim)
    assert first.purse.id == "own"
    rome.answer(first, paid=False)
    claim.give_up(4)
    second = rome.ask(claim)
    assert second.purse.id == "shared"
    rome.answer(second, paid=True)
    assert claim.paid() == "reserved"
    claim.settle(Tokens(input_uncached=5, output=8), 5)
    assert [each.honoured for each in rome.options] == [0, 1]
    assert claim.ask(6) is None


def test_what_the_first_cashier_pays_is_asked_of_no_other() -> None:
    rome = Rome(own=NOW, shared=NOW)
    claim = rome.claim()
    rome.answer(rome.ask(claim), paid=True)
    claim.paid()
    claim.settle(Tokens(input_uncached=5, output=8), 5)
    assert [each.honoured for each in rome.options] == [1, 0]
    assert claim.ask(6) is None


def test_another_cashier_is_not_asked_when_the_time_for_a_payment_is_over() -> None:
    rome = Rome(own=NOW, shared=NOW)
    claim = rome.claim()
    rome.answer(rome.ask(claim), paid=False)
    claim.give_up(PAY_NS)
    assert claim.ask(PAY_NS + 3) is None
    assert claim.unpaid_because == "spent_at_cashier"


def test_a_cashier_that_was_asked_second_is_not_too_far_for_being_late() -> None:
    rome = Rome(own=NOW, shared=NOW)
    for number in range(MOST_LATE + 1):
        claim = rome.claim()
        first = rome.ask(claim)
        rome.answer(first, paid=False)
        claim.give_up(4)
        payment = claim.ask(4 + number)
        assert payment is not None
        assert payment.purse.id == "shared"
        claim.settle(Tokens(input_uncached=5, output=8), 5)
        first.purse.refused(0, -PAY_NS)  # and may be asked again at once

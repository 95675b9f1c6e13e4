"""How a site asks cashiers to pay, and what it makes of their answers."""

from dataclasses import replace

import pytest

from isochrone.core.admission.allowance import Allowance
from isochrone.core.admission.cashier import (
    KEPT_NS,
    MOST_KEPT,
    REFUSED_NS,
    Back,
    Paid,
    Pay,
    Till,
)
from isochrone.core.admission.payments import (
    BROKE_NS,
    MOST_ASKED,
    MOST_LATE,
    PASSED_BY_NS,
    PAY_NS,
    POOR_NS,
    TOO_FAR_NS,
    Payment,
    Payments,
    Purse,
)
from isochrone.core.ids import SiteName
from tests.fixtures.sold_cloud import an_entitlement

SECOND_NS = 1_000_000_000
ROME, OSLO, BERN = SiteName("rome"), SiteName("oslo"), SiteName("bern")


class Payer:
    """Rome, whose cashier is Oslo, and then Bern."""

    def __init__(self) -> None:
        self.payments = Payments(ROME, 7)
        self.purse = Purse(an_entitlement({"oslo": 100}), Allowance(0), self.payments)
        self.purse.ranked = (OSLO, BERN, ROME)

    def ask(self, now_ns: int, tokens: int = 30, *, counts: bool = False) -> Payment:
        payment = self.purse.ask(tokens, counts, now_ns)
        assert payment is not None
        return payment

    def due(self) -> list[tuple[SiteName, Pay]]:
        due, self.payments.due = self.payments.due, []
        return due

    def answer(self, payment: Payment, paid: bool, now_ns: int, *, has_tok_s: int = 100) -> None:
        self.payments.hear(payment.cashier, Paid(
            entitlement=self.purse.id, payer=ROME, life=7, number=payment.number, paid=paid,
            has_tok_s=has_tok_s,
        ), now_ns)

    def backs(self, now_ns: int) -> list[tuple[SiteName, int, int, bool]]:
        return [
            (to, back.number, back.tokens, back.honoured)
            for to, back in self.payments.tick(now_ns)
        ]


def test_an_answer_counts_once_in_time_from_whom_it_was_asked_of() -> None:
    payer = Payer()
    payment = payer.ask(0)
    ((to, pay),) = payer.due()
    assert (to, pay.tokens, pay.counts, pay.number) == (OSLO, 30, True, payment.number)
    good = Paid(
        entitlement=pay.entitlement, payer=ROME, life=7, number=pay.number, paid=True, has_tok_s=1
    )
    payer.payments.hear(BERN, good, PAY_NS)
    payer.payments.hear(OSLO, replace(good, life=6), PAY_NS)
    assert payer.payments.decided == []
    payer.payments.hear(OSLO, good, PAY_NS)
    payer.payments.hear(OSLO, good, PAY_NS)
    assert payer.payments.decided == [payment]
    assert payment.state == "paid"
    assert payer.backs(2 * PAY_NS) == []
    payer.purse.settle(payment, 30)
    assert payer.backs(2 * PAY_NS) == [], "it has used what it was paid for"


@pytest.mark.parametrize("ticks", [False, True])
def test_one_that_comes_too_late_is_given_back(ticks: bool) -> None:
    payer = Payer()
    payment = payer.ask(0)
    if ticks:
        assert payer.backs(PAY_NS + 1) == []
        assert payment.state == "silent"
    payer.answer(payment, True, PAY_NS + 1)
    payer.answer(payment, True, PAY_NS + 1)
    assert payment.state == "silent"
    assert payer.payments.decided == [payment]
    assert payer.backs(PAY_NS + 1) == [(OSLO, payment.number, 30, False)]
    assert payer.backs(PAY_NS + 1) == []


def test_one_whose_request_is_over_is_given_back() -> None:
    payer = Payer()
    early, late = payer.ask(0), payer.ask(0)
    payer.purse.give_up(early, 1, late=False)
    payer.answer(early, True, 2)
    payer.answer(late, True, 2)
    payer.purse.give_up(late, 3, late=True)
    assert payer.payments.decided == [late]
    assert [each[1:] for each in payer.backs(4)] == [
        (early.number, 30, False), (late.number, 30, False)
    ]


def test_what_is_used_beyond_a_payment_is_paid_for_with_the_next() -> None:
    payer = Payer()
    payment = payer.ask(0)
    payer.answer(payment, True, 1)
    payer.purse.settle(payment, 75)
    assert payer.purse.owed == 45
    payer.due()
    lost = payer.ask(2)
    assert [pay.tokens for _, pay in payer.due()] == [75]
    assert payer.purse.owed == 0
    payer.backs(2 * PAY_NS)
    assert lost.state == "silent"
    assert payer.purse.owed == 45, "it was not paid"
    payer.ask(2 * PAY_NS, 455)
    assert [pay.tokens for _, pay in payer.due()] == [500], "all that may have been saved up"
    assert payer.purse.owed == 0


def test_what_is_owed_beyond_what_can_be_paid_with_a_request_is_paid_before_any() -> None:
    """Else requests larger than all that sites may have saved up would never be paid in full."""
    payer = Payer()
    payment = payer.ask(0, 480)
    payer.answer(payment, True, 1)
    payer.purse.settle(payment, 1_120)
    payer.due()
    owed = []
    for number in range(2):
        assert payer.purse.ask(480, False, 2 + number) is None
        ((_, pay),) = payer.due()
        owed.append((pay.tokens, payer.purse.owed))
        payer.payments.hear(OSLO, Paid(
            entitlement=pay.entitlement, payer=ROME, life=7, number=pay.number, paid=True,
            has_tok_s=100,
        ), 2 + number)
    assert owed == [(480, 160), (160, 0)]
    assert payer.ask(4, 480).tokens == 480
    assert payer.backs(5) == []


def test_what_is_owed_and_refused_is_still_owed_and_not_asked_for_at_once() -> None:
    payer = Payer()
    payment = payer.ask(0, 480)
    payer.answer(payment, True, 1)
    payer.purse.settle(payment, 1_120)
    payer.due()
    assert payer.purse.ask(480, False, 2) is None
    ((_, pay),) = payer.due()
    payer.payments.hear(OSLO, Paid(
        entitlement=pay.entitlement, payer=ROME, life=7, number=pay.number, paid=False,
        has_tok_s=100,
    ), 3)
    assert (payer.purse.owed, payer.purse.asked) == (640, 0)
    assert payer.purse.ask(480, False, 4) is None
    assert payer.due() == []


def test_what_is_not_used_comes_back() -> None:
    payer = Payer()
    payment = payer.ask(0)
    payer.answer(payment, True, 1)
    payer.purse.settle(payment, 10)
    assert payer.backs(2) == [(OSLO, payment.number, 20, True)]


def test_who_leaves_gives_back_what_nobody_will_know_to_be_paid() -> None:
    payer, cashier, till = Payer(), Allowance(0), Till()
    cashier.set_slice(100, 1 << 62, 0)
    settled, open_, over, refused = (payer.ask(0) for _ in range(4))
    full_ns = 5 * SECOND_NS
    answers = [till.hear(pay, cashier, full_ns) for _, pay in payer.due()]
    assert all(each.paid for each in answers)
    payer.answer(settled, True, 1)
    payer.answer(refused, False, 1)
    payer.purse.settle(settled, 10)
    payer.purse.give_up(over, 1, late=False)
    backs = [back for _, back in payer.payments.leave()]
    assert [(each.number, each.tokens, each.honoured) for each in backs] == [
        (settled.number, 20, True), (open_.number, 30, False), (over.number, 30, False),
    ]
    assert payer.payments.leave() == []
    assert not payer.payments.has_to_tell
    payer.payments.decided.clear()
    payer.answer(open_, True, 2)
    assert (open_.state, payer.payments.decided) == ("over", []), "it pays for nothing any more"
    level = cashier.left(full_ns)
    for back in (*backs, *backs):
        till.take_back(back, cashier, full_ns)
    assert cashier.left(full_ns) == level + 20 + 30 + 30


def test_who_leaves_tells_nothing_of_a_cashier_that_it_asked_for_no_tokens() -> None:
    payer = Payer()
    payer.ask(0)
    payer.backs(2 * PAY_NS)  # it is silent, and later asked for nothing, to find out
    payer.due()
    payer.ask(2 * PAY_NS + PASSED_BY_NS)
    assert 0 in [pay.tokens for _, pay in payer.due()]
    assert 0 not in [back.tokens for _, back in payer.payments.leave()]


def test_what_a_cashier_has_refused_it_is_not_asked_for_again_at_once() -> None:
    payer = Payer()
    payer.answer(payer.ask(0), False, 1)
    assert payer.purse.ask(30, False, 2) is None
    assert payer.ask(2, 29).cashier == OSLO
    assert payer.ask(BROKE_NS + 1).cashier == OSLO


def test_so_many_are_asked_for_at_a_time() -> None:
    payer = Payer()
    payments = [payer.ask(0) for _ in range(MOST_ASKED)]
    assert payer.purse.ask(30, False, 0) is None
    payer.answer(payments[0], True, 1)
    payer.purse.give_up(payments[1], 1, late=False)
    payer.answer(payments[2], False, 1)
    for _ in range(3):
        payer.ask(1, 29)
    assert payer.purse.ask(29, False, 1) is None


def test_a_silent_cashier_is_passed_by_until_it_answers_to_nothing() -> None:
    payer = Payer()
    payer.ask(0)
    payer.backs(PAY_NS + 1)
    successor = payer.ask(2 * PAY_NS)
    assert successor.cashier == BERN
    payer.answer(successor, True, 2 * PAY_NS)
    payer.due()
    now_ns = PAY_NS + 1 + PASSED_BY_NS
    payer.answer(payer.ask(now_ns), True, now_ns)
    assert [(to, pay.tokens) for to, pay in payer.due()] == [(OSLO, 0), (BERN, 30)]
    payer.answer(payer.ask(now_ns), True, now_ns)
    assert [(to, pay.tokens) for to, pay in payer.due()] == [(BERN, 30)], "one probe at a time"
    payer.backs(now_ns + 2 * PAY_NS)
    now_ns += 2 * PAY_NS + PASSED_BY_NS
    payer.answer(payer.ask(now_ns), True, now_ns)
    assert [to for to, _ in payer.due()] == [BERN], "twice as long after the second time"
    now_ns += PASSED_BY_NS
    payer.answer(payer.ask(now_ns), True, now_ns)
    ((to, probe), _) = payer.due()
    assert (to, probe.tokens) == (OSLO, 0)
    payer.payments.hear(OSLO, Paid(
        entitlement=probe.entitlement, payer=ROME, life=7, number=probe.number, paid=False,
        has_tok_s=0,
    ), now_ns)
    assert payer.ask(now_ns).cashier == OSLO


def test_a_cashier_that_has_nothing_for_long_is_passed_by() -> None:
    payer = Payer()
    payer.answer(payer.ask(0), False, 1, has_tok_s=0)
    payer.answer(payer.ask(POOR_NS), False, POOR_NS, has_tok_s=0)
    payer.answer(payer.ask(2 * POOR_NS), False, 2 * POOR_NS, has_tok_s=0)
    assert payer.ask(3 * POOR_NS).cashier == BERN


def test_a_cashier_that_answers_later_than_the_engines_is_passed_by_for_long() -> None:
    payer = Payer()
    for _ in range(MOST_LATE):
        assert payer.purse.counts(30, 0) is False
        payment = payer.ask(0)
        payer.answer(payment, True, 1)
        payer.purse.give_up(payment, 2, late=True)
    assert payer.ask(3).cashier == BERN
    for _ in range(MOST_LATE):
        payer.purse.give_up(payer.ask(3), 4, late=True)
    assert payer.purse.ask(30, False, 5) is None
    assert payer.purse.counts(30, 5) is True, "so it is demand of this site"
    assert payer.ask(TOO_FAR_NS + 2).cashier == OSLO


def test_one_that_was_too_far_and_is_in_time_again_is_asked_as_before() -> None:
    payer = Payer()
    for _ in range(MOST_LATE):
        payment = payer.ask(0)
        payer.answer(payment, True, 1)
        payer.purse.give_up(payment, 2, late=True)
    now_ns = TOO_FAR_NS + 2
    payment = payer.ask(now_ns)
    assert payment.cashier == OSLO
    payer.answer(payment, True, now_ns + 1)
    payer.purse.settle(payment, 30)
    payer.due()
    assert payer.ask(now_ns + 2).cashier == OSLO
    assert [to for to, _ in payer.due()] == [OSLO], "and nobody else is"


def test_a_dead_cashier_is_passed_by_though_what_it_paid_for_ends_well() -> None:
    payer = Payer()
    payment = payer.ask(0)
    payer.answer(payment, True, 1)
    payer.ask(2)
    payer.backs(2 * PAY_NS)
    payer.purse.settle(payment, 30)
    assert payer.ask(2 * PAY_NS).cashier == BERN


def test_what_comes_often_is_demand_of_the_site_and_what_is_large_is_not() -> None:
    payer = Payer()
    counted = [payer.purse.counts(30, number * SECOND_NS // 5) for number in range(100)]
    assert counted[0] is False
    assert counted[70:] == [True] * 30
    assert payer.purse.counts(400, 20 * SECOND_NS) is False
    assert payer.purse.counts(30, 60 * SECOND_NS) is False
    payer.ask(60 * SECOND_NS, counts=True)
    assert payer.due()[0][1].counts is False, "so it is none of the cashier"


def a_pay(number: int, tokens: int = 30, *, counts: bool = True) -> Pay:
    entitlement = an_entitlement({"oslo": 100})
    return Pay(
        entitlement=entitlement.id, payer=ROME, life=1, number=number, tokens=tokens, counts=counts
    )


def a_back(number: int, tokens: int, *, honoured: bool) -> Back:
    entitlement = an_entitlement({"oslo": 100})
    return Back(
        entitlement=entitlement.id, payer=ROME, life=1, number=number, tokens=tokens,
        honoured=honoured,
    )


def test_a_till_pays_once_for_each_number_and_takes_back_once() -> None:
    till, allowance = Till(), Allowance(0)
    allowance.set_slice(100, 1 << 62, 0)
    now_ns = 5 * SECOND_NS
    assert till.hear(a_pay(1, 400), allowance, now_ns).paid
    assert not till.hear(a_pay(2, 400), allowance, now_ns).paid
    assert till.hear(a_pay(1, 400), allowance, now_ns).paid
    assert allowance.left(now_ns) == 100
    till.take_back(a_back(2, 400, honoured=False), allowance, now_ns)
    till.take_back(a_back(3, 400, honoured=False), allowance, now_ns)
    assert allowance.left(now_ns) == 100
    for _ in range(2):
        till.take_back(a_back(1, 900, honoured=False), allowance, now_ns)
    assert allowance.left(now_ns) == 500
    assert not till.hear(a_pay(2, 400), allowance, now_ns).paid, "it was told so"
    assert till.hear(a_pay(4, 400), allowance, now_ns).paid
    for _ in range(2):
        till.take_back(a_back(4, 50, honoured=True), allowance, now_ns)
    assert allowance.left(now_ns) == 150


def test_what_counts_elsewhere_is_no_demand_of_the_cashier() -> None:
    till, allowance = Till(), Allowance(0)
    allowance.set_slice(100, 1 << 62, 0)
    assert till.hear(a_pay(1, counts=False), allowance, SECOND_NS).paid
    assert not till.hear(a_pay(2, 400, counts=False), allowance, SECOND_NS).paid
    till.take_back(a_back(1, 10, honoured=True), allowance, SECOND_NS)
    assert allowance.is_idle
    assert not till.hear(a_pay(3, 400), allowance, SECOND_NS).paid
    assert not allowance.is_idle


def test_payments_that_are_refused_do_not_make_a_till_forget_those_that_it_has_made() -> None:
    """Where more is asked for than was sold, many more are refused than paid."""
    till, allowance = Till(), Allowance(0)
    allowance.set_slice(100, 1 << 62, 0)
    now_ns = 5 * SECOND_NS
    assert till.hear(a_pay(0, 500), allowance, now_ns).paid
    for number in range(1, 2 * MOST_KEPT):
        assert not till.hear(a_pay(number, 500), allowance, now_ns).paid
    till.take_back(a_back(0, 400, honoured=True), allowance, now_ns)
    assert allowance.left(now_ns) == 400
    assert till.hear(a_pay(0, 300), allowance, now_ns).paid, "as it was"
    assert allowance.left(now_ns) == 400


def test_a_till_is_bounded_and_forgets_refusals_soon() -> None:
    till, allowance = Till(), Allowance(0)
    allowance.set_slice(100, 1 << 62, 0)
    now_ns = 5 * SECOND_NS
    assert not till.hear(a_pay(0, 900), allowance, now_ns).paid
    assert not till.hear(a_pay(0, 5), allowance, now_ns + REFUSED_NS).paid, "as it was"
    for number in range(1, 3 * MOST_KEPT):
        till.hear(a_pay(number, 900), allowance, now_ns)
        till.hear(a_pay(-number, 1), allowance, now_ns)
        now_ns += SECOND_NS // 100
    assert len(till) <= 2 * MOST_KEPT
    now_ns += KEPT_NS + 1
    till.hear(a_pay(10**6, 900), allowance, now_ns)
    assert len(till) == 1

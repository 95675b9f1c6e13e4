"""Money moves and is never made; a hold ends with nothing held; what is unwound is gone."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isochrone.core.billing.hold import Event, Hold, Settle, opening, step
from isochrone.core.billing.ledger import (
    Account,
    Entry,
    Posting,
    balances,
    problems_of,
    unwinding,
    verdict,
)
from isochrone.core.ids import OrgId, ProjectId
from isochrone.core.money import PICO

ORG, PROJECT = OrgId("org"), ProjectId("project")
CREDIT, HELD, OWED = (
    Account(kind=kind, org_id=ORG, project_id=PROJECT) for kind in ("credit", "held", "owed")
)
CASH = Account(kind="cash", org_id=ORG)
TOPPED_UP = Posting(
    org_id=ORG, key="top-up", kind="credit", at=0, currency="EUR", about="payment",
    entries=(
        Entry(account=CREDIT, amount_pico=10 * PICO), Entry(account=CASH, amount_pico=-10 * PICO),
    ),
)
HOLD = Hold(
    id="r1", org_id=ORG, project_id=PROJECT, currency="EUR", amount_pico=3 * PICO, opened_at=1,
    expires_at=100,
)
EVENTS = st.lists(
    st.tuples(
        st.one_of(
            st.builds(Settle, used_pico=st.integers(0, 5 * PICO)),
            st.sampled_from(["void", "expire"]),
        ),
        st.integers(1, 200),
    ),
    max_size=6,
)


def at(postings: list[Posting], account: Account) -> int:
    return balances(postings).get((account, "EUR"), 0)


@given(EVENTS)
def test_a_hold_ends_once_and_holds_nothing_then(events: list[tuple[Event, int]]) -> None:
    hold, postings = HOLD, [TOPPED_UP, opening(HOLD)]
    for event, now in sorted(events, key=lambda each: each[1]):
        before = hold
        hold, posting = step(hold, event, now)
        if posting is not None:
            assert problems_of(posting) == []
            postings.append(posting)
        assert sum(balances(postings).values()) == 0
        assert at(postings, HELD) == (HOLD.amount_pico if hold.state == "open" else 0)
        assert at(postings, OWED) == hold.used_pico
        assert at(postings, CREDIT) + at(postings, HELD) + at(postings, OWED) == 10 * PICO
        if before.state in ("settled", "voided"):
            assert hold is before
    keys = [posting.key for posting in postings]
    assert len(keys) == len(set(keys)), "each is posted once, by its own key"
    if any(isinstance(event, Settle) for event, _ in events):
        assert hold.state in ("settled", "voided")


def test_a_settlement_after_the_expiry_still_counts() -> None:
    expired, back = step(HOLD, "expire", 100)
    assert back is not None
    settled, late = step(expired, Settle(used_pico=PICO), 150)
    assert late is not None
    postings = [TOPPED_UP, opening(HOLD), back, late]
    assert (settled.state, at(postings, OWED), at(postings, CREDIT)) == (
        "settled", PICO, 9 * PICO
    )
    assert step(HOLD, "expire", 99) == (HOLD, None)


@pytest.mark.parametrize("changes", [{"amount_pico": 0}, {"amount_pico": -1}, {"expires_at": 1}])
def test_a_hold_is_for_something_and_for_some_time(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="more than nothing"):
        opening(replace(HOLD, **changes))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="less than nothing"):
        step(HOLD, Settle(used_pico=-1), 5)


AMOUNTS = st.integers(-(10**20), 10**20).filter(bool)


@st.composite
def postings(draw: st.DrawFn) -> Posting:
    amounts = draw(st.lists(AMOUNTS, min_size=1, max_size=4))
    rest = -sum(amounts)
    if rest:
        amounts.append(rest)
    accounts = [CREDIT, HELD, OWED, CASH]
    return Posting(
        org_id=ORG, key=draw(st.text(min_size=1, max_size=3)), kind="charge", at=0, currency="EUR",
        about="x",
        entries=tuple(
            Entry(account=draw(st.sampled_from(accounts)), amount_pico=amount)
            for amount in amounts
        ),
    )


@given(st.lists(postings(), max_size=6), st.data())
def test_what_is_unwound_is_gone(made: list[Posting], data: st.DataObject) -> None:
    good = [posting for posting in made if not problems_of(posting)]
    assert sum(balances(good).values()) == 0
    if good:
        wrong = data.draw(st.sampled_from(good))
        undone = unwinding(wrong, key="undo", at=9, about="a mistake")
        assert problems_of(undone) == []
        without = list(good)
        without.remove(wrong)
        assert balances([*good, undone]) == balances(without)
        with pytest.raises(ValueError, match="post anew"):
            unwinding(undone, key="again", at=9, about="x")


def test_every_fault_of_a_posting_is_told() -> None:
    stranger = Account(kind="credit", org_id=OrgId("other"))
    wrong = Posting(
        org_id=ORG, key="", kind="correction", at=0, currency="e", about="x",
        entries=(
            Entry(account=stranger, amount_pico=10**38), Entry(account=CREDIT, amount_pico=0),
        ),
    )
    said = "\n".join(problems_of(wrong))
    for part in (
        "no idempotency key", "'e'", "not to zero", "of nothing", "38 digits", "another tenant",
        "what it unwinds",
    ):
        assert part in said
    assert problems_of(replace(TOPPED_UP, entries=TOPPED_UP.entries[:1]))[0].startswith("it has f")


def test_the_same_key_is_the_same_posting_or_a_conflict() -> None:
    assert verdict(None, TOPPED_UP) == "recorded"
    assert verdict(TOPPED_UP, replace(TOPPED_UP)) == "duplicate"
    assert verdict(TOPPED_UP, replace(TOPPED_UP, at=1)) == "conflict"
